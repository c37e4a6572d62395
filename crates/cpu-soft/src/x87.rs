//! x87 numbers: loads, stores, arithmetic, comparison.
//!
//! Arithmetic is `rustc_apfloat`'s, in double-extended precision, rounded as the control word
//! says. What deviates: precision control is ignored (all results have 64 bits of significand),
//! C1 does not tell how a result was rounded, the denormal flag is never set, and unmasked
//! exceptions do not trap. Not built (#UD): transcendental functions, FPREM, FSCALE, FXTRACT,
//! FBLD and FBSTP, FNSTENV, FLDENV, FNSAVE, FRSTOR.

use iced_x86::{Code, Instruction, Mnemonic as M, OpKind};
use rustc_apfloat::ieee::{Double, Single, X87DoubleExtended};
use rustc_apfloat::{Float, FloatConvert, Round, Status, StatusAnd};

use crate::cpu::Cpu;
use crate::domain::{Domain, Flags, Flow, Helper, Op, Stop, W16, W32, W64, Width, helper};
use crate::lower::{Lowered, go, prefix};

type X = X87DoubleExtended;

/// What an invalid operation gives: the negative quiet NaN.
const INDEFINITE: u128 = 0xffff_c000_0000_0000_0000;
const ZERO: u128 = 0;
const ONE: u128 = 0x3fff_8000_0000_0000_0000;
const SIGN: u128 = 1 << 79;

/// Bits of the status word.
mod status {
    pub(super) const IE: u16 = 1;
    pub(super) const ZE: u16 = 4;
    pub(super) const OE: u16 = 8;
    pub(super) const UE: u16 = 16;
    pub(super) const PE: u16 = 32;
    pub(super) const SF: u16 = 64;
    pub(super) const C0: u16 = 1 << 8;
    pub(super) const C1: u16 = 1 << 9;
    pub(super) const C2: u16 = 1 << 10;
    pub(super) const C3: u16 = 1 << 14;
}

impl Cpu {
    pub(crate) fn top(&self) -> u16 {
        (self.fpu.status >> 11) & 7
    }

    fn move_top(&mut self, by: u16) {
        let top = self.top().wrapping_add(by) & 7;
        self.fpu.status = (self.fpu.status & !0x3800) | (top << 11);
    }

    /// Turns the stack so that its top is register 0; the registers keep what they hold.
    pub(crate) fn top_to_zero(&mut self) {
        let top = self.top();
        self.fpu.st.rotate_right(usize::from(top));
        self.fpu.status &= !0x3800;
    }

    /// #MF, if an exception waits that is not masked.
    pub(crate) fn x87_waits(&mut self) -> Flow {
        Ok(())
    }

    fn tag_bit(&self, index: u8) -> u8 {
        1 << ((self.top() + u16::from(index & 7)) & 7)
    }

    fn holds(&self, index: u8) -> bool {
        self.fpu.tags & self.tag_bit(index) != 0
    }

    /// ST(index); an empty one is a stack fault and reads as the indefinite NaN.
    fn st(&mut self, index: u8) -> u128 {
        if !self.holds(index) {
            self.fpu.status = (self.fpu.status | status::IE | status::SF) & !status::C1;
            return INDEFINITE;
        }
        self.fpu
            .st
            .get(usize::from(index & 7))
            .copied()
            .unwrap_or(INDEFINITE)
    }

    fn set_st(&mut self, index: u8, value: u128) {
        if let Some(slot) = self.fpu.st.get_mut(usize::from(index & 7)) {
            *slot = value;
        }
        self.fpu.tags |= self.tag_bit(index);
    }

    fn push_st(&mut self, value: u128) {
        let full = self.holds(7);
        self.move_top(7);
        self.fpu.st.rotate_right(1);
        if full {
            self.fpu.status |= status::IE | status::SF | status::C1;
            self.set_st(0, INDEFINITE);
        } else {
            self.set_st(0, value);
        }
    }

    fn pop_st(&mut self) {
        self.fpu.tags &= !self.tag_bit(0);
        self.fpu.st.rotate_left(1);
        self.move_top(1);
    }

    fn x87_rounding(&self) -> Round {
        match (self.fpu.control >> 10) & 3 {
            0 => Round::NearestTiesToEven,
            1 => Round::TowardNegative,
            2 => Round::TowardPositive,
            _ => Round::TowardZero,
        }
    }

