//! Arbitrary bytes, and good schemas with something changed: never a panic.

use proptest::prelude::*;

use super::good::{ERA_1_2, ERA_2_11, MODERN};
use crate::{Dialect, Options, SourceLoader, introspect, load, markdown};

struct Bytes(Vec<u8>);

impl SourceLoader for Bytes {
    fn load(&self, _: &str) -> Result<Vec<u8>, String> {
        Ok(self.0.clone())
    }
}

/// Goes through every phase with every dialect; says whether any took the text.
fn all_phases(bytes: &[u8]) -> bool {
    let mut taken = false;
    for dialect in [
        None,
        Some(Dialect::Modern),
        Some(Dialect::Era2_11),
        Some(Dialect::Era1_2),
    ] {
        let loader = Bytes(bytes.to_vec());
        if let Ok(schema) = load(&loader, "s.json", &Options { dialect }) {
            taken = true;
            let _ = introspect::compact(&introspect::introspect(&schema));
            let _ = markdown::markdown(&schema);
        }
    }
    taken
}

#[test]
fn good_schemas_are_taken() {
    for text in [MODERN, ERA_2_11, ERA_1_2] {
        assert!(all_phases(text.as_bytes()));
    }
}

#[test]
fn what_is_not_text_has_a_position() {
    let loader = Bytes(b"{ 'enum':\n '\xff".to_vec());
    let error = load(&loader, "s.json", &Options::default()).unwrap_err();
    assert_eq!(error.to_string(), "s.json:2:3: not UTF-8 text");
}

#[test]
fn size_is_bounded() {
    let loader = Bytes(vec![b' '; crate::source::FILE_BYTES_MAX + 1]);
    let error = load(&loader, "s.json", &Options::default()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "s.json:1:1: cannot read the file: it is larger than 16777216 bytes"
    );
    // An endless chain of files, each including another.
    struct Chain;
    impl SourceLoader for Chain {
        fn load(&self, path: &str) -> Result<Vec<u8>, String> {
            Ok(format!("{{ 'include': 'x{path}' }}").into_bytes())
        }
    }
    let error = load(&Chain, "s", &Options::default()).unwrap_err();
    assert!(
        error
            .to_string()
            .ends_with("includes nested deeper than 64 levels"),
        "{error}"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        all_phases(&bytes);
    }

    #[test]
    fn any_tokens(words in proptest::collection::vec(
        prop::sample::select(vec![
            "{", "}", "[", "]", ":", ",", "'enum'", "'struct'", "'type'", "'union'", "'data'", "'base'",
            "'command'", "'event'", "'Foo'", "'Bar'", "'a'", "'*a'", "'int'", "true", "false", "'if'",
            "'discriminator'", "'alternate'", "'returns'", "'features'", "##\n", "# @Foo:\n", "#\n",
            "# Features:\n", "# @a: x\n", "'pragma'", "'include'", "'s.json'", "'**'", "\n",
        ]), 0..60)) {
        all_phases(words.concat().as_bytes());
    }

    /// Bytes replaced, taken out, or doubled in a good schema.
    #[test]
    fn changed_schemas(
        which in 0usize..3,
        edits in proptest::collection::vec((any::<prop::sample::Index>(), 0u8..4, any::<u8>()), 1..6),
    ) {
        let mut bytes = [MODERN, ERA_2_11, ERA_1_2][which].as_bytes().to_vec();
        for (at, how, byte) in edits {
            let at = at.index(bytes.len());
            match how {
                0 => bytes[at] = byte,
                1 => drop(bytes.remove(at)),
                2 => bytes.truncate(at.max(1)),
                _ => bytes.insert(at, bytes[at]),
            }
            if bytes.is_empty() {
                break;
            }
        }
        all_phases(&bytes);
    }
}
