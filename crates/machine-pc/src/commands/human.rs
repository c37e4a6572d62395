//! Name, threads, `stop`, `cont`, and the monitor for people.

use std::sync::Arc;

use api::{HumanMonitorCommandArgs, IOThreadInfo, MiscCommands, NameInfo, QmpError};
use monitor::Caller;

use super::MachineHandlers;
use crate::hmp;
use crate::run_state::RunState;

impl MiscCommands<Caller> for MachineHandlers {
    async fn query_name(&self, _caller: Arc<Caller>) -> Result<NameInfo, QmpError> {
        let name = self.ask(|control| control.config.name.clone()).await?;
        Ok(NameInfo { name })
    }

    async fn query_iothreads(&self, _caller: Arc<Caller>) -> Result<Vec<IOThreadInfo>, QmpError> {
        self.ask(|control| control.iothreads()).await
    }

    async fn stop(&self, _caller: Arc<Caller>) -> Result<(), QmpError> {
        self.ask(|control| control.stop(RunState::Paused)).await
    }

    async fn cont(&self, _caller: Arc<Caller>) -> Result<(), QmpError> {
        Ok(self.ask(|control| control.cont()).await??)
    }

    async fn human_monitor_command(
        &self,
        _caller: Arc<Caller>,
        arguments: HumanMonitorCommandArgs,
    ) -> Result<String, QmpError> {
        let cpu = arguments.cpu_index.unwrap_or(0);
        hmp::run(self, &arguments.command_line, cpu).await
    }
}
