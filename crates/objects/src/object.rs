//! What an object is.

use std::any::Any;
use std::borrow::Cow;
use std::sync::Arc;

use serde_json::Value;

use crate::error::ObjectError;

/// A property of a type of objects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Property {
    /// Its name.
    pub name: Cow<'static, str>,
    /// Its type as text: `string`, `int`, `bool`, or a schema type's name.
    pub type_name: Cow<'static, str>,
    /// Whether `qom-set` may change it.
    pub writable: bool,
}

impl Property {
    /// A property that can be written.
    pub const fn writable(name: &'static str, type_name: &'static str) -> Self {
        Self {
            name: Cow::Borrowed(name),
            type_name: Cow::Borrowed(type_name),
            writable: true,
        }
    }

    /// A property that can only be read.
    pub const fn read_only(name: &'static str, type_name: &'static str) -> Self {
        Self {
            name: Cow::Borrowed(name),
            type_name: Cow::Borrowed(type_name),
            writable: false,
        }
    }
}

/// An object in the tree.
///
/// Its type is registered in the tree's [`crate::ObjectTypes`], which know the properties; the tree
/// asks only for those, and sets only the writable ones.
pub trait Object: Send + Sync + 'static {
    /// The name of its type.
    fn type_name(&self) -> &str;

    /// A property's value.
    ///
    /// # Errors
    /// [`ObjectError::PropertyNotFound`], or why there is none now.
    fn get(&self, property: &str) -> Result<Value, ObjectError>;

    /// Changes a property.
    ///
    /// # Errors
    /// Why the value does not fit, or that the property cannot be set now.
    fn set(&self, property: &str, value: Value) -> Result<(), ObjectError>;

    /// The object itself, for who knows its type.
    fn as_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync>;
}

/// The error of an object that is asked for what it does not have.
pub(crate) fn property_not_found(object: &dyn Object, property: &str) -> ObjectError {
    ObjectError::PropertyNotFound {
        type_name: object.type_name().to_owned(),
        property: property.to_owned(),
    }
}

/// An object `{property: value}`: the options of a type with just this one, so that a property
/// is read with the schema's checks and words.
pub(crate) fn as_options(property: &str, value: Value) -> Value {
    let mut members = serde_json::Map::new();
    members.insert(property.to_owned(), value);
    Value::Object(members)
}

/// A group of objects, without properties of its own.
pub(crate) struct Container;

impl Object for Container {
    fn type_name(&self) -> &str {
        "container"
    }

    fn get(&self, property: &str) -> Result<Value, ObjectError> {
        Err(property_not_found(self, property))
    }

    fn set(&self, property: &str, _value: Value) -> Result<(), ObjectError> {
        Err(property_not_found(self, property))
    }

    fn as_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}
