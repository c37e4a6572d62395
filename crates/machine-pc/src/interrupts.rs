//! The interrupt controllers of a board: its own models, or those that the accelerator keeps.
//!
//! | `kernel-irqchip` | local APICs | I/O APIC, 8259 pair |
//! |---|---|---|
//! | `off`, and other accelerators | the board's | the board's |
//! | `split` | the accelerator's | the board's |
//! | `on` | the accelerator's | the accelerator's |
//!
//! Devices see lines ([`IrqLine`]) and an [`MsiSink`], whoever is behind them; a vCPU's thread sees [`CpuInterrupts`].

use std::sync::Arc;

use dev_pc::apic::{
    ApicBus, ApicPlace, CpuPort, EoiListener, InterruptMessage, LocalApic, MessageBus, Pending,
    TscClock,
};
use dev_pc::ioapic::IoApic;
use dev_pc::msi::{self, ApicMsi};
use dev_pc::pic::Pic;
use device::{
    Clock, Device, InterruptController, IoHandler, IrqLine, MsiMessage, MsiSink, ResetKind,
    SavedState, Width,
};
use parking_lot::Mutex;
use vcpu::{ChipState, FullIrqchip, ISA_LINES, KernelIrqchip, Msi, SplitIrqchip, VcpuState};

use crate::cpu_thread::CpuShared;
use crate::qtest::{IrqTaps, TapPlace};

/// Registers of a local APIC (Intel SDM volume 3, table 11-1).
const SPURIOUS: u16 = 0xf0;
const LINT0: u16 = 0x350;
const LINT1: u16 = 0x360;

/// What firmware would have left in a local APIC: on, spurious vector 0xff; the processor that boots listens to the 8259
/// and all take NMIs.
fn firmware_registers(index: u32) -> [(u16, u32); 3] {
    let lint0 = if index == 0 { 0x700 } else { 0x1_0700 };
    [(SPURIOUS, 0x1ff), (LINT0, lint0), (LINT1, 0x400)]
}

/// No processor here has the deadline mode: its CPUID does not say so.
struct NoDeadline;

impl TscClock for NoDeadline {
    fn ns_at(&self, _tsc: u64) -> u64 {
        u64::MAX
    }
}

/// Whose they are.
enum Kept {
    Board {
        apics: Vec<Arc<LocalApic>>,
        pic: Arc<Pic>,
        ioapic: Arc<IoApic>,
    },
    Split {
        pic: Arc<Pic>,
        ioapic: Arc<IoApic>,
    },
    Full(Arc<KernelChips>),
}

/// Interrupt controllers, with a line to each ISA IRQ.
pub(crate) struct Controllers {
    kept: Kept,
    /// A source on each ISA IRQ.
    pub(crate) irqs: [IrqLine; 16],
    /// The pins of the I/O APIC.
    pub(crate) ioapic: Arc<dyn InterruptController>,
    pub(crate) msi: Arc<dyn MsiSink>,
    /// Listen to what the interrupt controllers hear and say.
    pub(crate) taps: IrqTaps,
}

