//! Properties of a device, as given by `-device` (text) or `device_add` (JSON).

use std::collections::BTreeMap;

use api::QmpError;
use serde_json::Value;

use super::DeviceKind;

/// What is known of a property.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PropertySpec {
    /// Its name.
    pub name: &'static str,
    /// Its type, as QMP names it.
    pub type_name: &'static str,
    /// What people read.
    pub description: &'static str,
}

/// A property in a table.
pub(crate) const fn property(
    name: &'static str,
    type_name: &'static str,
    description: &'static str,
) -> PropertySpec {
    PropertySpec {
        name,
        type_name,
        description,
    }
}

/// Gives properties to the maker of a device.
pub struct Properties {
    kind: &'static DeviceKind,
    id: Option<String>,
    path: String,
    bus: Option<String>,
    values: BTreeMap<String, Value>,
}

impl Properties {
    pub(crate) fn new(
        kind: &'static DeviceKind,
        id: Option<String>,
        path: String,
        values: BTreeMap<String, Value>,
    ) -> Self {
        Self {
            kind,
            id,
            path,
            bus: None,
            values,
        }
    }

    /// The device's id.
    pub(crate) fn id(&self) -> Option<&str> {
        self.id.as_deref()
    }

    /// The bus that it shall sit on, if its maker named one.
    pub(crate) fn bus(&self) -> Option<&str> {
        self.bus.as_deref()
    }

    /// The device's path in the object tree.
    pub(crate) fn path(&self) -> &str {
        &self.path
    }

    fn wrong(&self, name: &str, value: &Value, expected: &str) -> QmpError {
        let given = match value {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        QmpError::generic(format!(
            "Property '{}.{name}' doesn't take value '{given}': {expected} is expected",
            self.kind.name
        ))
    }

    /// A text.
    pub(crate) fn text(&mut self, name: &str) -> Result<Option<String>, QmpError> {
        match self.values.remove(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.wrong(name, &other, "a string")),
        }
    }

    /// A switch.
    pub(crate) fn switch(&mut self, name: &str) -> Result<Option<bool>, QmpError> {
        match self.values.remove(name) {
            None => Ok(None),
            Some(Value::Bool(on)) => Ok(Some(on)),
            Some(Value::String(text)) if matches!(&*text, "on" | "yes" | "true" | "y") => {
                Ok(Some(true))
            }
            Some(Value::String(text)) if matches!(&*text, "off" | "no" | "false" | "n") => {
                Ok(Some(false))
            }
            Some(other) => Err(self.wrong(name, &other, "'on' or 'off'")),
        }
    }

    /// A number from 0 to `most`; text may be hexadecimal.
    pub(crate) fn number(&mut self, name: &str, most: u64) -> Result<Option<u64>, QmpError> {
        let Some(value) = self.values.remove(name) else {
            return Ok(None);
        };
        let number = match &value {
            Value::String(text) => unsigned(text),
            other => other.as_u64(),
        };
        match number.filter(|number| *number <= most) {
            Some(number) => Ok(Some(number)),
            None => Err(self.wrong(name, &value, &format!("a number from 0 to {most}"))),
        }
    }

    /// All names must be the kind's; `bus` may be named by every device.
    pub(crate) fn check_names(&mut self) -> Result<(), QmpError> {
        self.bus = self.text("bus")?;
        let kind = self.kind;
        let unknown = |name: &&String| !kind.properties.iter().any(|spec| spec.name == **name);
        match self.values.keys().find(unknown) {
            None => Ok(()),
            Some(name) => Err(QmpError::generic(format!(
                "Property '{}.{name}' not found",
                kind.name
            ))),
        }
    }

    /// The kind whose properties they are.
    pub(crate) fn kind(&self) -> &'static DeviceKind {
        self.kind
    }
}

/// A number as people write it, hexadecimal with `0x`.
pub(crate) fn unsigned(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}
