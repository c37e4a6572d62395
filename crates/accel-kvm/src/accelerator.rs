//! The virtual machine.

use std::sync::{Arc, Weak};
use std::time::Duration;

use guest_memory::GuestMemory;
use kvm_bindings::{
    KVM_CAP_X86_USER_SPACE_MSR, KVM_MAX_CPUID_ENTRIES, KVM_MSR_EXIT_REASON_FILTER,
    KVM_MSR_EXIT_REASON_INVAL, KVM_MSR_EXIT_REASON_UNKNOWN, kvm_enable_cap,
};
use kvm_ioctls::{Cap, Kvm, MsrFilterDefaultAction, MsrFilterRange, MsrFilterRangeFlags, VmFd};
use parking_lot::{Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard};
use vcpu::{Accelerator, CpuidTable, DirtyLog, DirtyRange, KernelIrqchip, Kick, Vcpu, VcpuError};

use crate::irqchip::{self, IrqchipMode, KvmFull, KvmSplit};
use crate::kick::KvmKick;
use crate::processor::KvmVcpu;
use crate::slots::Slots;
use crate::{API_VERSION, KvmError, cpuid, refused};

/// Where Intel processors without real mode in guests keep a page table: one page below the task state, in the last
/// MiB before a firmware of the largest size, 16 MiB.
const IDENTITY_MAP: u64 = 0xfeff_c000;
/// Three pages for the task state that virtual 8086 mode needs there.
const TASK_STATE: usize = 0xfeff_d000;

/// How long to wait for vCPUs to leave the guest before they are kicked again.
const KICK_AGAIN: Duration = Duration::from_millis(2);

/// MSRs that the kernel would answer, and that are the board's: APIC base and TSC deadline.
const BOARD_MSRS: [u32; 2] = [0x1b, 0x6e0];

/// What a kernel must have.
const NEEDED: &[(Cap, &str)] = &[
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::SetTssAddr, "KVM_CAP_SET_TSS_ADDR"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
    (Cap::VcpuEvents, "KVM_CAP_VCPU_EVENTS"),
    (Cap::Xsave, "KVM_CAP_XSAVE"),
    (Cap::Xcrs, "KVM_CAP_XCRS"),
    (Cap::ReadonlyMem, "KVM_CAP_READONLY_MEM"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
];

/// What the vCPUs share.
pub(crate) struct Machine {
    pub(crate) vm: VmFd,
    memory: Arc<GuestMemory>,
    /// vCPUs hold it for reading while they are in the guest.
    slots: RwLock<Slots>,
    kicks: Mutex<Vec<Weak<KvmKick>>>,
    /// The MSRs that make up a vCPU's state, as far as the kernel has said.
    pub(crate) msrs: Vec<u32>,
    /// Which interrupt controllers the kernel has.
    pub(crate) irqchip: IrqchipMode,
}

impl Machine {
    /// Brings the slots up to date; they stay so while the answer is held.
    pub(crate) fn enter(&self) -> Result<RwLockReadGuard<'_, Slots>, KvmError> {
        loop {
            let map = self.memory.regions();
            let slots = self.slots.read();
            if slots.show(&map) {
                return Ok(slots);
            }
            drop(slots);
            let mut slots = self.alone();
            slots.follow(&self.vm, self.memory.arena(), map)?;
        }
    }

    /// Waits until no vCPU is in the guest, and keeps them out.
    fn alone(&self) -> RwLockWriteGuard<'_, Slots> {
        loop {
            if let Some(slots) = self.slots.try_write() {
                return slots;
            }
            for kick in self.kicks.lock().iter().filter_map(Weak::upgrade) {
                kick.kick();
            }
            if let Some(slots) = self.slots.try_write_for(KICK_AGAIN) {
                return slots;
            }
        }
    }

    pub(crate) fn add_kick(&self, kick: &Arc<KvmKick>) {
        let mut kicks = self.kicks.lock();
        kicks.retain(|kick| kick.strong_count() > 0);
        kicks.push(Arc::downgrade(kick));
    }
}

/// KVM over one machine's memory.
pub struct KvmAccelerator {
    kvm: Kvm,
    machine: Arc<Machine>,
    supported: CpuidTable,
    irqchip: Option<KernelIrqchip>,
}

impl std::fmt::Debug for KvmAccelerator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KvmAccelerator").finish_non_exhaustive()
    }
}

/// Opens the device and checks what it offers.
fn open() -> Result<Kvm, KvmError> {
    let kvm = Kvm::new().map_err(|error| match error.errno() {
        libc::ENOENT | libc::ENODEV | libc::ENXIO => KvmError::NoDevice,
        libc::EACCES | libc::EPERM => KvmError::NoPermission,
        _ => refused("open its device")(error),
    })?;
    let version = kvm.get_api_version();
    if version != API_VERSION {
        return Err(KvmError::Version(version));
    }
    match NEEDED.iter().find(|(cap, _)| !kvm.check_extension(*cap)) {
        Some((_, name)) => Err(KvmError::Lacks(name)),
        None => Ok(kvm),
    }
}

fn create_vm(kvm: &Kvm) -> Result<VmFd, KvmError> {
    loop {
        match kvm.create_vm() {
            // A signal came; it takes some milliseconds, which is long enough to be interrupted.
            Err(error) if error.errno() == libc::EINTR => {}
            other => return other.map_err(refused("create a virtual machine")),
        }
    }
}

