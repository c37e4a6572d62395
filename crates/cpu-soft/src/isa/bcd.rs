//! DAA, DAS, AAA, AAS, AAM, AAD, BOUND: decimal arithmetic and what else 64-bit mode dropped.

use iced_x86::{Instruction, Mnemonic};

use crate::cpu::{RAX, vector};
use crate::domain::{Domain, W8, W16, W32, Width, helper, helpers};
use crate::flags::{self, bit};
use crate::lower::{Lowered, bits_of, go};

helpers! {
    Daa => |cpu, _| decimal(cpu, false),
    Das => |cpu, _| decimal(cpu, true),
    Aaa => |cpu, _| ascii(cpu, false),
    Aas => |cpu, _| ascii(cpu, true),
    Aam => |cpu, op| {
        let al = cpu.reg::<W8>(RAX);
        let by = op.imm & 0xff;
        let (Some(high), Some(low)) = (al.checked_div(by), al.checked_rem(by)) else {
            return Err(cpu.raise(vector::DE, None));
        };
        cpu.set_reg::<W16>(RAX, (high << 8) | low);
        result_flags(cpu, low, 0, 0);
        Ok(())
    },
    Aad => |cpu, op| {
        let ax = cpu.reg::<W16>(RAX);
        let al = ((ax & 0xff) + (ax >> 8) * (op.imm & 0xff)) & 0xff;
        cpu.set_reg::<W16>(RAX, al);
        result_flags(cpu, al, 0, 0);
        Ok(())
    },
    Bound16 => |cpu, op| bound::<W16>(cpu, op),
    Bound32 => |cpu, op| bound::<W32>(cpu, op),
}

use crate::cpu::Cpu;
use crate::domain::{Flow, Op};

/// SF, ZF, PF of `al`; CF and AF as given.
fn result_flags(cpu: &mut Cpu, al: u64, cf: u64, af: u64) {
    let cv = flags::compose(cpu, cf, 0, af << 3);
    cpu.flags = flags::result::<Cpu, W8>(cpu, al, cv);
}

fn decimal(cpu: &mut Cpu, subtract: bool) -> Flow {
    let al = cpu.reg::<W8>(RAX);
    let before = cpu.rflags();
    let mut adjust = 0;
    let (mut cf, mut af) = (0, 0);
    if al & 0xf > 9 || before & bit::AF != 0 {
        adjust |= 6;
        af = 1;
        // A borrow out of the low digit's correction counts as a carry too.
        if subtract && al < 6 {
            cf = 1;
        }
    }
    if al > 0x99 || before & bit::CF != 0 {
        adjust |= 0x60;
        cf = 1;
    }
    let new = if subtract {
        al.wrapping_sub(adjust)
    } else {
        al + adjust
    } & 0xff;
    cpu.set_reg::<W8>(RAX, new);
    result_flags(cpu, new, cf, af);
    Ok(())
}

fn ascii(cpu: &mut Cpu, subtract: bool) -> Flow {
    let ax = cpu.reg::<W16>(RAX);
    let adjust = ax & 0xf > 9 || cpu.rflags() & bit::AF != 0;
    let new = match (adjust, subtract) {
        (false, _) => ax,
        (true, false) => ax.wrapping_add(0x106),
        (true, true) => ax.wrapping_sub(6).wrapping_sub(0x100),
    };
    cpu.set_reg::<W16>(RAX, new & 0xff0f);
    result_flags(cpu, new & 0xf, u64::from(adjust), u64::from(adjust));
    Ok(())
}

fn bound<W: Width>(cpu: &mut Cpu, op: &Op) -> Flow {
    let low = cpu.load_at::<W>(op, 0)?;
    let high = cpu.load_at::<W>(op, W::BYTES)?;
    let index = W::sext(cpu.reg::<W>(op.dst)) as i64;
    if index < W::sext(low) as i64 || index > W::sext(high) as i64 {
        return Err(cpu.raise(vector::BR, None));
    }
    Ok(())
}

pub(crate) fn lower<D: Domain>(i: &Instruction) -> Option<Lowered<D>> {
    go(match i.mnemonic() {
        Mnemonic::Daa => helper::<D, Daa>,
        Mnemonic::Das => helper::<D, Das>,
        Mnemonic::Aaa => helper::<D, Aaa>,
        Mnemonic::Aas => helper::<D, Aas>,
        Mnemonic::Aam => helper::<D, Aam>,
        Mnemonic::Aad => helper::<D, Aad>,
        Mnemonic::Bound if bits_of(i, 0) == 16 => helper::<D, Bound16>,
        Mnemonic::Bound => helper::<D, Bound32>,
        _ => return None,
    })
}
