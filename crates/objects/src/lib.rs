//! The object tree (QOM): types, properties, paths, and the objects that users create.
//!
//! ```text
//!   object-add, --object      qom-get, qom-list, ...      export, block node, chardev
//!          |                         |                            |
//!          v                         v                            v  tls_server(id), iothread(id) ...
//!      ObjectTypes  -- factory -->  ObjectTree  ------------->  the object itself, as its own type
//! ```
//!
//! # Lifecycle
//!
//! [`standard_types`] gives the types of this crate; an assembly [registers](ObjectTypes::register)
//! its own beside them and makes one [`ObjectTree`] per daemon or machine. [`ObjectTree::create`]
//! makes an object below `/objects`, [`ObjectTree::delete`] takes it out. Objects are shared: who
//! looked one up keeps it alive, and it ends with its last user. Who wants to forbid deletion takes
//! an [`ObjectHold`], as users of throttle groups do; iothreads, credentials, secrets and access
//! lists may be deleted at any time, as with QEMU.
//!
//! # Invariants
//!
//! - No global state: each tree has its own types and objects.
//! - Nothing of an object runs while the tree is locked.
//! - An object's type is registered before the object is in the tree, so its properties are known.
//! - What comes from files is bounded: [`SECRET_FILE_BYTES_MAX`], [`LIST_FILE_BYTES_MAX`],
//!   [`TLS_FILE_BYTES_MAX`]; so is the number of objects: [`MAX_OBJECTS`].
//! - Secrets are overwritten when they are dropped.
//!
//! # Where a new thing goes
//!
//! A type of object that users create: a module with its [`Object`], its properties and its
//! factory, and a line in [`standard_types`] — or, when it belongs to a crate above, a call of
//! [`ObjectTypes::register`] there. Objects that are not created by users (the machine and its
//! devices) are put in with [`ObjectTree::attach`]; those that another registry owns (chardevs)
//! are shown with [`ObjectTree::mount`].

mod authz;
mod commands;
mod error;
mod file;
mod iothread;
mod object;
mod secret;
mod throttle;
mod tls;
mod tree;
mod types;

pub use authz::{Authorizer, AuthzList, AuthzListFile, AuthzSimple, LIST_FILE_BYTES_MAX};
pub use commands::ObjectHandlers;
pub use error::ObjectError;
pub use iothread::{IoThread, IoThreadSettings, THREAD_POOL_MAX};
pub use object::{Object, Property};
pub use secret::{SECRET_FILE_BYTES_MAX, Secret};
pub use throttle::{LIMIT_MAX, ThrottleGroup};
#[cfg(feature = "tls-anon-psk")]
pub use tls::TlsCredsWithoutCertificates;
pub use tls::{TLS_FILE_BYTES_MAX, TlsCredsX509, distinguished_name};
pub use tree::{ChildSource, MAX_DEPTH, MAX_OBJECTS, ObjectHold, ObjectTree};
pub use types::{Factory, ObjectTypes, TypeSpec};

/// The types that this crate has, and those that they are derived from.
pub fn standard_types() -> ObjectTypes {
    let mut types = ObjectTypes::new();
    authz::register(&mut types);
    iothread::register(&mut types);
    secret::register(&mut types);
    throttle::register(&mut types);
    tls::register(&mut types);
    types
}

#[cfg(test)]
mod tests;