    /// Notes what an operation signalled and gives its result.
    fn settle<T>(&mut self, result: StatusAnd<T>) -> T {
        for (flag, bit) in [
            (Status::INVALID_OP, status::IE),
            (Status::DIV_BY_ZERO, status::ZE),
            (Status::OVERFLOW, status::OE),
            (Status::UNDERFLOW, status::UE),
            (Status::INEXACT, status::PE),
        ] {
            if result.status.contains(flag) {
                self.fpu.status |= bit;
            }
        }
        result.value
    }

    fn load_80(&mut self, op: &Op) -> Result<u128, Stop> {
        let low = self.load_at::<W64>(op, 0)?;
        let high = self.load_at::<W16>(op, 8)?;
        Ok(u128::from(low) | (u128::from(high) << 64))
    }

    fn store_80(&mut self, op: &Op, value: u128) -> Flow {
        let linear = self.linear_of(op, 0, 10, true)?;
        self.probe_write(linear, 10, self.data_kind)?;
        self.store_linear::<W64>(linear, value as u64)?;
        self.store_linear::<W16>(linear.wrapping_add(8), (value >> 64) as u64 & 0xffff)
    }

    /// The memory operand of an instruction as a number: `KIND` as [`kind_of`] says.
    fn load_number(&mut self, op: &Op, kind: u8) -> Result<u128, Stop> {
        let integer = |value: i128| X::from_i128(value).value.to_bits();
        Ok(match kind {
            SINGLE => {
                let bits = self.load::<W32>(op)?;
                let value = Single::from_bits(u128::from(bits));
                let wide = value.convert(&mut false);
                self.settle(wide.map(|wide: X| wide.to_bits()))
            }
            DOUBLE => {
                let bits = self.load::<W64>(op)?;
                let value = Double::from_bits(u128::from(bits));
                let wide = value.convert(&mut false);
                self.settle(wide.map(|wide: X| wide.to_bits()))
            }
            EXTENDED => self.load_80(op)?,
            INT16 => integer(i128::from(W16::sext(self.load::<W16>(op)?) as i64)),
            INT32 => integer(i128::from(W32::sext(self.load::<W32>(op)?) as i64)),
            _ => integer(i128::from(self.load::<W64>(op)? as i64)),
        })
    }

    fn store_number(&mut self, op: &Op, kind: u8, truncate: bool) -> Flow {
        let before = self.fpu.status;
        let value = X::from_bits(self.st(0));
        let round = if truncate {
            Round::TowardZero
        } else {
            self.x87_rounding()
        };
        let stored = match kind {
            SINGLE => {
                let narrow: StatusAnd<Single> = value.convert_r(round, &mut false);
                let bits = self.settle(narrow).to_bits() as u64;
                self.store::<W32>(op, bits)
            }
            DOUBLE => {
                let narrow: StatusAnd<Double> = value.convert_r(round, &mut false);
                let bits = self.settle(narrow).to_bits() as u64;
                self.store::<W64>(op, bits)
            }
            EXTENDED => self.store_80(op, value.to_bits()),
            INT16 => self.store_integer::<W16>(op, value, round),
            INT32 => self.store_integer::<W32>(op, value, round),
            _ => self.store_integer::<W64>(op, value, round),
        };
        if stored.is_err() {
            self.fpu.status = before;
        }
        stored
    }

    fn store_integer<W: Width>(&mut self, op: &Op, value: X, round: Round) -> Flow {
        let result = value.to_i128_r(W::BITS as usize, round, &mut false);
        let fits = !result.status.contains(Status::INVALID_OP);
        let number = self.settle(result);
        let bits = if fits {
            number as u64 & W::MASK
        } else {
            1 << (W::BITS - 1)
        };
        self.store::<W>(op, bits)
    }

    fn arithmetic(&mut self, a: u128, b: u128, what: u8) -> u128 {
        let round = self.x87_rounding();
        let (x, y) = (X::from_bits(a), X::from_bits(b));
        if x.is_nan() || y.is_nan() {
            return self.nan_of(a, b);
        }
        let result = match what {
            ADD => x.add_r(y, round),
            SUB => x.sub_r(y, round),
            SUBR => y.sub_r(x, round),
            MUL => x.mul_r(y, round),
            DIV => x.div_r(y, round),
            _ => y.div_r(x, round),
        };
        let value = self.settle(result);
        if value.is_nan() {
            INDEFINITE
        } else {
            value.to_bits()
        }
    }

