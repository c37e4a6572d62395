//! The `if` keys.

use super::Checker;
use crate::parser::{Entry, Expr, ExprValue};
use crate::schema::Condition;
use crate::source::Problem;

impl Checker {
    /// The condition at a key `if`.
    pub(super) fn condition(&mut self, entry: Option<&Entry>) -> Option<Condition> {
        let entry = entry?;
        match parse(&entry.value) {
            Ok(condition) => Some(condition),
            Err(problem) => {
                self.problems.add(problem);
                None
            }
        }
    }
}

/// Recursion is bounded by the parser's nesting limit.
fn parse(expr: &Expr) -> Result<Condition, Problem> {
    let position = expr.position;
    match &expr.value {
        ExprValue::String(name) => {
            let first = name.starts_with(|c: char| c.is_ascii_uppercase());
            let rest = name
                .chars()
                .all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_');
            if first && rest {
                return Ok(Condition::Name(name.clone()));
            }
            Err(Problem::new(
                position,
                format!("'if' condition '{name}' is not a valid identifier"),
            )
            .hint("condition names are ALL_CAPS with words separated by '_'"))
        }
        ExprValue::Object(entries) => match entries.as_slice() {
            [entry] => operator(entry),
            _ => Err(
                Problem::new(position, "'if' condition object must have exactly one key")
                    .hint("expected 'all', 'any' or 'not'"),
            ),
        },
        _ => Err(Problem::new(
            position,
            "'if' condition must be a string or an object",
        )),
    }
}

fn operator(entry: &Entry) -> Result<Condition, Problem> {
    match entry.key.as_str() {
        "not" => Ok(Condition::Not(Box::new(parse(&entry.value)?))),
        "all" => Ok(Condition::All(operands(entry)?)),
        "any" => Ok(Condition::Any(operands(entry)?)),
        key => Err(
            Problem::new(entry.key_position, format!("unknown 'if' operator '{key}'"))
                .hint("expected 'all', 'any' or 'not'"),
        ),
    }
}

fn operands(entry: &Entry) -> Result<Vec<Condition>, Problem> {
    match &entry.value.value {
        ExprValue::List(list) if !list.is_empty() => list.iter().map(parse).collect(),
        _ => Err(Problem::new(
            entry.value.position,
            format!("'{}' condition must be a non-empty array", entry.key),
        )),
    }
}
