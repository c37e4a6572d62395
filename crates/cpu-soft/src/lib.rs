//! The software CPU: x86-64 without help of the host's processor, behind the [`vcpu`] traits.
//!
//! # How it runs
//!
//! ```text
//! engine.rs   run: events and requests -> a block -> its instructions -> exit?
//! blocks.rs   RIP -> jump cache -> place in memory -> decoded block (iced-x86 decodes)
//! lower.rs    a decoded instruction -> handler + operands (`Op`)
//! isa/ sse/ fpu.rs system/   what instructions mean
//! interpret.rs  the domain whose values are integers
//! memory.rs tlb.rs paging.rs   linear address -> TLB -> page tables -> memory or bus
//! cpu.rs state.rs   the state, and its way out and in
//! ```
//!
//! A block is looked up once, then its handlers are called one after the other: `fn(&mut Cpu,
//! &Op)`, monomorphised by width and kind of operands. Between blocks there is one load of the
//! attention flags; on the way nothing allocates and nothing locks.
//!
//! # One definition of each instruction
//!
//! Instructions are generic functions over a `domain::Domain`: `fn add<D: Domain>(d: &mut D,
//! ...)`. They never look at a guest value with Rust's `if`; they say `select` and `branch_if`.
//! `lower::lower` is generic as well and picks the same function for any domain. What is too
//! intricate (far transfers, control registers, strings, division, SSE lanes) is a
//! `domain::Helper` or a pure function, which every domain *calls*.
//!
//! A translator to host code is a second domain: `Val` is a virtual register of the code being
//! made, `add` emits an addition, `load` emits the TLB check with a side exit to `load_slow`,
//! `call::<H>` emits a call of `H::run`. It takes a hot block, calls each handler that
//! `lower::<Translator>` returns, and gets the block's code; the tests of the interpreter are
//! then tests of the translator too. Flags are three values (see `domain::Flags`), so those
//! that nobody reads disappear as dead code.
//!
//! # Instructions start again
//!
//! An instruction changes nothing before its memory accesses have succeeded. So a fault, an
//! access to a device, a store to decoded code or the need to run alone (`domain::Stop`) just
//! leaves it; later it runs from its beginning. What the board has answered meanwhile stands in
//! a replay list, and each access is made once. Strings complete iteration by iteration.
//!
//! # Invariants
//!
//! * A TLB entry for writes exists only for RAM, and for pages whose D bit is set.
//! * A store asks for code marks before (to run alone, so that the rest of its block is decoded
//!   anew) and after (against another vCPU that decodes at the same moment).
//! * What is derived from mode, privilege and segments is made by `Cpu::refresh`, and by nobody
//!   else.
//! * Whatever a guest does ends in an exception, an exit or a shutdown; never in a panic. What
//!   is kept for it is bounded: `MAX_BLOCKS` and `MAX_STEPS` (`blocks.rs`), the TLB's size,
//!   `MAX_REPLAY` (`cpu.rs`).
//!
//! # What is built
//!
//! * The integer instructions of 16-, 32- and 64-bit code: moves, arithmetic, shifts and
//!   rotations, multiplication and division, bits, strings with REP, stack, branches, exchanges
//!   with LOCK, BCD, BOUND; POPCNT, LZCNT, TZCNT, BMI1, BMI2, ADX, MOVBE, CRC32.
//! * Real, protected, virtual-8086 (IOPL 3, no VME), long and compatibility mode; segments with
//!   limits; far jumps, calls and returns, call gates; interrupts and exceptions through all
//!   gates but task gates, with TSS stacks and IST; IRET; SYSCALL, SYSENTER and back; paging of
//!   two to five levels with NX, WP, SMEP, SMAP, PCID; CR, DR, MSR, FSGSBASE, RDTSC(P), CPUID.
//! * x87 loads, stores, arithmetic, square root, comparison (`x87.rs`).
//! * SSE to SSE4.2 and PCLMULQDQ on XMM registers; FXSAVE, XSAVE, XSAVEOPT and back.
//!
//! # What is not built
//!
//! Raises #UD and is not in CPUID of [`table`], unless it says otherwise:
//!
//! * Of x87 (in CPUID): transcendental functions, FPREM, FSCALE, FXTRACT, packed decimals, the
//!   environment's stores and loads; precision control and traps (`x87.rs`).
//! * MMX (in CPUID; EMMS alone is built), AVX, AVX2, FMA, F16C, AES-NI, SHA, AVX-512, 3DNow!,
//!   XOP; XSAVEC and XSAVES; RCPPS and RSQRTPS with their scalar forms, DPPS and DPPD.
//! * VMX, SVM, SMM, protection keys, CET, MPX, TSX.
//! * Hardware task switches: refused with #GP and the selector. VME's redirection.
//! * Breakpoints of the debug registers (kept, not matched); performance counters; #AC.
//! * SSE arithmetic never sets MXCSR's sticky flags, always rounds to nearest (conversions and
//!   ROUNDxx obey MXCSR), does not flush denormals and does not trap (`sse/float.rs`).
//! * The A20 gate: address line 20 is always on.
//! * The time-stamp counter counts nanoseconds of the host, and does not stop with the guest.
//! * Code is fetched from memory only: on the bus it is #UD. Page tables that are on the bus
//!   read as ones.
//!
//! # Where a new thing goes
//!
//! A user-mode instruction: its group in `isa/` or `sse/`, and a line in `tests/forms`, where it
//! is compared with the host's processor. A system instruction: `system/`, with a small guest
//! in `tests/system.rs`.

mod blocks;
mod cpu;
mod domain;
mod engine;
mod flags;
mod fpu;
mod ieee;
mod interpret;
mod isa;
mod lower;
mod memory;
mod paging;
mod sse;
mod state;
mod system;
mod tlb;
mod x87;

pub use engine::SoftAccelerator;
pub use system::cpuid::{Model, table};