    /// Of two operands, one or both NaN: the one with the larger significand, made quiet.
    fn nan_of(&mut self, a: u128, b: u128) -> u128 {
        let (x, y) = (X::from_bits(a), X::from_bits(b));
        if x.is_signaling() || y.is_signaling() {
            self.fpu.status |= status::IE;
        }
        let significand = |bits: u128| bits & 0x3fff_ffff_ffff_ffff;
        let first = match (x.is_nan(), y.is_nan()) {
            (true, false) => true,
            (false, true) => false,
            _ => match significand(a).cmp(&significand(b)) {
                std::cmp::Ordering::Equal => a & SIGN == 0,
                order => order.is_gt(),
            },
        };
        (if first { a } else { b }) | (1 << 62)
    }

    /// Compares; `quiet`: only signalling NaNs are invalid. `None`: unordered.
    fn compare(&mut self, a: u128, b: u128, quiet: bool) -> Option<std::cmp::Ordering> {
        let (x, y) = (X::from_bits(a), X::from_bits(b));
        let order = x.partial_cmp(&y);
        if order.is_none() && (!quiet || x.is_signaling() || y.is_signaling()) {
            self.fpu.status |= status::IE;
        }
        order
    }

    fn set_conditions(&mut self, order: Option<std::cmp::Ordering>) {
        use std::cmp::Ordering::{Equal, Greater, Less};
        let bits = match order {
            Some(Greater) => 0,
            Some(Less) => status::C0,
            Some(Equal) => status::C3,
            None => status::C0 | status::C2 | status::C3,
        };
        let all = status::C0 | status::C1 | status::C2 | status::C3;
        self.fpu.status = (self.fpu.status & !all) | bits;
    }

    fn square_root(&mut self, a: u128) -> u128 {
        let x = X::from_bits(a);
        if x.is_nan() {
            return self.nan_of(a, a);
        }
        if x.is_zero() || (x.is_infinite() && !x.is_negative()) {
            return a;
        }
        if x.is_negative() {
            self.fpu.status |= status::IE;
            return INDEFINITE;
        }
        // value = m * 2^(e - 63) with m normalised: its root has the bits of isqrt(m << 63 or 64).
        let raw = (a >> 64) as i32 & 0x7fff;
        let significand = a as u64;
        let lead = significand.leading_zeros();
        let m = u128::from(significand << lead);
        let exponent = raw.max(1) - 16383 - lead as i32;
        let odd = exponent & 1 != 0;
        let radicand = if odd { m << 64 } else { m << 63 };
        let root = radicand.isqrt();
        let rest = radicand - root * root;
        let up = match self.x87_rounding() {
            Round::TowardPositive => rest != 0,
            Round::NearestTiesToEven => rest > root,
            _ => false,
        };
        if rest != 0 {
            self.fpu.status |= status::PE;
        }
        let rounded = root + u128::from(up);
        let (rounded, carry) = if rounded >> 64 != 0 {
            (rounded >> 1, 1)
        } else {
            (rounded, 0)
        };
        let biased = (exponent >> 1) + 16383 + carry;
        (u128::from(biased as u16) << 64) | rounded
    }

    fn examine(&mut self) {
        let sign = self.fpu.st.first().is_some_and(|value| value & SIGN != 0);
        let bits = if self.holds(0) {
            let x = X::from_bits(self.st(0));
            if x.is_nan() {
                status::C0
            } else if x.is_infinite() {
                status::C0 | status::C2
            } else if x.is_zero() {
                status::C3
            } else if x.is_denormal() {
                status::C2 | status::C3
            } else {
                status::C2
            }
        } else {
            status::C0 | status::C3
        };
        let all = status::C0 | status::C1 | status::C2 | status::C3;
        let c1 = if sign { status::C1 } else { 0 };
        self.fpu.status = (self.fpu.status & !all) | bits | c1;
    }
}

const ADD: u8 = 0;
const MUL: u8 = 1;
const SUB: u8 = 4;
const SUBR: u8 = 5;
const DIV: u8 = 6;
const DIVR: u8 = 7;