impl Controllers {
    /// Those that the accelerator keeps, and the board's for the rest.
    pub(crate) fn new(
        irqchip: Option<KernelIrqchip>,
        cpus: &[Arc<CpuShared>],
        clock: &Clock,
    ) -> Self {
        let taps = IrqTaps::default();
        let message = |chip: &KernelIrqchip| Arc::new(KernelMsi(chip.clone())) as Arc<dyn MsiSink>;
        match irqchip {
            None => {
                let bus = ApicBus::new();
                let apics = local_apics(&bus, cpus, clock);
                // The 8259's output goes to LINT0 of every processor, whose registers say who listens.
                let output = apics
                    .iter()
                    .map(|apic| (Arc::clone(apic) as Arc<dyn InterruptController>, 0))
                    .chain([taps.end(TapPlace::PicOutput, 0)])
                    .collect();
                let (pic, ioapic) = (Pic::new(IrqLine::with_ends(output)), IoApic::new(&bus));
                Self {
                    irqs: wire(&pic, &ioapic, &taps),
                    taps,
                    ioapic: ioapic.clone(),
                    msi: ApicMsi::new(bus),
                    kept: Kept::Board { apics, pic, ioapic },
                }
            }
            Some(KernelIrqchip::Split(chip)) => {
                // The accelerator knows whether the processor that boots listens to the 8259; others here never do.
                let output = cpus.first().map(|cpu| {
                    let wakes = Arc::new(ExternalInterrupt(Arc::clone(cpu)));
                    (wakes as Arc<dyn InterruptController>, 0)
                });
                let output = output.into_iter().chain([taps.end(TapPlace::PicOutput, 0)]);
                let pic = Pic::new(IrqLine::with_ends(output.collect()));
                let ioapic = IoApic::on(Arc::new(KernelBus(Arc::clone(&chip))));
                Self {
                    irqs: wire(&pic, &ioapic, &taps),
                    taps,
                    ioapic: ioapic.clone(),
                    msi: message(&KernelIrqchip::Split(chip)),
                    kept: Kept::Split { pic, ioapic },
                }
            }
            Some(KernelIrqchip::Full(chip)) => {
                let chips = KernelChips::new(Arc::clone(&chip));
                let irqs = std::array::from_fn(|irq| {
                    let irq = u32::try_from(irq).unwrap_or(0);
                    IrqLine::with_ends(vec![
                        (Arc::clone(&chips) as Arc<dyn InterruptController>, irq),
                        taps.end(TapPlace::PicInputs, irq),
                        taps.end(TapPlace::IoApicInputs, ioapic_input(irq)),
                    ])
                });
                Self {
                    irqs,
                    taps,
                    ioapic: Arc::new(KernelInputs(Arc::clone(&chips))),
                    msi: message(&KernelIrqchip::Full(chip)),
                    kept: Kept::Full(chips),
                }
            }
        }
    }

    /// A source on an ISA IRQ.
    pub(crate) fn irq(&self, irq: usize) -> IrqLine {
        self.irqs
            .get(irq)
            .map_or_else(IrqLine::unconnected, IrqLine::share)
    }

    /// What has registers on the board: the 8259 pair and the I/O APIC.
    pub(crate) fn own_chips(&self) -> Option<(&Arc<Pic>, &Arc<IoApic>)> {
        match &self.kept {
            Kept::Board { pic, ioapic, .. } | Kept::Split { pic, ioapic } => Some((pic, ioapic)),
            Kept::Full(_) => None,
        }
    }

