//! `query-status` and what wishes lead to.

use std::sync::Arc;

use api::{QmpError, RunStateCommands, SetActionArgs, StatusInfo, WatchdogSetActionArgs};
use monitor::Caller;

use super::MachineHandlers;

impl RunStateCommands<Caller> for MachineHandlers {
    async fn query_status(&self, _caller: Arc<Caller>) -> Result<StatusInfo, QmpError> {
        let state = self.ask(|control| control.state()).await?;
        Ok(StatusInfo {
            running: state.is_running(),
            status: state.to_api(),
        })
    }

    async fn watchdog_set_action(
        &self,
        _caller: Arc<Caller>,
        arguments: WatchdogSetActionArgs,
    ) -> Result<(), QmpError> {
        self.ask(move |control| control.config.actions.watchdog = arguments.action)
            .await
    }

    async fn set_action(
        &self,
        _caller: Arc<Caller>,
        arguments: SetActionArgs,
    ) -> Result<(), QmpError> {
        self.ask(move |control| {
            let actions = &mut control.config.actions;
            if let Some(action) = arguments.reboot {
                actions.reboot = action;
            }
            if let Some(action) = arguments.shutdown {
                actions.shutdown = action;
            }
            if let Some(action) = arguments.panic {
                actions.panic = action;
            }
            if let Some(action) = arguments.watchdog {
                actions.watchdog = action;
            }
        })
        .await
    }
}
