//! The software CPU: x86-64 without help of the host's processor, behind the [`vcpu`] traits.
//!
//! # How it runs
//!
//! ```text
//! engine.rs   run: events and requests -> a block -> its instructions -> exit?
//! blocks.rs   RIP -> jump cache -> place in memory -> decoded block (iced-x86 decodes)
//! lower.rs    a decoded instruction -> handler + operands (`Op`)
//! isa/ sse/ x87/ fpu.rs system/   what instructions mean
//! ieee.rs     arithmetic of floats: rounding and exceptions
//! interpret.rs  the domain whose values are integers
//! memory.rs tlb.rs paging.rs   linear address -> TLB -> page tables -> memory or bus
//! cpu.rs state.rs   the state, and its way out and in
//! ```
//!
//! A block is looked up once, then its handlers are called one after the other: `fn(&mut Cpu,
//! &Op)`, monomorphised by width and kind of operands. The next block is found by one look into
//! the jump cache, and one that follows itself by none; between blocks there is one load of the
//! attention flags. On the way nothing allocates and nothing locks.
//!
//! # One definition of each instruction
//!
//! Instructions are generic functions over a `domain::Domain`: `fn add<D: Domain>(d: &mut D,
//! ...)`. They never look at a guest value with Rust's `if`; they say `select` and `branch_if`.
//! `lower::lower` is generic as well and picks the same function for any domain. What is too
//! intricate (far transfers, control registers, strings, division, vectors, floats) is a
//! `domain::Helper` or a pure function, which every domain *calls*. An operation on vectors is
//! one function of 128 bits (`sse::Packed`), from which its MMX, SSE and AVX forms are made.
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
//! * The x87: all its instructions, precision control, exceptions masked and not (`x87/`).
//! * MMX; SSE to SSE4.2, PCLMULQDQ, AES, SHA; AVX, AVX2, FMA, F16C (`sse/`); MXCSR's rounding,
//!   denormals, flags and traps. FXSAVE, XSAVE, XSAVEOPT, XSAVEC and back.
//!
//! # What is not built
//!
//! Raises #UD and is not in CPUID of [`table`], unless it says otherwise:
//!
//! * AVX-512, VAES and VPCLMULQDQ by name (their YMM forms run), GFNI, AVX-VNNI, 3DNow!, XOP;
//!   XSAVES and XRSTORS.
//! * VMX, SVM, SMM, protection keys, CET, MPX, TSX.
//! * Hardware task switches: refused with #GP and the selector. VME and PVI: CR4 has no bits for
//!   them.
//! * SYSCALL outside long mode. MONITOR and MWAIT.
//! * RF in the frame of an interrupt between two iterations of a string.
//! * Breakpoints of the debug registers (kept, not matched); performance counters; #AC.
//! * FERR# and IRQ 13: without CR0.NE an x87 exception that waits does nothing. FOP and the
//!   selectors of the x87's last instruction read as zero.
//! * The A20 gate: address line 20 is always on.
//! * The time-stamp counter counts nanoseconds of the host, and does not stop with the guest.
//! * Code is fetched from memory only: on the bus it is #UD. Page tables that are on the bus
//!   read as ones.
//!
//! Where processors differ from each other: the transcendental functions of the x87 are within
//! one unit in the last place of the exact result (angles are reduced by a pi of 66 bits);
//! RCPPS and RSQRTPS are right to 14 bits.
//!
//! # How it is compared
//!
//! `tests/differential.rs` runs each form with random operands and flags natively and here:
//! integers, strings and stack; every VEX encoding of AVX, AVX2, FMA and F16C, every MMX and
//! every x87 instruction that the decoder knows, floats under any MXCSR and control word; and
//! 32-bit code. Undefined flags are left out; the transcendental functions may differ by two
//! units in the last place, estimates by 3 * 2^-12. System instructions and modes have small
//! guests with known answers in `tests/system.rs` and `tests/modes.rs`, and models written from
//! the manuals, with random cases: `tests/paging.rs` (walks, rights, error codes, A and D),
//! `tests/tlb.rs` (what may be stale), `tests/transfer.rs` with `tests/guest/gates.rs` (far
//! jumps, calls and returns, IRET, interrupts), `tests/control.rs` (control and debug registers,
//! who may), `tests/delivery.rs` (double faults, priorities, canonical addresses, flags) and
//! `tests/strings.rs` (REP that stops midway). `RATITE_SEED` repeats a run, `RATITE_FULL=1` makes
//! it long.
//!
//! # Where a new thing goes
//!
//! A user-mode instruction: its group in `isa/`, `sse/` or `x87/`, and a line in `tests/forms`,
//! where it is compared with the host's processor. A system instruction: `system/`, with a small
//! guest in `tests/system.rs` or `tests/modes.rs`; what it refuses, in the table or model that
//! it belongs to.

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
