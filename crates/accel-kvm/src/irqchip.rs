//! Interrupt controllers in the kernel.

use std::sync::Arc;

use kvm_bindings::{
    KVM_CAP_SPLIT_IRQCHIP, KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC,
    KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KvmIrqRouting, kvm_enable_cap,
    kvm_irq_routing_entry, kvm_irq_routing_entry__bindgen_ty_1, kvm_irq_routing_irqchip,
    kvm_irq_routing_msi, kvm_irqchip, kvm_msi,
};
use kvm_ioctls::{Cap, VmFd};
use vcpu::{
    ChipState, FullIrqchip, IOAPIC_INPUTS, ISA_LINES, KernelApics, Msi, SplitIrqchip, VcpuError,
};

use crate::accelerator::Machine;
use crate::{KvmError, refused};

/// Which interrupt controllers are in the kernel (`kernel-irqchip`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IrqchipMode {
    /// None.
    Off,
    /// Local APICs.
    Split,
    /// Local APICs, the I/O APIC and the 8259 pair.
    On,
}

/// The master's input that the slave drives: not a line.
const CASCADE: u32 = 2;
/// The I/O APIC's input for IRQ 0.
const TIMER_INPUT: u32 = 2;
const CHIPS: [u32; 3] = [
    KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE,
    KVM_IRQCHIP_IOAPIC,
];

/// What a kernel must have for controllers of its own.
fn lacks(vm: &VmFd, mode: IrqchipMode) -> bool {
    let controllers = match mode {
        IrqchipMode::Off => return false,
        IrqchipMode::Split => Cap::SplitIrqchip,
        IrqchipMode::On => Cap::Irqchip,
    };
    let needed = [controllers, Cap::MpState, Cap::IrqRouting, Cap::SignalMsi];
    needed.into_iter().any(|cap| !vm.check_extension(cap))
}

/// Makes the controllers, before the first vCPU.
pub(crate) fn create(vm: &VmFd, mode: IrqchipMode) -> Result<(), KvmError> {
    let failed = |source| KvmError::Irqchip { mode, source };
    if lacks(vm, mode) {
        return Err(failed(std::io::Error::from_raw_os_error(libc::ENOTSUP)));
    }
    match mode {
        IrqchipMode::Off => Ok(()),
        IrqchipMode::Split => {
            let mut request = kvm_enable_cap {
                cap: KVM_CAP_SPLIT_IRQCHIP,
                ..kvm_enable_cap::default()
            };
            if let Some(first) = request.args.first_mut() {
                *first = u64::from(IOAPIC_INPUTS);
            }
            vm.enable_cap(&request)
                .map_err(|error| failed(error.into()))
        }
        IrqchipMode::On => {
            vm.create_irq_chip().map_err(|error| failed(error.into()))?;
            route(vm, &full_routes()).map_err(|error| failed(error.into()))
        }
    }
}

fn route(vm: &VmFd, routes: &[kvm_irq_routing_entry]) -> Result<(), kvm_ioctls::Error> {
    let routing =
        KvmIrqRouting::from_entries(routes).map_err(|_| kvm_ioctls::Error::new(libc::E2BIG))?;
    vm.set_gsi_routing(&routing)
}

fn input(gsi: u32, irqchip: u32, pin: u32) -> kvm_irq_routing_entry {
    kvm_irq_routing_entry {
        gsi,
        type_: KVM_IRQ_ROUTING_IRQCHIP,
        u: kvm_irq_routing_entry__bindgen_ty_1 {
            irqchip: kvm_irq_routing_irqchip { irqchip, pin },
        },
        ..kvm_irq_routing_entry::default()
    }
}

/// Where the lines of a [`FullIrqchip`] lead.
fn full_routes() -> Vec<kvm_irq_routing_entry> {
    let mut routes = Vec::new();
    for irq in (0..ISA_LINES).filter(|irq| *irq != CASCADE) {
        let chip = match irq {
            0..8 => KVM_IRQCHIP_PIC_MASTER,
            _ => KVM_IRQCHIP_PIC_SLAVE,
        };
        routes.push(input(irq, chip, irq % 8));
        let pin = if irq == 0 { TIMER_INPUT } else { irq };
        routes.push(input(irq, KVM_IRQCHIP_IOAPIC, pin));
    }
    routes.extend((0..IOAPIC_INPUTS).map(|pin| input(ISA_LINES + pin, KVM_IRQCHIP_IOAPIC, pin)));
    routes
}

