//! Reading typed values from JSON or from command-line options, and writing them as JSON.
//!
//! Reading has three modes:
//!
//! - **JSON**, for arguments of commands: types are strict, unknown members are errors.
//! - **Keyval**, for command-line options in `key=value` form: every scalar is a string, lists are
//!   objects whose keys are `0`, `1`, ...; unknown members are errors.
//! - **Reply**, for clients: types are strict, unknown members are kept aside.
//!
//! Errors are those of QEMU 10.0's visitors, as observed from outside. Most name the dotted path to
//! the value (`file.driver`, `children[0].file`, with options `children.0.file`); three name only the
//! last member, or `null` for a list's element: integers out of range, enum values and alternates.

use std::cell::RefCell;
use std::fmt::Write as _;

use serde_json::{Map, Value};

use crate::builtin::Size;
use crate::error::QmpError;

/// Deepest nesting of objects and lists in a value that is read.
pub const VISIT_DEPTH_MAX: u32 = 128;

/// Most members that [`reply_from_json`] keeps aside.
pub const UNKNOWN_MEMBERS_MAX: usize = 1024;

/// A type that can be read.
pub trait FromQapi: Sized {
    /// Reads the value that the input holds.
    ///
    /// # Errors
    /// `GenericError` in QEMU's words when the value does not fit the type.
    fn from_qapi(input: Input<'_>) -> Result<Self, QmpError>;
}

/// A type that can be written.
pub trait ToQapi {
    /// The value as JSON.
    fn to_qapi(&self) -> Value;
}

/// A struct or union: its members can be read from and written to an object shared with others.
pub trait QapiObject: Sized {
    /// Takes its members.
    ///
    /// # Errors
    /// As [`FromQapi::from_qapi`].
    fn read_members(members: &mut Members<'_>) -> Result<Self, QmpError>;

    /// Adds its members.
    fn write_members(&self, out: &mut Map<String, Value>);
}

/// A member of a reply that the schema does not know.
#[derive(Debug, Clone, PartialEq)]
pub struct UnknownMember {
    /// The dotted path to it.
    pub path: String,
    /// What it holds.
    pub value: Value,
}

/// Reads arguments or other JSON, strictly.
///
/// # Errors
/// As [`FromQapi::from_qapi`].
pub fn from_json<T: FromQapi>(value: Value) -> Result<T, QmpError> {
    T::from_qapi(Input::new(
        value,
        Context {
            mode: Mode::Json,
            unknown: None,
            depth: 0,
        },
    ))
}

/// Reads the tree of command-line options that [`crate::keyval::parse`] gives.
///
/// # Errors
/// As [`FromQapi::from_qapi`].
pub fn from_keyval<T: FromQapi>(value: Value) -> Result<T, QmpError> {
    T::from_qapi(Input::new(
        value,
        Context {
            mode: Mode::Keyval,
            unknown: None,
            depth: 0,
        },
    ))
}

/// Reads what a server replied, with the members that the schema does not know.
///
/// # Errors
/// Where the reply did not fit its type.
pub fn reply_from_json<T: FromQapi>(value: Value) -> Result<(T, Vec<UnknownMember>), QmpError> {
    let unknown = RefCell::new(Vec::new());
    let context = Context {
        mode: Mode::Reply,
        unknown: Some(&unknown),
        depth: 0,
    };
    let read = T::from_qapi(Input::new(value, context))?;
    Ok((read, unknown.into_inner()))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Json,
    Keyval,
    Reply,
}

#[derive(Clone, Copy)]
struct Context<'a> {
    mode: Mode,
    unknown: Option<&'a RefCell<Vec<UnknownMember>>>,
    depth: u32,
}

/// The way from the outermost value to this one.
#[derive(Clone, Copy)]
enum Place<'a> {
    Root,
    Member {
        parent: &'a Place<'a>,
        name: &'a str,
    },
    Element {
        parent: &'a Place<'a>,
        index: usize,
    },
}

