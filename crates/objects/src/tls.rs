//! `tls-creds-*`: what a TLS server or client needs, from a folder of files.

mod certificates;
mod distinguished_name;
mod files;
#[cfg(feature = "tls-anon-psk")]
mod without_certificates;
mod x509;

use std::sync::Arc;

use tls_session::{ClientTls, ServerTls};

use crate::error::ObjectError;
use crate::object::{Object, Property};
use crate::types::{ObjectTypes, TypeSpec};

pub use distinguished_name::distinguished_name;
pub use files::TLS_FILE_BYTES_MAX;
#[cfg(feature = "tls-anon-psk")]
pub use without_certificates::TlsCredsWithoutCertificates;
pub use x509::TlsCredsX509;

/// Values of `priority` that ask for no more than the defaults.
const DEFAULT_PRIORITIES: [&str; 3] = ["", "NORMAL", "@SYSTEM"];

pub(crate) fn register(types: &mut ObjectTypes) {
    let shared = vec![
        Property::writable("endpoint", "QCryptoTLSCredsEndpoint"),
        Property::writable("dir", "string"),
        Property::writable("verify-peer", "bool"),
        Property::writable("priority", "string"),
    ];
    types.register(TypeSpec::abstract_type("tls-creds", "object", shared));
    #[cfg(feature = "tls-anon-psk")]
    without_certificates::register(types);
    x509::register(types);
}

/// The end of TLS sessions that credentials are for.
#[derive(Clone)]
pub(crate) enum End {
    Server(ServerTls),
    Client(ClientTls),
}

impl End {
    pub(crate) fn server(self) -> Result<ServerTls, ObjectError> {
        match self {
            Self::Server(server) => Ok(server),
            Self::Client(_) => Err(ObjectError::WrongEndpoint("server")),
        }
    }

    pub(crate) fn client(self) -> Result<ClientTls, ObjectError> {
        match self {
            Self::Client(client) => Ok(client),
            Self::Server(_) => Err(ObjectError::WrongEndpoint("client")),
        }
    }
}

/// What the object is for, if it is credentials.
pub(crate) fn end_of(object: Arc<dyn Object>) -> Option<End> {
    let object = object.as_any();
    #[cfg(feature = "tls-anon-psk")]
    let object = match object.downcast::<TlsCredsWithoutCertificates>() {
        Ok(creds) => return Some(creds.end().clone()),
        Err(object) => object,
    };
    let creds = object.downcast::<TlsCredsX509>().ok()?;
    Some(creds.end().clone())
}

fn check_priority(priority: Option<&str>) -> Result<(), ObjectError> {
    let priority = priority.unwrap_or_default();
    if DEFAULT_PRIORITIES.contains(&priority) {
        return Ok(());
    }
    Err(ObjectError::invalid(format!(
        "TLS priority '{priority}' is not supported: leave 'priority' out to use TLS 1.2 and 1.3 \
         with the default ciphers"
    )))
}

fn wrong_setup(error: impl std::fmt::Display) -> ObjectError {
    ObjectError::invalid(format!("Cannot use the TLS credentials: {error}"))
}
