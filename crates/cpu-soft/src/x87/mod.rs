//! The x87: stack, loads, stores, arithmetic, comparison.
//!
//! Numbers go through `ieee.rs`, rounded as the control word's rounding and precision say.
//! Exceptions that are masked give the architecture's answers; one that is not masked leaves
//! operands and stack as they are (but for overflow, underflow and precision with a register as
//! destination), sets the summary bit, and is #MF at the next instruction that waits.
//!
//! What deviates: the opcode of the last instruction (FOP) and its selectors read as zero;
//! without CR0.NE an exception that waits does nothing (there is no FERR#).

mod decimal;
mod environment;
mod functions;
mod series;
mod top;

use iced_x86::{Instruction, Mnemonic as M, OpKind};

use crate::cpu::{Cpu, cr, vector};
use crate::domain::{Domain, Flags, Flow, Helper, Op, Stop, W16, W32, W64, Width, helper};
use crate::ieee::{
    Class, Context, DE, DOUBLE, EXTENDED as FORMAT, Format, IE, Number, PE, SINGLE, ZE,
};
use crate::lower::{Lowered, go, prefix};
use crate::sse::float;
use top::{Alone, Constant, Exchange, Free, Move, Nothing};

/// What an invalid operation gives: the negative quiet NaN.
const INDEFINITE: u128 = 0xffff_c000_0000_0000_0000;
const ZERO: u128 = 0;
const ONE: u128 = 0x3fff_8000_0000_0000_0000;
const SIGN: u128 = 1 << 79;

