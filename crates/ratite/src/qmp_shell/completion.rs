//! What could come next on a line, by the server's own introspection.

use serde_json::Value;

use super::introspection::{Introspection, Kind, Member};
use super::line::{Word, parse_words, split_argument, words};

/// The shell's own words, which stand where a command does.
pub(crate) const SHELL_WORDS: &[&str] = &["help", "quit"];

/// Something that could stand at the cursor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Proposal {
    /// What replaces the text from the start that [`complete`] returns.
    pub(crate) text: String,
    /// What a list of proposals shows.
    pub(crate) shown: String,
}

/// Proposals for the end of `line`, and where on the line they begin.
pub(crate) fn complete(schema: &Introspection, line: &str) -> (usize, Vec<Proposal>) {
    let mut parts = words(line);
    let ends_word = line.ends_with(char::is_whitespace) && !parts.last().is_some_and(|w| w.open);
    if ends_word || parts.is_empty() {
        parts.push(Word {
            start: line.len(),
            text: "",
            open: false,
        });
    }
    let Some((last, before)) = parts.split_last() else {
        return (line.len(), Vec::new());
    };
    let proposals = match before.split_first() {
        None => commands(schema, last.text, true),
        Some((first, [])) if first.text == "help" => {
            let mut proposals = commands(schema, last.text, false);
            proposals.extend(
                schema
                    .events()
                    .filter(|n| n.starts_with(last.text))
                    .map(whole_word),
            );
            proposals
        }
        Some((first, given)) => {
            let (command, given) = match (first.text, given.split_first()) {
                ("help", Some((command, given))) => (command.text, given),
                _ => (first.text, given),
            };
            return in_arguments(schema, command, given, last);
        }
    };
    (last.start, proposals)
}

/// What a command still needs, for a hint behind the cursor.
pub(crate) fn missing(schema: &Introspection, line: &str) -> Option<String> {
    if !line.ends_with(' ') || line.starts_with(char::is_whitespace) {
        return None;
    }
    let parts = words(line);
    let (command, given) = parts.split_first()?;
    let arguments = given_so_far(schema, command.text, given);
    let members = schema.members(schema.argument_type(command.text)?, Some(&arguments));
    let needed: Vec<String> = members
        .iter()
        .filter(|member| !member.optional && arguments.get(member.name).is_none())
        .map(|member| format!("{}=<{}>", member.name, short(schema, member.type_name)))
        .collect();
    (!needed.is_empty()).then(|| needed.join(" "))
}

fn short(schema: &Introspection, type_name: &str) -> String {
    const MAX_CHARACTERS: usize = 32;
    let full = schema.describe(type_name);
    match full.char_indices().nth(MAX_CHARACTERS) {
        Some((at, _)) => format!("{}...", full.get(..at).unwrap_or_default()),
        None => full,
    }
}

fn whole_word(name: &str) -> Proposal {
    Proposal {
        text: format!("{name} "),
        shown: name.to_owned(),
    }
}

fn commands(schema: &Introspection, prefix: &str, with_own: bool) -> Vec<Proposal> {
    let own = SHELL_WORDS.iter().copied().filter(|_| with_own);
    // The server's `quit` has the same name as the shell's.
    let commands = schema
        .commands()
        .filter(|name| !with_own || !SHELL_WORDS.contains(name));
    own.chain(commands)
        .filter(|name| name.starts_with(prefix))
        .map(whole_word)
        .collect()
}

/// The arguments that the words before give; words that are not finished or wrong count for nothing.
fn given_so_far(schema: &Introspection, command: &str, given: &[Word<'_>]) -> Value {
    let mut texts: Vec<&str> = Vec::new();
    for word in given {
        texts.push(word.text);
        if parse_words(command, &texts, schema).is_err() {
            texts.pop();
        }
    }
    parse_words(command, &texts, schema)
        .map(|line| line.arguments)
        .unwrap_or_default()
}

fn in_arguments(
    schema: &Introspection,
    command: &str,
    given: &[Word<'_>],
    last: &Word<'_>,
) -> (usize, Vec<Proposal>) {
    let nothing = (last.start, Vec::new());
    let Some(root) = schema.argument_type(command) else {
        return nothing;
    };
    let arguments = given_so_far(schema, command, given);
    if let Some((path, text)) = split_argument(last.text) {
        let values = match schema.resolve(root, &path, Some(&arguments)) {
            Some(type_name) => values(schema, type_name, 0),
            None => Vec::new(),
        };
        let matching = values.into_iter().filter(|value| value.starts_with(text));
        let start = last.start + last.text.len() - text.len();
        return (start, matching.map(whole_word).collect());
    }
    let (parent, prefix) = last.text.rsplit_once('.').unwrap_or(("", last.text));
    let path: Vec<&str> = parent
        .split('.')
        .filter(|segment| !segment.is_empty())
        .collect();
    let within = path
        .iter()
        .try_fold(&arguments, |here, name| here.get(*name));
    let Some(object) = schema
        .resolve(root, &path, Some(&arguments))
        .and_then(|type_name| schema.object_type(type_name))
    else {
        return nothing;
    };
    let mut members = schema.members(object, within);
    members.retain(|member| member.name.starts_with(prefix));
    members.sort_by_key(|member| (member.optional, member.name));
    let proposals = members
        .iter()
        .flat_map(|member| keys(schema, member, within))
        .collect();
    (last.start + last.text.len() - prefix.len(), proposals)
}

/// `name=` for what takes a value, `name.` for what has members.
fn keys(schema: &Introspection, member: &Member<'_>, within: Option<&Value>) -> Vec<Proposal> {
    let given = within.and_then(|value| value.get(member.name));
    let key = |sign: char| Proposal {
        text: format!("{}{sign}", member.name),
        shown: format!("{}{sign}", member.name),
    };
    let nested = schema.object_type(member.type_name).is_some();
    let value = !nested || matches!(schema.kind(member.type_name), Kind::Alternate(_));
    let mut keys = Vec::new();
    if value && given.is_none() {
        keys.push(key('='));
    }
    if nested && given.is_none_or(Value::is_object) {
        keys.push(key('.'));
    }
    keys
}

/// The values that can be listed.
fn values<'a>(schema: &'a Introspection, type_name: &'a str, depth: usize) -> Vec<&'a str> {
    match schema.kind(type_name) {
        Kind::Enum(values) => values,
        Kind::Builtin("boolean") => vec!["true", "false"],
        Kind::Builtin("null") => vec!["null"],
        Kind::Alternate(branches) if depth == 0 => branches
            .into_iter()
            .flat_map(|branch| values(schema, branch, 1))
            .collect(),
        _ => Vec::new(),
    }
}
