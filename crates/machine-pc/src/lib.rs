//! The PC: boards, vCPU threads, run state, boot, and the machine's commands.
//!
//! # Lifecycle
//!
//! [`Machine::new`] makes all parts from a [`MachineConfig`] and a thread that owns them ([`Control`]); then devices are
//! added, [`Control::power_on`] fills memory and resets everything, and [`Control::cont`] starts the guest. Commands and
//! devices' requests are messages to that thread, done one after the other. [`Machine::ended`] tells when the guest or a
//! command has ended the machine; [`Machine::close`] ends its threads.
//!
//! # Invariants
//!
//! - The run state changes only by its table ([`RunState::may_become`]) and only on the machine's thread.
//! - While the state is not running no guest instruction is executed, no timer is called, and no device touches guest
//!   memory.
//! - After a request that ends or resets the machine no further guest instruction is executed.
//!
//! # Where a new thing goes
//!
//! A board: a line in [`BOARDS`](board::BOARDS) and its chips in `chipset.rs`. A command of the machine: `commands/`. What
//! a guest starts with: the crate `boot-pc`. A device that users add: `devices.rs`.

mod assembly;
pub mod board;
mod boot;
mod bus_access;
mod chipset;
pub mod commands;
mod config;
mod control;
mod cpu_thread;
pub mod devices;
mod error;
mod events;
mod guest_file;
mod guest_paging;
mod hmp;
mod hotplug;
mod interrupts;
mod machine;
pub mod memory;
mod msr;
mod pci_setup;
mod qom;
pub mod qtest;
mod run_state;
mod serial;

pub use accel_kvm::IrqchipMode;
pub use config::{AcceleratorKind, MachineConfig, Payload, RtcBase, Topology};
pub use control::{Control, Pausable, ShutdownCause};
pub use error::MachineError;
pub use guest_file::GuestFile;
pub use hmp::human_commands;
pub use machine::{ExitStatus, Machine};
pub use qom::register_types;
pub use run_state::{Actions, IllegalTransition, RunState};
