//! Packed decimals: FBLD and FBSTP.

use iced_x86::{Instruction, Mnemonic as M};

use super::status;
use crate::cpu::Cpu;
use crate::domain::{Domain, Flow, Op, helper, helpers};
use crate::ieee::{Class, EXTENDED as FORMAT, IE, Number, PE};
use crate::lower::{Lowered, go};

/// Eighteen digits.
const LIMIT: u128 = 1_000_000_000_000_000_000;
/// What an invalid operation stores.
const INDEFINITE: u128 = 0xffff_c000_0000_0000_0000;

/// What 80 bits of packed decimal say. Digits above 9 count as what they are worth.
fn number(bits: u128) -> Number {
    let digits = (0..18).rev();
    let value = digits.fold(0, |value, n| value * 10 + (bits >> (n * 4) & 15));
    Number::new(bits >> 79 != 0, 0, value)
}

fn packed(sign: bool, value: u128) -> u128 {
    let mut rest = value;
    let mut bits = u128::from(sign) << 79;
    for n in 0..18 {
        bits |= (rest % 10) << (n * 4);
        rest /= 10;
    }
    bits
}

fn store(cpu: &mut Cpu, op: &Op) -> Flow {
    let mut context = cpu.x87_context();
    let value = cpu.st(0).map(|bits| FORMAT.unpack(bits));
    let empty = value.is_none();
    let mut bits = INDEFINITE;
    match value {
        Some(n) if matches!(n.class, Class::Finite | Class::Zero) => {
            let (whole, inexact, up) = n.integral(context.rounding);
            let size = match whole.class {
                Class::Finite if whole.exponent < 64 => whole.significand >> (127 - whole.exponent),
                Class::Finite => LIMIT,
                _ => 0,
            };
            if size < LIMIT {
                bits = packed(n.sign, size);
                context.flags |= if inexact { PE } else { 0 };
                context.up = up;
            } else {
                context.flags |= IE;
            }
        }
        _ => context.flags |= IE,
    }
    let trapped = context.flags & context.unmasked & IE != 0;
    if !trapped {
        cpu.store_80(op, bits)?;
    }
    cpu.settle(&context);
    if empty {
        cpu.stack_fault(false);
    }
    if !trapped {
        cpu.pop_st();
    }
    Ok(())
}

helpers! {
    Fbld => |cpu, op| {
        cpu.x87_begin(op)?;
        let bits = cpu.load_80(op)?;
        let value = cpu.x87_context().round(FORMAT, number(bits));
        cpu.fpu.status &= !status::C1;
        cpu.push_st(value);
        Ok(())
    },
    Fbstp => |cpu, op| {
        cpu.x87_begin(op)?;
        store(cpu, op)
    },
}

pub(super) fn lower<D: Domain>(i: &Instruction) -> Option<Lowered<D>> {
    go(match i.mnemonic() {
        M::Fbld => helper::<D, Fbld>,
        M::Fbstp => helper::<D, Fbstp>,
        _ => return None,
    })
}
