//! ACPI power management of the 82371AB (PIIX4), function 3: PM1, the timer, the SMI command port, and a GPE block.
//!
//! | offset from PMBASE | register |
//! |---|---|
//! | 0x00 | PM1 status: timer 0, power button 8, RTC 10, wake 15; cleared by ones |
//! | 0x02 | PM1 enable: timer 0, global lock 5, power button 8, RTC 10 |
//! | 0x04 | PM1 control: SCI enabled 0, sleep type 10-12, sleep 13 (reads 0) |
//! | 0x08 | timer: 24 bits at 3.579545 MHz |
//!
//! | port | register |
//! |---|---|
//! | 0xb2 | APMC: [`ACPI_ENABLE`] and [`ACPI_DISABLE`] switch SCI on and off |
//! | 0xb3 | APMS: a byte of scratch |
//! | 0xafe0, four ports | GPE status (2 bytes, cleared by ones), GPE enable (2 bytes) |
//!
//! | configuration | register |
//! |---|---|
//! | 0x40 | PMBASE: bits 15-6 |
//! | 0x58 | DEVACTB: bit 25 (APMC_EN) reads as 1 |
//! | 0x80 | PMREGMISC: bit 0, PMBASE is decoded |
//!
//! Sources: Intel 82371AB datasheet (290562), 3.3 and 7; ACPI 6.3, 4.8. Real firmware switches SCI on in its SMI handler; here
//! there is no system management mode, and the chip does it: APMC_EN says that SMIs have been set up already, so that firmware
//! does not set them up itself and wait for one. SMBus and the device monitors are not there. The GPE block lies apart from
//! PMBASE, as `docs/specs/acpi_pci_hotplug.rst` has it.

use std::sync::{Arc, Weak};

use device::{
    Clock, Device, Error, IoHandler, IoPart, IoParts, IrqLine, MachineRequest, MachineSink,
    ResetKind, SavedState, Timer, Width, read_bytes, write_bytes,
};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use device::pci::{HeaderSaved, PciAddress, PciBus, PciFunction, PciHeader, PciIdentity};

const NAME: &str = "PIIX4_PM";
const VERSION: u32 = 1;
/// The timer's clock.
pub const PM_TIMER_HZ: u64 = 3_579_545;
/// What to write to the SMI command port to get ACPI mode.
pub const ACPI_ENABLE: u8 = 0xf1;
/// What to write to the SMI command port to leave ACPI mode.
pub const ACPI_DISABLE: u8 = 0xf0;

const PMBASE: u8 = 0x40;
const PMREGMISC: u8 = 0x80;
const DEVACTB: u8 = 0x58;
const APMC_ENABLED: u32 = 1 << 25;
const PM_BYTES: u64 = 64;
const STATUS_TIMER: u16 = 1;
/// Firmware has released the global lock. There is none that could; operating systems insist on the enable bit.
const STATUS_GLOBAL: u16 = 1 << 5;
const STATUS_POWER_BUTTON: u16 = 1 << 8;
const STATUS_RTC: u16 = 1 << 10;
const STATUS_WAKE: u16 = 1 << 15;
const STATUS_ALL: u16 = STATUS_TIMER | STATUS_POWER_BUTTON | STATUS_RTC | STATUS_WAKE;
const ENABLE_ALL: u16 = STATUS_TIMER | STATUS_GLOBAL | STATUS_POWER_BUTTON | STATUS_RTC;
const CONTROL_SCI: u16 = 1;
const CONTROL_SLEEP: u16 = 1 << 13;
const CONTROL_STORED: u16 = 0x1c03;
/// The timer's carry: its top bit changes each 2^23 ticks.
const CARRY_TICKS: u64 = 1 << 23;

/// Sleep types of PM1 control (a board's ACPI tables say the same to the guest).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SleepType {
    /// S5, off.
    Off = 0,
    /// S3, suspended to memory.
    Memory = 1,
    /// S4, hibernated.
    Disk = 2,
}

