//! A vCPU's thread: runs the guest, answers its exits from the board, and looks up when somebody wants something.
//!
//! Others reach it through [`CpuShared`]. Whatever they want they note there, set `look`, and kick; the thread looks
//! between two exits. It never stands, and never shows its state, while an instruction is in flight.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, OnceLock};

use dev_pc::apic::{CpuPort, CpuSignal, LocalApic};
use device::{IoHandler, IoMap, MachineRequest, MachineSink, ResetKind};
use guest_memory::GuestPhysAddr;
use parking_lot::{Condvar, Mutex};
use vcpu::{Completion, Exit, Kicker, Segment, SegmentRegister, Vcpu, VcpuError, VcpuState};

use crate::bus_access;
use crate::interrupts::{self, CpuInterrupts};
use crate::msr;

/// Work that a vCPU's thread does between two instructions.
type Work = Box<dyn FnOnce(&mut dyn Vcpu) + Send>;

/// What the board wants of a vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    Stand,
    Run,
    End,
}

struct Inner {
    wanted: Wanted,
    standing: bool,
    ended: bool,
    nmi: bool,
    init: bool,
    start_up: Option<u8>,
    /// Take this state, as after a reset; the processor that boots runs from it, others wait to be started.
    reset: Option<Option<Box<VcpuState>>>,
    work: VecDeque<Work>,
}

impl Inner {
    /// Whether there is something that can only be done between two instructions.
    fn wants_quiet(&self) -> bool {
        self.wanted == Wanted::Stand
            || !self.work.is_empty()
            || self.init
            || self.nmi
            || self.start_up.is_some()
    }
}

/// What a vCPU's thread shares with everybody else.
pub(crate) struct CpuShared {
    index: u32,
    inner: Mutex<Inner>,
    changed: Condvar,
    /// Something above has changed, or an interrupt may have come.
    look: AtomicBool,
    interrupt: AtomicBool,
    halted: AtomicBool,
    thread_id: AtomicI32,
    /// Set once, by the thread; read for each interrupt.
    kicker: OnceLock<Kicker>,
}

impl CpuShared {
    /// A processor; without a thread (`-accel qtest`) it never runs.
    pub(crate) fn new(index: u32, has_thread: bool) -> Arc<Self> {
        Arc::new(Self {
            index,
            inner: Mutex::new(Inner {
                wanted: Wanted::Stand,
                standing: false,
                ended: !has_thread,
                nmi: false,
                init: false,
                start_up: None,
                reset: None,
                work: VecDeque::new(),
            }),
            changed: Condvar::new(),
            // Before the first instruction it looks whether it may run at all.
            look: AtomicBool::new(true),
            interrupt: AtomicBool::new(false),
            halted: AtomicBool::new(false),
            thread_id: AtomicI32::new(0),
            kicker: OnceLock::new(),
        })
    }

    /// Its number in the machine, from 0.
    pub(crate) fn index(&self) -> u32 {
        self.index
    }

    /// The kernel's id of its thread.
    pub(crate) fn thread_id(&self) -> i32 {
        self.thread_id.load(Ordering::Relaxed)
    }

    /// Whether it has executed HLT and waits for an interrupt.
    pub(crate) fn is_halted(&self) -> bool {
        self.halted.load(Ordering::Relaxed)
    }

    /// Makes the thread look up, wherever it is.
    fn rouse(&self) {
        self.look.store(true, Ordering::Release);
        // Whoever is about to sleep holds the lock between its last look and its sleep.
        drop(self.inner.lock());
        self.changed.notify_all();
        self.kick();
    }

    fn kick(&self) {
        if let Some(kicker) = self.kicker.get() {
            kicker.kick();
        }
    }

    fn note(&self, change: impl FnOnce(&mut Inner)) {
        change(&mut self.inner.lock());
        self.rouse();
    }

    /// Lets the guest run.
    pub(crate) fn resume(&self) {
        self.note(|inner| {
            if inner.wanted == Wanted::Stand {
                inner.wanted = Wanted::Run;
            }
        });
    }

    /// Asks it to stand before the next instruction; does not wait.
    pub(crate) fn hold(&self) {
        self.note(|inner| {
            if inner.wanted == Wanted::Run {
                inner.wanted = Wanted::Stand;
            }
        });
    }

