//! A local APIC as its processor and the board see it.

use std::sync::{Arc, Weak};

use device::{
    Clock, Device, Error, InterruptController, IoHandler, ResetKind, SavedState, Timer, Width,
};
use parking_lot::Mutex;

use super::bus::{ApicBus, Delivery, Destination, InterruptMessage};
use super::registers::{BASE_BSP, BASE_ENABLED, BASE_X2, Effects, Lvt, Registers};
use super::timer::TimerMode;

const NAME: &str = "apic";
const VERSION: u32 = 1;
const BASE_ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// What reaches a processor besides vectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CpuSignal {
    /// Non-maskable interrupt.
    Nmi,
    /// System management interrupt.
    Smi,
    /// Initialisation; the APIC has been initialised already.
    Init,
    /// Start at this page, if the processor waits for it.
    StartUp(u8),
}

/// A processor, as its local APIC sees it.
///
/// Called without the APIC's lock, but perhaps with the lock of the device whose interrupt it is: it notes what it hears
/// and wakes its thread; it calls no device from inside.
pub trait CpuPort: Send + Sync {
    /// [`LocalApic::pending`] has something that it did not have: look, and wake up if halted.
    fn wake(&self);

    /// Takes a signal.
    fn signal(&self, signal: CpuSignal);
}

/// What a processor is asked to take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pending {
    /// Whatever vector the 8259 gives.
    External,
    /// This vector.
    Vector(u8),
}

/// The time stamp counter of a processor.
pub trait TscClock: Send + Sync {
    /// The guest time at which the counter reaches a value; now or before if it has passed.
    fn ns_at(&self, tsc: u64) -> u64;
}

/// An access to a register that the processor answers with a general protection fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("general protection fault")]
pub struct GeneralProtection;

/// Where an APIC sits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ApicPlace {
    /// Its identity.
    pub id: u32,
    /// Whether its processor is the one that boots.
    pub bootstrap: bool,
}

/// A local APIC. As an [`InterruptController`] its pins 0 and 1 are LINT0 and LINT1.
pub struct LocalApic {
    place: ApicPlace,
    bus: Arc<ApicBus>,
    cpu: Arc<dyn CpuPort>,
    tsc: Arc<dyn TscClock>,
    clock: Clock,
    timer: Timer,
    registers: Mutex<Registers>,
}

impl LocalApic {
    /// An APIC on this bus, for this processor.
    pub fn new(
        place: ApicPlace,
        bus: &Arc<ApicBus>,
        cpu: Arc<dyn CpuPort>,
        tsc: Arc<dyn TscClock>,
        clock: &Clock,
    ) -> Arc<LocalApic> {
        let local = Arc::new_cyclic(|weak: &Weak<LocalApic>| {
            let weak = weak.clone();
            LocalApic {
                place,
                bus: bus.clone(),
                cpu,
                tsc,
                clock: clock.clone(),
                timer: clock.timer(move || {
                    if let Some(local) = weak.upgrade() {
                        local.timer_expired();
                    }
                }),
                registers: Mutex::new(Registers::new(place.id, place.bootstrap)),
            }
        });
        bus.add_local(Arc::downgrade(&local));
        local
    }

    /// What the processor is asked to take, if interrupts are allowed.
    pub fn pending(&self) -> Option<Pending> {
        pending(&self.registers.lock())
    }

    /// The processor takes a vector that [`LocalApic::pending`] gave; false if it has gone meanwhile.
    pub fn accept(&self, vector: u8) -> bool {
        self.registers.lock().accept(vector)
    }

    /// The processor takes an external interrupt: an ExtINT message has been answered.
    pub fn accept_external(&self) {
        self.registers.lock().external = false;
    }

    /// CR8.
    pub fn cr8(&self) -> u8 {
        self.registers.lock().tpr >> 4
    }

    /// Writes CR8 (0 to 15; higher bits are the processor's to refuse).
    pub fn set_cr8(&self, value: u8) {
        self.change(|registers, _, _| registers.tpr = value << 4);
    }

    /// IA32_APIC_BASE.
    pub fn base(&self) -> u64 {
        self.registers.lock().base
    }

    /// Writes IA32_APIC_BASE.
    ///
    /// # Errors
    /// For reserved bits and for changes of mode that do not exist (SDM 11.12.5).
    pub fn set_base(&self, value: u64) -> Result<(), GeneralProtection> {
        let known = BASE_ADDRESS | BASE_BSP | BASE_X2 | BASE_ENABLED;
        let mode = |base: u64| (base & BASE_ENABLED != 0, base & BASE_X2 != 0);
        self.change(|registers, _, _| {
            let allowed = match (mode(registers.base), mode(value)) {
                // x2APIC needs the APIC on, and is entered only from xAPIC mode and left only to off.
                (_, (false, true)) | ((false, _), (true, true)) => false,
                ((true, true), (true, false)) => false,
                _ => value & !known == 0,
            };
            if !allowed {
                return Err(GeneralProtection);
            }
            if mode(registers.base).0 && !mode(value).0 {
                registers.initialise(self.place.id);
            }
            registers.base = value & !BASE_BSP | registers.base & BASE_BSP;
            Ok(())
        })
    }