/// Bits of the status word, besides the exceptions.
mod status {
    pub(super) const SF: u16 = 64;
    /// An unmasked exception waits; and the busy bit, which says the same.
    pub(super) const SUMMARY: u16 = 0x8080;
    pub(super) const C0: u16 = 1 << 8;
    pub(super) const C1: u16 = 1 << 9;
    pub(super) const C2: u16 = 1 << 10;
    pub(super) const C3: u16 = 1 << 14;
    pub(super) const CONDITIONS: u16 = C0 | C1 | C2 | C3;
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
        if self.fpu.status & 0x80 != 0 && self.system.cr0 & cr::CR0_NE != 0 {
            return Err(self.raise(vector::MF, None));
        }
        Ok(())
    }

    /// What each instruction but those that do not wait begins with; notes where it is.
    fn x87_begin(&mut self, op: &Op) -> Flow {
        self.x87_ready()?;
        self.x87_waits()?;
        self.fpu.ip = self.ip_of(op);
        if op.prefix & prefix::MEMORY != 0 {
            self.fpu.dp = self.offset_of(op);
        }
        Ok(())
    }

    /// Works out the summary bit again.
    pub(crate) fn x87_summary(&mut self) {
        let waits = self.fpu.status & !self.fpu.control & 0x3f != 0;
        self.fpu.status &= !status::SUMMARY;
        if waits {
            self.fpu.status |= status::SUMMARY;
        }
    }

    fn tag_bit(&self, index: u8) -> u8 {
        1 << ((self.top() + u16::from(index & 7)) & 7)
    }

    fn holds(&self, index: u8) -> bool {
        self.fpu.tags & self.tag_bit(index) != 0
    }

    /// What is in ST(index), whether or not it is in use.
    fn raw_st(&self, index: u8) -> u128 {
        let value = self.fpu.st.get(usize::from(index & 7));
        value.copied().unwrap_or(INDEFINITE)
    }

    /// ST(index), if it holds something.
    fn st(&self, index: u8) -> Option<u128> {
        self.holds(index).then(|| self.raw_st(index))
    }

    fn set_st(&mut self, index: u8, value: u128) {
        if let Some(slot) = self.fpu.st.get_mut(usize::from(index & 7)) {
            *slot = value;
        }
        self.fpu.tags |= self.tag_bit(index);
    }

    /// Notes a stack fault, with C1 for an overflow. Whether it is masked, so that the
    /// instruction goes on with the indefinite NaN.
    fn stack_fault(&mut self, overflow: bool) -> bool {
        self.fpu.status &= !status::C1;
        self.fpu.status |= u16::from(IE) | status::SF;
        if overflow {
            self.fpu.status |= status::C1;
        }
        self.x87_summary();
        self.fpu.control & u16::from(IE) != 0
    }

    /// Pushes; on a full stack the indefinite NaN, or nothing if that traps.
    fn push_st(&mut self, value: u128) {
        let full = self.holds(7);
        let value = if full { INDEFINITE } else { value };
        if full && !self.stack_fault(true) {
            return;
        }
        self.push_free(value);
    }

    fn push_free(&mut self, value: u128) {
        self.move_top(7);
        self.fpu.st.rotate_right(1);
        self.set_st(0, value);
    }

    fn pop_st(&mut self) {
        self.fpu.tags &= !self.tag_bit(0);
        self.fpu.st.rotate_left(1);
        self.move_top(1);
    }

    fn x87_rounding(&self) -> u8 {
        (self.fpu.control >> 10) as u8 & 3
    }

    /// How results are rounded that precision control does not reach.
    fn x87_context(&self) -> Context {
        Context {
            rounding: self.x87_rounding(),
            unmasked: !(self.fpu.control as u8) & 0x3f,
            wrap: true,
            ..Context::default()
        }
    }

    /// How arithmetic is rounded.
    fn arithmetic_context(&self) -> Context {
        let precision = match (self.fpu.control >> 8) & 3 {
            0 => Some(24),
            2 => Some(53),
            _ => None,
        };
        Context {
            precision,
            ..self.x87_context()
        }
    }

    /// Notes what an operation signalled. Whether its result is to be written: not if it
    /// trapped before it had one.
    fn settle(&mut self, context: &Context) -> bool {
        let flags = context.flags;
        let before = flags & (IE | DE | ZE) & context.unmasked;
        self.fpu.status &= !status::C1;
        if before != 0 {
            self.fpu.status |= u16::from(flags & (IE | DE | ZE));
        } else {
            self.fpu.status |= u16::from(flags);
            if context.up {
                self.fpu.status |= status::C1;
            }
        }
        self.x87_summary();
        before == 0
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

    /// The memory operand of an instruction as it is there, as an integer or a float.
    #[inline(never)]
    fn load_operand(&mut self, op: &Op, kind: u8) -> Result<Number, Stop> {
        let integer = |value: u64| Number::integer(i128::from(value as i64));
        Ok(match kind {
            SINGLE_KIND => SINGLE.unpack(u128::from(self.load::<W32>(op)?)),
            DOUBLE_KIND => DOUBLE.unpack(u128::from(self.load::<W64>(op)?)),
            EXTENDED => FORMAT.unpack(self.load_80(op)?),
            INT16 => integer(W16::sext(self.load::<W16>(op)?)),
            INT32 => integer(W32::sext(self.load::<W32>(op)?)),
            _ => integer(self.load::<W64>(op)?),
        })
    }

    /// ST0 in a format of memory.
    fn narrow(&mut self, format: Format, value: Number, context: &mut Context) -> u64 {
        match value.class {
            Class::Unsupported | Class::Signaling => context.flags |= IE,
            _ => {}
        }
        context.round(format, value) as u64
    }

    /// Stores ST0; whether it was stored.
    #[inline(never)]
    fn store_number(&mut self, op: &Op, kind: u8, truncate: bool) -> Result<bool, Stop> {
        if kind == EXTENDED {
            let empty = !self.holds(0);
            let value = self.st(0).unwrap_or(INDEFINITE);
            if empty && self.fpu.control & u16::from(IE) == 0 {
                self.stack_fault(false);
                return Ok(false);
            }
            self.store_80(op, value)?;
            self.fpu.status &= !status::C1;
            if empty {
                self.stack_fault(false);
            }
            return Ok(true);
        }
        let mut context = self.x87_context();
        if truncate {
            context.rounding = 3;
        }
        context.wrap = false;
        let value = match self.st(0) {
            Some(bits) => FORMAT.unpack(bits),
            None => {
                context.flags |= IE;
                FORMAT.unpack(INDEFINITE)
            }
        };
        let bits = match kind {
            SINGLE_KIND => self.narrow(SINGLE, value, &mut context),
            DOUBLE_KIND => self.narrow(DOUBLE, value, &mut context),
            INT16 => integer_of(value, 16, &mut context),
            INT32 => integer_of(value, 32, &mut context),
            _ => integer_of(value, 64, &mut context),
        };
        // Overflow and underflow of what goes to memory trap before it is written.
        let trapped = context.flags & context.unmasked & !PE != 0;
        if trapped {
            context.flags &= !PE;
            context.up = false;
        } else {
            match kind {
                SINGLE_KIND | INT32 => self.store::<W32>(op, bits)?,
                INT16 => self.store::<W16>(op, bits)?,
                _ => self.store::<W64>(op, bits)?,
            }
        }
        let empty = !self.holds(0);
        self.settle(&context);
        if empty {
            self.stack_fault(false);
        }
        Ok(!trapped)
    }

    /// A NaN of two operands: the one with the larger significand, made quiet.
    fn nan_of(&self, a: Number, b: Number, context: &mut Context) -> u128 {
        if a.class == Class::Signaling || b.class == Class::Signaling {
            context.flags |= IE;
        }
        let size = |n: Number| n.significand & !(1 << 126);
        // A quiet NaN is preferred to a signalling one.
        let first = match (a.class, b.class) {
            (Class::Signaling, Class::Quiet) => false,
            (Class::Quiet, Class::Signaling) => true,
            _ if !b.is_nan() => true,
            _ if !a.is_nan() => false,
            _ => match size(a).cmp(&size(b)) {
                std::cmp::Ordering::Equal => !a.sign,
                order => order.is_gt(),
            },
        };
        FORMAT.quiet(if first { a } else { b })
    }

    /// A result that no operation makes: an operand is a NaN, or has no meaning.
    fn special(&self, operands: [Number; 2], context: &mut Context) -> Option<u128> {
        let [a, b] = operands;
        if a.class == Class::Unsupported || b.class == Class::Unsupported {
            context.flags |= IE;
            return Some(INDEFINITE);
        }
        (a.is_nan() || b.is_nan()).then(|| self.nan_of(a, b, context))
    }

    #[inline(never)]
    fn arithmetic(&mut self, a: Number, b: Number, what: u8, context: &mut Context) -> u128 {
        if let Some(special) = self.special([a, b], context) {
            return special;
        }
        let rounding = context.rounding;
        let (x, y) = if matches!(what, SUBR | DIVR) {
            (b, a)
        } else {
            (a, b)
        };
        let mut by_zero = false;
        let result = match what {
            ADD => float::sum(x, y, rounding),
            SUB | SUBR => float::sum(x, y.negated(true), rounding),
            MUL => float::product(x, y),
            _ => float::quotient(x, y).map(|(r, zero)| {
                by_zero = zero;
                r
            }),
        };
        let Some(result) = result else {
            context.flags |= IE;
            return INDEFINITE;
        };
        if by_zero {
            context.flags |= ZE;
        } else if a.denormal || b.denormal {
            context.flags |= DE;
        }
        context.round(FORMAT, result)
    }

    /// Compares; `quiet`: only signalling NaNs are invalid. `None`: unordered.
    fn compare(
        a: Number,
        b: Number,
        quiet: bool,
        context: &mut Context,
    ) -> Option<std::cmp::Ordering> {
        let bad = |n: Number| matches!(n.class, Class::Signaling | Class::Unsupported);
        if a.is_nan() || b.is_nan() || bad(a) || bad(b) {
            if !quiet || bad(a) || bad(b) {
                context.flags |= IE;
            }
            return None;
        }
        if a.denormal || b.denormal {
            context.flags |= DE;
        }
        Some(a.order(b))
    }

    fn set_conditions(&mut self, order: Option<std::cmp::Ordering>) {
        use std::cmp::Ordering::{Equal, Greater, Less};
        let bits = match order {
            Some(Greater) => 0,
            Some(Less) => status::C0,
            Some(Equal) => status::C3,
            None => status::C0 | status::C2 | status::C3,
        };
        self.fpu.status = (self.fpu.status & !status::CONDITIONS) | bits;
    }

    /// Replaces ST0 by what `f` makes of it.
    fn replace(&mut self, mut context: Context, f: impl FnOnce(&mut Context, Number) -> u128) {
        let Some(bits) = self.st(0) else {
            if self.stack_fault(false) {
                self.set_st(0, INDEFINITE);
            }
            return;
        };
        let value = FORMAT.unpack(bits);
        let result = match self.special([value, Number::zero(false)], &mut context) {
            Some(special) => special,
            None => f(&mut context, value),
        };
        if self.settle(&context) {
            self.set_st(0, result);
        }
    }

    fn examine(&mut self) {
        let bits = self.raw_st(0);
        let kind = match FORMAT.unpack(bits).class {
            _ if !self.holds(0) => status::C0 | status::C3,
            Class::Unsupported => 0,
            Class::Quiet | Class::Signaling => status::C0,
            Class::Infinite => status::C0 | status::C2,
            Class::Zero => status::C3,
            Class::Finite if FORMAT.unpack(bits).denormal => status::C2 | status::C3,
            Class::Finite => status::C2,
        };
        let c1 = if bits & SIGN != 0 { status::C1 } else { 0 };
        self.fpu.status = (self.fpu.status & !status::CONDITIONS) | kind | c1;
    }
}

