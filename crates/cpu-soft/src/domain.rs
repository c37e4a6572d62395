//! The vocabulary in which instructions are defined.
//!
//! An instruction's meaning is a function over a [`Domain`]. Its values may be integers (the
//! interpreter, `interpret.rs`) or nodes of a program being made (a translator). So it must not
//! look at a value with Rust's `if`: it says [`Domain::select`] and [`Domain::branch_if`].

use guest_memory::Word;

/// Why an instruction did not simply run on into the next. What belongs to it is in the CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stop {
    /// RIP was set: look up the next block.
    Branch,
    /// A fault, described in `Cpu::fault`; nothing architectural was changed.
    Fault,
    /// The machine must do something first, described in `Cpu::exit`; nothing was changed.
    Exit,
    /// It would write to decoded code: run it again, alone.
    CodeWrite,
    /// It needs to be the only vCPU that runs: run it again, exclusively.
    Exclusive,
    /// Interrupted between two iterations: run it again later.
    Again,
    /// It is done and RIP is set, and the machine must know: described in `Cpu::exit`.
    ExitAfter,
}

/// What an instruction returns.
pub(crate) type Flow = Result<(), Stop>;

/// What runs an instruction in a domain.
pub(crate) type Handler<D> = fn(&mut D, &Op) -> Flow;

/// Register number of "none": reads as zero.
pub(crate) const NO_REGISTER: u8 = 16;
/// Register number of the first instruction pointer of the running block: what RIP-relative
/// operands and near branches count from, so that a block does not depend on where it is mapped.
pub(crate) const BLOCK_IP: u8 = 17;
/// Set in the number of AH, CH, DH and BH.
pub(crate) const HIGH_BYTE: u8 = 0x20;

/// How an address is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AddressKind {
    /// 64-bit, in 64-bit mode: no limits.
    Flat,
    /// 32-bit, in 64-bit mode: no limits, the offset is cut to 32 bits.
    Flat32,
    /// 32-bit with a segment's limits.
    Legacy32,
    /// 16-bit with a segment's limits.
    Legacy16,
}

/// The operands of one decoded instruction. A handler knows which of the fields it has.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Op {
    /// The immediate, sign-extended; a branch's target, relative to [`BLOCK_IP`].
    pub imm: u64,
    /// Displacement of the memory operand.
    pub disp: i32,
    /// The first operand, if it is a register.
    pub dst: u8,
    /// The second operand, if it is a register.
    pub src: u8,
    /// The third operand, if it is a register.
    pub aux: u8,
    /// Base register of the memory operand.
    pub base: u8,
    /// Index register of the memory operand.
    pub index: u8,
    /// Shift of the index.
    pub scale: u8,
    /// Segment of the memory operand.
    pub seg: u8,
    /// How its address is computed.
    pub addr: AddressKind,
    /// Where the instruction begins, in bytes from the block's beginning.
    pub offset: u16,
    /// Its length in bytes.
    pub len: u8,
    /// A handler's own: prefix bits, see `lower.rs`.
    pub prefix: u8,
}

/// An operand size, at compile time.
pub(crate) trait Width: Copy + 'static {
    /// The integer of that size.
    type Int: Word + PartialEq;
    const BITS: u32;
    const BYTES: u64;
    const MASK: u64;
    fn int(value: u64) -> Self::Int;
    fn value(int: Self::Int) -> u64;
    fn sext(value: u64) -> u64;
}

macro_rules! width {
    ($name:ident, $int:ty, $signed:ty) => {
        #[derive(Debug, Clone, Copy)]
        pub(crate) struct $name;
        impl Width for $name {
            type Int = $int;
            const BITS: u32 = <$int>::BITS;
            const BYTES: u64 = size_of::<$int>() as u64;
            const MASK: u64 = <$int>::MAX as u64;
            #[inline(always)]
            fn int(value: u64) -> $int {
                value as $int
            }
            #[inline(always)]
            fn value(int: $int) -> u64 {
                int as u64
            }
            #[inline(always)]
            fn sext(value: u64) -> u64 {
                value as $signed as i64 as u64
            }
        }
    };
}

width!(W8, u8, i8);
width!(W16, u16, i16);
width!(W32, u32, i32);
width!(W64, u64, i64);

/// The six arithmetic flags, in a form that is cheap to make:
/// ZF is `zr == 0`; SF is the sign of `sr`; PF the parity of its low byte; CF is bit 63 of `cv`,
/// OF is bit 63 xor bit 62 of it, AF is bit 3. For an addition `cv` is just the vector of
/// carries, shifted up so that the operand's last carry is at bit 63.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Flags<V> {
    pub zr: V,
    pub sr: V,
    pub cv: V,
}

/// What instructions are made of. Values are 64 bits; a narrower one is zero-extended unless
/// said otherwise. Memory accesses come before any change of state.
pub(crate) trait Domain: Sized {
    type Val: Copy;
    type Bit: Copy;

