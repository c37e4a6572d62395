//! A machine that runs one instruction in any mode and says what became of it.

use std::sync::Arc;

use guest_memory::GuestMemory;
use vcpu::{Exit, Segment, Vcpu, VcpuState};

use super::{CODE, GDT, HANDLERS, STACK, TSS, flat, put, word};

pub const IDT32: u64 = 0xa000;
/// The stack of CPL 0 for those who come from elsewhere.
pub const INNER_STACK: u64 = STACK - 0x4000;

/// How the code under test runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Real,
    Protected,
    Virtual86,
    Compatibility,
    Long,
}

pub const MODES: [(Mode, u8); 8] = [
    (Mode::Real, 0),
    (Mode::Protected, 0),
    (Mode::Protected, 1),
    (Mode::Protected, 3),
    (Mode::Virtual86, 3),
    (Mode::Compatibility, 3),
    (Mode::Long, 0),
    (Mode::Long, 3),
];

/// What an instruction did.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    Done(Box<VcpuState>),
    /// Vector and error code.
    Fault(u64, u64),
}

pub const GP: (u64, u64) = (13, 0);
pub const UD: (u64, u64) = (6, u64::MAX);

pub struct Machine {
    pub memory: Arc<GuestMemory>,
    pub vcpu: Box<dyn Vcpu>,
    pub blank: VcpuState,
}

impl Machine {
    pub fn new() -> Self {
        let memory = super::memory();
        super::prepare_long_mode(&memory);
        put(
            &memory,
            GDT + 0x38,
            &0x00cf_9b00_0000_ffff_u64.to_le_bytes(),
        );
        put(
            &memory,
            GDT + 0x40,
            &0x00cf_9300_0000_ffff_u64.to_le_bytes(),
        );
        for vector in 0..32_u64 {
            let at = HANDLERS + vector;
            let gate = (at & 0xffff) | 0x38 << 16 | 0x8e00 << 32;
            put(&memory, IDT32 + vector * 8, &gate.to_le_bytes());
        }
        // TSS: stacks of both forms do not overlap in what they are read as.
        put(&memory, TSS + 0x66, &0x68_u16.to_le_bytes());
        let vcpu = super::vcpu(&memory, 0);
        let blank = vcpu.state().unwrap();
        Self {
            memory,
            vcpu,
            blank,
        }
    }

    pub fn state(&self, mode: Mode, cpl: u8) -> VcpuState {
        let mut state = super::long_state_of(self.blank.clone(), CODE);
        let s = &mut state.system;
        let long = matches!(mode, Mode::Long | Mode::Compatibility);
        s.gdtr.limit = 0xff;
        s.xcr0 = 1;
        if !long {
            s.cr0 = 0x31;
            s.cr4 = 0x600;
            s.efer = 0;
            s.idtr.base = IDT32;
            s.idtr.limit = 0xff;
        }
        s.tr.limit = 0xff;
        // There is no LDT.
        s.ldtr = Segment {
            unusable: true,
            ..Segment::default()
        };
        let rpl = u16::from(cpl);
        let (code, data) = match (mode, cpl) {
            (Mode::Long, 0) => (8, 0x10),
            (Mode::Long, _) => (0x28, 0x20),
            (Mode::Compatibility, _) => (0x18, 0x20),
            (_, 0) => (0x38, 0x10),
            _ => (0x18, 0x20),
        };
        s.segments = [flat(data | rpl, 3, false, cpl); 6];
        s.segments[1] = flat(code | rpl, 11, mode == Mode::Long, cpl);
        state.registers.general[4] = STACK;
        if matches!(mode, Mode::Real | Mode::Virtual86) {
            for segment in &mut s.segments {
                *segment = flat(0, 3, false, cpl);
                segment.limit = 0xffff;
                segment.big = false;
                segment.granular = false;
            }
            s.segments[1].selector = 0x1000;
            s.segments[1].base = CODE;
            state.registers.rip = 0;
            state.registers.general[4] = 0x7000;
        }
        match mode {
            Mode::Real => {
                s.cr0 = 0x30;
                s.idtr.base = 0;
                s.idtr.limit = 0x3ff;
            }
            Mode::Virtual86 => state.registers.rflags |= 1 << 17 | 3 << 12,
            _ => {}
        }
        state
    }

    /// Runs one instruction; ends with OUT to a port that the TSS allows, or in a handler.
    pub fn run(&mut self, mode: Mode, state: &VcpuState, code: &[u8]) -> Outcome {
        put(&self.memory, CODE, code);
        put(&self.memory, CODE + code.len() as u64, &[0xe6, 0x80]);
        let long = state.system.efer & 0x400 != 0;
        let stack = if long {
            INNER_STACK
        } else {
            INNER_STACK | 0x40 << 32
        };
        put(&self.memory, TSS + 4, &stack.to_le_bytes());
        if mode == Mode::Real {
            // Handlers are at 0000:HANDLERS + vector.
            for vector in 0..32_u64 {
                put(
                    &self.memory,
                    vector * 4,
                    &((HANDLERS + vector) as u32).to_le_bytes(),
                );
            }
        }
        self.vcpu.set_state(state).unwrap();
        match self.vcpu.run().unwrap() {
            Exit::PortOut { port: 0x80, .. } => {
                self.vcpu.kicker().kick();
                assert_eq!(self.vcpu.run().unwrap(), Exit::Kicked);
                Outcome::Done(Box::new(self.vcpu.state().unwrap()))
            }
            Exit::TaskPriority(_) => Outcome::Done(Box::new(self.vcpu.state().unwrap())),
            Exit::Halt => {
                let after = self.vcpu.state().unwrap();
                let vector = after.registers.rip.wrapping_sub(HANDLERS + 1);
                if vector >= 32 {
                    // The instruction itself is HLT.
                    return Outcome::Done(Box::new(after));
                }
                let sp = after.registers.general[4];
                let error = match vector {
                    13 if mode == Mode::Real => 0,
                    _ if mode == Mode::Real => u64::MAX,
                    8 | 10..=14 => {
                        word(&self.memory, sp) & if long { u64::MAX } else { 0xffff_ffff }
                    }
                    _ => u64::MAX,
                };
                Outcome::Fault(vector, error)
            }
            other => panic!("{other:?}"),
        }
    }
}

pub fn expect(outcome: &Outcome, wanted: Option<(u64, u64)>, what: &dyn std::fmt::Debug) {
    match (outcome, wanted) {
        (Outcome::Done(_), None) => {}
        (Outcome::Fault(vector, error), Some(wanted)) => {
            assert_eq!((*vector, *error), wanted, "{what:x?}");
        }
        (outcome, wanted) => panic!("{what:x?}: wanted {wanted:x?}, not {outcome:x?}"),
    }
}