    /// All that is reset and saved, with the names under which people see it.
    pub(crate) fn devices(&self) -> Vec<(&'static str, Arc<dyn Device>)> {
        let mut devices: Vec<(&'static str, Arc<dyn Device>)> = Vec::new();
        match &self.kept {
            Kept::Board { apics, pic, ioapic } => {
                devices.push(("i8259", pic.clone()));
                devices.push(("ioapic", ioapic.clone()));
                let apics = apics.iter().cloned();
                devices.extend(apics.map(|apic| ("apic", apic as Arc<dyn Device>)));
            }
            Kept::Split { pic, ioapic } => {
                devices.push(("i8259", pic.clone()));
                devices.push(("ioapic", ioapic.clone()));
            }
            Kept::Full(chips) => devices.push(("kvm-ioapic", chips.clone())),
        }
        devices
    }

    /// What a vCPU's thread has to do with them.
    pub(crate) fn of_cpu(&self, index: u32) -> CpuInterrupts {
        match &self.kept {
            Kept::Board { apics, pic, .. } => {
                let apic = usize::try_from(index).ok().and_then(|at| apics.get(at));
                match apic {
                    Some(apic) => CpuInterrupts::Board {
                        apic: Arc::clone(apic),
                        pic: Arc::clone(pic),
                    },
                    None => CpuInterrupts::Full,
                }
            }
            Kept::Split { pic, ioapic } => CpuInterrupts::Split {
                pic: (index == 0).then(|| Arc::clone(pic)),
                ioapic: Arc::clone(ioapic),
            },
            Kept::Full(_) => CpuInterrupts::Full,
        }
    }

    /// Does to the board's local APICs what firmware does; [`set_up_local_apic`] is for the accelerator's.
    pub(crate) fn set_up_local_apics(&self) {
        let Kept::Board { apics, .. } = &self.kept else {
            return;
        };
        for (index, apic) in (0..).zip(apics) {
            for (offset, value) in firmware_registers(index) {
                let (offset, value) = (u64::from(offset), u64::from(value));
                IoHandler::write(apic.as_ref(), offset, Width::Dword, value);
            }
        }
    }

    /// Writes the edge/level registers of the 8259 pair where they are not at ports of the board; false where they are.
    pub(crate) fn set_edge_level(&self, levels: u16) -> bool {
        let Kept::Full(chips) = &self.kept else {
            return false;
        };
        if let Err(error) = chips.chip.set_edge_level(levels) {
            tracing::error!(%error, "interrupts of PCI stay edges");
        }
        true
    }
}

/// Does to a local APIC that the accelerator keeps what firmware does.
pub(crate) fn set_up_local_apic(state: &mut VcpuState, index: u32) {
    if let Some(apic) = &mut state.local_apic {
        for (offset, value) in firmware_registers(index) {
            apic.set_register(usize::from(offset), value);
        }
    }
}

fn local_apics(bus: &Arc<ApicBus>, cpus: &[Arc<CpuShared>], clock: &Clock) -> Vec<Arc<LocalApic>> {
    cpus.iter()
        .map(|cpu| {
            let place = ApicPlace {
                id: cpu.index(),
                bootstrap: cpu.index() == 0,
            };
            LocalApic::new(place, bus, cpu.clone(), Arc::new(NoDeadline), clock)
        })
        .collect()
}

/// The I/O APIC's input for an ISA IRQ.
fn ioapic_input(irq: u32) -> u32 {
    if irq == 0 { 2 } else { irq }
}

/// Lines to the board's own chips.
fn wire(pic: &Arc<Pic>, ioapic: &Arc<IoApic>, taps: &IrqTaps) -> [IrqLine; 16] {
    std::array::from_fn(|irq| {
        let irq = u32::try_from(irq).unwrap_or(0);
        let input = ioapic_input(irq);
        IrqLine::with_ends(vec![
            (Arc::clone(pic) as Arc<dyn InterruptController>, irq),
            (Arc::clone(ioapic) as _, input),
            taps.end(TapPlace::PicInputs, irq),
            taps.end(TapPlace::IoApicInputs, input),
        ])
    })
}

/// Where a vCPU's interrupts come from.
pub(crate) enum CpuInterrupts {
    /// A local APIC and the 8259 pair of the board.
    Board { apic: Arc<LocalApic>, pic: Arc<Pic> },
    /// The accelerator's local APIC; external interrupts, if this processor takes them, of the board's 8259.
    Split {
        pic: Option<Arc<Pic>>,
        ioapic: Arc<IoApic>,
    },
    /// All the accelerator's.
    Full,
}

impl CpuInterrupts {
    /// The board's local APIC.
    pub(crate) fn apic(&self) -> Option<&LocalApic> {
        match self {
            Self::Board { apic, .. } => Some(apic),
            _ => None,
        }
    }

    /// Whether the accelerator keeps the local APIC, and with it halts, INIT and start-up messages.
    pub(crate) fn are_kernels(&self) -> bool {
        self.apic().is_none()
    }

    /// Whether there is something to inject.
    pub(crate) fn is_pending(&self) -> bool {
        match self {
            Self::Board { apic, .. } => apic.pending().is_some(),
            Self::Split { pic, .. } => pic.as_ref().is_some_and(|pic| pic.has_request()),
            Self::Full => false,
        }
    }