    /// Reads an MSR of x2APIC mode, 0x800 to 0x8ff.
    ///
    /// # Errors
    /// Outside of x2APIC mode, and for MSRs that do not exist or are not readable.
    pub fn read_msr(&self, msr: u32) -> Result<u64, GeneralProtection> {
        let registers = self.registers.lock();
        let offset = x2_offset(&registers, msr)?;
        match offset {
            // EOI and self IPI can only be written; DFR and the high half of ICR do not exist.
            0x0b0 | 0x0c0 | 0x0e0 | 0x090 | 0x310 | 0x3f0 => Err(GeneralProtection),
            0x300 => {
                let half = |offset| registers.read(self.place.id, offset, 0).unwrap_or(0);
                Ok(u64::from(half(0x310)) << 32 | u64::from(half(0x300)))
            }
            _ => registers
                .read(self.place.id, offset, self.clock.now_ns())
                .map(u64::from)
                .ok_or(GeneralProtection),
        }
    }

    /// Writes an MSR of x2APIC mode, 0x800 to 0x8ff.
    ///
    /// # Errors
    /// Outside of x2APIC mode, for MSRs that do not exist or are not writable, and for reserved bits.
    pub fn write_msr(&self, msr: u32, value: u64) -> Result<(), GeneralProtection> {
        let id = self.place.id;
        self.change(|registers, effects, now_ns| {
            let offset = x2_offset(registers, msr)?;
            if offset == 0x300 {
                registers.command(id, value, effects);
                return Ok(());
            }
            let value = u32::try_from(value).map_err(|_| GeneralProtection)?;
            match (offset, value) {
                (0x020 | 0x0d0 | 0x0e0 | 0x310, _) => Err(GeneralProtection),
                // Only zero may be written to EOI and to the error status, and eight bits to the priority.
                (0x0b0 | 0x280, 1..) | (0x080, 0x100..) | (0x3f0, 0x100..) => {
                    Err(GeneralProtection)
                }
                (0x3f0, vector) => {
                    // A self IPI is a fixed one to oneself (shorthand 1).
                    registers.command(id, u64::from(vector) | 1 << 18, effects);
                    Ok(())
                }
                _ if registers.write(offset, value, now_ns, effects) => Ok(()),
                _ => Err(GeneralProtection),
            }
        })
    }

    /// IA32_TSC_DEADLINE.
    pub fn tsc_deadline(&self) -> u64 {
        self.registers.lock().timer.tsc_deadline
    }

    /// Writes IA32_TSC_DEADLINE: arms the timer if it is in that mode; 0 disarms it.
    pub fn set_tsc_deadline(&self, tsc: u64) {
        self.change(|registers, _, _| {
            if registers.timer_mode() == TimerMode::TscDeadline {
                registers.timer.tsc_deadline = tsc;
            }
        });
    }

    /// An interrupt of the thermal sensor or of the performance counters.
    pub fn performance_interrupt(&self) {
        self.change(|registers, effects, _| registers.local_interrupt(Lvt::Performance, effects));
    }

    pub(super) fn is_addressed(&self, destination: Destination) -> bool {
        self.registers
            .lock()
            .is_addressed(self.place.id, destination)
    }

    pub(super) fn is_enabled(&self) -> bool {
        self.registers.lock().is_enabled()
    }

    pub(super) fn processor_priority(&self) -> u8 {
        self.registers.lock().ppr()
    }

    /// A message for this APIC arrives.
    pub(super) fn receive(&self, message: &InterruptMessage) {
        let vector = message.vector;
        self.change(|registers, effects, _| match message.delivery {
            Delivery::Fixed | Delivery::LowestPriority => {
                registers.request(vector, message.level, effects);
            }
            Delivery::ExtInt => registers.external = true,
            Delivery::Smi => effects.signals.push(CpuSignal::Smi),
            Delivery::Nmi => effects.signals.push(CpuSignal::Nmi),
            Delivery::Init => effects.signals.push(CpuSignal::Init),
            Delivery::StartUp => effects.signals.push(CpuSignal::StartUp(vector)),
        });
    }

    fn timer_expired(&self) {
        self.change(|registers, effects, now_ns| {
            let mode = registers.timer_mode();
            let expired = if mode == TimerMode::TscDeadline {
                let deadline = registers.timer.tsc_deadline;
                let due = deadline != 0 && self.tsc.ns_at(deadline) <= now_ns;
                if due {
                    registers.timer.tsc_deadline = 0;
                }
                due
            } else {
                registers.timer.expire(mode, now_ns)
            };
            if expired {
                registers.local_interrupt(Lvt::Timer, effects);
            }
        });
    }

