//! `help`: what the server's introspection says of a command, in words.

use std::fmt::Write as _;

use serde_json::Value;

use super::introspection::{Introspection, Kind};
use super::line::parse_words;

/// How many members a help text lists at most.
const MAX_LISTED: usize = 200;
/// How deep a help text follows nested objects.
const MAX_DEPTH: usize = 3;

/// What can be done, and which commands there are.
pub(crate) fn overview(schema: &Introspection) -> String {
    let mut out = String::from(
        "\
COMMAND key=value nested.key=value list=[1,2]   run a command
{\"execute\": \"COMMAND\", \"arguments\": {...}}    the same as JSON
help COMMAND [key=value...]                     its arguments and its result
help EVENT                                      an event's data
quit, Ctrl-D                                    leave (end the server: {\"execute\": \"quit\"})

Values are JSON if they are JSON, and strings else; quotes may be single.
Tab completes commands, arguments and values.

",
    );
    match schema.commands().next() {
        None => out.push_str("The server does not tell which commands it has.\n"),
        Some(_) => columns(&mut out, schema.commands()),
    }
    out
}

/// A command or an event; a union's branch is chosen by the arguments in `words`.
///
/// # Errors
/// When there is no such thing, or the words are no arguments.
pub(crate) fn entity(schema: &Introspection, name: &str, words: &[&str]) -> Result<String, String> {
    let is_command = schema.has_command(name);
    if !is_command && !schema.has_event(name) {
        return Err(format!("the server has no command and no event '{name}'"));
    }
    let given = parse_words(name, words, schema)?.arguments;
    let mut out = format!("{} {name}\n", if is_command { "command" } else { "event" });
    let features = schema.features(name);
    if !features.is_empty() {
        let _ = writeln!(out, "  {}", features.join(", "));
    }
    let mut listing = Listing {
        schema,
        out,
        listed: 0,
    };
    if let Some(arguments) = schema.argument_type(name) {
        listing.members(arguments, "", Some(&given), 0);
    }
    if is_command && listing.listed == 0 {
        listing.out.push_str("  no arguments\n");
    }
    if let Some(returned) = schema.return_type(name) {
        listing.listed = 0;
        listing.returned(returned);
    }
    Ok(listing.out)
}

struct Listing<'a> {
    schema: &'a Introspection,
    out: String,
    listed: usize,
}

impl Listing<'_> {
    fn members(&mut self, type_name: &str, prefix: &str, given: Option<&Value>, depth: usize) {
        let tag = self.schema.tag(type_name);
        for member in self.schema.members(type_name, given) {
            self.listed += 1;
            if self.listed > MAX_LISTED {
                if self.listed == MAX_LISTED + 1 {
                    self.out.push_str("  ...\n");
                }
                return;
            }
            let path = format!("{prefix}{}", member.name);
            let optional = if member.optional { " (optional)" } else { "" };
            let shown = self.schema.describe(member.type_name);
            let _ = writeln!(self.out, "  {path}: {shown}{optional}");
            let inner = given.and_then(|value| value.get(member.name));
            if tag == Some(member.name) && inner.is_none() {
                let _ = writeln!(
                    self.out,
                    "    more arguments by its value: help ... {path}=VALUE"
                );
            }
            // Alternates and lists are followed only where the reader asks by giving a value.
            let follow = match self.schema.kind(member.type_name) {
                Kind::Object => depth + 1 < MAX_DEPTH,
                _ => inner.is_some_and(Value::is_object),
            };
            if follow && let Some(object) = self.schema.object_type(member.type_name) {
                self.members(object, &format!("{path}."), inner, depth + 1);
            }
        }
    }

    fn returned(&mut self, type_name: &str) {
        let (type_name, many) = match self.schema.kind(type_name) {
            Kind::Array(element) => (element, "a list of "),
            _ => (type_name, ""),
        };
        let objects = if many.is_empty() {
            "an object with"
        } else {
            "objects with"
        };
        match self.schema.kind(type_name) {
            Kind::Object if self.schema.members(type_name, None).is_empty() => {
                let _ = writeln!(self.out, "returns {many}{{}}");
            }
            Kind::Object => {
                let _ = writeln!(self.out, "returns {many}{objects}");
                self.members(type_name, "", None, MAX_DEPTH);
            }
            _ => {
                let _ = writeln!(
                    self.out,
                    "returns {many}{}",
                    self.schema.describe(type_name)
                );
            }
        }
    }
}

fn columns<'a>(out: &mut String, names: impl Iterator<Item = &'a str>) {
    const WIDTH: usize = 96;
    let names: Vec<&str> = names.collect();
    let column = names.iter().map(|name| name.len()).max().unwrap_or(0) + 2;
    for row in names.chunks((WIDTH / column).max(1)) {
        let line: String = row.iter().map(|name| format!("{name:<column$}")).collect();
        let _ = writeln!(out, "{}", line.trim_end());
    }
}