    /// The vector to inject, which the processor takes with this; `None` if it has gone meanwhile.
    pub(crate) fn take(&self) -> Option<u8> {
        match self {
            Self::Board { apic, pic } => match apic.pending()? {
                Pending::Vector(vector) => apic.accept(vector).then_some(vector),
                Pending::External => {
                    let vector = pic.acknowledge();
                    apic.accept_external();
                    Some(vector)
                }
            },
            Self::Split { pic, .. } => {
                let pic = pic.as_ref().filter(|pic| pic.has_request())?;
                Some(pic.acknowledge())
            }
            Self::Full => None,
        }
    }

    /// The accelerator's local APIC has ended a level interrupt.
    pub(crate) fn end(&self, vector: u8) {
        if let Self::Split { ioapic, .. } = self {
            ioapic.end_of_interrupt(vector);
        }
    }
}

/// The 8259's output: the processor looks whether it takes what is there.
struct ExternalInterrupt(Arc<CpuShared>);

impl InterruptController for ExternalInterrupt {
    fn set_level(&self, _pin: u32, level: bool) {
        if level {
            self.0.wake();
        }
    }
}

fn kernels(message: MsiMessage) -> Msi {
    Msi {
        address: message.address,
        data: message.data,
    }
}

/// Messages of devices to the accelerator's local APICs.
struct KernelMsi(KernelIrqchip);

impl MsiSink for KernelMsi {
    fn send(&self, message: MsiMessage) {
        // A guest may have written any message into its device.
        if let Err(error) = self.0.apics().send_msi(kernels(message)) {
            tracing::debug!(%error, ?message, "an interrupt message is dropped");
        }
    }
}

/// The board's I/O APIC at the accelerator's local APICs.
struct KernelBus(Arc<dyn SplitIrqchip>);

impl MessageBus for KernelBus {
    fn deliver(&self, message: &InterruptMessage) {
        if let Some(message) = msi::encode(message)
            && let Err(error) = self.0.send_msi(kernels(message))
        {
            tracing::debug!(%error, ?message, "an interrupt message is dropped");
        }
    }

    fn set_level_messages(&self, messages: &[InterruptMessage]) {
        let messages: Vec<Msi> = messages
            .iter()
            .filter_map(msi::encode)
            .map(kernels)
            .collect();
        if let Err(error) = self.0.set_level_messages(&messages) {
            tracing::debug!(%error, "the ends of level interrupts are not told");
        }
    }
}

/// The name and version under which the accelerator's chips are saved.
const CHIPS_NAME: &str = "kvm-ioapic";
const CHIPS_VERSION: u32 = 1;

/// The 8259 pair and the I/O APIC that the accelerator keeps. As an [`InterruptController`] its pins are their lines.
struct KernelChips {
    chip: Arc<dyn FullIrqchip>,
    /// Levels of the lines, a bit each.
    levels: Mutex<u64>,
}

impl KernelChips {
    fn new(chip: Arc<dyn FullIrqchip>) -> Arc<Self> {
        Arc::new(Self {
            chip,
            levels: Mutex::new(0),
        })
    }

    fn drive(&self, line: u32, high: bool) {
        if let Err(error) = self.chip.set_line(line, high) {
            tracing::error!(%error, line, "an interrupt line is stuck");
        }
    }
}

impl InterruptController for KernelChips {
    fn set_level(&self, pin: u32, level: bool) {
        let Some(bit) = 1_u64.checked_shl(pin) else {
            return;
        };
        // Held while the line is driven, so that changes come in their order.
        let mut levels = self.levels.lock();
        if (*levels & bit != 0) != level {
            *levels ^= bit;
            self.drive(pin, level);
        }
    }
}

impl Device for KernelChips {
    fn reset(&self, _kind: ResetKind) {
        let levels = self.levels.lock();
        if let Err(error) = self.chip.reset() {
            tracing::error!(%error, "interrupt controllers keep their state over the reset");
        }
        // What the devices drive stays.
        for line in (0..u64::BITS).filter(|line| *levels & 1 << line != 0) {
            self.drive(line, true);
        }
    }

