//! The chardevs as objects below `/chardevs`.

use std::any::Any;
use std::sync::Arc;

use chardev::ChardevRegistry;
use objects::{ChildSource, Object, ObjectError, ObjectTypes, TypeSpec};
use serde_json::Value;

/// The types of the chardevs there are.
const TYPES: &[&str] = &[
    "chardev-file",
    "chardev-memory",
    "chardev-null",
    "chardev-pipe",
    "chardev-pty",
    "chardev-ringbuf",
    "chardev-socket",
    "chardev-stdio",
];

/// Adds the types of chardevs to the object types.
pub(crate) fn register(types: &mut ObjectTypes) {
    types.register(TypeSpec::abstract_type("chardev", "object", Vec::new()));
    for name in TYPES {
        types.register(TypeSpec::concrete(name, "chardev", Vec::new()));
    }
}

/// Shows the registry's chardevs in the tree.
pub(crate) struct ChardevObjects {
    pub(crate) registry: Arc<ChardevRegistry>,
}

impl ChildSource for ChardevObjects {
    fn children(&self) -> Vec<(String, Arc<dyn Object>)> {
        let shown = |(id, type_name)| (id, Arc::new(ShownChardev { type_name }) as Arc<dyn Object>);
        self.registry.types().into_iter().map(shown).collect()
    }
}

/// A chardev as an object. It has no properties of its own.
struct ShownChardev {
    type_name: &'static str,
}

impl Object for ShownChardev {
    fn type_name(&self) -> &str {
        self.type_name
    }

    fn get(&self, property: &str) -> Result<Value, ObjectError> {
        Err(ObjectError::PropertyNotFound {
            type_name: self.type_name.to_owned(),
            property: property.to_owned(),
        })
    }

    fn set(&self, property: &str, _value: Value) -> Result<(), ObjectError> {
        Err(ObjectError::PropertyNotFound {
            type_name: self.type_name.to_owned(),
            property: property.to_owned(),
        })
    }

    fn as_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}
