//! The vCPU: runs blocks, delivers events, leaves with exits.

use std::sync::Arc;

use guest_memory::{Attention, GuestMemory};
use vcpu::{
    Accelerator, Completion, CpuidTable, Event, Exit, Kick, Kicker, Vcpu, VcpuError, VcpuState,
};

use crate::blocks::{Block, Blocks};
use crate::cpu::{Cpu, Fault, ReplayKind, SS, vector};
use crate::domain::{BLOCK_IP, Op, Stop};
use crate::flags::bit;
use crate::system::interrupt::Origin;

/// Something of this CPU's own waits: an event, an NMI, a wanted window.
const OWN: u32 = Attention::FIRST_OWN;

/// The software CPU as an accelerator.
#[derive(Debug)]
pub struct SoftAccelerator {
    memory: Arc<GuestMemory>,
}

impl SoftAccelerator {
    /// An accelerator over a machine's memory.
    #[must_use]
    pub fn new(memory: Arc<GuestMemory>) -> Self {
        Self { memory }
    }
}

impl Accelerator for SoftAccelerator {
    fn name(&self) -> &'static str {
        "tcg"
    }

    fn create_vcpu(&self, _index: u32, cpuid: CpuidTable) -> Result<Box<dyn Vcpu>, VcpuError> {
        let memory = Arc::clone(&self.memory);
        Ok(Box::new(SoftVcpu::new(memory, cpuid)))
    }
}

#[derive(Debug)]
struct SoftKick(Arc<Attention>);

impl Kick for SoftKick {
    fn kick(&self) {
        self.0.raise(Attention::KICK);
    }
}

/// One vCPU.
pub(crate) struct SoftVcpu {
    cpu: Cpu,
    blocks: Blocks,
    /// The last exit belongs to an instruction that will run again.
    in_flight: bool,
    /// The last exit wants data.
    waiting: bool,
}

impl SoftVcpu {
    pub(crate) fn new(memory: Arc<GuestMemory>, cpuid: CpuidTable) -> Self {
        Self {
            cpu: Cpu::new(memory, cpuid),
            blocks: Blocks::new(),
            in_flight: false,
            waiting: false,
        }
    }

    fn run_inside(&mut self) -> Exit {
        if self.in_flight {
            self.in_flight = false;
            self.cpu.replay_at = 0;
            if let Some(exit) = self.single_step() {
                return exit;
            }
        }
        loop {
            if self.cpu.attention.pending() != 0
                && let Some(exit) = self.attend()
            {
                return exit;
            }
            let shadow = self.cpu.shadow;
            // What waits is taken behind the one instruction in STI's shadow, before a CLI that follows it.
            let waits = shadow && self.cpu.attention.pending() != 0;
            let exit = if waits || self.cpu.sysflags & bit::TF != 0 {
                self.single_step()
            } else {
                self.run_blocks()
            };
            if shadow {
                self.cpu.shadow = false;
            }
            if let Some(exit) = exit {
                return exit;
            }
        }
    }

    /// Looks at what others asked for, and at events.
    #[cold]
    #[inline(never)]
    fn attend(&mut self) -> Option<Exit> {
        let cpu = &mut self.cpu;
        let wanted = Attention::CODE_CHANGED | Attention::MAP_CHANGED | Attention::KICK;
        let flags = cpu.attention.take(wanted);
        if flags & Attention::CODE_CHANGED != 0 {
            cpu.tlb.forget_code();
        }
        if flags & Attention::MAP_CHANGED != 0 {
            cpu.tlb.flush();
            cpu.region = (0, 0, 0);
        }
        if cpu.attention.pending() & Attention::EXCLUSIVE != 0 {
            cpu.memory.gate().pass();
        }
        if flags & Attention::KICK != 0 {
            return Some(Exit::Kicked);
        }
        if cpu.attention.pending() & OWN != 0 {
            return self.deliver_events();
        }
        None
    }

    fn deliver_events(&mut self) -> Option<Exit> {
        let cpu = &mut self.cpu;
        if let Some(event) = cpu.event.take() {
            let (fault, origin) = match event {
                Event::Exception { vector, error } => (Fault { vector, error }, Origin::Exception),
                Event::Interrupt(vector) => {
                    let error = None;
                    (Fault { vector, error }, Origin::External)
                }
            };
            self.note_events();
            return self.deliver(fault, origin);
        }
        if cpu.nmi_pending && !cpu.nmi_masked && !cpu.shadow {
            cpu.nmi_pending = false;
            cpu.nmi_masked = true;
            self.note_events();
            let fault = Fault {
                vector: vector::NMI,
                error: None,
            };
            return self.deliver(fault, Origin::External);
        }
        if cpu.window_wanted && self.can_take_interrupt() {
            return Some(Exit::InterruptWindow);
        }
        None
    }

