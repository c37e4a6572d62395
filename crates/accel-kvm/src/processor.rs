//! A vCPU: enters the guest and says why it came back.

use std::os::fd::AsRawFd;
use std::sync::Arc;

use guest_memory::GuestPhysAddr;
use kvm_bindings::{
    KVM_EXIT_DEBUG, KVM_EXIT_FAIL_ENTRY, KVM_EXIT_HLT, KVM_EXIT_INTERNAL_ERROR, KVM_EXIT_INTR,
    KVM_EXIT_IO, KVM_EXIT_IOAPIC_EOI, KVM_EXIT_IRQ_WINDOW_OPEN, KVM_EXIT_MMIO, KVM_EXIT_SET_TPR,
    KVM_EXIT_SHUTDOWN, KVM_EXIT_X86_RDMSR, KVM_EXIT_X86_WRMSR, kvm_interrupt,
};
use kvm_ioctls::VcpuFd;
use vcpu::{
    Activity, Completion, CpuidTable, Exit, Kick, Kicker, LocalApicState, Vcpu, VcpuError,
    VcpuState,
};

use crate::accelerator::Machine;
use crate::irqchip::IrqchipMode;
use crate::kick::KvmKick;
use crate::msrs::KeptMsrs;
use crate::run_page::{PortAccess, RunPage};
use crate::{KvmError, cpuid, refused, state};

/// `KVM_INTERRUPT`: `_IOW(KVMIO, 0x86, struct kvm_interrupt)`, which `kvm-ioctls` has not.
const KVM_INTERRUPT: libc::c_ulong = 0x4004_ae86;

/// How often an instruction in flight is let come back before a reset gives up on it: an access to memory is cut into
/// pieces of 8 bytes, of which the widest instruction makes 64, and two of them.
const MAX_PIECES: usize = 128;

/// What the last exit wants.
#[derive(Debug, Clone, Copy)]
enum Stage {
    /// Nothing: the state is that between two instructions.
    Between,
    /// The instruction is finished by the next `KVM_RUN`.
    InFlight,
    /// Bytes of a port.
    PortIn(PortAccess),
    /// A value from memory that is none.
    MmioRead,
    /// The value of an MSR.
    MsrRead,
    /// Whether an MSR took a value.
    MsrWrite,
}

/// One vCPU.
pub(crate) struct KvmVcpu {
    fd: VcpuFd,
    machine: Arc<Machine>,
    page: Arc<RunPage>,
    kick: Arc<KvmKick>,
    msrs: KeptMsrs,
    signature: u32,
    stage: Stage,
    /// An exit that comes behind the news of CR8.
    queued: Option<Exit>,
    /// CR8 as the board knows it.
    cr8: u64,
    window_wanted: bool,
    /// Whether an interrupt can be taken; `None`: the state has been set and must be asked.
    ready: Option<bool>,
    /// An external interrupt was injected that the kernel may not have taken yet.
    external: bool,
    /// The local APIC after a reset, where the kernel has it.
    initial_apic: Option<LocalApicState>,
    /// The thread that ran last.
    thread: i32,
}

impl KvmVcpu {
    pub(crate) fn new(
        machine: &Arc<Machine>,
        index: u32,
        table: &CpuidTable,
    ) -> Result<Self, VcpuError> {
        let fd = machine
            .vm
            .create_vcpu(u64::from(index))
            .map_err(refused("create a vCPU"))?;
        fd.set_cpuid2(&cpuid::for_kernel(table)?)
            .map_err(refused("take the CPUID table"))?;
        let page = Arc::new(RunPage::map(&fd, machine.vm.run_size())?);
        let kick = Arc::new(KvmKick::new(Arc::clone(&page)));
        machine.add_kick(&kick);
        let has_apic = machine.irqchip != IrqchipMode::Off;
        let msrs = KeptMsrs::probe(&fd, &machine.msrs, has_apic)?;
        let initial_apic = has_apic.then(|| state::local_apic(&fd)).transpose()?;
        let vcpu = Self {
            fd,
            machine: Arc::clone(machine),
            page,
            kick,
            msrs,
            signature: table.answer(1, 0).eax,
            stage: Stage::Between,
            queued: None,
            cr8: 0,
            window_wanted: false,
            ready: None,
            external: false,
            initial_apic,
            thread: 0,
        };
        if !has_apic {
            vcpu.put_apic_base(index == 0)?;
        }
        vcpu.restore(&vcpu.reset_state())?;
        Ok(vcpu)
    }

    /// The kernel's copy of the board's APIC base only says that there is an APIC, for CPUID.
    fn put_apic_base(&self, bootstrap: bool) -> Result<(), VcpuError> {
        let mut sregs = self
            .fd
            .get_sregs()
            .map_err(refused("read system registers"))?;
        sregs.apic_base = 0xfee0_0800 | u64::from(bootstrap) << 8;
        self.fd
            .set_sregs(&sregs)
            .map_err(refused("write system registers"))?;
        Ok(())
    }