    /// Waits until it stands.
    pub(crate) fn wait_standing(&self) {
        let mut inner = self.inner.lock();
        while !inner.standing && !inner.ended {
            self.changed.wait(&mut inner);
        }
    }

    /// Ends the thread.
    pub(crate) fn end(&self) {
        self.note(|inner| inner.wanted = Wanted::End);
    }

    /// Resets the processor; one that boots begins with `start`, or at its reset vector.
    pub(crate) fn reset(&self, start: Option<Box<VcpuState>>) {
        self.note(|inner| {
            inner.reset = Some(start);
            inner.nmi = false;
            inner.init = false;
            inner.start_up = None;
        });
    }

    /// Gives it a non-maskable interrupt.
    pub(crate) fn inject_nmi(&self) {
        self.note(|inner| inner.nmi = true);
    }

    /// Runs `work` on the vCPU between two instructions and waits for what it returns; `None` if the thread has ended.
    pub(crate) fn ask<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut dyn Vcpu) -> T + Send + 'static,
    ) -> Option<T> {
        let (answer, answered) = mpsc::channel();
        self.note(|inner| {
            if !inner.ended {
                inner.work.push_back(Box::new(move |vcpu| {
                    // Nobody waits any more: then nobody wants it.
                    let _ = answer.send(work(vcpu));
                }));
            }
        });
        answered.recv().ok()
    }
}

impl CpuPort for CpuShared {
    fn wake(&self) {
        self.interrupt.store(true, Ordering::Release);
        self.rouse();
    }

    fn signal(&self, signal: CpuSignal) {
        self.note(|inner| match signal {
            CpuSignal::Nmi => inner.nmi = true,
            CpuSignal::Init => {
                inner.init = true;
                inner.start_up = None;
            }
            CpuSignal::StartUp(page) => inner.start_up = Some(page),
            // There is no system management mode.
            CpuSignal::Smi => {}
        });
    }
}

/// What a vCPU's exits are answered from.
pub(crate) struct CpuSurroundings {
    pub(crate) ports: Arc<IoMap>,
    pub(crate) memory: Arc<IoMap>,
    pub(crate) interrupts: CpuInterrupts,
    /// No firmware sets up a local APIC that the accelerator keeps.
    pub(crate) sets_up_apic: bool,
    pub(crate) machine: Arc<dyn MachineSink>,
}

/// The thread's own side.
struct CpuThread {
    shared: Arc<CpuShared>,
    around: CpuSurroundings,
    vcpu: Box<dyn Vcpu>,
    /// The last exit's instruction goes on with the next run.
    in_flight: bool,
    /// Waits for a start-up message.
    waits_for_start: bool,
    /// An interrupt may be pending at the APIC.
    interrupt: bool,
    window_wanted: bool,
    /// A triple fault or a failure: only a reset helps.
    dead: bool,
}

/// Starts a vCPU's thread, which bears its accelerator's name; it stands until [`CpuShared::resume`].
pub(crate) fn start(
    shared: &Arc<CpuShared>,
    around: CpuSurroundings,
    vcpu: Box<dyn Vcpu>,
    accelerator: &str,
) -> io::Result<()> {
    // A thread starts once.
    let _ = shared.kicker.set(vcpu.kicker());
    let mut thread = CpuThread {
        shared: Arc::clone(shared),
        around,
        vcpu,
        in_flight: false,
        waits_for_start: false,
        interrupt: false,
        window_wanted: false,
        dead: false,
    };
    thread.waits_for_start = thread.has_to_be_started();
    std::thread::Builder::new()
        .name(format!(
            "CPU {}/{}",
            shared.index,
            accelerator.to_uppercase()
        ))
        .spawn(move || thread.live())?;
    Ok(())
}

impl CpuThread {
    fn live(mut self) {
        let id = rustix::thread::gettid().as_raw_nonzero().get();
        self.shared.thread_id.store(id, Ordering::Relaxed);
        while self.attend() {
            self.offer_interrupt();
            if self.is_idle() {
                continue;
            }
            match self.vcpu.run() {
                Ok(exit) => self.answer(exit),
                Err(error) => self.fail(&error),
            }
        }
        let mut inner = self.shared.inner.lock();
        inner.ended = true;
        inner.work.clear();
        drop(inner);
        self.shared.changed.notify_all();
    }

    /// Whether there is nothing to run for now.
    fn is_idle(&self) -> bool {
        let halted = self.shared.halted.load(Ordering::Relaxed);
        (halted || self.waits_for_start || self.dead) && !self.in_flight
    }

