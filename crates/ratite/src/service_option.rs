//! The options that make parts of the storage service: the same in a storage daemon and a machine.

use api::keyval::Options;
use api::{ChardevAddArgs, QmpError};
use storage_service::StorageService;

use crate::standard_output;
use crate::storage_daemon::chardev_option;

/// The options, in an order in which each finds what it may refer to.
pub(crate) const SERVICE_OPTIONS: [&str; 5] =
    ["object", "chardev", "blockdev", "nbd-server", "export"];

/// Does what one of [`SERVICE_OPTIONS`] asks for.
///
/// # Errors
/// Words for people; any other option.
pub(crate) async fn add(
    service: &StorageService,
    option: &str,
    text: &str,
) -> Result<(), QmpError> {
    match option {
        "object" => {
            let options = Options::parse(text, Some("qom-type"))?.read()?;
            service.add_object(options).await
        }
        "chardev" => add_chardev(service, chardev_option::parse(text)?).await,
        "blockdev" => {
            let options = Options::parse(text, Some("driver"))?.read()?;
            service.add_node(options).await
        }
        "nbd-server" => {
            let options = Options::parse(text, None)?.read()?;
            service.start_nbd_server(options).await
        }
        "export" => {
            let options = Options::parse(text, Some("type"))?.read()?;
            service.add_export(options).await
        }
        other => Err(QmpError::generic(format!("unknown option '{other}'"))),
    }
}

/// Makes a chardev. Of a new terminal, whoever started the program is told the name.
///
/// # Errors
/// Words for people.
pub(crate) async fn add_chardev(
    service: &StorageService,
    arguments: ChardevAddArgs,
) -> Result<(), QmpError> {
    let label = arguments.id.clone();
    let made = service.add_chardev(arguments).await?;
    if let Some(terminal) = made.pty {
        let text = format!("char device redirected to {terminal} (label {label})\n");
        // Where nobody can be told, the monitor still knows.
        if let Err(error) = standard_output::write(&text) {
            tracing::warn!(%error, "cannot tell the name of a terminal");
        }
    }
    Ok(())
}
