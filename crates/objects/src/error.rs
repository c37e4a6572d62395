//! Errors, in the words that clients know from QEMU.

use std::io;
use std::path::PathBuf;

use api::{ErrorClass, QmpError};

/// What went wrong with an object.
#[derive(Debug, thiserror::Error)]
pub enum ObjectError {
    /// No object has this path.
    #[error("Device '{0}' not found")]
    PathNotFound(String),
    /// A partial path fits several objects.
    #[error("Path '{0}' is ambiguous")]
    AmbiguousPath(String),
    /// No type has this name.
    #[error("Class '{0}' not found")]
    TypeNotFound(String),
    /// The name is an interface's, which has no properties.
    #[error("Parameter 'typename' expects a QOM type")]
    NotAClass,
    /// The object does not have the property.
    #[error("Property '{type_name}.{property}' not found")]
    PropertyNotFound {
        /// The object's type.
        type_name: String,
        /// The property.
        property: String,
    },
    /// The property can only be read.
    #[error("Property '{type_name}.{property}' is not writable")]
    PropertyNotWritable {
        /// The object's type.
        type_name: String,
        /// The property.
        property: String,
    },
    /// The id breaks the rules for ids.
    #[error("Parameter 'id' expects an identifier")]
    MalformedId,
    /// The name is taken.
    #[error("attempt to add duplicate property '{name}' to object (type '{parent_type}')")]
    Duplicate {
        /// The name.
        name: String,
        /// The type of the object that has it already.
        parent_type: String,
    },
    /// There is nothing of this id below `/objects`.
    #[error("object '{0}' not found")]
    NoSuchObject(String),
    /// Somebody holds the object.
    #[error("object '{0}' is in use, can not be deleted")]
    InUse(String),
    /// The tree is full.
    #[error("there are {} objects already; delete one first", crate::MAX_OBJECTS)]
    TooManyObjects,
    /// The path has too many components.
    #[error("object paths have at most {} components", crate::MAX_DEPTH)]
    TooDeep,
    /// Objects of this type cannot be created, or its factory was given another type's options.
    #[error("invalid object type: {0}")]
    NotCreatable(String),

    /// There is no such secret.
    #[error("No secret with id '{0}'")]
    NoSecret(String),
    /// The object is none.
    #[error("Object with id '{0}' is not a secret")]
    NotASecret(String),
    /// There are no such credentials.
    #[error("No TLS credentials with id '{0}'")]
    NoTlsCreds(String),
    /// The object is no credentials.
    #[error("Object with id '{0}' is not TLS credentials")]
    NotTlsCreds(String),
    /// The credentials are for the other end.
    #[error("Expected TLS credentials for a {0} endpoint")]
    WrongEndpoint(&'static str),
    /// There is no such iothread.
    #[error("iothread \"{0}\" not found")]
    NoIoThread(String),
    /// There is no such throttle group.
    #[error("Throttle group '{0}' does not exist")]
    NoThrottleGroup(String),
    /// There is no such authorization object.
    #[error("No authorization object with id '{0}'")]
    NoAuthz(String),
    /// The object decides nothing.
    #[error("Object with id '{0}' is not an authorization object")]
    NotAuthz(String),

    /// A file cannot be opened.
    #[error(
        "Unable to read {path}: Failed to open file \u{201c}{path}\u{201d}: {}",
        host_io::strerror(source)
    )]
    Open {
        /// The file.
        path: PathBufDisplay,
        /// Why.
        source: io::Error,
    },
    /// A file cannot be read.
    #[error(
        "Unable to read {path}: Error reading file \u{201c}{path}\u{201d}: {}",
        host_io::strerror(source)
    )]
    Read {
        /// The file.
        path: PathBufDisplay,
        /// Why.
        source: io::Error,
    },
    /// A file is larger than we take.
    #[error("Unable to read {path}: it is larger than {max_bytes} bytes")]
    FileTooLarge {
        /// The file.
        path: PathBufDisplay,
        /// The limit.
        max_bytes: u64,
    },
    /// A file of credentials cannot be read.
    #[error("Unable to access credentials {path}: {}", host_io::strerror(source))]
    Credentials {
        /// The file.
        path: PathBufDisplay,
        /// Why.
        source: io::Error,
    },
    /// An access list's file does not hold one.
    #[error("Access list {path}: {detail}")]
    ListFile {
        /// The file.
        path: PathBufDisplay,
        /// What is wrong with it.
        detail: String,
    },
    /// The iothread's thread cannot be made.
    #[error(
        "cannot start the thread of iothread '{id}': {}",
        host_io::strerror(source)
    )]
    Thread {
        /// The iothread.
        id: String,
        /// Why.
        source: io::Error,
    },

    /// Encrypted data that cannot be what it should be.
    #[error("Incorrect number of padding bytes ({0}) found on decrypted data")]
    Padding(u8),
    /// Data that does not fit, with all that there is to say.
    #[error("{0}")]
    Invalid(String),
    /// A value that does not fit the schema.
    #[error(transparent)]
    Value(#[from] QmpError),
}

/// A path in an error's text.
#[derive(Debug, Clone)]
pub struct PathBufDisplay(pub PathBuf);

impl std::fmt::Display for PathBufDisplay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.display().fmt(f)
    }
}

impl ObjectError {
    /// An error that is all in its text.
    pub(crate) fn invalid(text: impl Into<String>) -> Self {
        Self::Invalid(text.into())
    }
}

impl From<ObjectError> for QmpError {
    fn from(error: ObjectError) -> Self {
        let class = match error {
            ObjectError::Value(error) => return error,
            ObjectError::PathNotFound(_) | ObjectError::TypeNotFound(_) => {
                ErrorClass::DeviceNotFound
            }
            _ => ErrorClass::GenericError,
        };
        Self {
            class,
            desc: error.to_string(),
        }
    }
}