    /// Raises or lowers the flag that says something of this CPU's own waits.
    fn note_events(&mut self) {
        let cpu = &self.cpu;
        let waits = cpu.event.is_some() || cpu.nmi_pending || cpu.window_wanted;
        if waits {
            cpu.attention.raise(OWN);
        } else {
            cpu.attention.lower(OWN);
        }
    }

    fn deliver(&mut self, fault: Fault, origin: Origin) -> Option<Exit> {
        self.cpu.drop_replay();
        match self.cpu.deliver_fault(fault, origin) {
            Ok(()) => None,
            Err(()) => Some(Exit::Shutdown),
        }
    }

    /// Runs the block at RIP and those that follow, until something else is to be looked at.
    #[inline(always)]
    fn run_blocks(&mut self) -> Option<Exit> {
        loop {
            let cpu = &mut self.cpu;
            if cpu.rip > cpu.code_limit {
                let stop = cpu.gp(0);
                return self.stopped_at(stop, None);
            }
            let run = match self.blocks.find(cpu) {
                Ok(run) => run,
                Err(stop) => return self.stopped_at(stop, None),
            };
            if u64::from(run.bytes) > cpu.code_left() {
                // The code segment ends within the block: one instruction at a time.
                return self.single_step();
            }
            let start = cpu.rip;
            let tag = Blocks::tag(cpu);
            cpu.put(BLOCK_IP, start);
            let steps = self.blocks.steps(run);
            // A block that ends where it began needs no looking up.
            loop {
                let mut ended = None;
                for step in steps {
                    if let Err(stop) = (step.run)(cpu, &step.op) {
                        ended = Some((stop, step));
                        break;
                    }
                }
                match ended {
                    Some((Stop::Branch, _)) => {}
                    Some((stop, step)) => {
                        let op = step.op;
                        return self.stopped_at(stop, Some(op));
                    }
                    None => cpu.rip = cpu.cut_ip(start.wrapping_add(u64::from(run.bytes))),
                }
                if cpu.attention.pending() != 0 || cpu.shadow || cpu.sysflags & bit::TF != 0 {
                    return None;
                }
                if cpu.rip != start || Blocks::tag(cpu) != tag {
                    break;
                }
            }
        }
    }

    /// Deals with an instruction that did not run on. `op`: which; none if fetching failed.
    #[cold]
    #[inline(never)]
    fn stopped_at(&mut self, stop: Stop, op: Option<Op>) -> Option<Exit> {
        if let Some(op) = op
            && !matches!(stop, Stop::Branch | Stop::ExitAfter)
        {
            self.cpu.rip = self.cpu.ip_of(&op);
        }
        match stop {
            Stop::Branch | Stop::Again => None,
            Stop::Fault => {
                if op.is_some_and(|op| op.seg == SS) {
                    let _ = self.cpu.stack_stop(stop);
                }
                let fault = self.cpu.fault;
                self.deliver(fault, Origin::Exception)
            }
            Stop::Exit => {
                self.in_flight = true;
                self.waiting = self.cpu.exit.is_read();
                Some(self.cpu.exit.clone())
            }
            Stop::ExitAfter => Some(self.cpu.exit.clone()),
            Stop::CodeWrite => self.single_step(),
            Stop::Exclusive => {
                let memory = Arc::clone(&self.cpu.memory);
                memory.gate().exclusively(memory.code_marks(), || {
                    self.cpu.exclusive = true;
                    let exit = self.single_step();
                    self.cpu.exclusive = false;
                    exit
                })
            }
        }
    }

    /// Runs the one instruction at RIP: to go on with one that is in flight, that writes to
    /// code, or with RFLAGS.TF.
    fn single_step(&mut self) -> Option<Exit> {
        let trap = self.cpu.sysflags & bit::TF != 0;
        let block = match self.blocks.single(&mut self.cpu) {
            Ok(block) => block,
            Err(stop) => return self.stopped_at(stop, None),
        };
        self.cpu.alone = true;
        let result = self.run_single(&block);
        self.cpu.alone = false;
        if matches!(result, Ok(()) | Err(Stop::Branch | Stop::ExitAfter)) {
            self.cpu.drop_replay();
            if trap {
                return self.trap(result == Err(Stop::ExitAfter));
            }
        }
        if trap && result == Err(Stop::Again) {
            // An iteration of a string is done: each has its trap, with RIP at the string.
            self.cpu.drop_replay();
            return self.trap(false);
        }
        match result {
            Ok(()) => None,
            // Again alone would not end: what it asks for is what it has.
            Err(Stop::CodeWrite) => None,
            Err(stop) => {
                let op = block.steps.first().map(|step| step.op);
                self.stopped_at(stop, op)
            }
        }
    }