impl Place<'_> {
    fn write(&self, mode: Mode, out: &mut String) {
        match self {
            Self::Root => {}
            Self::Member { parent, name } => {
                parent.write(mode, out);
                if !out.is_empty() {
                    out.push('.');
                }
                out.push_str(name);
            }
            Self::Element { parent, index } => {
                parent.write(mode, out);
                // Writing to a string cannot fail.
                let _ = match mode {
                    Mode::Keyval => write!(out, ".{index}"),
                    Mode::Json | Mode::Reply => write!(out, "[{index}]"),
                };
            }
        }
    }

    fn path(&self, mode: Mode) -> String {
        let mut out = String::new();
        self.write(mode, &mut out);
        if out.is_empty() {
            "null".to_owned()
        } else {
            out
        }
    }

    /// The name of the member alone.
    fn name(&self) -> &str {
        match self {
            Self::Member { name, .. } => name,
            Self::Root | Self::Element { .. } => "null",
        }
    }
}

/// What kind of value an input holds. A scalar option on the command line is a string.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ValueKind {
    /// `null`.
    Null,
    /// `true` or `false`.
    Bool,
    /// Any number.
    Number,
    /// A string.
    String,
    /// An array.
    Array,
    /// An object.
    Object,
}

/// A value that is about to be read, and where it is.
pub struct Input<'a> {
    value: Value,
    place: Place<'a>,
    context: Context<'a>,
}

impl<'a> Input<'a> {
    fn new(value: Value, context: Context<'a>) -> Self {
        Self {
            value,
            place: Place::Root,
            context,
        }
    }

    /// What kind of value it is.
    pub fn kind(&self) -> ValueKind {
        match self.value {
            Value::Null => ValueKind::Null,
            Value::Bool(_) => ValueKind::Bool,
            Value::Number(_) => ValueKind::Number,
            Value::String(_) => ValueKind::String,
            Value::Array(_) => ValueKind::Array,
            // In options a list is an object with the keys 0, 1, ...
            Value::Object(ref members) if self.is_keyval() && members.contains_key("0") => {
                ValueKind::Array
            }
            Value::Object(_) => ValueKind::Object,
        }
    }

    fn path(&self) -> String {
        self.place.path(self.context.mode)
    }

    fn is_keyval(&self) -> bool {
        self.context.mode == Mode::Keyval
    }

    /// "Invalid parameter type" with the path.
    fn wrong_type(&self, expected: &str) -> QmpError {
        QmpError::invalid_parameter_type(&self.path(), expected)
    }

    /// The error of an alternate none of whose branches takes the value.
    pub fn wrong_alternative(&self, alternate: &str) -> QmpError {
        QmpError::invalid_parameter_type(self.place.name(), alternate)
    }

    /// The error of a value that the enum does not have.
    fn wrong_enum_value(&self, value: &str) -> QmpError {
        QmpError::generic(format!(
            "Parameter '{}' does not accept value '{value}'",
            self.place.name()
        ))
    }

    /// The value as it is.
    pub fn into_value(self) -> Value {
        self.value
    }

    /// The scalar text of an option. Deeper keys below a scalar are an error of their own.
    fn option_text(&self) -> Result<&str, QmpError> {
        match &self.value {
            Value::String(text) => Ok(text),
            Value::Object(_) | Value::Array(_) => Err(QmpError::generic(format!(
                "Parameters '{}.*' are unexpected",
                self.path()
            ))),
            _ => Err(self.wrong_type("string")),
        }
    }

    /// A string.
    ///
    /// # Errors
    /// When it is something else.
    pub fn into_string(mut self) -> Result<String, QmpError> {
        if self.is_keyval() {
            self.option_text()?;
        }
        match &mut self.value {
            Value::String(text) => Ok(std::mem::take(text)),
            _ => Err(self.wrong_type("string")),
        }
    }

    /// `true` or `false`; `on` or `off` as an option.
    ///
    /// # Errors
    /// When it is something else.
    pub fn into_bool(self) -> Result<bool, QmpError> {
        if self.is_keyval() {
            return match self.option_text()? {
                "on" | "yes" | "true" | "y" => Ok(true),
                "off" | "no" | "false" | "n" => Ok(false),
                _ => Err(QmpError::invalid_parameter_value(
                    &self.path(),
                    "'on' or 'off'",
                )),
            };
        }
        self.value
            .as_bool()
            .ok_or_else(|| self.wrong_type("boolean"))
    }

