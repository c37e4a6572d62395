//! The software CPU.
mod blocks;
mod cpu;
mod domain;
mod engine;
mod flags;
mod fpu;
mod interpret;
mod isa;
mod lower;
mod memory;
mod paging;
mod sse;
mod state;
mod system;
mod tlb;

pub use engine::SoftAccelerator;
pub use system::cpuid::{Model, table};
