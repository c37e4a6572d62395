//! The options that make parts of the storage service: the same in a storage daemon and a machine.

use api::QmpError;
use api::keyval::Options;
use storage_service::StorageService;

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
        "chardev" => service.add_chardev(chardev_option::parse(text)?).await,
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