    fn save(&self) -> Result<SavedState, device::Error> {
        let chips = self
            .chip
            .state()
            .map_err(|error| device::Error::bad_state(CHIPS_NAME, &error.to_string()))?;
        let chips: Vec<(u32, Vec<u8>)> = chips
            .into_iter()
            .map(|state| (state.chip, state.bytes))
            .collect();
        let state = (*self.levels.lock(), chips);
        SavedState::of(CHIPS_NAME, CHIPS_VERSION, &state)
    }

    fn restore(&self, state: &SavedState) -> Result<(), device::Error> {
        let (new, chips): (u64, Vec<(u32, Vec<u8>)>) = state.read(CHIPS_NAME, CHIPS_VERSION)?;
        let chips: Vec<ChipState> = chips
            .into_iter()
            .map(|(chip, bytes)| ChipState { chip, bytes })
            .collect();
        let mut levels = self.levels.lock();
        *levels = new;
        self.chip
            .set_state(&chips)
            .map_err(|error| device::Error::bad_state(CHIPS_NAME, &error.to_string()))
    }
}

/// The pins of the I/O APIC that the accelerator keeps.
struct KernelInputs(Arc<KernelChips>);

impl InterruptController for KernelInputs {
    fn set_level(&self, pin: u32, level: bool) {
        self.0.set_level(ISA_LINES.saturating_add(pin), level);
    }
}

#[cfg(test)]
mod tests {
    use vcpu::{Activity, KernelApics, LocalApicState, VcpuError};

    use super::*;

    /// Notes what it is told.
    #[derive(Default)]
    struct Notes {
        lines: Mutex<Vec<(u32, bool)>>,
        resets: Mutex<u32>,
        sent: Mutex<Vec<Msi>>,
        levels: Mutex<Vec<Msi>>,
        state: Mutex<Vec<ChipState>>,
    }

    impl KernelApics for Notes {
        fn send_msi(&self, message: Msi) -> Result<(), VcpuError> {
            self.sent.lock().push(message);
            Ok(())
        }
    }

    impl SplitIrqchip for Notes {
        fn set_level_messages(&self, messages: &[Msi]) -> Result<(), VcpuError> {
            *self.levels.lock() = messages.to_vec();
            Ok(())
        }
    }

    impl FullIrqchip for Notes {
        fn set_line(&self, line: u32, high: bool) -> Result<(), VcpuError> {
            self.lines.lock().push((line, high));
            Ok(())
        }

        fn set_edge_level(&self, _levels: u16) -> Result<(), VcpuError> {
            Ok(())
        }

        fn state(&self) -> Result<Vec<ChipState>, VcpuError> {
            Ok(self.state.lock().clone())
        }

        fn set_state(&self, chips: &[ChipState]) -> Result<(), VcpuError> {
            *self.state.lock() = chips.to_vec();
            Ok(())
        }

        fn reset(&self) -> Result<(), VcpuError> {
            *self.resets.lock() += 1;
            Ok(())
        }
    }

    fn take<T>(list: &Mutex<Vec<T>>) -> Vec<T> {
        std::mem::take(&mut *list.lock())
    }

