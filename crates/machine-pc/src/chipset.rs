//! The chips of a board, wired.

use std::sync::Arc;

use dev_pc::acpi_pm::{AcpiPm, PmPart};
use dev_pc::apic::{ApicBus, ApicPlace, LocalApic, TscClock};
use dev_pc::fw_cfg::{FwCfg, FwCfgPart};
use dev_pc::generic_event::{GenericEvents, SELECTOR_BYTES};
use dev_pc::hpet::{HPET_ADDRESS, Hpet, HpetLines};
use dev_pc::i440fx::{I440fx, LowMemoryRouting};
use dev_pc::i8042::{I8042, I8042Lines, I8042Part};
use dev_pc::ioapic::{IOAPIC_ADDRESS, IoApic};
use dev_pc::irq_gate::IrqGate;
use dev_pc::msi::ApicMsi;
use dev_pc::pci_hotplug::{Ejection, PciHotplug};
use dev_pc::pic::{Pic, PicPart};
use dev_pc::piix3::{Piix3, PirqRouter};
use dev_pc::pit::{Pit, PitPart};
use dev_pc::port92::Port92;
use dev_pc::reduced_power::{POWER_BYTES, ReducedPart, ReducedPower};
use dev_pc::rtc::Rtc;
use dev_storage::{Ide, IdePart};
use device::pci::{ConfigPart, PciAddress, PciBus, PciConfigPorts, PciFunction};
use device::{
    Clock, Device, DmaSpace, InterruptController, IoHandler, IoMap, IoPart, IrqLine, MachineSink,
    MsiSink, ResetKind, WallClock, Width,
};

use crate::boot;
use crate::cpu_thread::CpuShared;
use crate::error::MachineError;
use crate::qtest::{IrqTaps, TapPlace};

/// Registers of the chip set lie above those of PCI functions.
const CHIP_PRIORITY: i32 = 10;
const HIGHEST_MEMORY: u64 = (1 << 52) - 1;
/// Where the PM registers are on a board that starts without firmware.
pub(crate) const PM_BASE: u16 = 0x600;
/// The IRQs of PIRQA to PIRQD without firmware.
pub(crate) const PIRQ_IRQS: [u8; 4] = [10, 10, 11, 11];

/// What the chips need from the rest of the machine.
pub(crate) struct ChipsetSurroundings {
    pub(crate) clock: Clock,
    pub(crate) wall: WallClock,
    pub(crate) dma: Arc<dyn DmaSpace>,
    pub(crate) low_memory: Arc<dyn LowMemoryRouting>,
    pub(crate) machine: Arc<dyn MachineSink>,
    pub(crate) ejection: Arc<dyn Ejection>,
    pub(crate) cpus: Vec<Arc<CpuShared>>,
}

/// A device with the name under which people see it.
pub(crate) struct NamedDevice {
    pub(crate) name: String,
    pub(crate) device: Arc<dyn Device>,
}

/// What every board has.
pub(crate) struct Chipset {
    pub(crate) ports: Arc<IoMap>,
    pub(crate) memory: Arc<IoMap>,
    pub(crate) apics: Vec<Arc<LocalApic>>,
    pub(crate) ioapic: Arc<IoApic>,
    pub(crate) pic: Arc<Pic>,
    pub(crate) msi: Arc<dyn MsiSink>,
    /// A source on each ISA IRQ.
    pub(crate) irqs: [IrqLine; 16],
    /// Listen to what the interrupt controllers hear and say.
    pub(crate) taps: IrqTaps,
    pub(crate) rtc: Arc<Rtc>,
    pub(crate) fw_cfg: Arc<FwCfg>,
    /// What only a board with PCI has.
    pub(crate) pci: Option<PciChips>,
    /// What only a board with hardware-reduced ACPI has.
    pub(crate) events: Option<Arc<GenericEvents>>,
    /// All devices, in the order in which they are reset.
    pub(crate) devices: Vec<NamedDevice>,
}

/// The i440FX/PIIX3 chip set.
pub(crate) struct PciChips {
    pub(crate) bus: Arc<PciBus>,
    pub(crate) pm: Arc<AcpiPm>,
    pub(crate) hotplug: Arc<PciHotplug>,
    pub(crate) i8042: Arc<I8042>,
    pub(crate) ide: Arc<Ide>,
}

/// The chips that all boards have, the bus of the APICs, and the switches in the lines of IRQ 0 and 8.
type CommonChips = (Chipset, Arc<ApicBus>, [Arc<IrqGate>; 2]);

/// No processor here has the deadline mode: its CPUID does not say so.
struct NoDeadline;

impl TscClock for NoDeadline {
    fn ns_at(&self, _tsc: u64) -> u64 {
        u64::MAX
    }
}

