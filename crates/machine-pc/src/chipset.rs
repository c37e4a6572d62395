//! The chips of a board, wired.

use std::sync::Arc;

use dev_pc::acpi_pm::{AcpiPm, PmPart};
use dev_pc::fw_cfg::{FwCfg, FwCfgPart};
use dev_pc::generic_event::{GenericEvents, SELECTOR_BYTES};
use dev_pc::hpet::{HPET_ADDRESS, Hpet, HpetLines};
use dev_pc::i440fx::{I440fx, LowMemoryRouting};
use dev_pc::i8042::{I8042, I8042Lines, I8042Part};
use dev_pc::ioapic::IOAPIC_ADDRESS;
use dev_pc::irq_gate::IrqGate;
use dev_pc::pci_hotplug::{Ejection, PciHotplug};
use dev_pc::pic::PicPart;
use dev_pc::piix3::{Piix3, PirqRouter};
use dev_pc::pit::{Pit, PitPart};
use dev_pc::port92::Port92;
use dev_pc::reduced_power::{POWER_BYTES, ReducedPart, ReducedPower};
use dev_pc::rtc::Rtc;
use dev_storage::{Ide, IdePart};
use device::pci::{ConfigPart, PciAddress, PciBus, PciConfigPorts, PciFunction};
use device::{
    Clock, Device, DmaSpace, IoHandler, IoMap, IoPart, IrqLine, MachineSink, ResetKind, WallClock,
    Width,
};
use vcpu::KernelIrqchip;

use crate::boot;
use crate::cpu_thread::CpuShared;
use crate::error::MachineError;
use crate::interrupts::Controllers;
use crate::qtest::TapPlace;

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
    /// Interrupt controllers that the accelerator keeps.
    pub(crate) irqchip: Option<KernelIrqchip>,
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
    pub(crate) interrupts: Controllers,
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

/// The chips that all boards have, and the switches in the lines of IRQ 0 and 8.
type CommonChips = (Chipset, [Arc<IrqGate>; 2]);

impl Chipset {
    /// A source on an ISA IRQ.
    pub(crate) fn irq(&self, irq: usize) -> IrqLine {
        self.interrupts.irq(irq)
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
        let interrupts = Controllers::new(around.irqchip.clone(), &around.cpus, &around.clock);
        let gates = [0, 8].map(|irq| IrqGate::new(interrupts.irq(irq)));
        let [timer_gate, rtc_gate] = &gates;
        let pit = Pit::new(&around.clock, IrqLine::new(timer_gate.clone(), 0));
        let rtc_line = IrqLine::new(rtc_gate.clone(), 0);
        let rtc = Rtc::new(&around.clock, around.wall.clone(), rtc_line);
        let fw_cfg = FwCfg::new(around.dma.clone());
        let mut chips = Self {
            ports: Arc::new(IoMap::new(IoMap::LAST_PORT)),
            memory: Arc::new(IoMap::new(HIGHEST_MEMORY)),
            interrupts,
            rtc,
            fw_cfg,
            pci: None,
            events: None,
            devices: Vec::new(),
        };
        chips.place_controllers()?;
        let fw_cfg = chips.fw_cfg.clone();
        chips.place("pit", 0x40, 4, IoPart::new(pit.clone(), PitPart::Counters))?;
        chips.place("pcspk", 0x61, 1, IoPart::new(pit.clone(), PitPart::Port61))?;
        chips.place("rtc", 0x70, 2, chips.rtc.clone())?;
        let selector = IoPart::new(fw_cfg.clone(), FwCfgPart::Ports);
        chips.place("fw_cfg", 0x510, 2, selector)?;
        let dma = IoPart::new(fw_cfg, FwCfgPart::DmaPorts);
        chips.place("fw_cfg-dma", 0x514, 8, dma)?;
        for (name, device) in chips.interrupts.devices() {
            chips.add(name, device);
        }
        chips.add("isa-pit", pit);
        chips.add("mc146818rtc", chips.rtc.clone());
        chips.add("fw_cfg", chips.fw_cfg.clone());
        Ok((chips, gates))
    }

    /// Registers of interrupt controllers, as far as they are the board's.
    fn place_controllers(&self) -> Result<(), MachineError> {
        let Some((pic, ioapic)) = self.interrupts.own_chips() else {
            return Ok(());
        };
        let part = |part| IoPart::new(pic.clone(), part);
        self.place("pic", 0x20, 2, part(PicPart::Master))?;
        self.place("pic", 0xa0, 2, part(PicPart::Slave))?;
        self.place("elcr", 0x4d0, 2, part(PicPart::EdgeLevel))?;
        let registers = ioapic.clone();
        self.memory
            .map("ioapic", IOAPIC_ADDRESS, 0x1000, CHIP_PRIORITY, registers)?;
        Ok(())
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
        let (mut chips, gates) = Self::common(around)?;
        let hpet = Self::hpet(&chips, &around.clock, &gates);
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

    fn hpet(chips: &Self, clock: &Clock, gates: &[Arc<IrqGate>; 2]) -> Arc<Hpet> {
        let interrupts = &chips.interrupts;
        let inputs = (16..24).map(|pin| {
            IrqLine::with_ends(vec![
                (Arc::clone(&interrupts.ioapic), pin),
                interrupts.taps.end(TapPlace::IoApicInputs, pin),
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
            messages: chips.interrupts.msi.clone(),
        };
        Hpet::new(clock, lines)
    }

    fn add_pci(
        &mut self,
        around: &ChipsetSurroundings,
        i8042: Arc<I8042>,
    ) -> Result<(), MachineError> {
        let router = PirqRouter::new(&self.interrupts.irqs);
        let pirqs: [IrqLine; 4] = [0, 1, 2, 3].map(|pirq| IrqLine::new(router.clone(), pirq));
        let (ports, memory) = (self.ports.clone(), self.memory.clone());
        let bus = PciBus::new(ports, memory, self.interrupts.msi.clone(), pirqs);
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
        self.interrupts.set_up_local_apics();
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
            .fold(0_u16, |levels, irq| levels | 1 << irq);
        if !self.interrupts.set_edge_level(levels) {
            self.ports.write(0x4d0, Width::Word, u64::from(levels));
        }
        crate::pci_setup::assign(&pci.bus);
    }
}

/// A place on the bus; all places that boards name exist.
fn address(slot: u8, function: u8) -> Result<PciAddress, MachineError> {
    PciAddress::new(slot, function).ok_or(MachineError::NoSuchSlot(slot))
}
