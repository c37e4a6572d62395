//! Machine code of ours, run natively: what the software CPU is compared with.
//!
//! # What it is
//!
//! A [`NativeMachine`] owns three windows at fixed addresses below 2 GiB: code, data and the
//! registers to load and save. [`NativeMachine::run`] forks a child that, for each case, loads
//! registers, flags, x87 and SSE state and data, jumps to the code, and saves all of it behind
//! the last instruction. A fault of the code ends the case, not the child; an endless loop ends
//! the child. The process that asks never executes the code itself.
//!
//! The translator to host code will keep its arena here as well: a window is never writable and
//! executable at once.
//!
//! # Lifecycle and invariants
//!
//! The windows are at fixed addresses, so that there is one `NativeMachine` at a time in a
//! process ([`NativeMachine::new`] waits for the last to be dropped). Between `fork` and `_exit`
//! the child only calls what is safe after a fork of a process with threads. x86-64 Linux only.
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

mod native;

pub use native::{
    CODE_ADDRESS, DATA_ADDRESS, DATA_BYTES, MAX_CODE_BYTES, NativeError, NativeMachine,
    NativeState, Outcome,
};