/// A number as an integer of `bits`; the smallest one if it is none.
fn integer_of(value: Number, bits: u32, context: &mut Context) -> u64 {
    let result = match value.class {
        Class::Finite | Class::Zero => context.integer_of(value, bits),
        _ => None,
    };
    result.unwrap_or_else(|| {
        context.flags |= IE;
        context.up = false;
        1 << (bits - 1)
    })
}

fn square_root(context: &mut Context, value: Number) -> u128 {
    if value.sign && !value.is_zero() {
        context.flags |= IE;
        return INDEFINITE;
    }
    if value.denormal {
        context.flags |= DE;
    }
    let root = if value.is_infinite() {
        value
    } else {
        value.root()
    };
    context.round(FORMAT, root)
}

fn round_to_integer(context: &mut Context, value: Number) -> u128 {
    if value.denormal {
        context.flags |= DE;
    }
    let (whole, inexact, up) = value.integral(context.rounding);
    let bits = context.round(FORMAT, whole);
    context.flags |= if inexact { PE } else { 0 };
    context.up = up;
    bits
}

const ADD: u8 = 0;
const MUL: u8 = 1;
const SUB: u8 = 4;
const SUBR: u8 = 5;
const DIV: u8 = 6;
const DIVR: u8 = 7;

const SINGLE_KIND: u8 = 0;
const DOUBLE_KIND: u8 = 1;
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
        S::Float32 => SINGLE_KIND,
        S::Float64 => DOUBLE_KIND,
        S::Float80 => EXTENDED,
        S::Int16 => INT16,
        S::Int32 => INT32,
        _ => INT64,
    }
}

