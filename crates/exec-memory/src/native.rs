//! One instruction or a few, natively, in a guarded child.

use std::ffi::c_void;
use std::ptr;

/// Where the code runs.
pub const CODE_ADDRESS: u64 = 0x2001_0000;
/// Where the data of a case is.
pub const DATA_ADDRESS: u64 = 0x2002_0000;
/// Bytes of data of a case.
pub const DATA_BYTES: usize = 512;
/// The most code there may be.
pub const MAX_CODE_BYTES: usize = 1024;

const WINDOW: usize = 4096;
const CONTEXT_ADDRESS: u64 = 0x2003_0000;
/// Seconds after which a child that does not end is killed.
const CHILD_SECONDS: u32 = 20;

/// What a case starts with, and what is left of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct NativeState {
    /// x87 and SSE, as FXSAVE64 writes it.
    pub fx: [u8; 512],
    /// The general registers in the order of the encoding.
    pub general: [u64; 16],
    /// RFLAGS.
    pub rflags: u64,
    /// What is at [`DATA_ADDRESS`].
    pub data: [u8; DATA_BYTES],
}

impl Default for NativeState {
    fn default() -> Self {
        let mut fx = [0; 512];
        fx[0..2].copy_from_slice(&0x37f_u16.to_le_bytes());
        fx[24..28].copy_from_slice(&0x1f80_u32.to_le_bytes());
        Self {
            fx,
            general: [0; 16],
            rflags: 2,
            data: [0; DATA_BYTES],
        }
    }
}

/// How a case ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It ran to the end of the code.
    Done,
    /// The code raised this signal (`SIGFPE`, `SIGSEGV`, `SIGILL`, `SIGTRAP`, `SIGBUS`).
    Signal(i32),
}

/// What can go wrong with running natively.
#[derive(Debug, thiserror::Error)]
pub enum NativeError {
    /// The host refused something.
    #[error("cannot {what}: {error}")]
    Host {
        /// What was tried.
        what: &'static str,
        /// What the host said.
        error: std::io::Error,
    },
    /// The code is too long.
    #[error("{0} bytes of code; {MAX_CODE_BYTES} is the limit")]
    TooLong(usize),
    /// The child ended before all cases were done.
    #[error("the child ended in case {case} with status {status:#x}")]
    ChildDied {
        /// Which case it was in.
        case: usize,
        /// What `waitpid` said.
        status: i32,
    },
}

/// At [`CONTEXT_ADDRESS`]: the assembly below knows the offsets.
#[repr(C, align(64))]
struct Context {
    state: NativeState,
    host_stack: u64,
    code: u64,
    exit: u64,
}

const _: () = {
    assert!(std::mem::offset_of!(Context, state) == 0);
    assert!(std::mem::offset_of!(NativeState, general) == 512);
    assert!(std::mem::offset_of!(NativeState, rflags) == 640);
    assert!(std::mem::offset_of!(Context, host_stack) == 1216);
    assert!(size_of::<Context>() <= WINDOW);
};

