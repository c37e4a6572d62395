//! CLC, STC, CMC, CLD, STD, LAHF, SAHF, SALC; CLAC and STAC.

use iced_x86::{Instruction, Mnemonic};

use crate::cpu::{RAX, cr};
use crate::domain::{Domain, Flags, Flow, Op, W8, helper, helpers};
use crate::flags::{self, bit};
use crate::lower::{Lowered, Shape, end, go};

/// CF: cleared (0), set (1), flipped (2).
fn carry<D: Domain, const WHAT: u8>(d: &mut D, _: &Op) -> Flow {
    let f = d.flags();
    let c = match WHAT {
        0 => d.lit(0),
        1 => d.lit(1),
        _ => {
            let c = flags::cf_value(d, f);
            let one = d.lit(1);
            d.xor(c, one)
        }
    };
    let cv = flags::with_cf(d, f.cv, c);
    d.set_flags(Flags { cv, ..f });
    Ok(())
}

helpers! {
    Cld => |cpu, _| {
        cpu.sysflags &= !bit::DF;
        Ok(())
    },
    Std => |cpu, _| {
        cpu.sysflags |= bit::DF;
        Ok(())
    },
    Lahf => |cpu, _| {
        let low = cpu.rflags() & 0xff;
        let rest = cpu.get(RAX) & !0xff00;
        cpu.put(RAX, rest | (low << 8));
        Ok(())
    },
    Sahf => |cpu, _| {
        let value = cpu.get(RAX) >> 8;
        cpu.set_rflags(value, bit::SF | bit::ZF | bit::AF | bit::PF | bit::CF);
        Ok(())
    },
    Salc => |cpu, _| {
        let c = cpu.flags.cv >> 63;
        cpu.set_reg::<W8>(RAX, c.wrapping_neg());
        Ok(())
    },
    Clac => |cpu, op| alignment_check(cpu, op, 0),
    Stac => |cpu, op| alignment_check(cpu, op, bit::AC),
}

fn alignment_check(cpu: &mut crate::cpu::Cpu, _: &Op, value: u64) -> Flow {
    if cpu.cpl != 0 || !cpu.features.smap || cpu.system.cr0 & cr::CR0_PE == 0 {
        return Err(cpu.ud());
    }
    cpu.set_rflags(value, bit::AC);
    Ok(())
}

pub(crate) fn lower<D: Domain>(i: &Instruction, _: &Shape) -> Option<Lowered<D>> {
    go(match i.mnemonic() {
        Mnemonic::Clc => carry::<D, 0>,
        Mnemonic::Stc => carry::<D, 1>,
        Mnemonic::Cmc => carry::<D, 2>,
        Mnemonic::Cld => helper::<D, Cld>,
        Mnemonic::Std => helper::<D, Std>,
        Mnemonic::Lahf => helper::<D, Lahf>,
        Mnemonic::Sahf => helper::<D, Sahf>,
        Mnemonic::Salc => helper::<D, Salc>,
        Mnemonic::Clac => return end(helper::<D, Clac>),
        Mnemonic::Stac => return end(helper::<D, Stac>),
        _ => return None,
    })
}
