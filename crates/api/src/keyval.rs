//! Command-line options in the form `key=value,nested.key=value,list.0=value`.
//!
//! A comma in a value is written twice. The first option may be a value alone, for a key that the
//! option implies. Text that begins with `{` is JSON instead; see [`Options`].

use serde_json::{Map, Value};

use crate::error::QmpError;
use crate::visit::{FromQapi, VISIT_DEPTH_MAX, from_json, from_keyval};

/// Longest text of one option, in bytes.
pub const OPTION_BYTES_MAX: usize = 1 << 20;

/// An option's text, parsed: which of the two forms it had decides how it is read.
#[derive(Debug, Clone, PartialEq)]
pub enum Options {
    /// It was JSON.
    Json(Value),
    /// It was `key=value`: every scalar is a string.
    Keyval(Value),
}

impl Options {
    /// Parses either form; `implied_key` is the key of a first value without one.
    ///
    /// # Errors
    /// `GenericError` when the text is neither.
    pub fn parse(text: &str, implied_key: Option<&str>) -> Result<Self, QmpError> {
        if !text.starts_with('{') {
            return parse(text, implied_key).map(Self::Keyval);
        }
        if text.len() > OPTION_BYTES_MAX {
            return Err(too_long());
        }
        let mut parser = qmp_wire::json::StreamParser::new();
        parser.feed(text.as_bytes());
        match parser.next_value() {
            Some(Ok(value)) if parser.is_between_messages() => Ok(Self::Json(value)),
            Some(Ok(_)) => Err(QmpError::generic(
                "JSON parse error, unexpected text behind it",
            )),
            Some(Err(error)) => Err(QmpError::generic(error.to_string())),
            None => Err(QmpError::generic("JSON parse error, premature EOI")),
        }
    }

    /// Reads the options as a type.
    ///
    /// # Errors
    /// As [`FromQapi::from_qapi`].
    pub fn read<T: FromQapi>(self) -> Result<T, QmpError> {
        match self {
            Self::Json(value) => from_json(value),
            Self::Keyval(value) => from_keyval(value),
        }
    }
}

fn too_long() -> QmpError {
    QmpError::generic(format!("Option is longer than {OPTION_BYTES_MAX} bytes"))
}

/// Parses `key=value` text to a tree of objects whose leaves are strings.
///
/// A later option replaces an earlier one of the same key. Lists remain objects with the keys `0`,
/// `1`, ...; they become lists when a type is read from them.
///
/// # Errors
/// `GenericError` in QEMU's words for a wrong key, a key without value, or a key used both as a value
/// and as the beginning of others.
pub fn parse(text: &str, implied_key: Option<&str>) -> Result<Value, QmpError> {
    if text.len() > OPTION_BYTES_MAX {
        return Err(too_long());
    }
    let mut root = Map::new();
    let mut rest = text;
    let mut implied_key = implied_key;
    while !rest.is_empty() {
        let key_end = rest.find(['=', ',']).unwrap_or(rest.len());
        let (key, after) = rest.split_at(key_end);
        let (key, value_text) = match (after.strip_prefix('='), implied_key) {
            (Some(value), _) => (key, value),
            (None, Some(implied)) => (implied, rest),
            (None, None) => {
                return Err(QmpError::generic(format!(
                    "Expected '=' after parameter '{key}'"
                )));
            }
        };
        implied_key = None;
        let (value, after) = take_value(value_text);
        insert(&mut root, key, value)?;
        rest = after;
    }
    check_lists(&root, "")?;
    Ok(Value::Object(root))
}

/// The value up to a single comma, and what follows the comma.
fn take_value(text: &str) -> (String, &str) {
    let mut value = String::new();
    let mut rest = text;
    loop {
        let Some((before, after)) = rest.split_once(',') else {
            value.push_str(rest);
            return (value, "");
        };
        value.push_str(before);
        let Some(after_second) = after.strip_prefix(',') else {
            return (value, after);
        };
        value.push(',');
        rest = after_second;
    }
}