/// Interrupt controllers, with a line to each ISA IRQ.
struct Controllers {
    apics: Vec<Arc<LocalApic>>,
    bus: Arc<ApicBus>,
    pic: Arc<Pic>,
    ioapic: Arc<IoApic>,
    irqs: [IrqLine; 16],
    taps: IrqTaps,
}

fn controllers(around: &ChipsetSurroundings) -> Controllers {
    let bus = ApicBus::new();
    let apics: Vec<Arc<LocalApic>> = around
        .cpus
        .iter()
        .map(|cpu| {
            let place = ApicPlace {
                id: cpu.index(),
                bootstrap: cpu.index() == 0,
            };
            LocalApic::new(
                place,
                &bus,
                cpu.clone(),
                Arc::new(NoDeadline),
                &around.clock,
            )
        })
        .collect();
    // The 8259's output goes to LINT0 of every processor, whose registers say who listens.
    let taps = IrqTaps::default();
    let output = apics
        .iter()
        .map(|apic| (Arc::clone(apic) as Arc<dyn InterruptController>, 0))
        .chain([taps.end(TapPlace::PicOutput, 0)])
        .collect();
    let pic = Pic::new(IrqLine::with_ends(output));
    let ioapic = IoApic::new(&bus);
    let irqs = std::array::from_fn(|irq| {
        let irq = u32::try_from(irq).unwrap_or(0);
        let input = if irq == 0 { 2 } else { irq };
        IrqLine::with_ends(vec![
            (Arc::clone(&pic) as Arc<dyn InterruptController>, irq),
            (Arc::clone(&ioapic) as Arc<dyn InterruptController>, input),
            taps.end(TapPlace::PicInputs, irq),
            taps.end(TapPlace::IoApicInputs, input),
        ])
    });
    Controllers {
        apics,
        bus,
        pic,
        ioapic,
        irqs,
        taps,
    }
}

/// A source on an ISA IRQ.
fn share(irqs: &[IrqLine; 16], irq: usize) -> IrqLine {
    irqs.get(irq)
        .map_or_else(IrqLine::unconnected, IrqLine::share)
}

impl Chipset {
    /// A source on an ISA IRQ.
    pub(crate) fn irq(&self, irq: usize) -> IrqLine {
        share(&self.irqs, irq)
    }

    /// Puts a chip's registers at ports.
    pub(crate) fn place(
        &self,
        name: &str,
        start: u64,
        length: u64,
        handler: Arc<dyn IoHandler>,
    ) -> Result<(), MachineError> {
        self.ports
            .map(name, start, length, CHIP_PRIORITY, handler)?;
        Ok(())
    }

    /// Somebody presses the power button.
    pub(crate) fn press_power_button(&self) {
        if let Some(pci) = &self.pci {
            pci.pm.press_power_button();
        }
        if let Some(events) = &self.events {
            events.press_power_button();
        }
    }

    /// Adds a device to those that are reset and saved.
    pub(crate) fn add(&mut self, name: &str, device: Arc<dyn Device>) {
        self.devices.push(NamedDevice {
            name: name.to_owned(),
            device,
        });
    }

    /// What both boards have: interrupt controllers, timers, clock, fw_cfg.
    fn common(around: &ChipsetSurroundings) -> Result<CommonChips, MachineError> {
        let Controllers {
            apics,
            bus,
            pic,
            ioapic,
            irqs,
            taps,
        } = controllers(around);
        let gates = [0, 8].map(|irq| IrqGate::new(share(&irqs, irq)));
        let [timer_gate, rtc_gate] = &gates;
        let pit = Pit::new(&around.clock, IrqLine::new(timer_gate.clone(), 0));
        let rtc_line = IrqLine::new(rtc_gate.clone(), 0);
        let rtc = Rtc::new(&around.clock, around.wall.clone(), rtc_line);
        let fw_cfg = FwCfg::new(around.dma.clone());
        let mut chips = Self {
            ports: Arc::new(IoMap::new(IoMap::LAST_PORT)),
            memory: Arc::new(IoMap::new(HIGHEST_MEMORY)),
            msi: ApicMsi::new(bus.clone()),
            apics,
            ioapic,
            pic,
            irqs,
            taps,
            rtc,
            fw_cfg,
            pci: None,
            events: None,
            devices: Vec::new(),
        };
        let (pic, fw_cfg) = (chips.pic.clone(), chips.fw_cfg.clone());
        chips.place("pic", 0x20, 2, IoPart::new(pic.clone(), PicPart::Master))?;
        chips.place("pic", 0xa0, 2, IoPart::new(pic.clone(), PicPart::Slave))?;
        chips.place("elcr", 0x4d0, 2, IoPart::new(pic, PicPart::EdgeLevel))?;
        chips.place("pit", 0x40, 4, IoPart::new(pit.clone(), PitPart::Counters))?;
        chips.place("pcspk", 0x61, 1, IoPart::new(pit.clone(), PitPart::Port61))?;
        chips.place("rtc", 0x70, 2, chips.rtc.clone())?;
        let selector = IoPart::new(fw_cfg.clone(), FwCfgPart::Ports);
        chips.place("fw_cfg", 0x510, 2, selector)?;
        let dma = IoPart::new(fw_cfg, FwCfgPart::DmaPorts);
        chips.place("fw_cfg-dma", 0x514, 8, dma)?;
        let ioapic = chips.ioapic.clone();
        chips
            .memory
            .map("ioapic", IOAPIC_ADDRESS, 0x1000, CHIP_PRIORITY, ioapic)?;
        chips.add("i8259", chips.pic.clone());
        chips.add("ioapic", chips.ioapic.clone());
        for apic in chips.apics.clone() {
            chips.add("apic", apic);
        }
        chips.add("isa-pit", pit);
        chips.add("mc146818rtc", chips.rtc.clone());
        chips.add("fw_cfg", chips.fw_cfg.clone());
        Ok((chips, bus, gates))
    }