/// Why a sleeping machine wakes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WakeReason {
    /// The power button.
    PowerButton,
    /// The alarm of the clock.
    Rtc,
    /// Something else.
    Other,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PmState {
    status: u16,
    enable: u16,
    control: u16,
    /// Carries of the timer that the status has shown.
    carries: u64,
    gpe_status: u16,
    gpe_enable: u16,
    apm_control: u8,
    apm_status: u8,
}

fn ticks(now_ns: u64) -> u64 {
    let ticks = u128::from(now_ns) * u128::from(PM_TIMER_HZ) / 1_000_000_000;
    u64::try_from(ticks).unwrap_or(u64::MAX)
}

fn ns_of(ticks: u64) -> u64 {
    let ns = (u128::from(ticks) * 1_000_000_000).div_ceil(u128::from(PM_TIMER_HZ));
    u64::try_from(ns).unwrap_or(u64::MAX)
}

impl PmState {
    fn settle(&mut self, now_ns: u64) {
        let carries = ticks(now_ns) / CARRY_TICKS;
        if carries != self.carries {
            self.carries = carries;
            self.status |= STATUS_TIMER;
        }
    }

    fn asks(&self) -> bool {
        let events = self.status & self.enable & ENABLE_ALL != 0;
        let general = self.gpe_status & self.gpe_enable != 0;
        self.control & CONTROL_SCI != 0 && (events || general)
    }

    fn read(&self, part: PmPart, offset: u64, now_ns: u64) -> u8 {
        let of = |[low, high]: [u8; 2], at: u64| if at & 1 == 0 { low } else { high };
        match (part, offset) {
            (PmPart::Pm, 0 | 1) => of(self.status.to_le_bytes(), offset),
            (PmPart::Pm, 2 | 3) => of(self.enable.to_le_bytes(), offset),
            (PmPart::Pm, 4 | 5) => of(self.control.to_le_bytes(), offset),
            (PmPart::Pm, 8..=10) => {
                let [_, bytes @ ..] = (ticks(now_ns) << 8).to_le_bytes();
                let at = usize::try_from(offset - 8).unwrap_or(0);
                bytes.get(at).copied().unwrap_or(0)
            }
            // The timer's top byte, and registers that are not there.
            (PmPart::Pm, _) => 0,
            (PmPart::Gpe, 0 | 1) => of(self.gpe_status.to_le_bytes(), offset),
            (PmPart::Gpe, 2 | 3) => of(self.gpe_enable.to_le_bytes(), offset),
            (PmPart::Apm, 0) => self.apm_control,
            (PmPart::Apm, 1) => self.apm_status,
            _ => 0xff,
        }
    }

    fn write(&mut self, part: PmPart, offset: u64, byte: u8) -> Option<MachineRequest> {
        let bits = u16::from(byte) << (8 * (offset & 1));
        let lane = 0xff_u16 << (8 * (offset & 1));
        match (part, offset) {
            (PmPart::Pm, 0 | 1) => self.status &= !bits,
            (PmPart::Pm, 2 | 3) => self.enable = (self.enable & !lane | bits) & ENABLE_ALL,
            (PmPart::Pm, 4 | 5) => {
                self.control = (self.control & !lane | bits) & CONTROL_STORED;
                if bits & CONTROL_SLEEP != 0 {
                    return self.sleep();
                }
            }
            (PmPart::Gpe, 0 | 1) => self.gpe_status &= !bits,
            (PmPart::Gpe, 2 | 3) => self.gpe_enable = self.gpe_enable & !lane | bits,
            (PmPart::Apm, 0) => {
                self.apm_control = byte;
                match byte {
                    ACPI_ENABLE => self.control |= CONTROL_SCI,
                    ACPI_DISABLE => self.control &= !CONTROL_SCI,
                    _ => {}
                }
            }
            (PmPart::Apm, 1) => self.apm_status = byte,
            _ => {}
        }
        None
    }

