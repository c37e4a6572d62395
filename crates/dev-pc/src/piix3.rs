//! The 82371SB (PIIX3) as PCI-to-ISA bridge: where PCI interrupts go, and the reset control register.
//!
//! | offset | register |
//! |---|---|
//! | 0x60 to 0x63 | PIRQRC: routing of PIRQA to PIRQD: bits 3-0 IRQ, bit 7 not routed |
//!
//! | port | register |
//! |---|---|
//! | 0xcf9 | RCR: bit 1 kind of reset, bit 2 reset on its rising edge |
//!
//! Source: Intel 82371FB/82371SB datasheet (290550), 2.2.6 and 2.5.9. The X-bus, ISA timing and APM registers are not there:
//! they program chip selects that a board without an ISA connector does not have.

use std::sync::Arc;

use device::{
    Device, Error, InterruptController, IoHandler, IrqLine, MachineRequest, MachineSink, ResetKind,
    SavedState, Width, read_bytes, write_bytes,
};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use device::pci::{HeaderSaved, PciAddress, PciBus, PciFunction, PciHeader, PciIdentity};

const NAME: &str = "PIIX3";
const VERSION: u32 = 1;
const PIRQRC: u8 = 0x60;
const NOT_ROUTED: u8 = 0x80;
/// Offset from 0xcf8.
const RCR: u64 = 1;
const RCR_RESET: u8 = 4;
/// IRQs that a PIRQ can be routed to (datasheet, PIRQRC): not 0, 1, 2, 8 and 13.
const ROUTABLE: u16 = 0xdef8;

/// The router of PCI interrupts: its pins 0 to 3 are PIRQA to PIRQD.
pub struct PirqRouter {
    /// A source on each ISA IRQ, for each PIRQ.
    outputs: Vec<[IrqLine; 4]>,
    state: Mutex<Routing>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Routing {
    levels: [bool; 4],
    registers: [u8; 4],
}

impl PirqRouter {
    /// A router to the ISA IRQs 0 to 15, of which it takes a source each.
    pub fn new(irqs: &[IrqLine; 16]) -> Arc<PirqRouter> {
        Arc::new(PirqRouter {
            outputs: irqs
                .iter()
                .map(|irq| std::array::from_fn(|_| irq.share()))
                .collect(),
            state: Mutex::new(Routing {
                levels: [false; 4],
                registers: [NOT_ROUTED; 4],
            }),
        })
    }

    /// The IRQ that a PIRQ (0 to 3) is routed to.
    pub fn irq(&self, pirq: usize) -> Option<u8> {
        let state = self.state.lock();
        state.registers.get(pirq).copied().and_then(irq_of)
    }

    fn route(&self, registers: [u8; 4]) {
        self.change(|state| state.registers = registers);
    }

    fn change(&self, work: impl FnOnce(&mut Routing)) {
        let mut state = self.state.lock();
        work(&mut state);
        let inputs = state.levels.iter().zip(&state.registers);
        let wanted = inputs.map(|(level, register)| irq_of(*register).filter(|_| *level));
        for (pirq, wanted) in wanted.enumerate() {
            for (irq, sources) in self.outputs.iter().enumerate() {
                if let Some(source) = sources.get(pirq) {
                    source.set(wanted.map(usize::from) == Some(irq));
                }
            }
        }
    }
}

fn irq_of(register: u8) -> Option<u8> {
    let irq = register & 0x0f;
    (register & NOT_ROUTED == 0 && ROUTABLE & 1 << irq != 0).then_some(irq)
}

impl InterruptController for PirqRouter {
    fn set_level(&self, pin: u32, level: bool) {
        let pin = usize::try_from(pin).unwrap_or(usize::MAX);
        self.change(|state| {
            if let Some(place) = state.levels.get_mut(pin) {
                *place = level;
            }
        });
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Piix3State {
    header: HeaderSaved,
    reset_control: u8,
}

/// The bridge. As an [`IoHandler`] it is the ports from 0xcf8 on that the host bridge passes on: RCR at offset 1.
pub struct Piix3 {
    header: PciHeader,
    router: Arc<PirqRouter>,
    machine: Arc<dyn MachineSink>,
    reset_control: Mutex<u8>,
}

impl Piix3 {
    /// The bridge that programs `router` (which the bus's lines end at, so it is made before).
    pub fn new(
        bus: &PciBus,
        address: PciAddress,
        router: Arc<PirqRouter>,
        machine: Arc<dyn MachineSink>,
    ) -> Arc<Piix3> {
        let identity = PciIdentity {
            vendor: 0x8086,
            device: 0x7000,
            subsystem_vendor: 0x1af4,
            subsystem: 0x1100,
            class: 0x06_0100,
            revision: 0,
            pin: 0,
            multifunction: true,
        };
        let header = PciHeader::new(&identity, bus, address);
        header.set_register(PIRQRC, &[NOT_ROUTED; 4], &[0x8f; 4]);
        Arc::new(Piix3 {
            header,
            router,
            machine,
            reset_control: Mutex::new(0),
        })
    }

    fn apply(&self) {
        let register = |index: usize| {
            let offset = PIRQRC.saturating_add(u8::try_from(index).unwrap_or(0));
            self.header.byte(offset)
        };
        self.router.route(std::array::from_fn(register));
    }
}

impl PciFunction for Piix3 {
    fn header(&self) -> &PciHeader {
        &self.header
    }

    fn config_written(&self, first: u8, last: u8) {
        if first <= PIRQRC + 3 && last >= PIRQRC {
            self.apply();
        }
    }
}

impl IoHandler for Piix3 {
    fn read(&self, offset: u64, width: Width) -> u64 {
        let value = *self.reset_control.lock();
        read_bytes(offset, width, |at| if at == RCR { value } else { 0xff })
    }

    fn write(&self, offset: u64, width: Width, value: u64) {
        write_bytes(offset, width, value, |at, byte| {
            if at != RCR {
                return;
            }
            let mut control = self.reset_control.lock();
            let rises = byte & !*control & RCR_RESET != 0;
            *control = byte & 6;
            drop(control);
            if rises {
                self.machine
                    .request(MachineRequest::Reset(ResetKind::System));
            }
        });
    }
}

impl Device for Piix3 {
    fn reset(&self, _kind: ResetKind) {
        *self.reset_control.lock() = 0;
        self.header.reset();
        self.apply();
    }

    fn save(&self) -> Result<SavedState, Error> {
        let state = Piix3State {
            header: self.header.save(),
            reset_control: *self.reset_control.lock(),
        };
        SavedState::of(NAME, VERSION, &state)
    }

    fn restore(&self, state: &SavedState) -> Result<(), Error> {
        let new: Piix3State = state.read(NAME, VERSION)?;
        if new.reset_control & !6 != 0 {
            return Err(device::Error::bad_state(
                NAME,
                "the reset control register has other bits",
            ));
        }
        self.header.restore(NAME, new.header)?;
        *self.reset_control.lock() = new.reset_control;
        self.apply();
        Ok(())
    }
}
