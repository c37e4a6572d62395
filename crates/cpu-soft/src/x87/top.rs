//! Instructions on the top of the stack that need nothing but the control word and flags:
//! constants, signs, tests, rotations of the stack, conditional moves.

use super::{INDEFINITE, ONE, SIGN, ZERO, round_to_integer, square_root, status};
use crate::cpu::Cpu;
use crate::domain::{Flow, Helper, Op};
use crate::ieee::{EXTENDED as FORMAT, Number};

pub(super) struct Constant<const WHICH: usize>;
impl<const WHICH: usize> Helper for Constant<WHICH> {
    fn run(cpu: &mut Cpu, op: &Op) -> Flow {
        // 1, 0, pi, log2 e, log2 10, log10 2, ln 2: to nearest, and cut off.
        const VALUES: [(u128, u128); 7] = [
            (ONE, ONE),
            (ZERO, ZERO),
            (0x4000_c90f_daa2_2168_c235, 0x4000_c90f_daa2_2168_c234),
            (0x3fff_b8aa_3b29_5c17_f0bc, 0x3fff_b8aa_3b29_5c17_f0bb),
            (0x4000_d49a_784b_cd1b_8afe, 0x4000_d49a_784b_cd1b_8afe),
            (0x3ffd_9a20_9a84_fbcf_f799, 0x3ffd_9a20_9a84_fbcf_f798),
            (0x3ffe_b172_17f7_d1cf_79ac, 0x3ffe_b172_17f7_d1cf_79ab),
        ];
        cpu.x87_begin(op)?;
        let (near, down) = VALUES.get(WHICH).copied().unwrap_or((ZERO, ZERO));
        let value = match cpu.x87_rounding() {
            0 => near,
            2 if WHICH > 1 => down + 1,
            _ => down,
        };
        cpu.fpu.status &= !status::C1;
        cpu.push_st(value);
        Ok(())
    }
}

/// FCHS (0), FABS (1), FTST (2), FXAM (3), FSQRT (4), FRNDINT (5), FINCSTP (6), FDECSTP (7).
pub(super) struct Alone<const WHAT: u8>;
impl<const WHAT: u8> Helper for Alone<WHAT> {
    fn run(cpu: &mut Cpu, op: &Op) -> Flow {
        cpu.x87_begin(op)?;
        match WHAT {
            2 => {
                let mut context = cpu.x87_context();
                let order = if let Some(a) = cpu.st(0) {
                    let zero = Number::zero(false);
                    Cpu::compare(FORMAT.unpack(a), zero, false, &mut context)
                } else {
                    cpu.stack_fault(false);
                    None
                };
                cpu.settle(&context);
                cpu.set_conditions(order);
            }
            3 => cpu.examine(),
            4 => {
                let context = cpu.arithmetic_context();
                cpu.replace(context, square_root);
            }
            5 => {
                let context = cpu.x87_context();
                cpu.replace(context, round_to_integer);
            }
            6 => {
                cpu.fpu.st.rotate_left(1);
                cpu.move_top(1);
                cpu.fpu.status &= !status::C1;
            }
            7 => {
                cpu.fpu.st.rotate_right(1);
                cpu.move_top(7);
                cpu.fpu.status &= !status::C1;
            }
            _ => {
                let value = cpu.st(0);
                cpu.fpu.status &= !status::C1;
                match value {
                    Some(a) if WHAT == 0 => cpu.set_st(0, a ^ SIGN),
                    Some(a) => cpu.set_st(0, a & !SIGN),
                    None if cpu.stack_fault(false) => cpu.set_st(0, INDEFINITE),
                    None => {}
                }
            }
        }
        Ok(())
    }
}

pub(super) struct Exchange;
impl Helper for Exchange {
    fn run(cpu: &mut Cpu, op: &Op) -> Flow {
        cpu.x87_begin(op)?;
        cpu.fpu.status &= !status::C1;
        let (a, b) = (cpu.st(0), cpu.st(op.src));
        if (a.is_none() || b.is_none()) && !cpu.stack_fault(false) {
            return Ok(());
        }
        cpu.set_st(0, b.unwrap_or(INDEFINITE));
        cpu.set_st(op.src, a.unwrap_or(INDEFINITE));
        Ok(())
    }
}

/// FFREE, and FFREEP (`POP`).
pub(super) struct Free<const POP: bool>;
impl<const POP: bool> Helper for Free<POP> {
    fn run(cpu: &mut Cpu, op: &Op) -> Flow {
        cpu.x87_begin(op)?;
        let bit = cpu.tag_bit(op.dst);
        cpu.fpu.tags &= !bit;
        if POP {
            cpu.pop_st();
        }
        Ok(())
    }
}

/// FNOP, and those that do nothing any more, which do not wait.
pub(super) struct Nothing<const WAITS: bool>;
impl<const WAITS: bool> Helper for Nothing<WAITS> {
    fn run(cpu: &mut Cpu, _: &Op) -> Flow {
        cpu.x87_ready()?;
        if WAITS { cpu.x87_waits() } else { Ok(()) }
    }
}

/// FCMOVcc: `WHAT` 0 to 3 are B, E, BE, U; with 4 more their opposites.
pub(super) struct Move<const WHAT: u8>;
impl<const WHAT: u8> Helper for Move<WHAT> {
    fn run(cpu: &mut Cpu, op: &Op) -> Flow {
        cpu.x87_begin(op)?;
        let f = cpu.flags;
        let (carry, zero) = (f.cv >> 63 != 0, f.zr == 0);
        let holds = match WHAT & 3 {
            0 => carry,
            1 => zero,
            2 => carry || zero,
            _ => (f.sr as u8).count_ones().is_multiple_of(2),
        };
        let (a, b) = (cpu.st(0), cpu.st(op.src));
        if a.is_none() || b.is_none() {
            if cpu.stack_fault(false) {
                cpu.set_st(0, INDEFINITE);
            }
            return Ok(());
        }
        cpu.fpu.status &= !status::C1;
        if holds != (WHAT & 4 != 0) {
            cpu.set_st(0, b.unwrap_or(INDEFINITE));
        }
        Ok(())
    }
}