struct Load<const KIND: u8>;
impl<const KIND: u8> Helper for Load<KIND> {
    fn run(cpu: &mut Cpu, op: &Op) -> Flow {
        cpu.x87_begin(op)?;
        if KIND == REGISTER {
            match cpu.st(op.dst) {
                Some(value) => {
                    cpu.fpu.status &= !status::C1;
                    cpu.push_st(value);
                }
                // The one that is empty comes before the one that is full.
                None if cpu.stack_fault(false) => cpu.push_free(INDEFINITE),
                None => {}
            }
            return Ok(());
        }
        if KIND == EXTENDED {
            let value = cpu.load_80(op)?;
            cpu.fpu.status &= !status::C1;
            cpu.push_st(value);
            return Ok(());
        }
        let number = cpu.load_operand(op, KIND)?;
        cpu.fpu.status &= !status::C1;
        if cpu.holds(7) {
            cpu.push_st(INDEFINITE);
            return Ok(());
        }
        let mut context = cpu.x87_context();
        context.flags |= match number.class {
            Class::Signaling => IE,
            _ if number.denormal => DE,
            _ => 0,
        };
        let value = context.round(FORMAT, number);
        // A denormal operand is loaded even if it traps.
        if cpu.settle(&context) || context.flags & IE == 0 {
            cpu.push_st(value);
        }
        Ok(())
    }
}

/// `POP`: and takes it off. `TRUNCATE`: FISTTP.
struct Store<const KIND: u8, const POP: bool, const TRUNCATE: bool>;
impl<const KIND: u8, const POP: bool, const TRUNCATE: bool> Helper for Store<KIND, POP, TRUNCATE> {
    fn run(cpu: &mut Cpu, op: &Op) -> Flow {
        cpu.x87_begin(op)?;
        let stored = if KIND == REGISTER {
            cpu.fpu.status &= !status::C1;
            let value = cpu.st(0);
            let good = value.is_some() || cpu.stack_fault(false);
            if good {
                cpu.set_st(op.dst, value.unwrap_or(INDEFINITE));
            }
            good
        } else {
            cpu.store_number(op, KIND, TRUNCATE)?
        };
        if POP && stored {
            cpu.pop_st();
        }
        Ok(())
    }
}