    fn sleep(&self) -> Option<MachineRequest> {
        match self.control >> 10 & 7 {
            kind if kind == SleepType::Off as u16 => Some(MachineRequest::PowerOff),
            kind if kind == SleepType::Memory as u16 => Some(MachineRequest::Suspend),
            kind if kind == SleepType::Disk as u16 => Some(MachineRequest::Hibernate),
            // Lighter sleeps are not offered by a board's tables.
            _ => None,
        }
    }
}

/// The ranges of ports of [`AcpiPm`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PmPart {
    /// At PMBASE; placed by the chip itself.
    Pm,
    /// 0xb2, two ports.
    Apm,
    /// 0xafe0, four ports.
    Gpe,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct AcpiPmState {
    header: HeaderSaved,
    registers: PmState,
}

/// The registers, apart from the function, so that the map of ports does not own the function.
pub struct PmRegisters {
    clock: Clock,
    sci: IrqLine,
    timer: Timer,
    machine: Arc<dyn MachineSink>,
    state: Mutex<PmState>,
}

impl PmRegisters {
    fn change<T>(&self, work: impl FnOnce(&mut PmState) -> T) -> T {
        let mut state = self.state.lock();
        let now_ns = self.clock.now_ns();
        state.settle(now_ns);
        let result = work(&mut state);
        self.drive(&state);
        result
    }

    fn drive(&self, state: &PmState) {
        self.sci.set(state.asks());
        if state.enable & STATUS_TIMER != 0 && state.status & STATUS_TIMER == 0 {
            let next = state.carries.saturating_add(1).saturating_mul(CARRY_TICKS);
            self.timer.arm(ns_of(next));
        } else {
            self.timer.cancel();
        }
    }
}

impl IoParts for PmRegisters {
    type Part = PmPart;

    fn read_part(&self, part: PmPart, offset: u64, width: Width) -> u64 {
        let now_ns = self.clock.now_ns();
        self.change(|state| read_bytes(offset, width, |at| state.read(part, at, now_ns)))
    }

    fn write_part(&self, part: PmPart, offset: u64, width: Width, value: u64) {
        let request = self.change(|state| {
            let mut request = None;
            write_bytes(offset, width, value, |at, byte| {
                request = state.write(part, at, byte).or(request);
            });
            request
        });
        if let Some(request) = request {
            self.machine.request(request);
        }
    }
}

/// The function.
pub struct AcpiPm {
    header: PciHeader,
    ports: Arc<device::IoMap>,
    mapping: Mutex<Option<(device::MappingId, u64)>>,
    registers: Arc<PmRegisters>,
}

impl AcpiPm {
    /// Power management that asks by `sci` (IRQ 9).
    pub fn new(
        bus: &PciBus,
        address: PciAddress,
        clock: &Clock,
        sci: IrqLine,
        machine: Arc<dyn MachineSink>,
    ) -> Arc<AcpiPm> {
        let identity = PciIdentity {
            vendor: 0x8086,
            device: 0x7113,
            subsystem_vendor: 0x1af4,
            subsystem: 0x1100,
            class: 0x06_8000,
            revision: 3,
            pin: 1,
            multifunction: false,
        };
        let header = PciHeader::new(&identity, bus, address);
        header.set_register(PMBASE, &[0x01, 0x00], &[0xc0, 0xff]);
        header.set_register(PMREGMISC, &[0], &[1]);
        header.set_register(DEVACTB, &APMC_ENABLED.to_le_bytes(), &[0; 4]);
        let registers = Arc::new_cyclic(|weak: &Weak<PmRegisters>| {
            let weak = weak.clone();
            PmRegisters {
                clock: clock.clone(),
                sci,
                timer: clock.timer(move || {
                    if let Some(registers) = weak.upgrade() {
                        registers.change(|_| ());
                    }
                }),
                machine,
                state: Mutex::default(),
            }
        });
        Arc::new(AcpiPm {
            header,
            ports: bus.ports().clone(),
            mapping: Mutex::new(None),
            registers,
        })
    }