const SINGLE: u8 = 0;
const DOUBLE: u8 = 1;
const EXTENDED: u8 = 2;
const INT16: u8 = 3;
const INT32: u8 = 4;
const INT64: u8 = 5;
const REGISTER: u8 = 6;

/// What the operand is.
fn kind_of(i: &Instruction) -> u8 {
    use iced_x86::MemorySize as S;
    if i.op_kind(0) == OpKind::Register || i.op_count() == 0 {
        return REGISTER;
    }
    match i.memory_size() {
        S::Float32 => SINGLE,
        S::Float64 => DOUBLE,
        S::Float80 => EXTENDED,
        S::Int16 => INT16,
        S::Int32 => INT32,
        _ => INT64,
    }
}

struct Load<const KIND: u8>;
impl<const KIND: u8> Helper for Load<KIND> {
    fn run(cpu: &mut Cpu, op: &Op) -> Flow {
        cpu.x87_ready()?;
        let value = if KIND == REGISTER {
            cpu.st(op.dst)
        } else {
            cpu.load_number(op, KIND)?
        };
        cpu.push_st(value);
        Ok(())
    }
}

/// `POP`: and takes it off. `TRUNCATE`: FISTTP.
struct Store<const KIND: u8, const POP: bool, const TRUNCATE: bool>;
impl<const KIND: u8, const POP: bool, const TRUNCATE: bool> Helper for Store<KIND, POP, TRUNCATE> {
    fn run(cpu: &mut Cpu, op: &Op) -> Flow {
        cpu.x87_ready()?;
        if KIND == REGISTER {
            let value = cpu.st(0);
            cpu.set_st(op.dst, value);
        } else {
            cpu.store_number(op, KIND, TRUNCATE)?;
        }
        if POP {
            cpu.pop_st();
        }
        Ok(())
    }
}

struct Arithmetic<const KIND: u8, const WHAT: u8, const POP: bool>;
impl<const KIND: u8, const WHAT: u8, const POP: bool> Helper for Arithmetic<KIND, WHAT, POP> {
    fn run(cpu: &mut Cpu, op: &Op) -> Flow {
        cpu.x87_ready()?;
        let (to, b) = if KIND == REGISTER {
            (op.dst, cpu.st(op.src))
        } else {
            (0, cpu.load_number(op, KIND)?)
        };
        let a = cpu.st(to);
        let r = cpu.arithmetic(a, b, WHAT);
        cpu.set_st(to, r);
        if POP {
            cpu.pop_st();
        }
        Ok(())
    }
}

/// `POPS` of the operands; `FLAGS`: the result goes to RFLAGS, else to the condition bits.
struct Compare<const KIND: u8, const QUIET: bool, const POPS: u8, const FLAGS: bool>;
impl<const KIND: u8, const QUIET: bool, const POPS: u8, const FLAGS: bool> Helper
    for Compare<KIND, QUIET, POPS, FLAGS>
{
    fn run(cpu: &mut Cpu, op: &Op) -> Flow {
        use std::cmp::Ordering::{Equal, Less};
        cpu.x87_ready()?;
        let b = if KIND == REGISTER {
            cpu.st(op.src)
        } else {
            cpu.load_number(op, KIND)?
        };
        let a = cpu.st(0);
        let order = cpu.compare(a, b, QUIET);
        if FLAGS {
            let unordered = order.is_none();
            cpu.fpu.status &= !status::C1;
            cpu.flags = Flags {
                zr: u64::from(!(unordered || order == Some(Equal))),
                sr: u64::from(!unordered),
                cv: if unordered || order == Some(Less) {
                    3 << 62
                } else {
                    0
                },
            };
        } else {
            cpu.set_conditions(order);
        }
        for _ in 0..POPS {
            cpu.pop_st();
        }
        Ok(())
    }
}

struct Constant<const WHICH: usize>;
impl<const WHICH: usize> Helper for Constant<WHICH> {
    fn run(cpu: &mut Cpu, _: &Op) -> Flow {
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
        cpu.x87_ready()?;
        let (near, down) = VALUES.get(WHICH).copied().unwrap_or((ZERO, ZERO));
        let value = match cpu.x87_rounding() {
            Round::NearestTiesToEven => near,
            Round::TowardPositive if WHICH > 1 => down + 1,
            _ => down,
        };
        cpu.push_st(value);
        Ok(())
    }
}