fn insert(root: &mut Map<String, Value>, key: &str, value: String) -> Result<(), QmpError> {
    let fragments: Vec<&str> = key.split('.').collect();
    let depth_max = usize::try_from(VISIT_DEPTH_MAX).unwrap_or(usize::MAX);
    if fragments.len() > depth_max
        || !fragments
            .iter()
            .enumerate()
            .all(|(i, f)| is_fragment(f, i == 0))
    {
        return Err(QmpError::generic(format!("Invalid parameter '{key}'")));
    }
    let mut object = root;
    let mut prefix = String::new();
    let Some((last, parents)) = fragments.split_last() else {
        return Ok(());
    };
    let inconsistent =
        |prefix: &str| QmpError::generic(format!("Parameters '{prefix}.*' used inconsistently"));
    for fragment in parents {
        if !prefix.is_empty() {
            prefix.push('.');
        }
        prefix.push_str(fragment);
        let next = object
            .entry(list_key(fragment))
            .or_insert_with(|| Value::Object(Map::new()));
        object = match next {
            Value::Object(next) => next,
            _ => return Err(inconsistent(&prefix)),
        };
    }
    match object.entry(list_key(last)) {
        serde_json::map::Entry::Occupied(known) if known.get().is_object() => {
            Err(inconsistent(key))
        }
        entry => {
            let value = Value::String(value);
            match entry {
                serde_json::map::Entry::Occupied(mut known) => drop(known.insert(value)),
                serde_json::map::Entry::Vacant(vacant) => drop(vacant.insert(value)),
            }
            Ok(())
        }
    }
}

/// An index without leading zeros; other fragments as they are.
fn list_key(fragment: &str) -> String {
    if !fragment.is_empty() && fragment.bytes().all(|c| c.is_ascii_digit()) {
        let digits = fragment.trim_start_matches('0');
        return if digits.is_empty() {
            "0".to_owned()
        } else {
            digits.to_owned()
        };
    }
    fragment.to_owned()
}

/// A QAPI name (a downstream prefix included, without its dots), or an index except at the beginning.
fn is_fragment(fragment: &str, first: bool) -> bool {
    let characters = fragment
        .bytes()
        .all(|c| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_'));
    match fragment.bytes().next() {
        Some(c) if c.is_ascii_digit() => !first && fragment.bytes().all(|c| c.is_ascii_digit()),
        Some(c) => characters && (c.is_ascii_alphabetic() || c == b'_'),
        None => false,
    }
}

/// Refuses objects in which some keys are indices and others names.
fn check_lists(object: &Map<String, Value>, prefix: &str) -> Result<(), QmpError> {
    let index = |key: &str| key.bytes().all(|c| c.is_ascii_digit());
    let indices = object.keys().filter(|key| index(key)).count();
    if indices > 0 && indices < object.len() {
        return Err(QmpError::generic(format!(
            "Parameters '{prefix}.*' used inconsistently"
        )));
    }
    for (key, value) in object {
        if let Value::Object(inner) = value {
            let path = if prefix.is_empty() {
                key.clone()
            } else {
                format!("{prefix}.{key}")
            };
            check_lists(inner, &path)?;
        }
    }
    Ok(())
}

/// A size in bytes: decimal with an optional fraction, or `0x` and hexadecimal digits, then one of
/// the suffixes `b k K m M g G t T p P e E`, each 1024 times the one before.
///
/// A fraction needs a suffix other than `b`; what it gives below a byte is cut off. None for
/// anything else and for 2^64 bytes or more.
pub fn parse_size(text: &str) -> Option<u64> {
    let text = text.trim_start_matches([' ', '\t']);
    if let Some(digits) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        let valid = !digits.is_empty() && digits.bytes().all(|c| c.is_ascii_hexdigit());
        return valid
            .then(|| u64::from_str_radix(digits, 16).ok())
            .flatten();
    }
    let (number, suffix) = match text.char_indices().next_back() {
        Some((at, last)) if last.is_ascii_alphabetic() => (text.get(..at)?, Some(last)),
        _ => (text, None),
    };
    let exponent = match suffix.map(|c| c.to_ascii_lowercase()) {
        None | Some('b') => 0,
        Some('k') => 1,
        Some('m') => 2,
        Some('g') => 3,
        Some('t') => 4,
        Some('p') => 5,
        Some('e') => 6,
        Some(_) => return None,
    };
    let unit = 1u128 << (10 * exponent);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = |text: &str| text.bytes().all(|c| c.is_ascii_digit());
    if whole.is_empty() || !digits(whole) || !digits(fraction) || number.ends_with('.') {
        return None;
    }
    if !fraction.is_empty() && unit == 1 {
        return None;
    }
    let bytes = u128::from(whole.parse::<u64>().ok()?).checked_mul(unit)?;
    u64::try_from(bytes.checked_add(fraction_of(fraction, unit))?).ok()
}

/// `0.fraction` of `unit`, cut off. Digits beyond the eighteenth are below a byte of any unit.
fn fraction_of(fraction: &str, unit: u128) -> u128 {
    let mut scale = 1u128;
    let mut numerator = 0u128;
    for digit in fraction.bytes().take(18) {
        numerator = numerator * 10 + u128::from(digit.saturating_sub(b'0'));
        scale *= 10;
    }
    numerator * unit / scale
}