    /// Looks at what others want, and sleeps while there is nothing to do; false at the end.
    fn attend(&mut self) -> bool {
        if !self.is_idle() && !self.shared.look.swap(false, Ordering::AcqRel) {
            return true;
        }
        let shared = Arc::clone(&self.shared);
        let mut inner = shared.inner.lock();
        loop {
            shared.look.store(false, Ordering::Release);
            self.interrupt |= shared.interrupt.swap(false, Ordering::AcqRel);
            if inner.wanted == Wanted::End {
                return false;
            }
            if self.in_flight && inner.reset.is_none() {
                if inner.wants_quiet() {
                    // Finish the instruction, then look again.
                    shared.look.store(true, Ordering::Release);
                    shared.kick();
                }
                return true;
            }
            // A reset comes before whoever asks for the state after it.
            self.take_signals(&mut inner);
            if let Some(work) = inner.work.pop_front() {
                parking_lot::MutexGuard::unlocked(&mut inner, || work(self.vcpu.as_mut()));
                continue;
            }
            if inner.wanted == Wanted::Run {
                inner.standing = false;
                if !self.is_idle() || self.wakes_up() {
                    return true;
                }
            } else if !inner.standing {
                inner.standing = true;
                shared.changed.notify_all();
            }
            if !shared.look.load(Ordering::Acquire) && inner.work.is_empty() {
                shared.changed.wait(&mut inner);
            }
        }
    }

    /// Whether an interrupt ends the idleness.
    fn wakes_up(&mut self) -> bool {
        let halted = self.shared.is_halted() && !self.waits_for_start && !self.dead;
        halted && self.interrupt && self.vcpu.can_take_interrupt()
    }

    /// Reset, INIT, start-up and NMI.
    fn take_signals(&mut self, inner: &mut Inner) {
        if let Some(start) = inner.reset.take() {
            self.reset();
            self.waits_for_start = self.has_to_be_started();
            self.set_up_apic();
            if let Some(state) = start
                && let Err(error) = self.vcpu.set_state(&state)
            {
                tracing::error!(%error, "the start state was refused");
                self.dead = true;
            }
        }
        if self.dead {
            return;
        }
        if std::mem::take(&mut inner.init) {
            self.reset();
            self.waits_for_start = self.has_to_be_started();
        }
        if let Some(page) = inner.start_up.take()
            && self.waits_for_start
        {
            self.start_at(page);
        }
        // A processor that waits to be started takes none, and has no place to go with it when it starts.
        if std::mem::take(&mut inner.nmi) && !self.waits_for_start {
            self.shared.halted.store(false, Ordering::Relaxed);
            if let Err(error) = self.vcpu.inject_nmi() {
                self.fail(&error);
            }
        }
    }

    /// Whether after a reset the board waits for a start-up message to it. An accelerator with the local APIC does so itself.
    fn has_to_be_started(&self) -> bool {
        self.shared.index != 0 && !self.around.interrupts.are_kernels()
    }

    fn set_up_apic(&mut self) {
        if !(self.around.sets_up_apic && self.around.interrupts.are_kernels()) {
            return;
        }
        let set_up = self.vcpu.state().and_then(|mut state| {
            interrupts::set_up_local_apic(&mut state, self.shared.index);
            self.vcpu.set_state(&state)
        });
        if let Err(error) = set_up {
            self.fail(&error);
        }
    }

    fn reset(&mut self) {
        self.in_flight = false;
        self.dead = false;
        self.window_wanted = false;
        self.interrupt = true;
        self.shared.halted.store(false, Ordering::Relaxed);
        self.vcpu.request_interrupt_window(false);
        if let Err(error) = self.vcpu.reset() {
            self.fail(&error);
        }
    }

    /// A start-up message: real mode at the beginning of a page.
    fn start_at(&mut self, page: u8) {
        let started = self.vcpu.state().and_then(|mut state| {
            let selector = u16::from(page) << 8;
            if let Some(code) = state.system.segments.get_mut(SegmentRegister::Cs as usize) {
                *code = Segment {
                    selector,
                    base: u64::from(selector) << 4,
                    ..*code
                };
            }
            state.registers.rip = 0;
            self.vcpu.set_state(&state)
        });
        self.waits_for_start = false;
        if let Err(error) = started {
            self.fail(&error);
        }
    }