    fn reset_state(&self) -> VcpuState {
        VcpuState {
            local_apic: self.initial_apic.clone(),
            ..state::after_reset(self.signature)
        }
    }

    fn has_apic(&self) -> bool {
        self.initial_apic.is_some()
    }

    fn restore(&self, to: &VcpuState) -> Result<(), VcpuError> {
        state::set(&self.fd, &self.msrs, to, self.has_apic())?;
        self.page.set_cr8(to.system.cr8);
        Ok(())
    }

    /// What is known about the taking of interrupts after the state was set. Whether a local APIC in the kernel listens
    /// to the 8259 is only known after a run.
    fn unknown_readiness(&self) -> Option<bool> {
        self.has_apic().then_some(false)
    }

    fn is_between(&self) -> bool {
        matches!(self.stage, Stage::Between) && self.queued.is_none()
    }

    /// Enters the guest. `None`: came back because somebody wants it to.
    fn enter(&mut self) -> Result<Option<u32>, VcpuError> {
        let machine = Arc::clone(&self.machine);
        let slots = machine.enter()?;
        self.kick.entering(&mut self.thread);
        let came_back = self.fd.run().map(|_| ());
        self.kick.left();
        drop(slots);
        self.stage = Stage::Between;
        self.ready = Some(self.page.ready_for_interrupt());
        match came_back {
            Ok(()) => {
                self.external = false;
                Ok(Some(self.page.exit_reason()))
            }
            // A processor that waited for INIT or to be started has got it.
            Err(error) if error.errno() == libc::EAGAIN && self.has_apic() => Ok(None),
            Err(error) if error.errno() == libc::EINTR => {
                // Cleared before the news is told: a kick from now on is another one.
                self.page.set_immediate_exit(false);
                Ok(None)
            }
            Err(error) => Err(refused("run the guest")(error).into()),
        }
    }

    /// What an exit says, and what it wants.
    fn decode(&mut self, reason: u32) -> Result<Option<Exit>, VcpuError> {
        let exit = match reason {
            KVM_EXIT_IO => return self.port_exit().map(Some),
            KVM_EXIT_MMIO => self.memory_exit(),
            KVM_EXIT_X86_RDMSR => {
                self.stage = Stage::MsrRead;
                Exit::MsrRead {
                    index: self.page.msr_access().index,
                }
            }
            KVM_EXIT_X86_WRMSR => {
                let access = self.page.msr_access();
                self.stage = Stage::MsrWrite;
                Exit::MsrWrite {
                    index: access.index,
                    value: access.data,
                }
            }
            KVM_EXIT_HLT => Exit::Halt,
            KVM_EXIT_SHUTDOWN => Exit::Shutdown,
            KVM_EXIT_IRQ_WINDOW_OPEN => Exit::InterruptWindow,
            KVM_EXIT_INTR => Exit::Kicked,
            KVM_EXIT_IOAPIC_EOI => Exit::EndOfInterrupt(self.page.ended_vector()),
            // The news of CR8 is all there is.
            KVM_EXIT_SET_TPR => return Ok(None),
            KVM_EXIT_FAIL_ENTRY | KVM_EXIT_INTERNAL_ERROR | KVM_EXIT_DEBUG => {
                return Err(self.failure(reason));
            }
            _ => return Err(self.failure(reason)),
        };
        Ok(Some(exit))
    }

    fn port_exit(&mut self) -> Result<Exit, VcpuError> {
        let access = self.page.port_access();
        let PortAccess {
            port, size, count, ..
        } = access;
        let data = self
            .page
            .port_data(&access)
            .ok_or_else(|| self.failure(KVM_EXIT_IO))?;
        if access.is_out {
            self.stage = Stage::InFlight;
            return Ok(Exit::PortOut { port, size, data });
        }
        self.stage = Stage::PortIn(access);
        Ok(Exit::PortIn { port, size, count })
    }

    fn memory_exit(&mut self) -> Exit {
        let access = self.page.memory_access();
        let (addr, len) = (GuestPhysAddr(access.addr), access.len);
        if access.is_write {
            self.stage = Stage::InFlight;
            let data = access.data;
            return Exit::MmioWrite { addr, len, data };
        }
        self.stage = Stage::MmioRead;
        Exit::MmioRead { addr, len }
    }

    fn failure(&self, reason: u32) -> VcpuError {
        let detail = self.page.failure();
        let rip = self.fd.get_regs().map_or(0, |regs| regs.rip);
        VcpuError::Host {
            what: "run the guest",
            reason: format!("KVM exit {reason} with {detail:#x} at RIP {rip:#x}"),
        }
    }

    /// Lets the kernel finish the instruction in flight, so that it does not meddle with what is set next.
    fn finish_instruction(&mut self) -> Result<(), VcpuError> {
        for _ in 0..MAX_PIECES {
            if matches!(self.stage, Stage::Between) {
                return Ok(());
            }
            self.page.set_immediate_exit(true);
            if let Some(reason) = self.enter()? {
                // Another piece of it; what comes of it is of no interest.
                self.decode(reason)?;
            }
        }
        Err(self.failure(KVM_EXIT_MMIO))
    }
}

