//! The registers of a local APIC and what they do to each other. Nothing here calls anybody: what is to be told the
//! outside is written into [`Effects`].

use serde::{Deserialize, Serialize};

use super::bus::{Delivery, Destination, InterruptMessage};
use super::local::CpuSignal;
use super::timer::{ApicTimer, TimerMode};

pub(super) const BASE_BSP: u64 = 1 << 8;
pub(super) const BASE_X2: u64 = 1 << 10;
pub(super) const BASE_ENABLED: u64 = 1 << 11;

/// Version 0x14, six local vectors, EOI broadcasts can be suppressed.
const VERSION_REGISTER: u32 = 0x0105_0014;
const SVR_ENABLED: u32 = 1 << 8;
const SVR_NO_EOI_BROADCAST: u32 = 1 << 12;
const SVR_WRITABLE: u32 = 0x13ff;
const LVT_MASKED: u32 = 1 << 16;
const LVT_LEVEL: u32 = 1 << 15;
const LVT_REMOTE_IRR: u32 = 1 << 14;
const ESR_SEND_VECTOR: u32 = 1 << 5;
const ESR_RECEIVED_VECTOR: u32 = 1 << 6;
const ESR_REGISTER: u32 = 1 << 7;

/// Index of a local vector in the register file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lvt {
    Timer,
    Thermal,
    Performance,
    Lint0,
    Lint1,
    Error,
}

impl Lvt {
    /// By offset of its register.
    fn at(offset: u32) -> Option<Lvt> {
        match offset {
            0x320 => Some(Lvt::Timer),
            0x330 => Some(Lvt::Thermal),
            0x340 => Some(Lvt::Performance),
            0x350 => Some(Lvt::Lint0),
            0x360 => Some(Lvt::Lint1),
            0x370 => Some(Lvt::Error),
            _ => None,
        }
    }

    fn writable(self) -> u32 {
        match self {
            Lvt::Timer => 0x7_00ff,
            Lvt::Thermal | Lvt::Performance => 0x1_07ff,
            Lvt::Lint0 | Lvt::Lint1 => 0x1_a7ff,
            Lvt::Error => 0x1_00ff,
        }
    }
}

/// What is to be told the outside once the lock is released.
#[derive(Debug, Default)]
pub(super) struct Effects {
    pub(super) ended: Vec<u8>,
    pub(super) sent: Vec<InterruptMessage>,
    pub(super) signals: Vec<CpuSignal>,
}

/// 256 bits, one per vector.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Vectors([u32; 8]);

impl Vectors {
    fn set(&mut self, vector: u8, on: bool) {
        if let Some(word) = self.0.get_mut(usize::from(vector >> 5)) {
            let bit = 1 << (vector & 31);
            *word = if on { *word | bit } else { *word & !bit };
        }
    }

    fn has(&self, vector: u8) -> bool {
        self.word(u32::from(vector >> 5)) & 1 << (vector & 31) != 0
    }

    fn word(&self, index: u32) -> u32 {
        usize::try_from(index)
            .ok()
            .and_then(|index| self.0.get(index))
            .copied()
            .unwrap_or(0)
    }