fn halves(address: u64) -> (u32, u32) {
    let [a, b, c, d, e, f, g, h] = address.to_le_bytes();
    (
        u32::from_le_bytes([a, b, c, d]),
        u32::from_le_bytes([e, f, g, h]),
    )
}

fn send(machine: &Machine, message: Msi) -> Result<(), VcpuError> {
    let (address_lo, address_hi) = halves(message.address);
    let message = kvm_msi {
        address_lo,
        address_hi,
        data: message.data,
        ..kvm_msi::default()
    };
    match machine.vm.signal_msi(message) {
        // That is how the kernel says that no APIC was addressed.
        Err(error) if error.errno() == libc::EPERM => Ok(()),
        Err(error) => Err(refused("send an interrupt message")(error).into()),
        Ok(_) => Ok(()),
    }
}

/// Local APICs in the kernel.
pub(crate) struct KvmSplit(pub(crate) Arc<Machine>);

impl KernelApics for KvmSplit {
    fn send_msi(&self, message: Msi) -> Result<(), VcpuError> {
        send(&self.0, message)
    }
}

impl SplitIrqchip for KvmSplit {
    fn set_level_messages(&self, messages: &[Msi]) -> Result<(), VcpuError> {
        // The kernel looks at the routes of the first GSIs, one to each input.
        let inputs = (0..IOAPIC_INPUTS).zip(messages);
        let routes: Vec<kvm_irq_routing_entry> = inputs
            .map(|(gsi, message)| {
                let (address_lo, address_hi) = halves(message.address);
                let msi = kvm_irq_routing_msi {
                    address_lo,
                    address_hi,
                    data: message.data,
                    ..kvm_irq_routing_msi::default()
                };
                kvm_irq_routing_entry {
                    gsi,
                    type_: KVM_IRQ_ROUTING_MSI,
                    u: kvm_irq_routing_entry__bindgen_ty_1 { msi },
                    ..kvm_irq_routing_entry::default()
                }
            })
            .collect();
        Ok(route(&self.0.vm, &routes).map_err(refused("route level interrupts"))?)
    }
}

/// All controllers in the kernel.
pub(crate) struct KvmFull {
    machine: Arc<Machine>,
    /// As the kernel has made them.
    initial: Vec<ChipState>,
}

impl KvmFull {
    pub(crate) fn new(machine: Arc<Machine>) -> Result<Self, KvmError> {
        let initial = CHIPS
            .iter()
            .map(|chip| read(&machine.vm, *chip).map(|chip| to_state(&chip)))
            .collect::<Result<_, _>>()?;
        Ok(Self { machine, initial })
    }
}

fn read(vm: &VmFd, chip_id: u32) -> Result<kvm_irqchip, KvmError> {
    let mut chip = kvm_irqchip {
        chip_id,
        ..kvm_irqchip::default()
    };
    vm.get_irqchip(&mut chip)
        .map_err(refused("read an interrupt controller"))?;
    Ok(chip)
}

fn write(vm: &VmFd, chip: &kvm_irqchip) -> Result<(), KvmError> {
    vm.set_irqchip(chip)
        .map_err(refused("write an interrupt controller"))
}

fn to_state(chip: &kvm_irqchip) -> ChipState {
    // SAFETY: any bytes are values of the union's widest field, which is all of it.
    let bytes = unsafe { chip.chip.dummy };
    ChipState {
        chip: chip.chip_id,
        bytes: bytes.map(i8::cast_unsigned).to_vec(),
    }
}

fn from_state(state: &ChipState) -> Option<kvm_irqchip> {
    let mut chip = kvm_irqchip {
        chip_id: state.chip,
        ..kvm_irqchip::default()
    };
    let bytes = <[u8; 512]>::try_from(state.bytes.as_slice()).ok()?;
    chip.chip.dummy = bytes.map(u8::cast_signed);
    CHIPS.contains(&state.chip).then_some(chip)
}