std::arch::global_asm!(
    ".set ratite_context, 0x20030000",
    ".global ratite_native_run",
    "ratite_native_run:",
    "push rbx",
    "push rbp",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "mov qword ptr [0x20030000 + 1216], rsp",
    "fxrstor64 [0x20030000]",
    "push qword ptr [0x20030000 + 640]",
    "popfq",
    "mov rax, qword ptr [0x20030000 + 512]",
    "mov rcx, qword ptr [0x20030000 + 520]",
    "mov rdx, qword ptr [0x20030000 + 528]",
    "mov rbx, qword ptr [0x20030000 + 536]",
    "mov rsp, qword ptr [0x20030000 + 544]",
    "mov rbp, qword ptr [0x20030000 + 552]",
    "mov rsi, qword ptr [0x20030000 + 560]",
    "mov rdi, qword ptr [0x20030000 + 568]",
    "mov r8, qword ptr [0x20030000 + 576]",
    "mov r9, qword ptr [0x20030000 + 584]",
    "mov r10, qword ptr [0x20030000 + 592]",
    "mov r11, qword ptr [0x20030000 + 600]",
    "mov r12, qword ptr [0x20030000 + 608]",
    "mov r13, qword ptr [0x20030000 + 616]",
    "mov r14, qword ptr [0x20030000 + 624]",
    "mov r15, qword ptr [0x20030000 + 632]",
    "jmp qword ptr [0x20030000 + 1224]",
    ".global ratite_native_exit",
    "ratite_native_exit:",
    "mov qword ptr [0x20030000 + 512], rax",
    "mov qword ptr [0x20030000 + 520], rcx",
    "mov qword ptr [0x20030000 + 528], rdx",
    "mov qword ptr [0x20030000 + 536], rbx",
    "mov qword ptr [0x20030000 + 544], rsp",
    "mov qword ptr [0x20030000 + 552], rbp",
    "mov qword ptr [0x20030000 + 560], rsi",
    "mov qword ptr [0x20030000 + 568], rdi",
    "mov qword ptr [0x20030000 + 576], r8",
    "mov qword ptr [0x20030000 + 584], r9",
    "mov qword ptr [0x20030000 + 592], r10",
    "mov qword ptr [0x20030000 + 600], r11",
    "mov qword ptr [0x20030000 + 608], r12",
    "mov qword ptr [0x20030000 + 616], r13",
    "mov qword ptr [0x20030000 + 624], r14",
    "mov qword ptr [0x20030000 + 632], r15",
    "mov rsp, qword ptr [0x20030000 + 1216]",
    "pushfq",
    "pop qword ptr [0x20030000 + 640]",
    "fxsave64 [0x20030000]",
    ".global ratite_native_recover",
    "ratite_native_recover:",
    "mov rsp, qword ptr [0x20030000 + 1216]",
    "cld",
    "fninit",
    "push 0x1f80",
    "ldmxcsr [rsp]",
    "pop rax",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop rbp",
    "pop rbx",
    "ret",
);

unsafe extern "C" {
    fn ratite_native_run();
    fn ratite_native_exit();
    fn ratite_native_recover();
}

/// The windows. See the crate's text.
#[derive(Debug)]
pub struct NativeMachine {
    shared: *mut u8,
    shared_bytes: usize,
    _turn: std::sync::MutexGuard<'static, ()>,
}

static TURN: std::sync::Mutex<()> = std::sync::Mutex::new(());

/// The most cases of one child.
const MAX_CASES: usize = 4096;

#[repr(C)]
struct Shared {
    done: usize,
    signal: i32,
    outcomes: [i32; MAX_CASES],
    cases: [NativeState; MAX_CASES],
}

fn host(what: &'static str) -> NativeError {
    NativeError::Host {
        what,
        error: std::io::Error::last_os_error(),
    }
}