/// FCHS (0), FABS (1), FTST (2), FXAM (3), FSQRT (4), FRNDINT (5), FINCSTP (6), FDECSTP (7).
struct Alone<const WHAT: u8>;
impl<const WHAT: u8> Helper for Alone<WHAT> {
    fn run(cpu: &mut Cpu, _: &Op) -> Flow {
        cpu.x87_ready()?;
        match WHAT {
            3 => cpu.examine(),
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
            2 => {
                let a = cpu.st(0);
                let order = cpu.compare(a, ZERO, false);
                cpu.set_conditions(order);
            }
            _ => {
                let a = cpu.st(0);
                let r = match WHAT {
                    0 => a ^ SIGN,
                    1 => a & !SIGN,
                    4 => cpu.square_root(a),
                    _ => {
                        let round = cpu.x87_rounding();
                        let result = X::from_bits(a).round_to_integral(round);
                        cpu.settle(result).to_bits()
                    }
                };
                cpu.set_st(0, r);
                cpu.fpu.status &= !status::C1;
            }
        }
        Ok(())
    }
}

struct Exchange;
impl Helper for Exchange {
    fn run(cpu: &mut Cpu, op: &Op) -> Flow {
        cpu.x87_ready()?;
        let (a, b) = (cpu.st(0), cpu.st(op.src));
        cpu.set_st(0, b);
        cpu.set_st(op.src, a);
        cpu.fpu.status &= !status::C1;
        Ok(())
    }
}

struct Free;
impl Helper for Free {
    fn run(cpu: &mut Cpu, op: &Op) -> Flow {
        cpu.x87_ready()?;
        let bit = cpu.tag_bit(op.dst);
        cpu.fpu.tags &= !bit;
        Ok(())
    }
}

/// FCMOVcc: `WHAT` 0 to 3 are B, E, BE, U; with 4 more their opposites.
struct Move<const WHAT: u8>;
impl<const WHAT: u8> Helper for Move<WHAT> {
    fn run(cpu: &mut Cpu, op: &Op) -> Flow {
        cpu.x87_ready()?;
        let f = cpu.flags;
        let (carry, zero) = (f.cv >> 63 != 0, f.zr == 0);
        let holds = match WHAT & 3 {
            0 => carry,
            1 => zero,
            2 => carry || zero,
            _ => (f.sr as u8).count_ones().is_multiple_of(2),
        };
        let value = cpu.st(op.src);
        if holds != (WHAT & 4 != 0) {
            cpu.set_st(0, value);
        }
        Ok(())
    }
}

macro_rules! by_kind {
    ($kind:expr, $k:ident => $e:expr) => {
        match $kind {
            SINGLE => {
                const $k: u8 = SINGLE;
                $e
            }
            DOUBLE => {
                const $k: u8 = DOUBLE;
                $e
            }
            EXTENDED => {
                const $k: u8 = EXTENDED;
                $e
            }
            INT16 => {
                const $k: u8 = INT16;
                $e
            }
            INT32 => {
                const $k: u8 = INT32;
                $e
            }
            INT64 => {
                const $k: u8 = INT64;
                $e
            }
            _ => {
                const $k: u8 = REGISTER;
                $e
            }
        }
    };
}

fn arithmetic<D: Domain, const WHAT: u8, const POP: bool>(i: &Instruction) -> Option<Lowered<D>> {
    go(by_kind!(kind_of(i), K => helper::<D, Arithmetic<K, WHAT, POP>>))
}