    /// Hands over an interrupt, or asks to be told when one can be taken.
    fn offer_interrupt(&mut self) {
        if !self.interrupt || self.dead || self.waits_for_start {
            return;
        }
        if !self.around.interrupts.is_pending() {
            self.interrupt = false;
            self.want_window(false);
        } else if self.vcpu.can_take_interrupt() {
            match self.around.interrupts.take() {
                Some(vector) => {
                    self.shared.halted.store(false, Ordering::Relaxed);
                    if let Err(error) = self.vcpu.inject_interrupt(vector) {
                        self.fail(&error);
                    }
                }
                None => return,
            }
            // There may be another one behind it, or a higher one soon.
            self.want_window(self.around.interrupts.is_pending());
        } else {
            self.want_window(true);
        }
    }

    fn want_window(&mut self, wanted: bool) {
        if self.window_wanted != wanted {
            self.window_wanted = wanted;
            self.vcpu.request_interrupt_window(wanted);
        }
    }

    fn answer(&mut self, exit: Exit) {
        self.in_flight = !matches!(
            exit,
            Exit::Halt
                | Exit::Shutdown
                | Exit::InterruptWindow
                | Exit::Kicked
                | Exit::EndOfInterrupt(_)
        );
        let apic = self.around.interrupts.apic();
        let completion =
            match exit {
                Exit::PortIn { port, size, count } => Some(Completion::PortIn(
                    bus_access::read_ports(&self.around.ports, port, size, count),
                )),
                Exit::PortOut { port, size, data } => {
                    bus_access::write_ports(&self.around.ports, port, size, &data);
                    None
                }
                Exit::MmioRead { addr, len } => Some(Completion::Mmio(self.read_memory(addr, len))),
                Exit::MmioWrite { addr, len, data } => {
                    self.write_memory(addr, len, data);
                    None
                }
                Exit::MsrRead { index } => Some(msr::read(apic, index)),
                Exit::MsrWrite { index, value } => {
                    // The APIC's priority may have changed, so an interrupt may have become possible.
                    self.interrupt = true;
                    Some(msr::write(apic, index, value))
                }
                Exit::TaskPriority(value) => {
                    if let Some(apic) = apic {
                        apic.set_cr8(value);
                    }
                    self.interrupt = true;
                    None
                }
                Exit::Halt => {
                    self.shared.halted.store(true, Ordering::Relaxed);
                    None
                }
                Exit::Shutdown => {
                    self.dead = true;
                    let reset = MachineRequest::Reset(ResetKind::System);
                    self.around.machine.request(reset);
                    None
                }
                Exit::EndOfInterrupt(vector) => {
                    self.around.interrupts.end(vector);
                    None
                }
                Exit::InterruptWindow | Exit::Kicked => None,
            };
        if let Some(completion) = completion
            && let Err(error) = self.vcpu.complete(completion)
        {
            self.fail(&error);
        }
    }

    /// The board's local APIC and an offset in its page of registers, if it is there that an access goes.
    fn apic_register(&self, addr: GuestPhysAddr) -> Option<(&LocalApic, u64)> {
        let apic = self.around.interrupts.apic()?;
        let base = apic.base();
        let enabled = base & 0xc00 == 0x800;
        let offset = addr.0.wrapping_sub(base & 0x000f_ffff_ffff_f000);
        (enabled && offset < 0x1000).then_some((apic, offset))
    }

    fn read_memory(&self, addr: GuestPhysAddr, len: u8) -> u64 {
        match self.apic_register(addr) {
            Some((apic, offset)) => bus_access::read(apic as &dyn IoHandler, offset, len),
            None => bus_access::read(self.around.memory.as_ref(), addr.0, len),
        }
    }

    fn write_memory(&mut self, addr: GuestPhysAddr, len: u8, data: u64) {
        match self.apic_register(addr) {
            Some((apic, offset)) => {
                bus_access::write(apic as &dyn IoHandler, offset, len, data);
                self.interrupt = true;
            }
            None => bus_access::write(self.around.memory.as_ref(), addr.0, len, data),
        }
    }

    /// The accelerator failed: the machine stops with an internal error.
    fn fail(&mut self, error: &VcpuError) {
        tracing::error!(cpu = self.shared.index, %error, "the vCPU failed");
        self.dead = true;
        self.in_flight = false;
        self.around.machine.request(MachineRequest::InternalError);
    }
}