    /// A signed 64-bit integer.
    ///
    /// # Errors
    /// When it is something else, or does not fit.
    pub fn into_i64(self) -> Result<i64, QmpError> {
        if self.is_keyval() {
            let parsed = parse_integer(self.option_text()?);
            return parsed
                .and_then(|value| i64::try_from(value).ok())
                .ok_or_else(|| QmpError::invalid_parameter_value(&self.path(), "integer"));
        }
        self.value
            .as_i64()
            .ok_or_else(|| self.wrong_type("integer"))
    }

    /// An unsigned 64-bit integer. A negative one counts down from 2^64, as it does for QEMU.
    ///
    /// # Errors
    /// When it is something else, or does not fit.
    pub fn into_u64(self) -> Result<u64, QmpError> {
        if self.is_keyval() {
            let parsed = parse_integer(self.option_text()?).and_then(wrap_u64);
            return parsed
                .ok_or_else(|| QmpError::invalid_parameter_value(&self.path(), "integer"));
        }
        let parsed = self
            .value
            .as_u64()
            .or_else(|| self.value.as_i64().map(i64::cast_unsigned));
        parsed.ok_or_else(|| QmpError::invalid_parameter_value(&self.path(), "uint64"))
    }

    /// A narrower integer: `wide` reads it, `expected` is the C type's name.
    ///
    /// # Errors
    /// When it is something else, or does not fit.
    pub(crate) fn into_narrow<W, T: TryFrom<W>>(
        self,
        expected: &str,
        wide: fn(Self) -> Result<W, QmpError>,
    ) -> Result<T, QmpError> {
        let place = self.place;
        T::try_from(wide(self)?)
            .map_err(|_| QmpError::invalid_parameter_value(place.name(), expected))
    }

    /// A size in bytes; as an option with a suffix `b`, `k`, `M`, `G`, `T`, `P` or `E`.
    ///
    /// # Errors
    /// When it is something else, or does not fit.
    pub fn into_size(self) -> Result<u64, QmpError> {
        if self.is_keyval() {
            return crate::keyval::parse_size(self.option_text()?)
                .ok_or_else(|| QmpError::invalid_parameter_value(&self.path(), "size"));
        }
        self.into_u64()
    }

    /// A number.
    ///
    /// # Errors
    /// When it is something else.
    pub fn into_f64(self) -> Result<f64, QmpError> {
        if self.is_keyval() {
            let parsed = self.option_text()?.trim_start().parse::<f64>().ok();
            return parsed
                .filter(|value| value.is_finite())
                .ok_or_else(|| QmpError::invalid_parameter_value(&self.path(), "number"));
        }
        self.value.as_f64().ok_or_else(|| self.wrong_type("number"))
    }

    /// `null`.
    ///
    /// # Errors
    /// When it is something else.
    pub fn into_null(self) -> Result<(), QmpError> {
        match self.value {
            Value::Null => Ok(()),
            _ => Err(self.wrong_type("null")),
        }
    }

    /// One of an enum's values, by its string.
    ///
    /// # Errors
    /// When it is no string, or none of the enum's.
    pub fn into_enum<T: Copy>(
        self,
        parse: fn(&str) -> Option<T>,
        lacking_feature: fn(&str) -> Option<&'static str>,
    ) -> Result<T, QmpError> {
        let text = if self.is_keyval() {
            Some(self.option_text()?)
        } else {
            self.value.as_str()
        };
        let Some(text) = text else {
            return Err(self.wrong_type("string"));
        };
        parse(text).ok_or_else(|| {
            let mut error = self.wrong_enum_value(text);
            if let Some(feature) = lacking_feature(text) {
                error.desc += &format!("; this build lacks the cargo feature '{feature}'");
            }
            error
        })
    }