fn lower_arithmetic<D: Domain>(i: &Instruction) -> Option<Lowered<D>> {
    match i.mnemonic() {
        M::Fadd | M::Fiadd => arithmetic::<D, ADD, false>(i),
        M::Fmul | M::Fimul => arithmetic::<D, MUL, false>(i),
        M::Fsub | M::Fisub => arithmetic::<D, SUB, false>(i),
        M::Fsubr | M::Fisubr => arithmetic::<D, SUBR, false>(i),
        M::Fdiv | M::Fidiv => arithmetic::<D, DIV, false>(i),
        M::Fdivr | M::Fidivr => arithmetic::<D, DIVR, false>(i),
        M::Faddp => arithmetic::<D, ADD, true>(i),
        M::Fmulp => arithmetic::<D, MUL, true>(i),
        M::Fsubp => arithmetic::<D, SUB, true>(i),
        M::Fsubrp => arithmetic::<D, SUBR, true>(i),
        M::Fdivp => arithmetic::<D, DIV, true>(i),
        M::Fdivrp => arithmetic::<D, DIVR, true>(i),
        M::Fcom | M::Ficom => {
            go(by_kind!(kind_of(i), K => helper::<D, Compare<K, false, 0, false>>))
        }
        M::Fcomp | M::Ficomp => {
            go(by_kind!(kind_of(i), K => helper::<D, Compare<K, false, 1, false>>))
        }
        M::Fcompp => go(helper::<D, ComparePop<false>>),
        M::Fucompp => go(helper::<D, ComparePop<true>>),
        M::Fucom => go(helper::<D, Compare<REGISTER, true, 0, false>>),
        M::Fucomp => go(helper::<D, Compare<REGISTER, true, 1, false>>),
        M::Fcomi => go(helper::<D, Compare<REGISTER, false, 0, true>>),
        M::Fcomip => go(helper::<D, Compare<REGISTER, false, 1, true>>),
        M::Fucomi => go(helper::<D, Compare<REGISTER, true, 0, true>>),
        M::Fucomip => go(helper::<D, Compare<REGISTER, true, 1, true>>),
        _ => None,
    }
}

/// FCOMPP and FUCOMPP name no operands: they are ST0 and ST1.
struct ComparePop<const QUIET: bool>;
impl<const QUIET: bool> Helper for ComparePop<QUIET> {
    fn run(cpu: &mut Cpu, op: &Op) -> Flow {
        let op = Op {
            src: 1,
            prefix: op.prefix & !prefix::MEMORY,
            ..*op
        };
        Compare::<REGISTER, QUIET, 2, false>::run(cpu, &op)
    }
}

pub(crate) fn lower<D: Domain>(i: &Instruction) -> Option<Lowered<D>> {
    let kind = kind_of(i);
    if matches!(
        i.code(),
        Code::Fstp_sti_DFD0 | Code::Fstp_sti_DFD8 | Code::Fstpnce_sti
    ) {
        return None;
    }
    go(match i.mnemonic() {
        M::Fld | M::Fild => by_kind!(kind, K => helper::<D, Load<K>>),
        M::Fst | M::Fist => by_kind!(kind, K => helper::<D, Store<K, false, false>>),
        M::Fstp | M::Fistp => by_kind!(kind, K => helper::<D, Store<K, true, false>>),
        M::Fisttp => by_kind!(kind, K => helper::<D, Store<K, true, true>>),
        M::Fld1 => helper::<D, Constant<0>>,
        M::Fldz => helper::<D, Constant<1>>,
        M::Fldpi => helper::<D, Constant<2>>,
        M::Fldl2e => helper::<D, Constant<3>>,
        M::Fldl2t => helper::<D, Constant<4>>,
        M::Fldlg2 => helper::<D, Constant<5>>,
        M::Fldln2 => helper::<D, Constant<6>>,
        M::Fchs => helper::<D, Alone<0>>,
        M::Fabs => helper::<D, Alone<1>>,
        M::Ftst => helper::<D, Alone<2>>,
        M::Fxam => helper::<D, Alone<3>>,
        M::Fsqrt => helper::<D, Alone<4>>,
        M::Frndint => helper::<D, Alone<5>>,
        M::Fincstp => helper::<D, Alone<6>>,
        M::Fdecstp => helper::<D, Alone<7>>,
        M::Fxch => helper::<D, Exchange>,
        M::Ffree => helper::<D, Free>,
        M::Fcmovb => helper::<D, Move<0>>,
        M::Fcmove => helper::<D, Move<1>>,
        M::Fcmovbe => helper::<D, Move<2>>,
        M::Fcmovu => helper::<D, Move<3>>,
        M::Fcmovnb => helper::<D, Move<4>>,
        M::Fcmovne => helper::<D, Move<5>>,
        M::Fcmovnbe => helper::<D, Move<6>>,
        M::Fcmovnu => helper::<D, Move<7>>,
        _ => return lower_arithmetic(i),
    })
}