    fn run_single(&mut self, block: &Block) -> Result<(), Stop> {
        let cpu = &mut self.cpu;
        cpu.put(BLOCK_IP, cpu.rip);
        for step in &block.steps {
            (step.run)(cpu, &step.op)?;
        }
        cpu.rip = cpu.cut_ip(cpu.rip.wrapping_add(block.bytes));
        Ok(())
    }

    /// The trap of single-stepping, behind the instruction.
    fn trap(&mut self, exit: bool) -> Option<Exit> {
        self.cpu.system.dr6 |= 1 << 14;
        if exit {
            // HLT and writes of CR8: the trap is taken when the CPU goes on.
            self.cpu.event = Some(Event::Exception {
                vector: vector::DB,
                error: None,
            });
            self.note_events();
            return Some(self.cpu.exit.clone());
        }
        let fault = Fault {
            vector: vector::DB,
            error: None,
        };
        self.deliver(fault, Origin::Exception)
    }

    /// The data of the last exit, for the instruction when it runs again.
    fn answer(
        &mut self,
        kind: ReplayKind,
        name: &'static str,
        data: Option<u64>,
    ) -> Result<(), VcpuError> {
        match self.cpu.replay.last_mut() {
            Some(entry) if self.waiting && entry.kind == kind => {
                entry.data = data;
                self.waiting = false;
                Ok(())
            }
            _ => Err(VcpuError::WrongCompletion(name)),
        }
    }
}

impl Vcpu for SoftVcpu {
    fn run(&mut self) -> Result<Exit, VcpuError> {
        if self.waiting {
            return Err(VcpuError::NotCompleted);
        }
        let memory = Arc::clone(&self.cpu.memory);
        memory.gate().enter();
        let exit = self.run_inside();
        memory.gate().leave();
        Ok(exit)
    }

    fn complete(&mut self, data: Completion) -> Result<(), VcpuError> {
        match data {
            Completion::PortIn(bytes) => {
                let size = self.cpu.replay.last().map_or(0, |entry| entry.size);
                if bytes.len() != size as usize {
                    return Err(VcpuError::WrongCompletion("this many bytes of a port"));
                }
                let value = bytes
                    .iter()
                    .rev()
                    .fold(0, |value, byte| (value << 8) | u64::from(*byte));
                self.answer(ReplayKind::PortIn, "bytes of a port", Some(value))
            }
            Completion::Mmio(value) => {
                self.answer(ReplayKind::MmioRead, "an MMIO value", Some(value))
            }
            Completion::Msr(value) => self.answer(ReplayKind::MsrRead, "an MSR value", Some(value)),
            Completion::MsrDone => self.answer(ReplayKind::MsrWrite, "a written MSR", Some(0)),
            Completion::MsrFault => self
                .answer(ReplayKind::MsrRead, "a refused MSR", None)
                .or_else(|_| self.answer(ReplayKind::MsrWrite, "a refused MSR", None)),
        }
    }

    fn kicker(&self) -> Kicker {
        Arc::new(SoftKick(Arc::clone(&self.cpu.attention)))
    }

    fn state(&self) -> Result<VcpuState, VcpuError> {
        if self.in_flight {
            return Err(VcpuError::InFlight);
        }
        Ok(self.cpu.save())
    }

    fn set_state(&mut self, state: &VcpuState) -> Result<(), VcpuError> {
        if self.in_flight {
            return Err(VcpuError::InFlight);
        }
        self.cpu.restore(state)?;
        self.note_events();
        Ok(())
    }

    fn reset(&mut self) -> Result<(), VcpuError> {
        self.in_flight = false;
        self.waiting = false;
        self.cpu.reset();
        self.note_events();
        Ok(())
    }

    fn can_take_interrupt(&self) -> bool {
        let cpu = &self.cpu;
        !self.in_flight && cpu.event.is_none() && !cpu.shadow && cpu.sysflags & bit::IF != 0
    }

    fn inject_interrupt(&mut self, vector: u8) -> Result<(), VcpuError> {
        if !self.can_take_interrupt() {
            return Err(VcpuError::CannotInject(vector));
        }
        self.cpu.event = Some(Event::Interrupt(vector));
        self.note_events();
        Ok(())
    }

    fn inject_nmi(&mut self) -> Result<(), VcpuError> {
        self.cpu.nmi_pending = true;
        self.note_events();
        Ok(())
    }

    fn request_interrupt_window(&mut self, wanted: bool) {
        self.cpu.window_wanted = wanted;
        self.note_events();
    }
}
