//! The machine's commands. Each asks the machine's thread; none keeps state of its own.

mod devices;
mod human;
mod machine;
mod memory;
mod pci;
mod run_state;
mod send_key;

use std::sync::Arc;

use api::{CommandTable, QmpError};
use monitor::Caller;

pub(crate) use machine::NO_UUID;
pub(crate) use pci::query as query_pci;

use crate::control::Control;
use crate::error::MachineError;
use crate::machine::Machine;

/// Implements the traits of commands over a machine.
pub(crate) struct MachineHandlers {
    pub(crate) machine: Machine,
}

impl From<MachineError> for QmpError {
    fn from(error: MachineError) -> Self {
        Self::generic(error.to_string())
    }
}

impl MachineHandlers {
    pub(crate) async fn ask<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Control) -> T + Send + 'static,
    ) -> Result<T, QmpError> {
        Ok(self.machine.ask(work).await?)
    }
}

/// Enters the machine's commands.
pub fn register(table: &mut CommandTable<Caller>, machine: &Machine) {
    let handlers = Arc::new(MachineHandlers {
        machine: machine.clone(),
    });
    api::register_run_state(table, Arc::clone(&handlers));
    api::register_machine(table, Arc::clone(&handlers));
    api::register_misc(table, Arc::clone(&handlers));
    api::register_pci(table, Arc::clone(&handlers));
    api::register_qdev(table, Arc::clone(&handlers));
    api::register_ui(table, handlers);
}