    /// The handler of a range that the board places (APM and GPE).
    pub fn handler(&self, part: PmPart) -> Arc<dyn IoHandler> {
        IoPart::new(self.registers.clone(), part)
    }

    /// Where the PM registers answer now.
    pub fn base(&self) -> Option<u64> {
        self.mapping.lock().map(|(_, base)| base)
    }

    /// Somebody presses the power button. True if the guest will hear of it.
    pub fn press_power_button(&self) -> bool {
        self.registers.change(|state| {
            state.status |= STATUS_POWER_BUTTON;
            state.control & CONTROL_SCI != 0 && state.enable & STATUS_POWER_BUTTON != 0
        })
    }

    /// A general-purpose event happens (1: PCI hotplug). Events from 16 on do not exist.
    pub fn raise_gpe(&self, event: u32) {
        let bit = 1_u16.checked_shl(event).unwrap_or(0);
        self.registers.change(|state| state.gpe_status |= bit);
    }

    /// The machine wakes from S3.
    pub fn wake(&self, reason: WakeReason) {
        self.registers.change(|state| {
            state.status |= STATUS_WAKE
                | match reason {
                    WakeReason::PowerButton => STATUS_POWER_BUTTON,
                    WakeReason::Rtc => STATUS_RTC,
                    WakeReason::Other => 0,
                };
        });
    }

    /// Lets the registers' place follow PMBASE and PMREGMISC.
    fn place(&self) {
        let base = u64::from(u16::from_le_bytes([
            self.header.byte(PMBASE) & 0xc0,
            self.header.byte(PMBASE + 1),
        ]));
        let on = self.header.byte(PMREGMISC) & 1 != 0 && base != 0;
        let mut mapping = self.mapping.lock();
        if mapping.map(|(_, now)| now) == on.then_some(base) {
            return;
        }
        if let Some((id, _)) = mapping.take() {
            // The mapping is ours, so it is there.
            let _ = self.ports.unmap(id);
        }
        if on {
            let handler = self.handler(PmPart::Pm);
            *mapping = self
                .ports
                .map("piix4-pm", base, PM_BYTES, 1, handler)
                .ok()
                .map(|id| (id, base));
        }
    }
}

impl PciFunction for AcpiPm {
    fn header(&self) -> &PciHeader {
        &self.header
    }

    fn config_written(&self, first: u8, last: u8) {
        if first <= PMREGMISC && last >= PMBASE {
            self.place();
        }
    }
}

impl Device for AcpiPm {
    fn reset(&self, _kind: ResetKind) {
        self.header.reset();
        self.place();
        let carries = ticks(self.registers.clock.now_ns()) / CARRY_TICKS;
        self.registers.change(|state| {
            *state = PmState {
                carries,
                ..PmState::default()
            };
        });
    }

    fn save(&self) -> Result<SavedState, Error> {
        let state = AcpiPmState {
            header: self.header.save(),
            registers: self.registers.state.lock().clone(),
        };
        SavedState::of(NAME, VERSION, &state)
    }

    fn restore(&self, state: &SavedState) -> Result<(), Error> {
        let new: AcpiPmState = state.read(NAME, VERSION)?;
        let registers = &new.registers;
        if registers.status & !STATUS_ALL != 0
            || registers.enable & !ENABLE_ALL != 0
            || registers.control & !CONTROL_STORED != 0
        {
            return Err(device::Error::bad_state(
                NAME,
                "a register has bits that do not exist",
            ));
        }
        self.header.restore(NAME, new.header)?;
        self.place();
        let mut state = self.registers.state.lock();
        *state = new.registers;
        self.registers.drive(&state);
        Ok(())
    }
}