    pub(super) fn highest(&self) -> Option<u8> {
        let words = (0_u8..8).zip(self.0).rev();
        words
            .filter(|(_, word)| *word != 0)
            .map(|(index, word)| {
                let top = u8::try_from(31 - word.leading_zeros()).unwrap_or(0);
                index << 5 | top
            })
            .next()
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Registers {
    pub(super) base: u64,
    /// The eight bits of the xAPIC's identity register; software may change them.
    pub(super) xapic_id: u8,
    pub(super) tpr: u8,
    ldr: u8,
    flat: bool,
    svr: u32,
    isr: Vectors,
    tmr: Vectors,
    irr: Vectors,
    /// As read; and what has happened since the last write.
    esr: u32,
    errors: u32,
    icr: u64,
    lvt: [u32; 6],
    pub(super) timer: ApicTimer,
    /// Levels of LINT0 and LINT1.
    lint: [bool; 2],
    /// An ExtINT message from an I/O APIC waits.
    pub(super) external: bool,
}

impl Registers {
    pub(super) fn new(id: u32, bootstrap: bool) -> Registers {
        let bootstrap = if bootstrap { BASE_BSP } else { 0 };
        Registers {
            base: 0xfee0_0000 | BASE_ENABLED | bootstrap,
            xapic_id: id.to_le_bytes()[0],
            tpr: 0,
            ldr: 0,
            flat: true,
            svr: 0xff,
            isr: Vectors::default(),
            tmr: Vectors::default(),
            irr: Vectors::default(),
            esr: 0,
            errors: 0,
            icr: 0,
            lvt: [LVT_MASKED; 6],
            timer: ApicTimer::default(),
            lint: [false; 2],
            external: false,
        }
    }

    /// INIT keeps the mode, the identity and what is on the pins.
    pub(super) fn initialise(&mut self, id: u32) {
        *self = Registers {
            base: self.base,
            xapic_id: self.xapic_id,
            lint: self.lint,
            ..Registers::new(id, false)
        };
    }

    pub(super) fn is_x2(&self) -> bool {
        self.base & (BASE_X2 | BASE_ENABLED) == BASE_X2 | BASE_ENABLED
    }

    pub(super) fn is_on(&self) -> bool {
        self.base & BASE_ENABLED != 0
    }

    /// Switched on by software too: takes fixed interrupts.
    pub(super) fn is_enabled(&self) -> bool {
        self.is_on() && self.svr & SVR_ENABLED != 0
    }

    fn lvt(&self, which: Lvt) -> u32 {
        self.lvt.get(which as usize).copied().unwrap_or(LVT_MASKED)
    }

    fn set_lvt(&mut self, which: Lvt, value: u32) {
        if let Some(place) = self.lvt.get_mut(which as usize) {
            *place = value;
        }
    }

    pub(super) fn timer_mode(&self) -> TimerMode {
        TimerMode::of(self.lvt(Lvt::Timer))
    }

    /// SDM 11.8.3.1: the higher of the task's priority and that of the vector in service.
    pub(super) fn ppr(&self) -> u8 {
        let service = self.isr.highest().unwrap_or(0);
        if self.tpr >> 4 >= service >> 4 {
            self.tpr
        } else {
            service & 0xf0
        }
    }

    pub(super) fn pending_vector(&self) -> Option<u8> {
        let highest = self.irr.highest()?;
        (highest >> 4 > self.ppr() >> 4).then_some(highest)
    }

    /// Whether the 8259 asks through LINT0, or directly when the APIC is off.
    pub(super) fn external_asks(&self) -> bool {
        let [lint0, _] = self.lint;
        let vector = self.lvt(Lvt::Lint0);
        let through = vector & LVT_MASKED == 0 && vector >> 8 & 7 == 7;
        self.external || lint0 && (through || !self.is_on())
    }

    pub(super) fn accept(&mut self, vector: u8) -> bool {
        if !self.irr.has(vector) {
            return false;
        }
        self.irr.set(vector, false);
        self.isr.set(vector, true);
        true
    }

    pub(super) fn error(&mut self, bit: u32, effects: &mut Effects) {
        self.errors |= bit;
        let vector = self.lvt(Lvt::Error);
        // An error in the error's own vector is not told again.
        if vector & LVT_MASKED == 0 && vector & 0xff >= 16 {
            self.request(vector.to_le_bytes()[0], false, effects);
        }
    }

    /// A fixed interrupt arrives.
    pub(super) fn request(&mut self, vector: u8, level: bool, effects: &mut Effects) {
        if !self.is_enabled() {
            return;
        }
        if vector < 16 {
            self.error(ESR_RECEIVED_VECTOR, effects);
            return;
        }
        self.irr.set(vector, true);
        self.tmr.set(vector, level);
    }

    pub(super) fn local_interrupt(&mut self, which: Lvt, effects: &mut Effects) {
        let entry = self.lvt(which);
        if entry & LVT_MASKED != 0 {
            return;
        }
        let [vector, mode, ..] = entry.to_le_bytes();
        match Delivery::from_bits(mode & 7) {
            Some(Delivery::Fixed) => {
                let level = which == Lvt::Lint0 && entry & LVT_LEVEL != 0;
                if level {
                    if entry & LVT_REMOTE_IRR != 0 {
                        return;
                    }
                    self.set_lvt(which, entry | LVT_REMOTE_IRR);
                }
                self.request(vector, level, effects);
            }
            Some(Delivery::Nmi) => effects.signals.push(CpuSignal::Nmi),
            Some(Delivery::Smi) => effects.signals.push(CpuSignal::Smi),
            Some(Delivery::Init) => effects.signals.push(CpuSignal::Init),
            // ExtINT is a level that `external_asks` looks at; the rest is reserved for local vectors.
            _ => {}
        }
    }

    pub(super) fn set_lint(&mut self, pin: usize, high: bool, effects: &mut Effects) {
        let Some(level) = self.lint.get_mut(pin) else {
            return;
        };
        let rises = high && !*level;
        *level = high;
        if !rises {
            return;
        }
        if self.is_on() {
            let which = if pin == 0 { Lvt::Lint0 } else { Lvt::Lint1 };
            self.local_interrupt(which, effects);
        } else if pin == 1 {
            effects.signals.push(CpuSignal::Nmi);
        }
    }

    fn end_of_interrupt(&mut self, effects: &mut Effects) {
        let Some(vector) = self.isr.highest() else {
            return;
        };
        self.isr.set(vector, false);
        if !self.tmr.has(vector) {
            return;
        }
        let lint0 = self.lvt(Lvt::Lint0);
        if lint0 & LVT_REMOTE_IRR != 0 && lint0 & 0xff == u32::from(vector) {
            self.set_lvt(Lvt::Lint0, lint0 & !LVT_REMOTE_IRR);
            let [high, _] = self.lint;
            if high {
                self.local_interrupt(Lvt::Lint0, effects);
            }
        } else if self.svr & SVR_NO_EOI_BROADCAST == 0 {
            effects.ended.push(vector);
        }
    }

    /// Reads the register at a multiple of 16; `None` if there is none.
    pub(super) fn read(&self, id: u32, offset: u32, now_ns: u64) -> Option<u32> {
        let word = offset >> 4 & 7;
        let value = match offset {
            0x020 if self.is_x2() => id,
            0x020 => u32::from(self.xapic_id) << 24,
            0x030 => VERSION_REGISTER,
            0x080 => u32::from(self.tpr),
            // Arbitration priority and remote read are of the old APIC bus; they read as the priority and as zero.
            0x090 | 0x0a0 => u32::from(self.ppr()),
            0x0b0 | 0x0c0 => 0,
            0x0d0 if self.is_x2() => logical_x2(id),
            0x0d0 => u32::from(self.ldr) << 24,
            0x0e0 => 0x0fff_ffff | if self.flat { 0xf000_0000 } else { 0 },
            0x0f0 => self.svr,
            0x100..=0x170 => self.isr.word(word),
            0x180..=0x1f0 => self.tmr.word(word),
            0x200..=0x270 => self.irr.word(word),
            0x280 => self.esr,
            0x300 => u32::try_from(self.icr & 0xffff_ffff).unwrap_or(0),
            0x310 => u32::try_from(self.icr >> 32).unwrap_or(0),
            0x380 => self.timer.initial,
            0x390 => self.timer.current(self.timer_mode(), now_ns),
            0x3e0 => u32::from(self.timer.divide),
            _ => self.lvt(Lvt::at(offset)?),
        };
        Some(value)
    }

    /// A read of no register is an error that the status register tells.
    pub(super) fn illegal(&mut self, effects: &mut Effects) {
        self.error(ESR_REGISTER, effects);
    }

    /// Writes the register at a multiple of 16; false if there is none that can be written.
    pub(super) fn write(
        &mut self,
        offset: u32,
        value: u32,
        now_ns: u64,
        effects: &mut Effects,
    ) -> bool {
        let [low, _, _, high] = value.to_le_bytes();
        match offset {
            0x020 => self.xapic_id = high,
            0x080 => self.tpr = low,
            0x0b0 => self.end_of_interrupt(effects),
            0x0d0 => self.ldr = high,
            0x0e0 => self.flat = high >> 4 == 0xf,
            0x0f0 => self.write_svr(value),
            0x280 => {
                self.esr = self.errors;
                self.errors = 0;
            }
            0x310 => self.icr = self.icr & 0xffff_ffff | u64::from(value) << 32,
            0x380 if self.timer_mode() != TimerMode::TscDeadline => self.timer.start(value, now_ns),
            0x380 => {}
            0x3e0 => self.timer.set_divide(low, now_ns),
            _ => {
                let Some(which) = Lvt::at(offset) else {
                    return false;
                };
                self.write_lvt(which, value, effects);
            }
        }
        true
    }

    fn write_svr(&mut self, value: u32) {
        self.svr = value & SVR_WRITABLE;
        if self.svr & SVR_ENABLED == 0 {
            for entry in &mut self.lvt {
                *entry |= LVT_MASKED;
            }
        }
    }

    fn write_lvt(&mut self, which: Lvt, value: u32, effects: &mut Effects) {
        let forced = if self.svr & SVR_ENABLED == 0 {
            LVT_MASKED
        } else {
            0
        };
        let old = self.lvt(which);
        let new = value & which.writable() | forced;
        let keeps_irr = new & LVT_LEVEL != 0 && new >> 8 & 7 == 0;
        let remote_irr = if keeps_irr { old & LVT_REMOTE_IRR } else { 0 };
        self.set_lvt(which, new | remote_irr);
        if which == Lvt::Timer {
            let deadline = |entry| TimerMode::of(entry) == TimerMode::TscDeadline;
            if deadline(old) != deadline(new) {
                self.timer.start(0, 0);
                self.timer.tsc_deadline = 0;
            }
        }
        let [lint0, _] = self.lint;
        if which == Lvt::Lint0 && lint0 && keeps_irr {
            self.local_interrupt(which, effects);
        }
    }

    /// Writes the interrupt command: sends what it says.
    pub(super) fn command(&mut self, id: u32, value: u64, effects: &mut Effects) {
        // The delivery status (bit 12) is never seen busy.
        self.icr = value & 0xffff_ffff_000c_cfff;
        let [vector, mode, flags, ..] = value.to_le_bytes();
        let logical = mode & 0x08 != 0;
        let asserted = mode & 0x40 != 0;
        let level = mode & 0x80 != 0;
        let Some(delivery) = Delivery::from_command_bits(mode & 7) else {
            return;
        };
        if delivery == Delivery::Init && level && !asserted {
            // The deassertion sets arbitration identities, which do not exist any more.
            return;
        }
        if matches!(delivery, Delivery::Fixed | Delivery::LowestPriority) && vector < 16 {
            self.error(ESR_SEND_VECTOR, effects);
            return;
        }
        let field = u32::try_from(value >> 32).unwrap_or(0);
        let own = if self.is_x2() {
            id
        } else {
            u32::from(self.xapic_id)
        };
        let destination = match flags >> 2 & 3 {
            0 if !self.is_x2() => Destination::from_field(field >> 24, logical),
            0 if logical => Destination::Logical(field),
            0 if field == u32::MAX => Destination::All,
            0 => Destination::Physical(field),
            1 => Destination::Physical(own),
            2 => Destination::All,
            _ => Destination::AllBut(own),
        };
        effects.sent.push(InterruptMessage {
            destination,
            delivery,
            vector,
            level: false,
        });
    }

    pub(super) fn is_addressed(&self, id: u32, destination: Destination) -> bool {
        if !self.is_on() {
            return false;
        }
        let own = if self.is_x2() {
            id
        } else {
            u32::from(self.xapic_id)
        };
        match destination {
            Destination::All => true,
            Destination::AllBut(sender) => own != sender,
            Destination::Physical(wanted) => own == wanted,
            Destination::Logical(mask) if self.is_x2() => {
                let own = logical_x2(id);
                own >> 16 == mask >> 16 && own & mask & 0xffff != 0
            }
            Destination::Logical(mask) => match u8::try_from(mask) {
                Ok(mask) if self.flat => mask & self.ldr != 0,
                Ok(0xff) => true,
                Ok(mask) => mask >> 4 == self.ldr >> 4 && mask & self.ldr & 0x0f != 0,
                Err(_) => false,
            },
        }
    }

    pub(super) fn check(&self) -> Result<(), &'static str> {
        if self.base & BASE_X2 != 0 && self.base & BASE_ENABLED == 0 {
            Err("x2APIC mode without the APIC being on")
        } else if self.base >> 52 != 0 || self.base & 0x2ff != 0 {
            Err("the base has reserved bits")
        } else if self.timer.divide & !0x0b != 0 || self.svr & !SVR_WRITABLE != 0 {
            Err("a register has bits that do not exist")
        } else {
            Ok(())
        }
    }
}

/// The logical identity of x2APIC mode: cluster of 16, and a bit in it.
fn logical_x2(id: u32) -> u32 {
    id >> 4 << 16 | 1 << (id & 0xf)
}
