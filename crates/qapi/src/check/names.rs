//! The naming rules.

use std::collections::HashMap;

use crate::source::{Position, Problem, Problems};

/// What a name is for; the rules differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NameOf {
    Type,
    Command,
    Event,
    Member,
    EnumValue,
    Feature,
    Branch,
}

/// How strict the rules are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Strictness {
    /// All rules.
    Full,
    /// Upper case and `_` are allowed: a pragma lists the definition, or the file is of an old era.
    Relaxed,
}

impl NameOf {
    fn noun(self) -> &'static str {
        match self {
            Self::Type => "type",
            Self::Command => "command",
            Self::Event => "event",
            Self::Member => "member",
            Self::EnumValue => "enum value",
            Self::Feature => "feature",
            Self::Branch => "branch",
        }
    }
}

/// The name without a downstream prefix `__RFQDN_`.
fn without_downstream_prefix(name: &str) -> Option<&str> {
    let Some(rest) = name.strip_prefix("__") else {
        return Some(name);
    };
    let (domain, stem) = rest.split_once('_')?;
    let valid = !domain.is_empty()
        && domain
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-'));
    valid.then_some(stem)
}

/// Checks one name.
pub(super) fn check_name(
    name: &str,
    of: NameOf,
    strictness: Strictness,
    position: Position,
    problems: &mut Problems,
) {
    if let Err(problem) = rule(name, of, strictness, position) {
        problems.add(problem);
    }
}

fn rule(name: &str, of: NameOf, strictness: Strictness, position: Position) -> Result<(), Problem> {
    let noun = of.noun();
    let invalid = || {
        Problem::new(position, format!("{noun} name '{name}' is invalid"))
            .hint("a name begins with a letter and has only ASCII letters, digits, '-' and '_'")
    };
    let stem = without_downstream_prefix(name).ok_or_else(invalid)?;
    let first = stem.chars().next().ok_or_else(invalid)?;
    let digit_first = matches!(of, NameOf::EnumValue | NameOf::Branch) && first.is_ascii_digit();
    let characters = stem
        .chars()
        .all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'));
    if !(first.is_ascii_alphabetic() || digit_first) || !characters {
        return Err(invalid());
    }
    if stem.starts_with("q_") || stem.starts_with("q-") {
        return Err(
            Problem::new(position, format!("{noun} name '{name}' is reserved"))
                .hint("names beginning with 'q_' belong to the generator"),
        );
    }
    match of {
        NameOf::Type => type_rule(name, stem, position),
        NameOf::Event => {
            let fits = stem
                .chars()
                .all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_');
            if fits {
                return Ok(());
            }
            Err(Problem::new(
                position,
                format!("event name '{name}' is not in upper case"),
            )
            .hint("event names are ALL_CAPS with words separated by '_'"))
        }
        _ => word_rule(name, stem, of, strictness, position),
    }
}

fn type_rule(name: &str, stem: &str, position: Position) -> Result<(), Problem> {
    let camel = stem.starts_with(|c: char| c.is_ascii_uppercase())
        && stem.chars().all(|c| c.is_ascii_alphanumeric())
        && stem.chars().any(|c| c.is_ascii_lowercase());
    if !camel {
        return Err(Problem::new(
            position,
            format!("type name '{name}' is not in CamelCase"),
        ));
    }
    if stem.ends_with("List") {
        return Err(
            Problem::new(position, format!("type name '{name}' is reserved"))
                .hint("names ending in 'List' are those of array types"),
        );
    }
    Ok(())
}

/// Lower case with words separated by hyphens.
fn word_rule(
    name: &str,
    stem: &str,
    of: NameOf,
    strictness: Strictness,
    position: Position,
) -> Result<(), Problem> {
    if of == NameOf::Member {
        let folded = stem.replace('-', "_");
        if folded == "u" || folded.starts_with("has_") {
            return Err(
                Problem::new(position, format!("member name '{name}' is reserved"))
                    .hint("'u' and names beginning with 'has-' belong to the generator"),
            );
        }
    }
    if strictness == Strictness::Relaxed {
        return Ok(());
    }
    let pragma = match of {
        NameOf::Command => "command-name-exceptions",
        _ => "member-name-exceptions",
    };
    // Upper case never is allowed in a command; '_' only by exception.
    let wrong = stem.chars().find(|c| c.is_ascii_uppercase() || *c == '_');
    match wrong {
        None => Ok(()),
        Some(c) => {
            let problem = Problem::new(
                position,
                format!("{} name '{name}' must not have '{c}'", of.noun()),
            );
            Err(match of {
                NameOf::Feature => problem.hint("names are lower case with words separated by '-'"),
                _ => problem.hint(format!(
                    "names are lower case with words separated by '-', unless pragma '{pragma}' lists the definition"
                )),
            })
        }
    }
}

/// Names that would be the same in generated code, where `-`, `.` and `_` are one.
#[derive(Debug, Default)]
pub(super) struct Namespace {
    seen: HashMap<String, String>,
}

impl Namespace {
    /// Adds a name, or says which earlier one it collides with.
    pub fn add(&mut self, what: &str, name: &str, position: Position, problems: &mut Problems) {
        let folded = name.replace(['-', '.'], "_");
        match self.seen.get(&folded) {
            Some(first) if first == name => {
                problems.at(position, format!("{what} '{name}' is defined twice"));
            }
            Some(first) => {
                problems.at(position, format!("{what} '{name}' collides with '{first}'"))
            }
            None => {
                self.seen.insert(folded, name.to_owned());
            }
        }
    }
}
