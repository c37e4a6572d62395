//! From a configuration to a machine's parts.

use std::sync::Arc;

use accel_kvm::{IrqchipMode, KvmAccelerator, KvmError};
use cpu_soft::{Model, SoftAccelerator};
use dev_pc::pci_hotplug::Ejection;
use device::{Clock, MachineSink};
use guest_memory::GuestMemory;
use vcpu::{Accelerator, CpuidTable};

use crate::board::Chips;
use crate::boot;
use crate::chipset::{Chipset, ChipsetSurroundings};
use crate::config::{AcceleratorKind, MachineConfig};
use crate::cpu_thread::{self, CpuShared, CpuSurroundings};
use crate::error::MachineError;
use crate::hotplug::Ejections;
use crate::machine::Requests;
use crate::memory::{self, MAX_FIRMWARE_BYTES, MIN_RAM_BYTES, MemoryDma};

/// The parts of a machine.
pub(crate) struct Assembled {
    pub(crate) clock: Clock,
    pub(crate) memory: Option<Arc<GuestMemory>>,
    pub(crate) chips: Option<Chipset>,
    pub(crate) cpus: Vec<Arc<CpuShared>>,
}

fn check(config: &MachineConfig) -> Result<(), MachineError> {
    let (cpus, max) = (config.topology.cpus, config.board.max_cpus);
    if cpus == 0 || cpus > max {
        return Err(MachineError::Config(format!(
            "Invalid SMP CPUs {cpus}. The max CPUs supported by machine '{}' is {max}",
            config.board.name
        )));
    }
    if config.ram_bytes < MIN_RAM_BYTES {
        return Err(MachineError::Config(format!(
            "the machine needs at least {MIN_RAM_BYTES} bytes of RAM"
        )));
    }
    Ok(())
}

/// Makes all parts; processors' threads stand.
pub(crate) fn assemble(
    config: &MachineConfig,
    requests: &Arc<Requests>,
    ejections: &Arc<Ejections>,
) -> Result<Assembled, MachineError> {
    let (clock, wall) = config.clocks();
    if config.board.chips == Chips::None {
        return Ok(Assembled {
            clock,
            memory: None,
            chips: None,
            cpus: Vec::new(),
        });
    }
    check(config)?;
    let firmware = firmware(config)?;
    let (memory, low_memory) = memory::build(config.ram_bytes, firmware.as_deref())?;
    let cpus: Vec<Arc<CpuShared>> = (0..config.topology.cpus)
        .map(|index| CpuShared::new(index, config.accelerator != AcceleratorKind::Qtest))
        .collect();
    let executor = executor(config, &memory)?;
    let around = ChipsetSurroundings {
        clock: clock.clone(),
        wall,
        dma: Arc::new(MemoryDma(Arc::clone(&memory))),
        low_memory,
        machine: Arc::clone(requests) as Arc<dyn MachineSink>,
        ejection: Arc::clone(ejections) as Arc<dyn Ejection>,
        cpus: cpus.clone(),
        irqchip: executor
            .as_ref()
            .and_then(|(accelerator, _)| accelerator.irqchip()),
    };
    let chips = match config.board.chips {
        Chips::Microvm => Chipset::microvm(&around)?,
        _ => Chipset::pc(&around)?,
    };
    if let Some(executor) = &executor {
        start_cpus(config, executor, &chips, &cpus, requests)?;
    }
    Ok(Assembled {
        clock,
        memory: Some(memory),
        chips: Some(chips),
        cpus,
    })
}

fn firmware(config: &MachineConfig) -> Result<Option<Vec<u8>>, MachineError> {
    let Some(file) = &config.payload.firmware else {
        return Ok(None);
    };
    let image = boot::read("firmware", file)?;
    let bytes = image.len() as u64;
    if bytes == 0 || bytes > MAX_FIRMWARE_BYTES || !bytes.is_multiple_of(0x1_0000) {
        return Err(MachineError::Image {
            what: "firmware",
            path: file.path().to_owned(),
            reason: format!(
                "its size, {bytes} bytes, is not a multiple of 64 KiB up to {MAX_FIRMWARE_BYTES}"
            ),
        });
    }
    Ok(Some(image.into_owned()))
}

/// An accelerator, and the CPUID table of each processor.
type Executor = (Box<dyn Accelerator>, Box<dyn Fn(u32) -> CpuidTable>);

/// Who executes the guest; `None` where nobody does.
fn executor(
    config: &MachineConfig,
    memory: &Arc<GuestMemory>,
) -> Result<Option<Executor>, MachineError> {
    let name = config.cpu_model.as_str();
    let cpus = config.topology.cpus;
    let model = Model::by_name(name);
    let unknown = || {
        MachineError::Config(match name {
            "host" => "CPU model 'host' requires KVM or HVF".to_owned(),
            _ => format!("unable to find CPU model '{name}'; there are qemu64, max and host"),
        })
    };
    match config.accelerator {
        AcceleratorKind::Qtest => Ok(None),
        AcceleratorKind::Tcg => {
            let model = model.ok_or_else(unknown)?;
            let table = move |index| cpu_soft::table(model, index, cpus);
            let accelerator = SoftAccelerator::new(Arc::clone(memory));
            Ok(Some((Box::new(accelerator), Box::new(table))))
        }
        AcceleratorKind::Kvm => {
            let accelerator = kvm(config, memory)?;
            let tables: Vec<CpuidTable> = (0..cpus)
                .map(|index| match (name, model) {
                    ("host" | "max", _) => Ok(accelerator.host_cpuid(index)),
                    (_, Some(model)) => {
                        Ok(accelerator.narrow(&cpu_soft::table(model, index, cpus)))
                    }
                    (_, None) => Err(unknown()),
                })
                .collect::<Result<_, _>>()?;
            let table = move |index: u32| {
                let found = usize::try_from(index).ok().and_then(|at| tables.get(at));
                found.cloned().unwrap_or_default()
            };
            Ok(Some((Box::new(accelerator), Box::new(table))))
        }
    }
}

/// KVM with the interrupt controllers that are wished for, or with those that the kernel has.
fn kvm(config: &MachineConfig, memory: &Arc<GuestMemory>) -> Result<KvmAccelerator, KvmError> {
    let with = |mode| KvmAccelerator::new(Arc::clone(memory), mode);
    match config.kernel_irqchip {
        Some(mode) => with(mode),
        None => match with(IrqchipMode::On) {
            Err(KvmError::Irqchip { .. }) => with(IrqchipMode::Off),
            other => other,
        },
    }
}

fn start_cpus(
    config: &MachineConfig,
    (accelerator, table): &Executor,
    chips: &Chipset,
    cpus: &[Arc<CpuShared>],
    requests: &Arc<Requests>,
) -> Result<(), MachineError> {
    for cpu in cpus {
        let vcpu = accelerator.create_vcpu(cpu.index(), table(cpu.index()))?;
        let around = CpuSurroundings {
            ports: Arc::clone(&chips.ports),
            memory: Arc::clone(&chips.memory),
            interrupts: chips.interrupts.of_cpu(cpu.index()),
            sets_up_apic: config.payload.firmware.is_none(),
            machine: Arc::clone(requests) as Arc<dyn MachineSink>,
        };
        cpu_thread::start(cpu, around, vcpu, accelerator.name()).map_err(|source| {
            MachineError::Thread {
                what: "a vCPU",
                source,
            }
        })?;
    }
    Ok(())
}