    fn arm(&self, registers: &Registers, now_ns: u64) {
        let mode = registers.timer_mode();
        let deadline_ns = match (mode, registers.timer.tsc_deadline) {
            (TimerMode::TscDeadline, 0) => None,
            (TimerMode::TscDeadline, tsc) => Some(self.tsc.ns_at(tsc)),
            // However short the guest's period is, the clock's thread has time for others.
            (TimerMode::Periodic, _) => registers.timer.deadline_ns(mode).map(|deadline_ns| {
                deadline_ns.max(now_ns.saturating_add(Timer::SHORTEST_PERIOD_NS))
            }),
            _ => registers.timer.deadline_ns(mode),
        };
        match deadline_ns {
            None => self.timer.cancel(),
            deadline_ns if deadline_ns == self.timer.deadline_ns() => {}
            Some(deadline_ns) => self.timer.arm(deadline_ns),
        }
    }

    fn change<T>(&self, work: impl FnOnce(&mut Registers, &mut Effects, u64) -> T) -> T {
        let mut effects = Effects::default();
        let mut registers = self.registers.lock();
        let now_ns = self.clock.now_ns();
        let before = pending(&registers);
        let timer_before = (registers.timer_mode(), registers.timer.clone());
        let result = work(&mut registers, &mut effects, now_ns);
        if effects.signals.contains(&CpuSignal::Init) {
            registers.initialise(self.place.id);
        }
        if (registers.timer_mode(), registers.timer.clone()) != timer_before {
            self.arm(&registers, now_ns);
        }
        let now = pending(&registers);
        drop(registers);
        for vector in effects.ended {
            self.bus.end_of_interrupt(vector);
        }
        for message in &effects.sent {
            self.bus.deliver(message);
        }
        for signal in effects.signals {
            self.cpu.signal(signal);
        }
        if now.is_some() && now != before {
            self.cpu.wake();
        }
        result
    }
}

fn pending(registers: &Registers) -> Option<Pending> {
    if registers.external_asks() {
        return Some(Pending::External);
    }
    registers.pending_vector().map(Pending::Vector)
}

/// The offset, in the page of xAPIC registers, of an MSR.
fn x2_offset(registers: &Registers, msr: u32) -> Result<u32, GeneralProtection> {
    match msr {
        0x800..=0x8ff if registers.is_x2() => Ok((msr - 0x800) << 4),
        _ => Err(GeneralProtection),
    }
}

impl InterruptController for LocalApic {
    fn set_level(&self, pin: u32, level: bool) {
        if let Ok(pin) = usize::try_from(pin) {
            self.change(|registers, effects, _| registers.set_lint(pin, level, effects));
        }
    }
}

/// The page of registers in xAPIC mode; 32-bit accesses at multiples of 16.
impl IoHandler for LocalApic {
    fn read(&self, offset: u64, width: Width) -> u64 {
        let Some(offset) = register(offset, width) else {
            return 0;
        };
        self.change(|registers, effects, now_ns| {
            if !registers.is_on() || registers.is_x2() {
                return width.ones();
            }
            match registers.read(self.place.id, offset, now_ns) {
                Some(value) => u64::from(value),
                None => {
                    registers.illegal(effects);
                    0
                }
            }
        })
    }

    fn write(&self, offset: u64, width: Width, value: u64) {
        let Some(offset) = register(offset, width) else {
            return;
        };
        let Ok(value) = u32::try_from(value & 0xffff_ffff) else {
            return;
        };
        self.change(|registers, effects, now_ns| {
            if !registers.is_on() || registers.is_x2() {
                return;
            }
            if offset == 0x300 {
                let high = registers.read(self.place.id, 0x310, now_ns).unwrap_or(0);
                let command = u64::from(high) << 32 | u64::from(value);
                registers.command(self.place.id, command, effects);
            } else if !registers.write(offset, value, now_ns, effects) {
                registers.illegal(effects);
            }
        });
    }
}

fn register(offset: u64, width: Width) -> Option<u32> {
    (width == Width::Dword && offset & 0xf == 0 && offset < 0x1000)
        .then(|| u32::try_from(offset).ok())
        .flatten()
}

impl Device for LocalApic {
    fn reset(&self, _kind: ResetKind) {
        let fresh = Registers::new(self.place.id, self.place.bootstrap);
        self.change(|registers, _, _| *registers = fresh);
    }

    fn save(&self) -> Result<SavedState, Error> {
        SavedState::of(NAME, VERSION, &*self.registers.lock())
    }

    fn restore(&self, state: &SavedState) -> Result<(), Error> {
        let new: Registers = state.read(NAME, VERSION)?;
        new.check()
            .map_err(|reason| device::Error::bad_state(NAME, reason))?;
        let mut registers = self.registers.lock();
        *registers = new;
        self.arm(&registers, self.clock.now_ns());
        drop(registers);
        // The processor looks for itself.
        self.cpu.wake();
        Ok(())
    }
}
