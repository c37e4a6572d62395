//! Getting a vCPU's thread out of the guest.

use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Once};

use vcpu::Kick;

use crate::run_page::RunPage;

/// How others interrupt a vCPU. Keeps the run page mapped, so that it may outlive the vCPU.
#[derive(Debug)]
pub(crate) struct KvmKick {
    page: Arc<RunPage>,
    /// The kernel's id of the thread that is in `KVM_RUN`, or about to be; 0 if none is.
    thread: AtomicI32,
}

impl KvmKick {
    pub(crate) fn new(page: Arc<RunPage>) -> Self {
        install_handler();
        Self {
            page,
            thread: AtomicI32::new(0),
        }
    }

    /// The calling thread is about to enter the guest. `last` is the thread that did so the last time.
    pub(crate) fn entering(&self, last: &mut i32) {
        // SAFETY: takes nothing and cannot fail.
        let thread = unsafe { libc::gettid() };
        if *last != thread {
            unblock_signal();
            *last = thread;
        }
        self.thread.store(thread, Ordering::SeqCst);
    }

    /// The calling thread has left the guest.
    pub(crate) fn left(&self) {
        self.thread.store(0, Ordering::SeqCst);
    }
}

impl Kick for KvmKick {
    fn kick(&self) {
        self.page.set_immediate_exit(true);
        let thread = self.thread.load(Ordering::SeqCst);
        if thread != 0 {
            // SAFETY: only integers. The thread may have left the guest or ended meanwhile; the signal then hits nobody,
            // or a thread of this process, which our handler does no harm.
            unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, signal()) };
        }
    }
}

/// The signal that interrupts `KVM_RUN`: the first that is free for programs.
fn signal() -> libc::c_int {
    libc::SIGRTMIN()
}

/// That there is a handler is what makes the signal interrupt.
extern "C" fn nothing(_signal: libc::c_int) {}

fn install_handler() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        let handler: extern "C" fn(libc::c_int) = nothing;
        // SAFETY: all zero bytes are a valid `sigaction`; the handler is a function of the right kind that touches
        // nothing, and system calls elsewhere are restarted.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = handler as usize;
            action.sa_flags = libc::SA_RESTART;
            libc::sigaction(signal(), &action, std::ptr::null_mut());
        }
    });
}

/// A thread may have inherited a mask that holds the signal back.
fn unblock_signal() {
    // SAFETY: the set is on this stack, initialised by `sigemptyset`; only this thread's mask changes.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, signal());
        libc::pthread_sigmask(libc::SIG_UNBLOCK, &set, std::ptr::null_mut());
    }
}
