//! Schema text, in any of the three dialects.

use std::collections::{BTreeSet, HashSet};

use qapi::{Dialect, Options, Pending, Schema, SourceLoader};
use serde_json::Value;

/// Files in one input: `s0` is the schema, the others can be included.
struct Files<'a>(Vec<&'a [u8]>);

impl SourceLoader for Files<'_> {
    fn load(&self, path: &str) -> Result<Vec<u8>, String> {
        let number: Option<usize> = path.strip_prefix('s').and_then(|n| n.parse().ok());
        number
            .and_then(|number| self.0.get(number))
            .map(|text| text.to_vec())
            .ok_or_else(|| "no such file".to_owned())
    }
}

/// NUL bytes part the input into files, which include each other as `s1`, `s2`, ...
pub fn qapi_text(data: &[u8]) {
    let files = Files(data.split(|&byte| byte == 0).collect());
    for dialect in [
        None,
        Some(Dialect::Era1_2),
        Some(Dialect::Era2_11),
        Some(Dialect::Modern),
    ] {
        let options = Options { dialect };
        let first = qapi::load(&files, "s0", &options);
        let second = qapi::load(&files, "s0", &options);
        match (first, second) {
            (Ok(first), Ok(second)) => use_schema(&first, &second),
            (Err(first), Err(second)) => {
                assert_eq!(first, second);
                assert!(!first.to_string().is_empty(), "a refusal says why");
            }
            (first, second) => panic!("loaded once {first:?}, once {second:?}"),
        }
    }
}

fn use_schema(first: &Schema, second: &Schema) {
    assert_eq!(first.summary(), second.summary());
    let everything = qapi::introspect::introspect(first);
    assert_eq!(everything, qapi::introspect::introspect(second));
    check_closed(&everything);
    let text = qapi::introspect::pretty(&everything);
    assert!(text.is_ascii());
    let read: Value = serde_json::from_str(&text).expect("introspection is JSON");
    assert_eq!(read, everything);
    assert_eq!(
        qapi::markdown::markdown(first),
        qapi::markdown::markdown(second)
    );
    let restricted = first.restrict(&BTreeSet::new(), &Pending::default());
    if let Ok(restricted) = restricted {
        check_closed(&qapi::introspect::introspect(&restricted));
        match (
            qapi_codegen::generate(&restricted, None, &[]),
            qapi_codegen::generate(&restricted, None, &[]),
        ) {
            (Ok(first), Ok(second)) => assert_eq!(first, second),
            (first, second) => assert!(first.is_err() && second.is_err()),
        }
    }
}

/// Every type that is named is described, once.
fn check_closed(introspection: &Value) {
    let entries = introspection.as_array().expect("introspection is a list");
    let text = |entry: &Value, key: &str| entry[key].as_str().map(str::to_owned);
    let mut described = HashSet::new();
    let mut named = HashSet::new();
    for entry in entries {
        let meta_type = text(entry, "meta-type").expect("an entry has a meta-type");
        let name = text(entry, "name").expect("an entry has a name");
        if meta_type != "command" && meta_type != "event" {
            assert!(
                described.insert(name.clone()),
                "'{name}' is described twice"
            );
        }
        named.extend(text(entry, "arg-type"));
        named.extend(text(entry, "ret-type"));
        named.extend(text(entry, "element-type"));
        for list in ["members", "variants"] {
            for part in entry[list].as_array().into_iter().flatten() {
                named.extend(text(part, "type"));
            }
        }
    }
    for name in named {
        assert!(described.contains(&name), "type '{name}' is not described");
    }
}
