//! PCMPESTRI, PCMPESTRM, PCMPISTRI, PCMPISTRM (Intel SDM 2, "PCMPxSTRx").

use iced_x86::{Instruction, Mnemonic as M};

use crate::cpu::{Cpu, RAX, RCX, RDX};
use crate::domain::{Domain, Flags, Flow, Helper, Op, helper};
use crate::lower::{Lowered, go};
use crate::sse::{build, lane, signed, truth};

/// Elements of one string, and how many of them count.
struct Text {
    value: u128,
    length: u32,
}

/// How elements are read: by the low two bits of the immediate.
#[derive(Clone, Copy)]
struct Format {
    wide: bool,
    signed: bool,
}

impl Format {
    fn count(self) -> u32 {
        if self.wide { 8 } else { 16 }
    }

    fn element(self, value: u128, n: u32) -> i64 {
        match (self.wide, self.signed) {
            (false, false) => lane::<8>(value, n) as i64,
            (false, true) => signed::<8>(lane::<8>(value, n)),
            (true, false) => lane::<16>(value, n) as i64,
            (true, true) => signed::<16>(lane::<16>(value, n)),
        }
    }

    /// The length of a string that ends with a zero.
    fn implicit(self, value: u128) -> u32 {
        (0..self.count())
            .find(|n| self.element(value, *n) == 0)
            .unwrap_or(self.count())
    }

    /// The length in a register, of 32 or 64 bits.
    fn explicit(self, register: u64, wide: bool) -> u32 {
        let value = if wide {
            register as i64
        } else {
            i64::from(register as i32)
        };
        u32::try_from(value.unsigned_abs())
            .unwrap_or(u32::MAX)
            .min(self.count())
    }
}

/// One bit for each element of `b`.
fn compare(format: Format, a: &Text, b: &Text, imm: u8) -> u32 {
    let count = format.count();
    let x = |n| format.element(a.value, n);
    let y = |n| format.element(b.value, n);
    let bit = |n: u32| match imm >> 2 & 3 {
        // Any of a's.
        0 => n < b.length && (0..a.length).any(|k| x(k) == y(n)),
        // In one of a's ranges.
        1 => n < b.length && (0..a.length / 2).any(|k| x(2 * k) <= y(n) && y(n) <= x(2 * k + 1)),
        // The same in the same place; both past their end count as the same.
        2 => match (n < a.length, n < b.length) {
            (true, true) => x(n) == y(n),
            (false, false) => true,
            _ => false,
        },
        // a begins here.
        _ => (0..a.length).all(|k| n + k >= count || (n + k < b.length && x(k) == y(n + k))),
    };
    (0..count)
        .filter(|n| bit(*n))
        .fold(0, |bits, n| bits | 1 << n)
}

/// `EXPLICIT`: lengths are in RAX and RDX. `MASK`: the result is a mask in XMM0, else an index.
struct Strings<const EXPLICIT: bool, const MASK: bool, const WIDE: bool>;
impl<const EXPLICIT: bool, const MASK: bool, const WIDE: bool> Helper
    for Strings<EXPLICIT, MASK, WIDE>
{
    fn run(cpu: &mut Cpu, op: &Op) -> Flow {
        cpu.vector_ready(op)?;
        let imm = op.imm as u8;
        let format = Format {
            wide: imm & 1 != 0,
            signed: imm & 2 != 0,
        };
        let second = cpu.vector_source(op, 16, false)?;
        let first = cpu.xmm(op.dst);
        let length = |value, register| {
            if EXPLICIT {
                format.explicit(cpu.get(register), WIDE)
            } else {
                format.implicit(value)
            }
        };
        let a = Text {
            value: first,
            length: length(first, RAX),
        };
        let b = Text {
            value: second,
            length: length(second, RDX),
        };
        let count = format.count();
        let all = (1_u32 << count) - 1;
        let found = compare(format, &a, &b, imm);
        let result = match imm >> 4 & 3 {
            1 => found ^ all,
            3 => found ^ ((1_u32 << b.length) - 1),
            _ => found,
        };
        if MASK {
            let bits = |n| truth(result >> n & 1 != 0);
            let value = match (imm & 0x40 != 0, format.wide) {
                (false, _) => u128::from(result),
                (true, false) => build::<8>(bits),
                (true, true) => build::<16>(bits),
            };
            cpu.put_xmm(op, 0, value);
        } else {
            let index = match (result, imm & 0x40 != 0) {
                (0, _) => count,
                (_, false) => result.trailing_zeros(),
                (_, true) => 31 - result.leading_zeros(),
            };
            cpu.put(RCX, u64::from(index));
        }
        let (cf, of) = (u64::from(result != 0), u64::from(result & 1));
        cpu.flags = Flags {
            zr: u64::from(b.length >= count),
            sr: (u64::from(a.length < count) << 63) | 1,
            cv: (cf << 63) | ((cf ^ of) << 62),
        };
        Ok(())
    }
}

pub(crate) fn lower<D: Domain>(_: &Instruction, m: M) -> Option<Lowered<D>> {
    go(match m {
        M::Pcmpistri => helper::<D, Strings<false, false, false>>,
        M::Pcmpistrm => helper::<D, Strings<false, true, false>>,
        M::Pcmpestri => helper::<D, Strings<true, false, false>>,
        M::Pcmpestrm => helper::<D, Strings<true, true, false>>,
        M::Pcmpestri64 => helper::<D, Strings<true, false, true>>,
        M::Pcmpestrm64 => helper::<D, Strings<true, true, true>>,
        _ => return None,
    })
}