fn map(at: u64, bytes: usize, flags: libc::c_int) -> Result<*mut u8, NativeError> {
    // SAFETY: a new anonymous mapping; MAP_FIXED_NOREPLACE, where used, replaces nothing.
    let mapped = unsafe {
        libc::mmap(
            ptr::with_exposed_provenance_mut(at as usize),
            bytes,
            libc::PROT_READ | libc::PROT_WRITE,
            flags | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    if mapped == libc::MAP_FAILED {
        return Err(host("map a window"));
    }
    Ok(mapped.cast())
}

impl NativeMachine {
    /// Maps the windows. Waits until no other machine has them.
    ///
    /// # Errors
    /// The host refuses.
    pub fn new() -> Result<Self, NativeError> {
        let turn = TURN
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let fixed = libc::MAP_PRIVATE | libc::MAP_FIXED_NOREPLACE;
        map(CODE_ADDRESS, WINDOW, fixed)?;
        map(DATA_ADDRESS, WINDOW, fixed)?;
        map(CONTEXT_ADDRESS, WINDOW, fixed)?;
        let shared_bytes = size_of::<Shared>();
        let shared = map(0, shared_bytes, libc::MAP_SHARED | libc::MAP_NORESERVE)?;
        Ok(Self {
            shared,
            shared_bytes,
            _turn: turn,
        })
    }

    /// Runs `code` once for each case, natively, and leaves each case as the code left it. The
    /// state of a case that ended with a signal is as it was.
    ///
    /// # Errors
    /// The host refuses, or the child was killed.
    pub fn run(
        &mut self,
        code: &[u8],
        cases: &mut [NativeState],
    ) -> Result<Vec<Outcome>, NativeError> {
        if code.len() > MAX_CODE_BYTES {
            return Err(NativeError::TooLong(code.len()));
        }
        let mut outcomes = Vec::with_capacity(cases.len());
        for chunk in cases.chunks_mut(MAX_CASES) {
            self.run_chunk(code, chunk, &mut outcomes)?;
        }
        Ok(outcomes)
    }

    fn run_chunk(
        &mut self,
        code: &[u8],
        cases: &mut [NativeState],
        outcomes: &mut Vec<Outcome>,
    ) -> Result<(), NativeError> {
        let shared: *mut Shared = self.shared.cast();
        // SAFETY: the mapping is of this type's size, and no child exists that could write it.
        let area = unsafe { &mut *shared };
        area.done = 0;
        for (to, from) in area.cases.iter_mut().zip(cases.iter()) {
            *to = *from;
        }
        let mut bytes = code.to_vec();
        // jmp qword ptr [context.exit]
        bytes.extend([0xff, 0x24, 0x25]);
        bytes.extend((CONTEXT_ADDRESS as u32 + 1232).to_le_bytes());
        // SAFETY: no lock is held that the child needs; the child calls no allocator.
        let child = unsafe { libc::fork() };
        if child < 0 {
            return Err(host("fork"));
        }
        if child == 0 {
            // SAFETY: this is the child, alone in its process.
            unsafe { child_main(shared, cases.len(), &bytes) };
        }
        let mut status = 0;
        // SAFETY: waits for the child just made.
        while unsafe { libc::waitpid(child, &raw mut status, 0) } < 0 {
            if std::io::Error::last_os_error().kind() != std::io::ErrorKind::Interrupted {
                return Err(host("wait for the child"));
            }
        }
        // SAFETY: the child has ended.
        let area = unsafe { &*shared };
        if status != 0 || area.done != cases.len() {
            return Err(NativeError::ChildDied {
                case: area.done,
                status,
            });
        }
        let results = area.cases.iter().zip(area.outcomes.iter());
        for (case, (result, signal)) in cases.iter_mut().zip(results) {
            if *signal == 0 {
                *case = *result;
                outcomes.push(Outcome::Done);
            } else {
                outcomes.push(Outcome::Signal(*signal));
            }
        }
        Ok(())
    }
}

impl Drop for NativeMachine {
    fn drop(&mut self) {
        for at in [CODE_ADDRESS, DATA_ADDRESS, CONTEXT_ADDRESS] {
            // SAFETY: mapped by `new`, and nothing refers to it any more.
            unsafe { libc::munmap(ptr::with_exposed_provenance_mut(at as usize), WINDOW) };
        }
        // SAFETY: as above.
        unsafe { libc::munmap(self.shared.cast(), self.shared_bytes) };
    }
}

/// # Safety
/// In a child of a fork only, with the windows mapped and `shared` valid.
unsafe fn child_main(shared: *mut Shared, count: usize, code: &[u8]) -> ! {
    let context: *mut Context = ptr::with_exposed_provenance_mut(CONTEXT_ADDRESS as usize);
    let data: *mut u8 = ptr::with_exposed_provenance_mut(DATA_ADDRESS as usize);
    let window: *mut u8 = ptr::with_exposed_provenance_mut(CODE_ADDRESS as usize);
    // SAFETY: the windows are mapped, and only this thread exists.
    unsafe {
        libc::alarm(CHILD_SECONDS);
        SHARED.store(
            shared.expose_provenance(),
            std::sync::atomic::Ordering::Relaxed,
        );
        guard_signals();
        ptr::copy_nonoverlapping(code.as_ptr(), window, code.len());
        if libc::mprotect(window.cast(), WINDOW, libc::PROT_READ | libc::PROT_EXEC) != 0 {
            libc::_exit(2);
        }
        (*context).code = CODE_ADDRESS;
        (*context).exit = (ratite_native_exit as *const ()).expose_provenance() as u64;
        for index in 0..count {
            let case = (&raw mut (*shared).cases).cast::<NativeState>().add(index);
            let outcome = (&raw mut (*shared).outcomes).cast::<i32>().add(index);
            (*context).state = *case;
            ptr::copy_nonoverlapping((&raw const (*case).data).cast(), data, DATA_BYTES);
            (*shared).signal = 0;
            ratite_native_run();
            *outcome = ptr::read_volatile(&raw const (*shared).signal);
            *case = (*context).state;
            ptr::copy_nonoverlapping(data, (&raw mut (*case).data).cast(), DATA_BYTES);
            (*shared).done = index + 1;
        }
        libc::_exit(0)
    }
}

static SHARED: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);

/// # Safety
/// In the child only: installs handlers that leave the code under test.
unsafe fn guard_signals() {
    // SAFETY: a fresh stack for the handlers, since the stack pointer is the case's.
    unsafe {
        let stack = libc::mmap(
            ptr::null_mut(),
            1 << 16,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        );
        if stack == libc::MAP_FAILED {
            libc::_exit(3);
        }
        let alternate = libc::stack_t {
            ss_sp: stack,
            ss_flags: 0,
            ss_size: 1 << 16,
        };
        libc::sigaltstack(&raw const alternate, ptr::null_mut());
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = (on_signal as *const ()).expose_provenance();
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
        for signal in [
            libc::SIGFPE,
            libc::SIGSEGV,
            libc::SIGILL,
            libc::SIGTRAP,
            libc::SIGBUS,
        ] {
            libc::sigaction(signal, &raw const action, ptr::null_mut());
        }
    }
}

extern "C" fn on_signal(signal: libc::c_int, _info: *mut libc::siginfo_t, context: *mut c_void) {
    let shared: *mut Shared =
        ptr::with_exposed_provenance_mut(SHARED.load(std::sync::atomic::Ordering::Relaxed));
    let context: *mut libc::ucontext_t = context.cast();
    // SAFETY: the kernel gives a valid context; `shared` was set before handlers were.
    unsafe {
        (*shared).signal = signal;
        let registers = &mut (*context).uc_mcontext.gregs;
        if let Some(rip) = registers.get_mut(libc::REG_RIP as usize) {
            *rip = (ratite_native_recover as *const ()).expose_provenance() as i64;
        }
        if let Some(flags) = registers.get_mut(libc::REG_EFL as usize) {
            *flags = 2;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_flags_and_memory_come_back() {
        let mut machine = NativeMachine::new().unwrap();
        // add rax, rcx; mov [DATA + 8], rax
        let code = [
            0x48, 0x01, 0xc8, 0x48, 0x89, 0x04, 0x25, 0x08, 0x00, 0x02, 0x20,
        ];
        let mut cases = [NativeState::default(); 3];
        for (index, case) in cases.iter_mut().enumerate() {
            case.general[0] = u64::MAX;
            case.general[1] = index as u64;
        }
        let outcomes = machine.run(&code, &mut cases).unwrap();
        assert_eq!(outcomes, [Outcome::Done; 3]);
        assert_eq!(cases[2].general[0], 1);
        assert_eq!(cases[2].data[8..16], 1_u64.to_le_bytes());
        assert_eq!(cases[1].rflags & 0x41, 0x41);
        assert_eq!(cases[0].rflags & 0x41, 0);
    }

    #[test]
    fn a_fault_ends_the_case_only() {
        let mut machine = NativeMachine::new().unwrap();
        let mut cases = [NativeState::default(); 2];
        cases[1].general[1] = 1;
        // div ecx
        let outcomes = machine.run(&[0xf7, 0xf1], &mut cases).unwrap();
        assert_eq!(outcomes, [Outcome::Signal(libc::SIGFPE), Outcome::Done]);
        let outcomes = machine.run(&[0x0f, 0x0b], &mut cases).unwrap();
        assert_eq!(outcomes, [Outcome::Signal(libc::SIGILL); 2]);
        assert!(machine.run(&[0; 2000], &mut cases).is_err());
    }
}