    fn deeper(&self) -> Result<Context<'a>, QmpError> {
        let depth = self.context.depth.saturating_add(1);
        if depth > VISIT_DEPTH_MAX {
            return Err(QmpError::generic(format!(
                "Parameter '{}' is nested deeper than {VISIT_DEPTH_MAX} levels",
                self.place.name()
            )));
        }
        Ok(Context {
            depth,
            ..self.context
        })
    }

    /// A list of values.
    ///
    /// # Errors
    /// When it is something else, or an element does not fit.
    pub fn into_list<T: FromQapi>(mut self) -> Result<Vec<T>, QmpError> {
        let context = self.deeper()?;
        let elements = match std::mem::take(&mut self.value) {
            Value::Array(elements) => elements,
            Value::Object(members) if self.is_keyval() => self.numbered(members)?,
            _ => return Err(self.wrong_type("array")),
        };
        let parent = self.place;
        elements
            .into_iter()
            .enumerate()
            .map(|(index, value)| {
                let place = Place::Element {
                    parent: &parent,
                    index,
                };
                T::from_qapi(Input {
                    value,
                    place,
                    context,
                })
            })
            .collect()
    }

    /// The elements of a list of options: an object whose keys are 0, 1, ... without a gap.
    fn numbered(&self, members: Map<String, Value>) -> Result<Vec<Value>, QmpError> {
        let mut elements = std::collections::BTreeMap::new();
        for (key, value) in members {
            let number = key
                .bytes()
                .all(|c| c.is_ascii_digit())
                .then(|| key.parse::<usize>().ok());
            match number.flatten() {
                Some(number) => elements.insert(number, value),
                None => return Err(self.wrong_type("array")),
            };
        }
        for (expected, number) in elements.keys().enumerate() {
            if expected != *number {
                return Err(QmpError::generic(format!(
                    "Parameter '{}.{expected}' missing",
                    self.path()
                )));
            }
        }
        Ok(elements.into_values().collect())
    }

    fn into_object<T: QapiObject>(mut self) -> Result<T, QmpError> {
        let context = self.deeper()?;
        let Value::Object(map) = std::mem::take(&mut self.value) else {
            return Err(self.wrong_type("object"));
        };
        let mut members = Members {
            map,
            place: &self.place,
            context,
        };
        let read = T::read_members(&mut members)?;
        members.finish()?;
        Ok(read)
    }
}

/// The members of an object that nobody has taken yet.
pub struct Members<'a> {
    map: Map<String, Value>,
    place: &'a Place<'a>,
    context: Context<'a>,
}

impl Members<'_> {
    /// Takes and reads a member that must be there.
    ///
    /// # Errors
    /// When it is not, or does not fit.
    pub fn required<T: FromQapi>(&mut self, name: &str) -> Result<T, QmpError> {
        match self.optional(name)? {
            Some(value) => Ok(value),
            None => {
                let place = Place::Member {
                    parent: self.place,
                    name,
                };
                Err(QmpError::missing_parameter(&place.path(self.context.mode)))
            }
        }
    }

    /// Takes and reads a member that may be there.
    ///
    /// # Errors
    /// When it does not fit.
    pub fn optional<T: FromQapi>(&mut self, name: &str) -> Result<Option<T>, QmpError> {
        let Some(value) = self.map.shift_remove(name) else {
            return Ok(None);
        };
        let place = Place::Member {
            parent: self.place,
            name,
        };
        T::from_qapi(Input {
            value,
            place,
            context: self.context,
        })
        .map(Some)
    }

    /// As [`Self::required`], for the builtin type `size`.
    ///
    /// # Errors
    /// When it is not there, or does not fit.
    pub fn required_size(&mut self, name: &str) -> Result<u64, QmpError> {
        self.required::<Size>(name).map(|size| size.0)
    }

    /// As [`Self::optional`], for the builtin type `size`.
    ///
    /// # Errors
    /// When it does not fit.
    pub fn optional_size(&mut self, name: &str) -> Result<Option<u64>, QmpError> {
        Ok(self.optional::<Size>(name)?.map(|size| size.0))
    }

    /// Nothing may be left, except in a reply.
    fn finish(self) -> Result<(), QmpError> {
        for (name, value) in self.map {
            let path = Place::Member {
                parent: self.place,
                name: &name,
            }
            .path(self.context.mode);
            let Some(unknown) = self.context.unknown else {
                return Err(QmpError::unexpected_parameter(&path));
            };
            let mut unknown = unknown.borrow_mut();
            if unknown.len() < UNKNOWN_MEMBERS_MAX {
                unknown.push(UnknownMember { path, value });
            }
        }
        Ok(())
    }
}