    /// The chips of board `microvm`: no PCI, no keyboard.
    pub(crate) fn microvm(around: &ChipsetSurroundings) -> Result<Self, MachineError> {
        let mut chips = Self::common(around)?.0;
        let power = ReducedPower::new(&around.clock, around.machine.clone());
        let timer = IoPart::new(power.clone(), ReducedPart::Timer);
        chips.place("acpi-tmr", u64::from(boot::MICROVM_TIMER), 4, timer)?;
        let events = GenericEvents::new(chips.irq(boot::MICROVM_EVENT_IRQ.into()));
        let ranges: [(&str, u32, u64, Arc<dyn IoHandler>); 2] = [
            (
                "acpi-ged",
                boot::MICROVM_EVENTS,
                SELECTOR_BYTES,
                events.clone(),
            ),
            (
                "acpi-power",
                boot::MICROVM_POWER,
                POWER_BYTES,
                IoPart::new(power.clone(), ReducedPart::Power),
            ),
        ];
        for (name, start, length, handler) in ranges {
            chips
                .memory
                .map(name, start.into(), length, CHIP_PRIORITY, handler)?;
        }
        chips.add("reduced-power", power);
        chips.add("acpi-ged", events.clone());
        chips.events = Some(events);
        Ok(chips)
    }

    /// The chips of board `pc`.
    pub(crate) fn pc(around: &ChipsetSurroundings) -> Result<Self, MachineError> {
        let (mut chips, apic_bus, gates) = Self::common(around)?;
        let hpet = Self::hpet(&chips, &around.clock, &gates, &apic_bus);
        chips
            .memory
            .map("hpet", HPET_ADDRESS, 0x400, CHIP_PRIORITY, hpet.clone())?;
        let a20 = IrqLine::unconnected();
        let lines = I8042Lines {
            keyboard: chips.irq(1),
            mouse: chips.irq(12),
            a20: a20.share(),
        };
        let i8042 = I8042::new(lines, around.machine.clone());
        chips.place(
            "i8042-data",
            0x60,
            1,
            IoPart::new(i8042.clone(), I8042Part::Data),
        )?;
        let command = IoPart::new(i8042.clone(), I8042Part::Command);
        chips.place("i8042-cmd", 0x64, 1, command)?;
        let port92 = Port92::new(a20, around.machine.clone());
        chips.place("port92", 0x92, 1, port92.clone())?;
        chips.add("hpet", hpet);
        chips.add("i8042", i8042.clone());
        chips.add("port92", port92);
        chips.add_pci(around, i8042)?;
        Ok(chips)
    }

    fn hpet(
        chips: &Self,
        clock: &Clock,
        gates: &[Arc<IrqGate>; 2],
        apic_bus: &Arc<ApicBus>,
    ) -> Arc<Hpet> {
        let inputs = (16..24).map(|pin| {
            let ioapic = Arc::clone(&chips.ioapic) as Arc<dyn InterruptController>;
            IrqLine::with_ends(vec![
                (ioapic, pin),
                chips.taps.end(TapPlace::IoApicInputs, pin),
            ])
        });
        let lines = HpetLines {
            inputs: (0..16)
                .map(|_| IrqLine::unconnected())
                .chain(inputs)
                .collect(),
            routes: 0x00ff_0000,
            legacy_timer: chips.irq(0),
            legacy_rtc: chips.irq(8),
            gates: gates.to_vec(),
            messages: ApicMsi::new(apic_bus.clone()),
        };
        Hpet::new(clock, lines)
    }

