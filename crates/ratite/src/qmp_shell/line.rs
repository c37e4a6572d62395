//! What a person types: `command key=value nested.key=value list=[1, 2]`, or a command as JSON.

use qmp_wire::json::StreamParser;
use serde_json::{Map, Value};

use super::introspection::{Introspection, Kind};

/// Deepest dotted path.
pub(crate) const MAX_PATH_SEGMENTS: usize = 32;

/// Longest line that is read when lines do not come from the editor, in bytes.
pub(crate) const MAX_LINE_BYTES: u64 = 64 << 20;

/// A part of a line, and where it begins.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Word<'a> {
    pub(crate) start: usize,
    pub(crate) text: &'a str,
    /// Whether a quote or bracket in it is still open.
    pub(crate) open: bool,
}

/// A command to be run.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct CommandLine {
    pub(crate) name: String,
    pub(crate) arguments: Value,
    pub(crate) oob: bool,
}

/// Splits a line at white space, except within quotes and brackets that begin a value.
pub(crate) fn words(line: &str) -> Vec<Word<'_>> {
    let mut words = Vec::new();
    let mut rest = line;
    let mut at = 0;
    loop {
        let trimmed = rest.trim_start();
        at += rest.len() - trimmed.len();
        if trimmed.is_empty() {
            return words;
        }
        let (length, open) = word_length(trimmed);
        let (text, behind) = trimmed.split_at(length);
        words.push(Word {
            start: at,
            text,
            open,
        });
        at += length;
        rest = behind;
    }
}

/// The length of the first word in bytes, and whether something in it is still open.
fn word_length(text: &str) -> (usize, bool) {
    let mut quote = None;
    let mut escaped = false;
    let mut depth = 0_usize;
    // A value begins the word, or stands behind its first equals sign.
    let mut begins_value = true;
    let mut in_key = true;
    for (at, character) in text.char_indices() {
        match quote {
            Some(_) if escaped => escaped = false,
            Some(_) if character == '\\' => escaped = true,
            Some(ends) if character == ends => quote = None,
            Some(_) => {}
            None => match character {
                '"' | '\'' if begins_value || depth > 0 => quote = Some(character),
                '[' | '{' if begins_value || depth > 0 => depth += 1,
                ']' | '}' => depth = depth.saturating_sub(1),
                _ if depth == 0 && character.is_whitespace() => return (at, false),
                _ => {}
            },
        }
        begins_value = in_key && character == '=';
        in_key = in_key && character != '=';
    }
    (text.len(), quote.is_some() || depth > 0)
}

/// Reads a line that is a command as JSON.
///
/// # Errors
/// What is wrong with it, for people.
pub(crate) fn parse_raw(line: &str) -> Result<CommandLine, String> {
    let value = parse_json(line)?;
    let Value::Object(mut members) = value else {
        return Err("a command in JSON is an object".to_owned());
    };
    let in_band = members.swap_remove("execute");
    let out_of_band = members.swap_remove("exec-oob");
    let arguments = members.swap_remove("arguments").unwrap_or_default();
    // Replies are matched by ids of the client's own.
    members.swap_remove("id");
    if let Some(name) = members.keys().next() {
        return Err(format!("a command has no member '{name}'"));
    }
    let oob = out_of_band.is_some();
    match (in_band, out_of_band) {
        (Some(Value::String(name)), None) | (None, Some(Value::String(name))) => Ok(CommandLine {
            name,
            arguments,
            oob,
        }),
        (None, None) => Err("'execute' or 'exec-oob' is missing".to_owned()),
        (Some(_), Some(_)) => Err("it is either 'execute' or 'exec-oob'".to_owned()),
        _ => Err("a command's name is a string".to_owned()),
    }
}

/// Reads exactly one JSON value; strings may be in single quotes.
///
/// # Errors
/// What is wrong with it, for people.
pub(crate) fn parse_json(text: &str) -> Result<Value, String> {
    let mut parser = StreamParser::new();
    parser.feed(text.as_bytes());
    parser.feed(b"\n");
    let value = parser.next_value().ok_or("the JSON is not complete")?;
    let value = value.map_err(|error| error.to_string())?;
    match parser.next_value() {
        None => Ok(value),
        Some(_) => Err("there is more behind the JSON".to_owned()),
    }
}

/// Reads a command whose parts are split already.
///
/// # Errors
/// What is wrong with it, for people.
pub(crate) fn parse_words(
    name: &str,
    words: &[&str],
    schema: &Introspection,
) -> Result<CommandLine, String> {
    let mut arguments = Value::Object(Map::new());
    let mut plain = Vec::new();
    for word in words {
        if word.starts_with('{') {
            merge(&mut arguments, word)?;
            continue;
        }
        let (path, text) = split_argument(word)
            .ok_or_else(|| format!("'{word}' is no argument: write key=value or {{...}}"))?;
        if path.len() > MAX_PATH_SEGMENTS {
            return Err(format!(
                "'{word}' is nested deeper than {MAX_PATH_SEGMENTS} levels"
            ));
        }
        set(
            &mut arguments,
            &path,
            read_value(text).map_err(|why| format!("'{word}': {why}"))?,
        )?;
        if !is_json_by_its_look(text) {
            plain.push((path, text));
        }
    }
    fit(name, &mut arguments, &plain, schema);
    Ok(CommandLine {
        name: name.to_owned(),
        arguments,
        oob: false,
    })
}