impl<T: QapiObject> FromQapi for T {
    fn from_qapi(input: Input<'_>) -> Result<Self, QmpError> {
        input.into_object()
    }
}

impl<T: QapiObject> ToQapi for T {
    fn to_qapi(&self) -> Value {
        let mut out = Map::new();
        self.write_members(&mut out);
        Value::Object(out)
    }
}

/// Adds a member to an object that is being written.
pub fn put<T: ToQapi>(out: &mut Map<String, Value>, name: &str, value: &T) {
    out.insert(name.to_owned(), value.to_qapi());
}

/// Adds a member that may be absent.
pub fn put_optional<T: ToQapi>(out: &mut Map<String, Value>, name: &str, value: &Option<T>) {
    if let Some(value) = value {
        put(out, name, value);
    }
}

/// An enum of the schema: its Rust type from its values and their strings.
macro_rules! qapi_enum {
    ($(#[$attribute:meta])* $name:ident {
        $($(#[$doc:meta])* $variant:ident = $text:literal $(if $feature:literal)?,)*
    }) => {
        $(#[$attribute])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name {
            $($(#[$doc])* $(#[cfg(feature = $feature)])? $variant,)*
        }

        impl $name {
            /// Every value, in the schema's order.
            pub const ALL: &'static [Self] =
                &[$($(#[cfg(feature = $feature)])? Self::$variant,)*];

            /// The string on the wire.
            pub fn as_str(self) -> &'static str {
                match self {
                    $($(#[cfg(feature = $feature)])? Self::$variant => $text,)*
                }
            }

            /// The value of this string.
            pub fn from_name(name: &str) -> Option<Self> {
                match name {
                    $($(#[cfg(feature = $feature)])? $text => Some(Self::$variant),)*
                    _ => None,
                }
            }

            /// The cargo feature that this build lacks to have the value of this string.
            fn lacking_feature(name: &str) -> Option<&'static str> {
                match name {
                    $($(#[cfg(not(feature = $feature))] $text => Some($feature),)?)*
                    _ => None,
                }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl std::str::FromStr for $name {
            type Err = $crate::QmpError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                Self::from_name(text).ok_or_else(|| {
                    let name = stringify!($name);
                    $crate::QmpError::generic(format!("'{text}' is not a value of {name}"))
                })
            }
        }

        impl $crate::FromQapi for $name {
            fn from_qapi(input: $crate::Input<'_>) -> Result<Self, $crate::QmpError> {
                input.into_enum(Self::from_name, Self::lacking_feature)
            }
        }

        impl $crate::ToQapi for $name {
            fn to_qapi(&self) -> serde_json::Value {
                serde_json::Value::from(self.as_str())
            }
        }
    };
}
pub(crate) use qapi_enum;

/// An integer as the C library reads it with base 0: white space, sign, `0x` or `0` prefix.
fn parse_integer(text: &str) -> Option<i128> {
    let text = text.trim_start_matches([' ', '\t', '\n', '\r', '\x0b', '\x0c']);
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let hexadecimal = digits
        .strip_prefix("0x")
        .or_else(|| digits.strip_prefix("0X"));
    let (digits, radix) = match hexadecimal {
        Some(digits) => (digits, 16),
        None if digits.len() > 1 && digits.starts_with('0') => (digits, 8),
        None => (digits, 10),
    };
    if !digits.chars().all(|c| c.is_digit(radix)) {
        return None;
    }
    let value = i128::from(u64::from_str_radix(digits, radix).ok()?);
    Some(if negative { -value } else { value })
}

/// A value of -(2^64-1) to 2^64-1, the negative ones counted down from 2^64.
fn wrap_u64(value: i128) -> Option<u64> {
    u64::try_from(value)
        .ok()
        .or_else(|| u64::try_from(value.checked_add(1 << 64)?).ok())
}
