//! An access list in a file.

use std::any::Any;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use api::{AuthZListFileProperties, AuthZListProperties};
use parking_lot::Mutex;
use serde_json::{Map, Value};

use super::{Authorizer, decide};
use crate::error::{ObjectError, PathBufDisplay};
use crate::file::read_bounded;
use crate::object::{Object, property_not_found};

/// The largest file that is read as an access list, in bytes.
pub const LIST_FILE_BYTES_MAX: u64 = 1 << 20;

/// What tells one state of a file from the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(path: &Path) -> Option<Self> {
        let metadata = std::fs::metadata(path).ok()?;
        Some(Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        })
    }
}

struct State {
    properties: AuthZListFileProperties,
    list: AuthZListProperties,
    stamp: Option<Stamp>,
}

/// An access list in a file of JSON text, with the members of `authz-list`.
///
/// With `refresh` the file is looked at whenever somebody asks, and read again when it changed. A file
/// that is gone or wrong leaves the rules as they were, and says so in the log.
pub struct AuthzListFile {
    state: Mutex<State>,
}

impl AuthzListFile {
    pub(crate) fn load(properties: AuthZListFileProperties) -> Result<Self, ObjectError> {
        let path = Path::new(&properties.filename);
        // The stamp before the content: a change between the two is seen the next time.
        let stamp = Stamp::of(path);
        let list = read_list(path)?;
        Ok(Self {
            state: Mutex::new(State {
                properties,
                list,
                stamp,
            }),
        })
    }
}

fn read_list(path: &Path) -> Result<AuthZListProperties, ObjectError> {
    let wrong = |detail: String| ObjectError::ListFile {
        path: PathBufDisplay(path.to_owned()),
        detail,
    };
    let bytes = read_bounded(path, LIST_FILE_BYTES_MAX)?;
    let json: Value = serde_json::from_slice(&bytes)
        .map_err(|error| wrong(format!("is not JSON text: {error}")))?;
    if !json.is_object() {
        return Err(wrong("must be a JSON object".to_owned()));
    }
    api::from_json(json).map_err(|error| wrong(error.desc))
}

impl State {
    fn refresh(&mut self) {
        let path = Path::new(&self.properties.filename);
        let stamp = Stamp::of(path);
        if stamp == self.stamp {
            return;
        }
        match read_list(path) {
            Ok(list) => self.list = list,
            Err(error) => tracing::warn!(%error, "the access list stays as it was"),
        }
        self.stamp = stamp;
    }
}

impl Authorizer for AuthzListFile {
    fn is_allowed(&self, identity: &str) -> bool {
        let mut state = self.state.lock();
        if state.properties.refresh.unwrap_or(true) {
            state.refresh();
        }
        decide(&state.list, identity)
    }
}

impl Object for AuthzListFile {
    fn type_name(&self) -> &str {
        "authz-list-file"
    }

    fn get(&self, property: &str) -> Result<Value, ObjectError> {
        let state = self.state.lock();
        match property {
            "filename" => Ok(Value::from(state.properties.filename.as_str())),
            "refresh" => Ok(Value::from(state.properties.refresh.unwrap_or(true))),
            _ => Err(property_not_found(self, property)),
        }
    }

    /// Another `filename` is read when somebody asks next, if `refresh` is on.
    fn set(&self, property: &str, value: Value) -> Result<(), ObjectError> {
        let mut state = self.state.lock();
        let mut options = Map::new();
        options.insert(
            "filename".to_owned(),
            Value::from(state.properties.filename.as_str()),
        );
        options.insert(property.to_owned(), value);
        let new: AuthZListFileProperties = api::from_json(Value::Object(options))?;
        state.properties.filename = new.filename;
        state.properties.refresh = new.refresh.or(state.properties.refresh);
        Ok(())
    }

    fn as_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}
