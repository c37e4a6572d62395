//! The interpreter: the domain whose values are integers.

use crate::cpu::{CS, CodeMode, Cpu, RSP};
use crate::domain::{BLOCK_IP, Domain, Flags, Flow, HIGH_BYTE, Helper, Op, Stop, Width};

impl Domain for Cpu {
    type Val = u64;
    type Bit = bool;

    #[inline(always)]
    fn lit(&mut self, value: u64) -> u64 {
        value
    }
    #[inline(always)]
    fn add(&mut self, a: u64, b: u64) -> u64 {
        a.wrapping_add(b)
    }
    #[inline(always)]
    fn sub(&mut self, a: u64, b: u64) -> u64 {
        a.wrapping_sub(b)
    }
    #[inline(always)]
    fn and(&mut self, a: u64, b: u64) -> u64 {
        a & b
    }
    #[inline(always)]
    fn or(&mut self, a: u64, b: u64) -> u64 {
        a | b
    }
    #[inline(always)]
    fn xor(&mut self, a: u64, b: u64) -> u64 {
        a ^ b
    }
    #[inline(always)]
    fn not(&mut self, a: u64) -> u64 {
        !a
    }
    #[inline(always)]
    fn shl(&mut self, a: u64, count: u64) -> u64 {
        a << (count & 63)
    }
    #[inline(always)]
    fn shr(&mut self, a: u64, count: u64) -> u64 {
        a >> (count & 63)
    }
    #[inline(always)]
    fn sar(&mut self, a: u64, count: u64) -> u64 {
        ((a as i64) >> (count & 63)) as u64
    }
    #[inline(always)]
    fn mul_unsigned(&mut self, a: u64, b: u64) -> (u64, u64) {
        let product = u128::from(a) * u128::from(b);
        (product as u64, (product >> 64) as u64)
    }
    #[inline(always)]
    fn mul_signed(&mut self, a: u64, b: u64) -> (u64, u64) {
        let product = i128::from(a as i64).wrapping_mul(i128::from(b as i64));
        (product as u64, (product >> 64) as u64)
    }
    #[inline(always)]
    fn zext<W: Width>(&mut self, a: u64) -> u64 {
        a & W::MASK
    }
    #[inline(always)]
    fn sext<W: Width>(&mut self, a: u64) -> u64 {
        W::sext(a)
    }
    #[inline(always)]
    fn pure(&mut self, f: fn(u64, u64, u64) -> (u64, u64), args: [u64; 3]) -> (u64, u64) {
        let [a, b, c] = args;
        f(a, b, c)
    }
    #[inline(always)]
    fn is_zero(&mut self, a: u64) -> bool {
        a == 0
    }
    #[inline(always)]
    fn is_negative(&mut self, a: u64) -> bool {
        (a as i64) < 0
    }
    #[inline(always)]
    fn is_even_parity(&mut self, a: u64) -> bool {
        (a as u8).count_ones() & 1 == 0
    }
    #[inline(always)]
    fn both(&mut self, a: bool, b: bool) -> bool {
        a & b
    }
    #[inline(always)]
    fn either(&mut self, a: bool, b: bool) -> bool {
        a | b
    }
    #[inline(always)]
    fn negate(&mut self, a: bool) -> bool {
        !a
    }
    #[inline(always)]
    fn value(&mut self, a: bool) -> u64 {
        u64::from(a)
    }
    #[inline(always)]
    fn select(&mut self, c: bool, yes: u64, no: u64) -> u64 {
        if c { yes } else { no }
    }

    #[inline(always)]
    fn reg<W: Width>(&mut self, number: u8) -> u64 {
        let value = self.get(number);
        if W::BITS == 8 && number & HIGH_BYTE != 0 {
            return (value >> 8) & 0xff;
        }
        value & W::MASK
    }
    #[inline(always)]
    fn set_reg<W: Width>(&mut self, number: u8, value: u64) {
        if W::BITS >= 32 {
            self.put(number, value & W::MASK);
        } else if W::BITS == 8 && number & HIGH_BYTE != 0 {
            let old = self.get(number);
            self.put(number, (old & !0xff00) | ((value & 0xff) << 8));
        } else {
            let old = self.get(number);
            self.put(number, (old & !W::MASK) | (value & W::MASK));
        }
    }
    #[inline(always)]
    fn flags(&mut self) -> Flags<u64> {
        self.flags
    }
    #[inline(always)]
    fn set_flags(&mut self, flags: Flags<u64>) {
        self.flags = flags;
    }

    #[inline(always)]
    fn effective(&mut self, op: &Op) -> u64 {
        self.offset_of(op)
    }
    #[inline(always)]
    fn load<W: Width>(&mut self, op: &Op) -> Result<u64, Stop> {
        let linear = self.linear_of(op, 0, W::BYTES, false)?;
        self.load_linear::<W>(linear)
    }
    #[inline(always)]
    fn store<W: Width>(&mut self, op: &Op, value: u64) -> Flow {
        let linear = self.linear_of(op, 0, W::BYTES, true)?;
        self.store_linear::<W>(linear, value)
    }
    #[inline(always)]
    fn load_at<W: Width>(&mut self, op: &Op, bytes: u64) -> Result<u64, Stop> {
        let linear = self.linear_of(op, bytes, W::BYTES, false)?;
        self.load_linear::<W>(linear)
    }
    #[inline(always)]
    fn update<W: Width, R>(
        &mut self,
        op: &Op,
        locked: bool,
        bytes: u64,
        change: impl FnMut(&mut Self, u64) -> (u64, R),
    ) -> Result<R, Stop> {
        let linear = self.linear_of(op, bytes, W::BYTES, true)?;
        self.update_linear::<W, R>(linear, locked, change)
    }

    #[inline(always)]
    fn push<W: Width>(&mut self, value: u64) -> Flow {
        self.push_value::<W>(value)
    }
    #[inline(always)]
    fn peek<W: Width>(&mut self) -> Result<u64, Stop> {
        self.peek_value::<W>(0)
    }
    #[inline(always)]
    fn drop_stack(&mut self, bytes: u64) {
        let sp = self.get(RSP).wrapping_add(bytes);
        if self.flat_stack {
            self.put(RSP, sp);
        } else {
            self.set_stack(sp);
        }
    }

    #[inline(always)]
    fn next_ip(&mut self, op: &Op) -> u64 {
        self.next_ip_of(op)
    }
    #[inline(always)]
    fn target(&mut self, op: &Op) -> u64 {
        self.get(BLOCK_IP).wrapping_add(op.imm)
    }
    #[inline(always)]
    fn jump<W: Width>(&mut self, target: u64) -> Flow {
        self.rip = target & W::MASK;
        Err(Stop::Branch)
    }
    #[inline(always)]
    fn check_target<W: Width>(&mut self, target: u64) -> Flow {
        let target = target & W::MASK;
        let good = if self.mode == CodeMode::Bits64 {
            self.canonical(target)
        } else {
            target <= u64::from(self.segment(CS).limit)
        };
        if good { Ok(()) } else { Err(self.gp(0)) }
    }
    #[inline(always)]
    fn branch_if<W: Width>(&mut self, c: bool, op: &Op) -> Flow {
        if c {
            let target = self.target(op);
            self.check_target::<W>(target)?;
            self.rip = target & W::MASK;
            return Err(Stop::Branch);
        }
        Ok(())
    }
    #[inline(always)]
    fn call<H: Helper>(&mut self, op: &Op) -> Flow {
        H::run(self, op)
    }
}