/// Whether words are given for which the schema decides what they are.
pub(crate) fn needs_schema(words: &[&str]) -> bool {
    words
        .iter()
        .any(|word| split_argument(word).is_some_and(|(_, text)| !is_json_by_its_look(text)))
}

/// `a.b=c` in its parts; none when there is no `=`, or a name is empty.
pub(crate) fn split_argument(word: &str) -> Option<(Vec<&str>, &str)> {
    let (key, text) = word.split_once('=')?;
    let path: Vec<&str> = key.split('.').collect();
    let whole = path.iter().all(|segment| !segment.is_empty());
    whole.then_some((path, text))
}

fn is_json_by_its_look(text: &str) -> bool {
    text.starts_with(['{', '[', '"', '\''])
}

/// JSON if it is JSON, else a string.
fn read_value(text: &str) -> Result<Value, String> {
    match parse_json(text) {
        Ok(value) => Ok(value),
        Err(why) if is_json_by_its_look(text) => Err(why),
        Err(_) => Ok(Value::String(text.to_owned())),
    }
}

fn merge(arguments: &mut Value, word: &str) -> Result<(), String> {
    match parse_json(word)? {
        Value::Object(members) => members
            .into_iter()
            .try_for_each(|(key, value)| set(arguments, &[&key], value)),
        _ => Err("arguments in JSON are an object".to_owned()),
    }
}

fn set(arguments: &mut Value, path: &[&str], value: Value) -> Result<(), String> {
    let given_twice = || format!("'{}' is given twice", path.join("."));
    let Some((last, parents)) = path.split_last() else {
        return Ok(());
    };
    let mut here = arguments;
    for segment in parents {
        let members = here.as_object_mut().ok_or_else(given_twice)?;
        here = members
            .entry(*segment)
            .or_insert_with(|| Value::Object(Map::new()));
    }
    let members = here.as_object_mut().ok_or_else(given_twice)?;
    match members.insert((*last).to_owned(), value) {
        None => Ok(()),
        Some(_) => Err(given_twice()),
    }
}

/// Gives values without quotes the type that the server expects: `node-name=0` is a string then,
/// `read-only=on` a boolean, `size=1G` a number.
fn fit(command: &str, arguments: &mut Value, plain: &[(Vec<&str>, &str)], schema: &Introspection) {
    let Some(root) = schema.argument_type(command) else {
        return;
    };
    // Once more, because the value that selects a union's branch may itself need to be fitted.
    for _ in 0..2 {
        for (path, text) in plain {
            let fitted = schema
                .resolve(root, path, Some(arguments))
                .and_then(|type_name| fitted(type_name, text, schema));
            let place = path
                .iter()
                .try_fold(&mut *arguments, |here, name| here.get_mut(*name));
            if let (Some(fitted), Some(place)) = (fitted, place) {
                *place = fitted;
            }
        }
    }
}

/// The text as a value of the type; none if it had better stay what it is.
fn fitted(type_name: &str, text: &str, schema: &Introspection) -> Option<Value> {
    match schema.kind(type_name) {
        Kind::Builtin("string") | Kind::Enum(_) => Some(Value::String(text.to_owned())),
        Kind::Builtin("boolean") => match text {
            "on" | "yes" => Some(Value::Bool(true)),
            "off" | "no" => Some(Value::Bool(false)),
            _ => None,
        },
        Kind::Builtin("int") if text.starts_with(|c: char| c.is_ascii_digit()) => {
            // What is an integer already stays as it is written.
            let already = parse_json(text).is_ok();
            (!already).then(|| api::keyval::parse_size(text).map(Value::from))?
        }
        Kind::Alternate(branches) => fit_alternate(&branches, text, schema),
        _ => None,
    }
}

/// The branch that takes the value as it is comes first; a string is what is left.
fn fit_alternate(branches: &[&str], text: &str, schema: &Introspection) -> Option<Value> {
    let takes = |value: &Value| {
        branches.iter().any(|branch| match schema.kind(branch) {
            Kind::Builtin("int") => value.is_i64() || value.is_u64(),
            Kind::Builtin("number") => value.is_number(),
            Kind::Builtin("boolean") => value.is_boolean(),
            Kind::Builtin("null") => value.is_null(),
            _ => false,
        })
    };
    if parse_json(text).is_ok_and(|value| takes(&value)) {
        return None;
    }
    branches
        .iter()
        .find_map(|branch| fitted(branch, text, schema))
}
