//! The commands about the monitor itself: version, lists, introspection, descriptors, quitting.

use std::sync::{Arc, OnceLock};

use api::{
    AddFdArgs, AddfdInfo, ClosefdArgs, CommandInfo, ControlCommands, EventInfo, FdsetCommands,
    FdsetInfo, GetfdArgs, Interface, IntrospectCommands, QmpCapabilitiesArgs, QmpError,
    RemoveFdArgs, Return, VersionInfo, VersionTriple,
};
use serde_json::Value;
use tokio::sync::Notify;

use crate::caller::Caller;
use crate::fdset::FdSets;

/// The version that `query-version` and the greeting tell: the QEMU release whose interface is
/// spoken, and this program's own name and version.
pub fn version_info() -> VersionInfo {
    VersionInfo {
        qemu: VersionTriple {
            major: 10,
            minor: 0,
            micro: 2,
        },
        package: format!("Ratite {}", env!("CARGO_PKG_VERSION")),
    }
}

/// Answers `query-version`, `query-commands`, `query-events`, `query-qmp-schema` and `quit`.
pub struct ControlHandlers {
    interface: Interface,
    quit: Arc<Notify>,
    /// Made when it is first asked for: most daemons are never asked.
    schema: OnceLock<Arc<str>>,
}

impl ControlHandlers {
    /// Handlers that tell a program's `interface` and ring `quit` when a client asks the program to
    /// end.
    pub fn new(interface: Interface, quit: Arc<Notify>) -> Arc<Self> {
        Arc::new(Self {
            interface,
            quit,
            schema: OnceLock::new(),
        })
    }
}

impl ControlCommands<Caller> for ControlHandlers {
    async fn qmp_capabilities(
        &self,
        _caller: Arc<Caller>,
        _arguments: QmpCapabilitiesArgs,
    ) -> Result<(), QmpError> {
        // The session negotiates before commands are looked up; only a caller that has no session
        // comes here.
        Err(QmpError::command_not_found("qmp_capabilities"))
    }

    async fn query_version(&self, _caller: Arc<Caller>) -> Result<VersionInfo, QmpError> {
        Ok(version_info())
    }

    async fn query_commands(&self, _caller: Arc<Caller>) -> Result<Vec<CommandInfo>, QmpError> {
        let info = |name: &&str| CommandInfo {
            name: (*name).to_owned(),
        };
        Ok(self.interface.command_names.iter().map(info).collect())
    }

    async fn query_events(&self, _caller: Arc<Caller>) -> Result<Vec<EventInfo>, QmpError> {
        let info = |name: &&str| EventInfo {
            name: (*name).to_owned(),
        };
        Ok(self.interface.event_names.iter().map(info).collect())
    }

    async fn quit(&self, _caller: Arc<Caller>) -> Result<(), QmpError> {
        self.quit.notify_one();
        Ok(())
    }
}

impl IntrospectCommands<Caller> for ControlHandlers {
    async fn query_qmp_schema(
        &self,
        _caller: Arc<Caller>,
        _arguments: Value,
    ) -> Result<Return, QmpError> {
        let introspection = self.interface.introspection;
        let schema = self.schema.get_or_init(|| Arc::from(introspection));
        Ok(Return::Encoded(Arc::clone(schema)))
    }
}

/// Answers `getfd`, `closefd`, `add-fd`, `remove-fd` and `query-fdsets`.
pub struct FdHandlers {
    sets: Arc<FdSets>,
}

impl FdHandlers {
    /// Handlers over these sets.
    pub fn new(sets: Arc<FdSets>) -> Arc<Self> {
        Arc::new(Self { sets })
    }
}

fn passed_fd(caller: &Caller) -> Result<std::os::fd::OwnedFd, QmpError> {
    let fd = caller.take_fd();
    fd.ok_or_else(|| QmpError::generic("No file descriptor supplied via SCM_RIGHTS"))
}

impl FdsetCommands<Caller> for FdHandlers {
    async fn getfd(&self, caller: Arc<Caller>, arguments: GetfdArgs) -> Result<(), QmpError> {
        let fd = passed_fd(&caller)?;
        caller.named_fds().insert(&arguments.fdname, fd)
    }

    async fn closefd(&self, caller: Arc<Caller>, arguments: ClosefdArgs) -> Result<(), QmpError> {
        caller.named_fds().take(&arguments.fdname).map(drop)
    }

    async fn add_fd(
        &self,
        caller: Arc<Caller>,
        arguments: AddFdArgs,
    ) -> Result<AddfdInfo, QmpError> {
        let fd = passed_fd(&caller)?;
        self.sets.add(fd, arguments.fdset_id, arguments.opaque)
    }

    async fn remove_fd(
        &self,
        _caller: Arc<Caller>,
        arguments: RemoveFdArgs,
    ) -> Result<(), QmpError> {
        self.sets.remove(arguments.fdset_id, arguments.fd)
    }

    async fn query_fdsets(&self, _caller: Arc<Caller>) -> Result<Vec<FdsetInfo>, QmpError> {
        Ok(self.sets.query())
    }
}