impl KernelApics for KvmFull {
    fn send_msi(&self, message: Msi) -> Result<(), VcpuError> {
        send(&self.machine, message)
    }
}

impl FullIrqchip for KvmFull {
    fn set_line(&self, line: u32, high: bool) -> Result<(), VcpuError> {
        let result = self.machine.vm.set_irq_line(line, high);
        Ok(result.map_err(refused("drive an interrupt line"))?)
    }

    fn set_edge_level(&self, levels: u16) -> Result<(), VcpuError> {
        let vm = &self.machine.vm;
        let chips = [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE];
        for (chip_id, bits) in chips.into_iter().zip(levels.to_le_bytes()) {
            let mut chip = read(vm, chip_id)?;
            chip.chip.pic.elcr = bits;
            write(vm, &chip)?;
        }
        Ok(())
    }

    fn state(&self) -> Result<Vec<ChipState>, VcpuError> {
        let chips = CHIPS.iter();
        Ok(chips
            .map(|chip| read(&self.machine.vm, *chip).map(|chip| to_state(&chip)))
            .collect::<Result<_, _>>()?)
    }

    fn set_state(&self, chips: &[ChipState]) -> Result<(), VcpuError> {
        for state in chips {
            let chip = from_state(state).ok_or_else(|| {
                let chip = state.chip;
                VcpuError::BadState(format!("interrupt controller {chip} is not one of KVM's"))
            })?;
            write(&self.machine.vm, &chip)?;
        }
        Ok(())
    }

    fn reset(&self) -> Result<(), VcpuError> {
        self.set_state(&self.initial)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_leads_somewhere() {
        let routes = full_routes();
        let ends = |gsi: u32| -> Vec<(u32, u32)> {
            let routes = routes.iter().filter(|route| route.gsi == gsi);
            routes
                // SAFETY: all routes are to inputs.
                .map(|route| unsafe { (route.u.irqchip.irqchip, route.u.irqchip.pin) })
                .collect()
        };
        assert_eq!(ends(0), [(0, 0), (2, 2)]);
        assert_eq!(ends(1), [(0, 1), (2, 1)]);
        assert_eq!(ends(2), []);
        assert_eq!(ends(9), [(1, 1), (2, 9)]);
        assert_eq!(ends(ISA_LINES), [(2, 0)]);
        assert_eq!(ends(ISA_LINES + 23), [(2, 23)]);
        assert_eq!(routes.len(), 15 * 2 + 24);
    }

    #[test]
    fn a_refusal_says_which_mode() {
        if std::env::var_os("RATITE_NO_KVM").is_some_and(|value| value == "1") {
            eprintln!("skipped: RATITE_NO_KVM=1 says that this host has no /dev/kvm");
            return;
        }
        let kvm = kvm_ioctls::Kvm::new().unwrap();
        for (mode, words) in [
            (IrqchipMode::On, "Create kernel irqchip failed: "),
            (IrqchipMode::Split, "Could not enable split irqchip mode: "),
        ] {
            let vm = kvm.create_vm().unwrap();
            create(&vm, IrqchipMode::Off).unwrap();
            // The second time there are some already; a kernel without any refuses the first time.
            let results = [create(&vm, mode), create(&vm, mode)];
            let error = results.into_iter().find_map(Result::err).unwrap();
            assert!(error.to_string().starts_with(words), "{error}");
            assert!(matches!(error, KvmError::Irqchip { mode: named, .. } if named == mode));
        }
    }

    #[test]
    fn chips_go_round() {
        let state = ChipState {
            chip: KVM_IRQCHIP_IOAPIC,
            bytes: (0..512_u32).map(|byte| byte.to_le_bytes()[0]).collect(),
        };
        assert_eq!(to_state(&from_state(&state).unwrap()), state);
        for wrong in [(3, 512), (0, 511)] {
            let state = ChipState {
                chip: wrong.0,
                bytes: vec![0; wrong.1],
            };
            assert!(from_state(&state).is_none());
        }
    }
}