impl Vcpu for KvmVcpu {
    fn run(&mut self) -> Result<Exit, VcpuError> {
        match self.stage {
            Stage::Between | Stage::InFlight => {}
            _ if self.queued.is_some() => {}
            _ => return Err(VcpuError::NotCompleted),
        }
        if let Some(exit) = self.queued.take() {
            return Ok(exit);
        }
        if self.window_wanted && self.can_take_interrupt() {
            return Ok(Exit::InterruptWindow);
        }
        loop {
            let exit = match self.enter()? {
                Some(reason) => self.decode(reason)?,
                None => Some(Exit::Kicked),
            };
            let cr8 = self.page.cr8();
            if cr8 != self.cr8 && !self.has_apic() {
                self.cr8 = cr8;
                self.queued = exit;
                return Ok(Exit::TaskPriority(u8::try_from(cr8 & 15).unwrap_or(0)));
            }
            if let Some(exit) = exit {
                return Ok(exit);
            }
        }
    }

    fn complete(&mut self, data: Completion) -> Result<(), VcpuError> {
        if self.queued.is_some() {
            return Err(VcpuError::WrongCompletion("anything"));
        }
        match (self.stage, data) {
            (Stage::PortIn(access), Completion::PortIn(bytes)) => {
                if bytes.len() != access.bytes() {
                    return Err(VcpuError::WrongCompletion("this many bytes of a port"));
                }
                self.page.set_port_data(&access, &bytes);
            }
            (Stage::MmioRead, Completion::Mmio(value)) => self.page.set_memory_data(value),
            (Stage::MsrRead, Completion::Msr(value)) => self.page.set_msr_answer(Some(value)),
            (Stage::MsrWrite, Completion::MsrDone) => self.page.set_msr_answer(Some(0)),
            (Stage::MsrRead | Stage::MsrWrite, Completion::MsrFault) => {
                self.page.set_msr_answer(None);
            }
            (_, data) => {
                return Err(VcpuError::WrongCompletion(match data {
                    Completion::PortIn(_) => "bytes of a port",
                    Completion::Mmio(_) => "an MMIO value",
                    Completion::Msr(_) => "an MSR value",
                    Completion::MsrDone => "a written MSR",
                    Completion::MsrFault => "a refused MSR",
                }));
            }
        }
        self.stage = Stage::InFlight;
        Ok(())
    }

    fn kicker(&self) -> Kicker {
        Arc::clone(&self.kick) as Arc<dyn Kick>
    }

    fn state(&self) -> Result<VcpuState, VcpuError> {
        if !self.is_between() {
            return Err(VcpuError::InFlight);
        }
        state::get(&self.fd, &self.msrs, self.has_apic())
    }

    fn set_state(&mut self, state: &VcpuState) -> Result<(), VcpuError> {
        if !self.is_between() {
            return Err(VcpuError::InFlight);
        }
        self.restore(state)?;
        self.cr8 = state.system.cr8;
        self.ready = self.unknown_readiness();
        Ok(())
    }

    fn reset(&mut self) -> Result<(), VcpuError> {
        self.finish_instruction()?;
        self.queued = None;
        self.restore(&self.reset_state())?;
        self.msrs.reset(&self.fd)?;
        self.cr8 = 0;
        self.ready = self.unknown_readiness();
        self.request_interrupt_window(false);
        Ok(())
    }

    fn can_take_interrupt(&self) -> bool {
        if !self.is_between() || self.external || self.machine.irqchip == IrqchipMode::On {
            return false;
        }
        // Where the kernel does not tell, nothing can be injected either.
        self.ready
            .unwrap_or_else(|| state::can_take_interrupt(&self.fd).unwrap_or(false))
    }

    fn inject_interrupt(&mut self, vector: u8) -> Result<(), VcpuError> {
        if !self.can_take_interrupt() {
            return Err(VcpuError::CannotInject(vector));
        }
        let interrupt = kvm_interrupt {
            irq: u32::from(vector),
        };
        // SAFETY: the call reads one `kvm_interrupt`, which lives until it returns.
        let result = unsafe { libc::ioctl(self.fd.as_raw_fd(), KVM_INTERRUPT, &interrupt) };
        if result != 0 {
            return Err(KvmError::Refused {
                what: "inject an interrupt",
                source: std::io::Error::last_os_error(),
            }
            .into());
        }
        self.ready = Some(false);
        self.external = self.has_apic();
        Ok(())
    }

    fn inject_nmi(&mut self) -> Result<(), VcpuError> {
        if self.has_apic() {
            let activity = state::activity(&self.fd)?;
            if matches!(activity, Activity::WaitsForInit | Activity::WaitsForStartUp) {
                // INIT would drop it; until then the kernel would take it for a reason not to wait.
                return Ok(());
            }
        }
        self.fd.nmi().map_err(refused("inject an NMI"))?;
        Ok(())
    }

    fn request_interrupt_window(&mut self, wanted: bool) {
        self.window_wanted = wanted;
        self.page.request_interrupt_window(wanted);
    }
}