    #[test]
    fn lines_of_the_accelerators_chips() {
        let notes = Arc::new(Notes::default());
        let irqchip = KernelIrqchip::Full(notes.clone());
        let controllers = Controllers::new(Some(irqchip), &[], &Clock::stepped());
        let (timer, input) = (
            controllers.irq(0),
            IrqLine::new(controllers.ioapic.clone(), 20),
        );
        timer.set(true);
        timer.set(true);
        timer.set(false);
        input.set(true);
        let expected = [(0, true), (0, false), (ISA_LINES + 20, true)];
        assert_eq!(take(&notes.lines), expected);
        // After a reset the lines are what devices drive.
        let [(name, chips)] = &controllers.devices()[..] else {
            panic!("one device");
        };
        assert_eq!(*name, CHIPS_NAME);
        chips.reset(ResetKind::System);
        assert_eq!(*notes.resets.lock(), 1);
        assert_eq!(take(&notes.lines), [(ISA_LINES + 20, true)]);
        *notes.state.lock() = vec![ChipState {
            chip: 2,
            bytes: vec![1, 2, 3],
        }];
        let saved = chips.save().unwrap();
        let before = take(&notes.state);
        chips.restore(&saved).unwrap();
        assert_eq!(*notes.state.lock(), before);
        controllers.msi.send(MsiMessage {
            address: 0xfee0_1000,
            data: 0x41,
        });
        let sent = Msi {
            address: 0xfee0_1000,
            data: 0x41,
        };
        assert_eq!(take(&notes.sent), [sent]);
        assert!(controllers.own_chips().is_none() && controllers.set_edge_level(1));
        assert!(controllers.of_cpu(0).are_kernels());
    }

    #[test]
    fn the_boards_ioapic_at_the_accelerators_apics() {
        let notes = Arc::new(Notes::default());
        let irqchip = KernelIrqchip::Split(notes.clone());
        let cpu = CpuShared::new(0, false);
        let controllers = Controllers::new(Some(irqchip), &[cpu], &Clock::stepped());
        let (pic, ioapic) = controllers.own_chips().unwrap();
        // Input 9: level, vector 0x59, to processor 1.
        for (select, value) in [(0x23, 1 << 24), (0x22, 0x8059)] {
            IoHandler::write(ioapic.as_ref(), 0, Width::Dword, select);
            IoHandler::write(ioapic.as_ref(), 0x10, Width::Dword, value);
        }
        let message = Msi {
            address: 0xfee0_1000,
            data: 0xc059,
        };
        assert_eq!(take(&notes.levels), [message]);
        let line = controllers.irq(9);
        line.set(true);
        assert_eq!(take(&notes.sent), [message]);
        // Still high when it has ended: again.
        let (first, second) = (controllers.of_cpu(0), controllers.of_cpu(1));
        second.end(0x59);
        assert_eq!(take(&notes.sent), [message]);
        line.set(false);
        second.end(0x59);
        assert_eq!(take(&notes.sent), []);
        // External interrupts are the first processor's.
        let part = |part, value: u64| {
            device::IoParts::write_part(pic.as_ref(), part, 0, Width::Word, value);
        };
        // Both bytes of a word: the initialisation, and its second word.
        part(dev_pc::pic::PicPart::Master, 0x2011);
        for (offset, value) in [(1, 4), (1, 1), (1, 0)] {
            let master = dev_pc::pic::PicPart::Master;
            device::IoParts::write_part(pic.as_ref(), master, offset, Width::Byte, value);
        }
        controllers.irq(3).set(true);
        assert!(first.is_pending() && !second.is_pending());
        assert_eq!((second.take(), first.take()), (None, Some(0x23)));
        assert!(!first.is_pending());
        assert!(first.are_kernels() && first.apic().is_none());
    }

    #[test]
    fn what_firmware_does_to_a_local_apic() {
        let registers = |index| {
            let mut state = VcpuState {
                local_apic: Some(LocalApicState {
                    base: 0xfee0_0800,
                    activity: Activity::Running,
                    registers: Box::new([0; vcpu::APIC_REGISTER_BYTES]),
                }),
                ..VcpuState::default()
            };
            set_up_local_apic(&mut state, index);
            let apic = state.local_apic.unwrap();
            [0xf0, 0x350, 0x360].map(|offset| apic.register(offset))
        };
        assert_eq!(registers(0), [0x1ff, 0x700, 0x400]);
        assert_eq!(registers(1), [0x1ff, 0x1_0700, 0x400]);
    }
}