    fn lit(&mut self, value: u64) -> Self::Val;
    fn add(&mut self, a: Self::Val, b: Self::Val) -> Self::Val;
    fn sub(&mut self, a: Self::Val, b: Self::Val) -> Self::Val;
    fn and(&mut self, a: Self::Val, b: Self::Val) -> Self::Val;
    fn or(&mut self, a: Self::Val, b: Self::Val) -> Self::Val;
    fn xor(&mut self, a: Self::Val, b: Self::Val) -> Self::Val;
    fn not(&mut self, a: Self::Val) -> Self::Val;
    /// Shifts by `count` modulo 64.
    fn shl(&mut self, a: Self::Val, count: Self::Val) -> Self::Val;
    fn shr(&mut self, a: Self::Val, count: Self::Val) -> Self::Val;
    fn sar(&mut self, a: Self::Val, count: Self::Val) -> Self::Val;
    /// The 128-bit product, low and high half.
    fn mul_unsigned(&mut self, a: Self::Val, b: Self::Val) -> (Self::Val, Self::Val);
    fn mul_signed(&mut self, a: Self::Val, b: Self::Val) -> (Self::Val, Self::Val);
    fn zext<W: Width>(&mut self, a: Self::Val) -> Self::Val;
    fn sext<W: Width>(&mut self, a: Self::Val) -> Self::Val;
    /// A function of integers that is not worth spelling out: a call in translated code.
    fn pure(
        &mut self,
        f: fn(u64, u64, u64) -> (u64, u64),
        args: [Self::Val; 3],
    ) -> (Self::Val, Self::Val);

    fn is_zero(&mut self, a: Self::Val) -> Self::Bit;
    fn is_negative(&mut self, a: Self::Val) -> Self::Bit;
    /// Whether the low byte has an even number of ones.
    fn is_even_parity(&mut self, a: Self::Val) -> Self::Bit;
    fn both(&mut self, a: Self::Bit, b: Self::Bit) -> Self::Bit;
    fn either(&mut self, a: Self::Bit, b: Self::Bit) -> Self::Bit;
    fn negate(&mut self, a: Self::Bit) -> Self::Bit;
    /// 0 or 1.
    fn value(&mut self, a: Self::Bit) -> Self::Val;
    fn select(&mut self, c: Self::Bit, yes: Self::Val, no: Self::Val) -> Self::Val;

    fn reg<W: Width>(&mut self, number: u8) -> Self::Val;
    /// 32 bits clear the upper half, 8 and 16 leave the rest.
    fn set_reg<W: Width>(&mut self, number: u8, value: Self::Val);
    fn flags(&mut self) -> Flags<Self::Val>;
    fn set_flags(&mut self, flags: Flags<Self::Val>);

    /// The offset of the memory operand in its segment, cut to the address size.
    fn effective(&mut self, op: &Op) -> Self::Val;
    /// The memory operand.
    fn load<W: Width>(&mut self, op: &Op) -> Result<Self::Val, Stop>;
    fn store<W: Width>(&mut self, op: &Op, value: Self::Val) -> Flow;
    /// The memory operand `bytes` (a value) further on than the instruction says.
    fn load_at<W: Width>(&mut self, op: &Op, bytes: Self::Val) -> Result<Self::Val, Stop>;
    /// Replaces the memory operand; `change` must not touch state. Write permission is checked
    /// before anything else. `locked`: as one operation, then `change` may run again.
    fn update<W: Width, R>(
        &mut self,
        op: &Op,
        locked: bool,
        bytes: Self::Val,
        change: impl FnMut(&mut Self, Self::Val) -> (Self::Val, R),
    ) -> Result<R, Stop>;

    fn push<W: Width>(&mut self, value: Self::Val) -> Flow;
    /// The top of the stack; RSP stays.
    fn peek<W: Width>(&mut self) -> Result<Self::Val, Stop>;
    /// Adds to the stack pointer of the present stack size.
    fn drop_stack(&mut self, bytes: Self::Val);

    /// The address of the next instruction.
    fn next_ip(&mut self, op: &Op) -> Self::Val;
    /// The target of a near branch.
    fn target(&mut self, op: &Op) -> Self::Val;
    /// Ends the block. Always `Err`. The target is cut to `W`.
    fn jump<W: Width>(&mut self, target: Self::Val) -> Flow;
    /// Checks a target before anything changes.
    fn check_target<W: Width>(&mut self, target: Self::Val) -> Flow;
    /// Leaves the block for the target; or goes on, `Ok`, to the next instruction.
    fn branch_if<W: Width>(&mut self, c: Self::Bit, op: &Op) -> Flow;
    /// Calls a definition that is written for the CPU itself.
    fn call<H: Helper>(&mut self, op: &Op) -> Flow;
}

/// An instruction too intricate to spell out in a domain's vocabulary: far transfers, control
/// registers, strings. Interpreter and translated code both call it.
pub(crate) trait Helper {
    fn run(cpu: &mut crate::cpu::Cpu, op: &Op) -> Flow;
}

/// The handler of a [`Helper`].
pub(crate) fn helper<D: Domain, H: Helper>(d: &mut D, op: &Op) -> Flow {
    d.call::<H>(op)
}

/// Defines [`Helper`]s: `Name => function of (&mut Cpu, &Op) -> Flow`.
macro_rules! helpers {
    ($($name:ident => $run:expr),* $(,)?) => {$(
        #[doc = concat!("Helper ", stringify!($name), ".")]
        pub(crate) struct $name;
        impl $crate::domain::Helper for $name {
            #[inline(always)]
            fn run(cpu: &mut $crate::cpu::Cpu, op: &$crate::domain::Op) -> $crate::domain::Flow {
                let run: fn(&mut $crate::cpu::Cpu, &$crate::domain::Op) -> $crate::domain::Flow = $run;
                run(cpu, op)
            }
        }
    )*};
}
pub(crate) use helpers;
