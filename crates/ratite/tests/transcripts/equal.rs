//! When two answers are the same.

use serde_json::Value;

use super::transcript::Answer;

/// Whether what came is what was expected: the events among themselves, and the replies.
pub fn are_same(expected: &[Answer], came: &[Answer]) -> bool {
    let of = |answers: &[Answer], events: bool| -> Vec<Answer> {
        answers
            .iter()
            .filter(|answer| answer.is_event() == events)
            .cloned()
            .collect()
    };
    [true, false].into_iter().all(|events| {
        let (expected, came) = (of(expected, events), of(came, events));
        expected.len() == came.len()
            && expected
                .iter()
                .zip(&came)
                .all(|(expected, came)| is_same(expected, &came.value))
    })
}

fn is_same(expected: &Answer, came: &Value) -> bool {
    matches(&expected.value, came, expected.has_sets)
}

fn matches(expected: &Value, came: &Value, has_sets: bool) -> bool {
    match (expected, came) {
        (Value::String(any), _) if any == "*" => true,
        (Value::String(expected), Value::String(came)) => {
            expected == came || is_same_json_name(expected, came, has_sets)
        }
        (Value::Object(expected), Value::Object(came)) => {
            expected.len() == came.len()
                && expected.iter().all(|(name, expected)| {
                    came.get(name)
                        .is_some_and(|came| matches(expected, came, has_sets))
                })
        }
        (Value::Array(expected), Value::Array(came)) if has_sets => {
            let mut left: Vec<&Value> = came.iter().collect();
            expected.len() == came.len()
                && expected.iter().all(|expected| {
                    let found = left.iter().position(|came| matches(expected, came, true));
                    found.map(|index| left.remove(index)).is_some()
                })
        }
        (Value::Array(expected), Value::Array(came)) => {
            expected.len() == came.len()
                && expected
                    .iter()
                    .zip(came)
                    .all(|(expected, came)| matches(expected, came, false))
        }
        _ => expected == came,
    }
}

/// Filenames that begin with `json:` are compared as the JSON that follows.
fn is_same_json_name(expected: &str, came: &str, has_sets: bool) -> bool {
    let read =
        |text: &str| -> Option<Value> { serde_json::from_str(text.strip_prefix("json:")?).ok() };
    match (read(expected), read(came)) {
        (Some(expected), Some(came)) => matches(&expected, &came, has_sets),
        _ => false,
    }
}