/// Makes accesses to MSRs that the kernel does not know, and to the board's, come out as exits. A kernel without that
/// (before 5.10) gives the guest a fault for the former and answers the latter itself.
fn take_msrs(vm: &VmFd, irqchip: IrqchipMode) -> Result<(), KvmError> {
    if !vm.check_extension(Cap::X86UserSpaceMsr) {
        return Ok(());
    }
    let reasons =
        KVM_MSR_EXIT_REASON_INVAL | KVM_MSR_EXIT_REASON_UNKNOWN | KVM_MSR_EXIT_REASON_FILTER;
    let mut request = kvm_enable_cap {
        cap: KVM_CAP_X86_USER_SPACE_MSR,
        ..kvm_enable_cap::default()
    };
    if let Some(first) = request.args.first_mut() {
        *first = u64::from(reasons);
    }
    vm.enable_cap(&request)
        .map_err(refused("hand over MSR accesses"))?;
    if irqchip != IrqchipMode::Off || !vm.check_extension(Cap::X86MsrFilter) {
        return Ok(());
    }
    // A clear bit denies; a denied access comes out.
    let ranges = BOARD_MSRS.map(|base| MsrFilterRange {
        flags: MsrFilterRangeFlags::READ | MsrFilterRangeFlags::WRITE,
        base,
        msr_count: 1,
        bitmap: &[0],
    });
    vm.set_msr_filter(MsrFilterDefaultAction::ALLOW, &ranges)
        .map_err(refused("filter MSR accesses"))
}

impl KvmAccelerator {
    /// Opens [`DEVICE`](crate::DEVICE) and makes a virtual machine over `memory`, with these interrupt controllers in the
    /// kernel.
    ///
    /// # Errors
    /// No device, no permission, a kernel that lacks something, or its refusal; [`KvmError::Irqchip`] where another mode
    /// may do.
    pub fn new(memory: Arc<GuestMemory>, irqchip: IrqchipMode) -> Result<Self, KvmError> {
        let kvm = open()?;
        let vm = create_vm(&kvm)?;
        vm.set_identity_map_address(IDENTITY_MAP)
            .map_err(refused("place its identity map"))?;
        vm.set_tss_address(TASK_STATE)
            .map_err(refused("place its task state"))?;
        irqchip::create(&vm, irqchip)?;
        take_msrs(&vm, irqchip)?;
        let supported = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(refused("say what CPUID may hold"))?;
        let list = kvm
            .get_msr_index_list()
            .map_err(refused("list the MSRs it keeps"))?;
        let mut slots = Slots::new(kvm.get_nr_memslots());
        slots.follow(&vm, memory.arena(), memory.regions())?;
        let has_deadline = kvm.check_extension(Cap::TscDeadlineTimer);
        let machine = Arc::new(Machine {
            vm,
            memory,
            slots: RwLock::new(slots),
            kicks: Mutex::default(),
            msrs: list.as_slice().to_vec(),
            irqchip,
        });
        let supported = match irqchip {
            IrqchipMode::Off => cpuid::supported(&supported),
            _ => cpuid::supported_with_apics(&supported, has_deadline),
        };
        let irqchip = match irqchip {
            IrqchipMode::Off => None,
            IrqchipMode::Split => Some(KernelIrqchip::Split(Arc::new(KvmSplit(Arc::clone(
                &machine,
            ))))),
            IrqchipMode::On => {
                let full = KvmFull::new(Arc::clone(&machine))?;
                Some(KernelIrqchip::Full(Arc::new(full)))
            }
        };
        Ok(Self {
            kvm,
            machine,
            supported,
            irqchip,
        })
    }

    /// Whether this host has KVM and this process may use it, without making a machine.
    ///
    /// # Errors
    /// As for [`KvmAccelerator::new`], as far as that can be told.
    pub fn probe() -> Result<(), KvmError> {
        open().map(drop)
    }

    /// The CPUID table of the models `host` and `max`, for the processor with this APIC id, in a socket of its own: all
    /// that host and kernel have and that a [`vcpu::VcpuState`] carries.
    #[must_use]
    pub fn host_cpuid(&self, index: u32) -> CpuidTable {
        cpuid::host(&self.supported, index)
    }

    /// A model's table without what this host has not.
    #[must_use]
    pub fn narrow(&self, model: &CpuidTable) -> CpuidTable {
        cpuid::narrow(model, &self.supported)
    }

    /// The most vCPUs that a machine may have.
    #[must_use]
    pub fn max_vcpus(&self) -> usize {
        self.kvm.get_max_vcpus()
    }
}

impl Accelerator for KvmAccelerator {
    fn name(&self) -> &'static str {
        "kvm"
    }

    fn create_vcpu(&self, index: u32, cpuid: CpuidTable) -> Result<Box<dyn Vcpu>, VcpuError> {
        let vcpu = KvmVcpu::new(&self.machine, index, &cpuid)?;
        Ok(Box::new(vcpu))
    }

    fn irqchip(&self) -> Option<KernelIrqchip> {
        self.irqchip.clone()
    }
}

impl DirtyLog for KvmAccelerator {
    fn start_dirty_log(&self) -> Result<(), VcpuError> {
        let machine = &self.machine;
        let mut slots = machine.alone();
        Ok(slots.set_logging(&machine.vm, machine.memory.arena(), true)?)
    }

    fn stop_dirty_log(&self) -> Result<(), VcpuError> {
        let machine = &self.machine;
        let mut slots = machine.alone();
        Ok(slots.set_logging(&machine.vm, machine.memory.arena(), false)?)
    }

    fn take_dirty_log(&self) -> Result<Vec<DirtyRange>, VcpuError> {
        Ok(self.machine.alone().take_log(&self.machine.vm)?)
    }
}
