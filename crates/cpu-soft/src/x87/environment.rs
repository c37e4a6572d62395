//! The environment in memory: FLDENV, FNSTENV, FNSAVE, FRSTOR (Intel SDM 1, "Saving the x87
//! FPU's State"), in the forms of 16 and 32 bits, of protected and of real mode.

use iced_x86::{Instruction, MemorySize, Mnemonic as M};

use crate::cpu::Cpu;
use crate::domain::{Domain, Flow, Helper, Op, Stop, W16, W32, W64, Width, helper};
use crate::ieee::{Class, EXTENDED as FORMAT};
use crate::lower::{Lowered, go};

/// Bytes of a register.
const REGISTER: u64 = 10;

impl Cpu {
    /// Two bits for each physical register: valid, zero, special, empty.
    fn tag_word(&self) -> u16 {
        let top = self.top() as u8;
        (0..8_u8).fold(0, |word, physical| {
            let index = physical.wrapping_sub(top) & 7;
            let number = FORMAT.unpack(self.raw_st(index));
            let tag = match number.class {
                _ if !self.holds(index) => 3,
                Class::Zero => 1,
                Class::Finite if !number.denormal => 0,
                _ => 2,
            };
            word | (tag << (physical * 2))
        })
    }

    fn set_tag_word(&mut self, word: u16) {
        self.fpu.tags = (0..8).fold(0, |tags, n| {
            tags | (u8::from((word >> (n * 2)) & 3 != 3) << n)
        });
    }

    /// The seven fields. In real and virtual-8086 mode addresses are linear and cut in two.
    fn environment(&self, wide: bool) -> [u32; 7] {
        let words = [self.fpu.control, self.fpu.status, self.tag_word()]
            .map(|word| u32::from(word) | 0xffff_0000);
        let [control, status, tags] = words;
        let (ip, dp, opcode) = (
            self.fpu.ip as u32,
            self.fpu.dp as u32,
            u32::from(self.fpu.opcode),
        );
        if self.protected() && !self.v86() {
            return [control, status, tags, ip, opcode << 16, dp, 0xffff_0000];
        }
        let upper = |address: u32| {
            if wide {
                (address >> 16) << 12
            } else {
                (address >> 16 & 15) << 12
            }
        };
        let low = |address: u32| (address & 0xffff) | 0xffff_0000;
        [
            control,
            status,
            tags,
            low(ip),
            upper(ip) | opcode,
            low(dp),
            upper(dp),
        ]
    }

    fn set_environment(&mut self, fields: [u32; 7], wide: bool) {
        let [control, status, tags, ip, more, dp, last] = fields;
        self.fpu.set_control(control as u16);
        let top = self.top();
        let moved = (status as u16 >> 11).wrapping_sub(top) & 7;
        // The registers stay where they are; what is ST0 changes.
        self.fpu.st.rotate_left(usize::from(moved));
        self.fpu.status = status as u16;
        self.set_tag_word(tags as u16);
        let real = !self.protected() || self.v86();
        let upper = |field: u32| if real { field >> 12 << 16 } else { 0 };
        let whole = |low: u32, field: u32| {
            let low = if wide && !real { low } else { low & 0xffff };
            u64::from(low | upper(field))
        };
        self.fpu.ip = whole(ip, more);
        self.fpu.dp = whole(dp, last);
        self.fpu.opcode = if real {
            more & 0x7ff
        } else {
            more >> 16 & 0x7ff
        } as u16;
        self.x87_summary();
    }

    /// The environment to memory, with the registers behind it if `all`. Everything is seen to
    /// be writable before anything is written.
    fn store_environment(&mut self, op: &Op, wide: bool, all: bool) -> Flow {
        let field = if wide { 4 } else { 2 };
        let bytes = field * 7 + if all { 8 * REGISTER } else { 0 };
        let start = self.linear_of(op, 0, bytes, true)?;
        self.probe_write(start, bytes, self.data_kind)?;
        let mut at = start;
        for value in self.environment(wide) {
            if wide {
                self.store_linear::<W32>(at, u64::from(value))?;
            } else {
                self.store_linear::<W16>(at, u64::from(value & 0xffff))?;
            }
            at = at.wrapping_add(field);
        }
        if all {
            for index in 0..8 {
                let value = self.raw_st(index);
                self.store_linear::<W64>(at, value as u64)?;
                let high = (value >> 64) as u64 & 0xffff;
                self.store_linear::<W16>(at.wrapping_add(8), high)?;
                at = at.wrapping_add(REGISTER);
            }
        }
        Ok(())
    }

    fn load_word<W: Width>(&mut self, start: u64, at: u64) -> Result<u64, Stop> {
        self.load_linear::<W>(start.wrapping_add(at))
    }

    fn load_environment(&mut self, op: &Op, wide: bool, all: bool) -> Flow {
        let field = if wide { 4 } else { 2 };
        let bytes = field * 7 + if all { 8 * REGISTER } else { 0 };
        let start = self.linear_of(op, 0, bytes, false)?;
        let mut fields = [0; 7];
        for (n, to) in (0..).zip(&mut fields) {
            *to = if wide {
                self.load_word::<W32>(start, n * field)?
            } else {
                self.load_word::<W16>(start, n * field)?
            } as u32;
        }
        let mut registers = [0_u128; 8];
        if all {
            for (n, to) in (0..).zip(&mut registers) {
                let at = field * 7 + n * REGISTER;
                let low = self.load_word::<W64>(start, at)?;
                let high = self.load_word::<W16>(start, at + 8)?;
                *to = u128::from(low) | (u128::from(high) << 64);
            }
        }
        self.set_environment(fields, wide);
        if all {
            self.fpu.st = registers;
        }
        Ok(())
    }
}

/// `WIDE`: the form of 32 bits. `ALL`: with the registers, and after a store all is reset.
struct Save<const WIDE: bool, const ALL: bool>;
impl<const WIDE: bool, const ALL: bool> Helper for Save<WIDE, ALL> {
    fn run(cpu: &mut Cpu, op: &Op) -> Flow {
        cpu.x87_ready()?;
        cpu.store_environment(op, WIDE, ALL)?;
        if ALL {
            cpu.top_to_zero();
            cpu.fpu.init_x87();
        } else {
            // All exceptions are masked now.
            cpu.fpu.control |= 0x3f;
            cpu.x87_summary();
        }
        Ok(())
    }
}

struct Restore<const WIDE: bool, const ALL: bool>;
impl<const WIDE: bool, const ALL: bool> Helper for Restore<WIDE, ALL> {
    fn run(cpu: &mut Cpu, op: &Op) -> Flow {
        cpu.x87_ready()?;
        cpu.x87_waits()?;
        cpu.load_environment(op, WIDE, ALL)
    }
}

pub(super) fn lower<D: Domain>(i: &Instruction) -> Option<Lowered<D>> {
    let wide = matches!(
        i.memory_size(),
        MemorySize::FpuEnv28 | MemorySize::FpuState108
    );
    go(match (i.mnemonic(), wide) {
        (M::Fnstenv, false) => helper::<D, Save<false, false>>,
        (M::Fnstenv, true) => helper::<D, Save<true, false>>,
        (M::Fnsave, false) => helper::<D, Save<false, true>>,
        (M::Fnsave, true) => helper::<D, Save<true, true>>,
        (M::Fldenv, false) => helper::<D, Restore<false, false>>,
        (M::Fldenv, true) => helper::<D, Restore<true, false>>,
        (M::Frstor, false) => helper::<D, Restore<false, true>>,
        (M::Frstor, true) => helper::<D, Restore<true, true>>,
        _ => return None,
    })
}