    fn add_pci(
        &mut self,
        around: &ChipsetSurroundings,
        i8042: Arc<I8042>,
    ) -> Result<(), MachineError> {
        let router = PirqRouter::new(&self.irqs);
        let pirqs: [IrqLine; 4] = [0, 1, 2, 3].map(|pirq| IrqLine::new(router.clone(), pirq));
        let (ports, memory) = (self.ports.clone(), self.memory.clone());
        let bus = PciBus::new(ports, memory, self.msi.clone(), pirqs);
        let machine = || around.machine.clone();
        let host = I440fx::new(&bus, address(0, 0)?, around.low_memory.clone());
        let piix3 = Piix3::new(&bus, address(1, 0)?, router, machine());
        let pm = AcpiPm::new(&bus, address(1, 3)?, &around.clock, self.irq(9), machine());
        let irqs = [14, 15].map(|irq| self.irq(irq));
        let ide = Ide::new(&bus, address(1, 1)?, &around.dma, irqs);
        for (channel, command, control) in [(0, 0x1f0, 0x3f6), (1, 0x170, 0x376)] {
            let ranges = [
                (command, 8, IdePart::Command),
                (control, 1, IdePart::Control),
            ];
            for (start, length, part) in ranges {
                if let Some(handler) = ide.handler(channel, part) {
                    self.place("ide", start, length, handler)?;
                }
            }
        }
        let functions: [(&str, u8, u8, Arc<dyn PciFunction>); 4] = [
            ("i440FX", 0, 0, host),
            ("PIIX3", 1, 0, piix3.clone()),
            ("piix3-ide", 1, 1, ide.clone()),
            ("PIIX4_PM", 1, 3, pm.clone()),
        ];
        for (name, slot, function, chip) in functions {
            self.add(name, chip.clone());
            let plugged = bus.plug(address(slot, function)?, chip);
            plugged.map_err(|_| MachineError::SlotTaken(slot))?;
        }
        let config = PciConfigPorts::new(bus.clone(), piix3);
        self.place(
            "pci-conf-idx",
            0xcf8,
            4,
            IoPart::new(config.clone(), ConfigPart::Address),
        )?;
        self.place(
            "pci-conf-data",
            0xcfc,
            4,
            IoPart::new(config.clone(), ConfigPart::Data),
        )?;
        self.place("apm", 0xb2, 2, pm.handler(PmPart::Apm))?;
        self.place("acpi-gpe0", 0xafe0, 4, pm.handler(PmPart::Gpe))?;
        let hotplug = PciHotplug::new(around.ejection.clone());
        self.place("acpi-pci-hotplug", 0xae00, 16, hotplug.clone())?;
        self.add("pci-config-ports", config);
        self.add("acpi-pci-hotplug", hotplug.clone());
        self.pci = Some(PciChips {
            bus,
            pm,
            hotplug,
            i8042,
            ide,
        });
        Ok(())
    }

    /// Resets all devices, and without firmware does what firmware does for an operating system.
    pub(crate) fn reset(&self, kind: ResetKind, with_firmware: bool) {
        for named in &self.devices {
            named.device.reset(kind);
        }
        if with_firmware {
            return;
        }
        for (index, apic) in self.apics.iter().enumerate() {
            let write =
                |offset, value| IoHandler::write(apic.as_ref(), offset, Width::Dword, value);
            // On, spurious vector 0xff; the processor that boots listens to the 8259 and takes NMIs.
            write(0xf0, 0x1ff);
            write(0x350, if index == 0 { 0x700 } else { 0x1_0700 });
            write(0x360, 0x400);
        }
        if let Some(pci) = &self.pci {
            self.set_up_pci(pci);
        }
    }

    fn set_up_pci(&self, pci: &PciChips) {
        let dword = |devfn, offset, value| pci.bus.config_write(devfn, offset, Width::Dword, value);
        let power = 1 << 3 | 3;
        dword(power, 0x40, u64::from(PM_BASE) | 1);
        pci.bus.config_write(power, 0x80, Width::Byte, 1);
        let routes = u32::from_le_bytes(PIRQ_IRQS);
        dword(1 << 3, 0x60, u64::from(routes));
        // IRQs of PCI are level-triggered at the 8259s.
        let levels = PIRQ_IRQS
            .iter()
            .fold(0_u64, |levels, irq| levels | 1 << irq);
        self.ports.write(0x4d0, Width::Word, levels);
        crate::pci_setup::assign(&pci.bus);
    }
}

/// A place on the bus; all places that boards name exist.
fn address(slot: u8, function: u8) -> Result<PciAddress, MachineError> {
    PciAddress::new(slot, function).ok_or(MachineError::NoSuchSlot(slot))
}
