//! Options in QEMU's flat form: `first,key=value,switch,noswitch`.

use std::collections::BTreeMap;

use api::QmpError;
use serde_json::{Map, Value};

/// Keys and values as given, commas in values written twice.
pub(crate) struct Flat {
    values: BTreeMap<String, String>,
}

impl Flat {
    /// Reads the text; a first value alone is that of `implied_key`.
    pub(crate) fn parse(text: &str, implied_key: &str) -> Result<Self, QmpError> {
        let mut values = BTreeMap::new();
        for (index, part) in split_commas(text).into_iter().enumerate() {
            let (key, value) = match part.split_once('=') {
                Some((key, value)) => (key.to_owned(), value.to_owned()),
                None if index == 0 => (implied_key.to_owned(), part),
                // The short form of a switch: `server`, `nowait`.
                None => match part.strip_prefix("no") {
                    Some(key) if matches!(key, "wait" | "delay" | "server") => {
                        (key.to_owned(), "off".to_owned())
                    }
                    _ => (part, "on".to_owned()),
                },
            };
            values.insert(key, value);
        }
        Ok(Self { values })
    }

    /// Keys may be written with underscores for dashes, as they were of old.
    pub(crate) fn with_dashes(self) -> Self {
        let values = self.values.into_iter();
        Self {
            values: values
                .map(|(key, value)| (key.replace('_', "-"), value))
                .collect(),
        }
    }

    /// Takes a key's value.
    pub(crate) fn take(&mut self, key: &str) -> Option<String> {
        self.values.remove(key)
    }

    /// Takes a value that must be there.
    pub(crate) fn required(
        &mut self,
        backend: &str,
        key: &str,
        what: &str,
    ) -> Result<String, QmpError> {
        let missing = || QmpError::generic(format!("chardev: {backend}: {what}"));
        self.take(key).ok_or_else(missing)
    }

    /// Takes a value that is on or off.
    pub(crate) fn switch(&mut self, key: &str) -> Result<Option<Value>, QmpError> {
        match self.take(key).as_deref() {
            None => Ok(None),
            Some("on") => Ok(Some(true.into())),
            Some("off") => Ok(Some(false.into())),
            Some(_) => Err(QmpError::invalid_parameter_value(key, "'on' or 'off'")),
        }
    }

    /// Takes a number of bytes, with the suffixes of sizes.
    pub(crate) fn size(&mut self, key: &str) -> Result<Option<Value>, QmpError> {
        let Some(text) = self.take(key) else {
            return Ok(None);
        };
        match api::keyval::parse_size(&text) {
            Some(size) => Ok(Some(size.into())),
            None => Err(QmpError::invalid_parameter_value(
                key,
                "a non-negative number below 2^64",
            )),
        }
    }

    /// Takes a number.
    pub(crate) fn number(&mut self, key: &str) -> Result<Option<Value>, QmpError> {
        let Some(text) = self.take(key) else {
            return Ok(None);
        };
        match text.parse::<u64>() {
            Ok(number) => Ok(Some(number.into())),
            Err(_) => Err(QmpError::invalid_parameter_value(key, "a number")),
        }
    }

    /// An object of fixed members, switches of the same name, and texts under another name.
    pub(crate) fn object(
        &mut self,
        fixed: &[(&str, Option<Value>)],
        switches: &[&str],
        texts: &[(&str, &str)],
    ) -> Result<Value, QmpError> {
        let mut object = Map::new();
        for (name, value) in fixed {
            if let Some(value) = value {
                object.insert((*name).to_owned(), value.clone());
            }
        }
        for name in switches {
            if let Some(value) = self.switch(name)? {
                object.insert((*name).to_owned(), value);
            }
        }
        for (key, name) in texts {
            if let Some(text) = self.take(key) {
                object.insert((*name).to_owned(), text.into());
            }
        }
        Ok(Value::Object(object))
    }

    /// Nothing may be left over.
    pub(crate) fn end(self) -> Result<(), QmpError> {
        match self.values.keys().next() {
            None => Ok(()),
            Some(key) => Err(QmpError::generic(format!("Invalid parameter '{key}'"))),
        }
    }
}

/// Splits at single commas; double ones stand for one in a value.
fn split_commas(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        if c == ',' && chars.peek() != Some(&',') {
            parts.push(String::new());
            continue;
        }
        if c == ',' {
            chars.next();
        }
        if let Some(last) = parts.last_mut() {
            last.push(c);
        }
    }
    parts.retain(|part| !part.is_empty());
    parts
}