/// FSTPNCE, an encoding that no manual gives a mnemonic: FSTP that does not mind an empty ST0.
struct StoreUnchecked;
impl Helper for StoreUnchecked {
    fn run(cpu: &mut Cpu, op: &Op) -> Flow {
        cpu.x87_begin(op)?;
        cpu.fpu.status &= !status::C1;
        match cpu.st(0) {
            Some(value) => cpu.set_st(op.dst, value),
            None => cpu.fpu.tags &= !cpu.tag_bit(op.dst),
        }
        cpu.pop_st();
        Ok(())
    }
}

struct Arithmetic<const KIND: u8, const WHAT: u8, const POP: bool>;
impl<const KIND: u8, const WHAT: u8, const POP: bool> Helper for Arithmetic<KIND, WHAT, POP> {
    fn run(cpu: &mut Cpu, op: &Op) -> Flow {
        cpu.x87_begin(op)?;
        let (to, b) = if KIND == REGISTER {
            (op.dst, cpu.st(op.src).map(|bits| FORMAT.unpack(bits)))
        } else {
            (0, Some(cpu.load_operand(op, KIND)?))
        };
        let (Some(a), Some(b)) = (cpu.st(to), b) else {
            if cpu.stack_fault(false) {
                cpu.set_st(to, INDEFINITE);
                if POP {
                    cpu.pop_st();
                }
            }
            return Ok(());
        };
        let mut context = cpu.arithmetic_context();
        let r = cpu.arithmetic(FORMAT.unpack(a), b, WHAT, &mut context);
        if cpu.settle(&context) {
            cpu.set_st(to, r);
            if POP {
                cpu.pop_st();
            }
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
        cpu.x87_begin(op)?;
        let b = if KIND == REGISTER {
            cpu.st(op.src).map(|bits| FORMAT.unpack(bits))
        } else {
            Some(cpu.load_operand(op, KIND)?)
        };
        let mut context = cpu.x87_context();
        let (order, goes_on) = if let (Some(a), Some(b)) = (cpu.st(0), b) {
            let order = Cpu::compare(FORMAT.unpack(a), b, QUIET, &mut context);
            (order, cpu.settle(&context))
        } else {
            (None, cpu.stack_fault(false))
        };
        if FLAGS {
            let unordered = order.is_none();
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
        // What traps tells its result all the same, but pops nothing.
        for _ in 0..if goes_on { POPS } else { 0 } {
            cpu.pop_st();
        }
        Ok(())
    }
}

macro_rules! by_kind {
    ($kind:expr, $k:ident => $e:expr) => {
        match $kind {
            SINGLE_KIND => {
                const $k: u8 = SINGLE_KIND;
                $e
            }
            DOUBLE_KIND => {
                const $k: u8 = DOUBLE_KIND;
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
    go(match i.mnemonic() {
        M::Fld | M::Fild => by_kind!(kind, K => helper::<D, Load<K>>),
        M::Fst | M::Fist => by_kind!(kind, K => helper::<D, Store<K, false, false>>),
        M::Fstpnce => helper::<D, StoreUnchecked>,
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
        M::Ffree => helper::<D, Free<false>>,
        M::Ffreep => helper::<D, Free<true>>,
        M::Fnop => helper::<D, Nothing<true>>,
        // Of the 8087 and the 80287: do nothing any more.
        M::Fneni | M::Fndisi | M::Fnsetpm => helper::<D, Nothing<false>>,
        M::Fcmovb => helper::<D, Move<0>>,
        M::Fcmove => helper::<D, Move<1>>,
        M::Fcmovbe => helper::<D, Move<2>>,
        M::Fcmovu => helper::<D, Move<3>>,
        M::Fcmovnb => helper::<D, Move<4>>,
        M::Fcmovne => helper::<D, Move<5>>,
        M::Fcmovnbe => helper::<D, Move<6>>,
        M::Fcmovnu => helper::<D, Move<7>>,
        _ => {
            return lower_arithmetic(i)
                .or_else(|| functions::lower(i))
                .or_else(|| environment::lower(i))
                .or_else(|| decimal::lower(i));
        }
    })
}
