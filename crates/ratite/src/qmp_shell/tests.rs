//! Lines, completion, help and output, without a server: introspection is our own schema's.

use std::sync::LazyLock;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::completion::{complete, missing};
use super::explain;
use super::introspection::{Introspection, Kind};
use super::line::{CommandLine, parse_json, parse_raw, parse_words, words};
use super::render::{Look, printable};

static SCHEMA: LazyLock<Introspection> =
    LazyLock::new(|| Introspection::new(serde_json::from_str(api::INTROSPECTION).unwrap()));

/// As QEMU 2.8 told of a command: enums without `members`, no features.
fn old_schema() -> Introspection {
    Introspection::new(json!([
        {"name": "eject", "meta-type": "command", "arg-type": "1", "ret-type": "0"},
        {"name": "0", "meta-type": "object", "members": []},
        {"name": "1", "meta-type": "object", "members": [
            {"name": "device", "type": "str"},
            {"name": "mode", "type": "2", "default": null},
            {"name": "force", "type": "bool", "default": null},
            {"name": "when", "type": "3", "default": null},
        ]},
        {"name": "2", "meta-type": "enum", "values": ["soft", "hard"]},
        {"name": "3", "meta-type": "alternate", "members": [{"type": "int"}, {"type": "str"}]},
        {"name": "str", "meta-type": "builtin", "json-type": "string"},
        {"name": "int", "meta-type": "builtin", "json-type": "int"},
        {"name": "bool", "meta-type": "builtin", "json-type": "boolean"},
        {"meta-type": "command"}, 5,
    ]))
}

fn arguments(schema: &Introspection, line: &str) -> Result<Value, String> {
    let parts = words(line);
    let texts: Vec<&str> = parts.iter().map(|word| word.text).collect();
    let (name, rest) = texts.split_first().unwrap();
    parse_words(name, rest, schema).map(|command| command.arguments)
}

#[test]
fn words_end_at_spaces_outside_quotes_and_brackets_of_values() {
    for (line, expected) in [
        ("", &[][..]),
        ("  a  b ", &["a", "b"]),
        (
            "a k=v x='a b' y=\"c \\\" d\"",
            &["a", "k=v", "x='a b'", "y=\"c \\\" d\""],
        ),
        (
            "a l=[1, 2] o={'b': [3, ' ]']} z",
            &["a", "l=[1, 2]", "o={'b': [3, ' ]']}", "z"],
        ),
        ("a f=it's g=[ok h", &["a", "f=it's", "g=[ok h"]),
        ("a k=b='c d'", &["a", "k=b='c", "d'"]),
        ("a {'x': 1} k=]", &["a", "{'x': 1}", "k=]"]),
    ] {
        let found: Vec<&str> = words(line).iter().map(|word| word.text).collect();
        assert_eq!(found, expected, "{line}");
    }
    assert!(words("a k='b").last().unwrap().open);
    assert!(!words("a k='b'").last().unwrap().open);
}

#[test]
fn arguments_without_a_schema_are_json_if_they_are_json() {
    let none = Introspection::default();
    for (line, expected) in [
        ("c", json!({})),
        (
            "c a=1 b=-2 c=1.5 d=true e=null",
            json!({"a": 1, "b": -2, "c": 1.5, "d": true, "e": null}),
        ),
        (
            "c a=x b= c=18446744073709551615",
            json!({"a": "x", "b": "", "c": u64::MAX}),
        ),
        (
            "c a.b.c=1 a.d='x y'",
            json!({"a": {"b": {"c": 1}, "d": "x y"}}),
        ),
        (
            "c l=[1, 'two', {\"three\": 3}]",
            json!({"l": [1, "two", {"three": 3}]}),
        ),
        ("c {'a': 1} b=2", json!({"a": 1, "b": 2})),
        (
            "c f=a=b g=/dev/x:y h=1K",
            json!({"f": "a=b", "g": "/dev/x:y", "h": "1K"}),
        ),
        ("c n='5' m=\"true\"", json!({"n": "5", "m": "true"})),
    ] {
        assert_eq!(arguments(&none, line), Ok(expected), "{line}");
    }
}

#[test]
fn arguments_take_the_type_that_the_server_expects() {
    let old = old_schema();
    for (line, expected) in [
        (
            "eject device=5 force=on",
            json!({"device": "5", "force": true}),
        ),
        (
            "eject device=true mode=hard force=false",
            json!({"device": "true", "mode": "hard", "force": false}),
        ),
        (
            "eject device=null when=7",
            json!({"device": "null", "when": 7}),
        ),
        (
            "eject device={'a':1} when=never",
            json!({"device": {"a": 1}, "when": "never"}),
        ),
        ("eject unknown=5", json!({"unknown": 5})),
        ("none-such device=5", json!({"device": 5})),
    ] {
        assert_eq!(arguments(&old, line), Ok(expected), "{line}");
    }
    for (line, expected) in [
        (
            "blockdev-add driver=null-co node-name=0 size=1G read-only=on",
            json!({"driver": "null-co", "node-name": "0", "size": 1 << 30, "read-only": true}),
        ),
        (
            // The branch is chosen by a word that comes last.
            "blockdev-add file.filename=7 file.driver=file node-name=1 driver=qcow2 l2-cache-size=1M",
            json!({
                "file": {"filename": "7", "driver": "file"},
                "node-name": "1", "driver": "qcow2", "l2-cache-size": 1 << 20,
            }),
        ),
        (
            // An alternate of an object, a string and null.
            "blockdev-add driver=qcow2 file=3 backing=null",
            json!({"driver": "qcow2", "file": "3", "backing": null}),
        ),
    ] {
        assert_eq!(arguments(&SCHEMA, line), Ok(expected), "{line}");
    }
}

#[test]
fn lines_that_make_no_sense_are_explained() {
    let none = Introspection::default();
    let deep = format!("c {}=1", vec!["a"; 33].join("."));
    for (line, expected) in [
        ("c word", "'word' is no argument: write key=value or {...}"),
        ("c =1", "'=1' is no argument: write key=value or {...}"),
        (
            "c a..b=1",
            "'a..b=1' is no argument: write key=value or {...}",
        ),
        ("c a=1 a=2", "'a' is given twice"),
        ("c a=1 a.b=2", "'a.b' is given twice"),
        ("c a=[1", "'a=[1': the JSON is not complete"),
        ("c a=[1,]", "'a=[1,]': JSON parse error, expecting value"),
        ("c {'a':1} a=2", "'a' is given twice"),
        (&deep, "is nested deeper than 32 levels"),
    ] {
        let error = arguments(&none, line).unwrap_err();
        assert!(error.ends_with(expected), "{line}: {error}");
    }
}

#[test]
fn commands_in_json_are_read_as_servers_read_them() {
    let command = |name: &str, arguments, oob| CommandLine {
        name: name.to_owned(),
        arguments,
        oob,
    };
    for (line, expected) in [
        ("{'execute': 'a'}", Ok(command("a", Value::Null, false))),
        (
            r#"{"exec-oob": "b", "arguments": {"c": 1}, "id": 9}"#,
            Ok(command("b", json!({"c": 1}), true)),
        ),
        ("{}", Err("'execute' or 'exec-oob' is missing")),
        ("{'execute': 1}", Err("a command's name is a string")),
        (
            "{'execute': 'a', 'exec-oob': 'a'}",
            Err("it is either 'execute' or 'exec-oob'"),
        ),
        (
            "{'execute': 'a', 'x': 1}",
            Err("a command has no member 'x'"),
        ),
        ("{'execute': 'a'", Err("the JSON is not complete")),
        ("{'execute': 'a'} {}", Err("there is more behind the JSON")),
        ("[]", Err("a command in JSON is an object")),
    ] {
        assert_eq!(parse_raw(line), expected.map_err(str::to_owned), "{line}");
    }
}

/// The proposals for `line`, each put in its place.
fn completed(schema: &Introspection, line: &str) -> Vec<String> {
    let (start, proposals) = complete(schema, line);
    proposals
        .iter()
        .map(|proposal| format!("{}{}", &line[..start], proposal.text))
        .collect()
}

#[test]
fn commands_arguments_and_values_are_completed() {
    let old = old_schema();
    for (line, expected) in [
        ("", &["help ", "quit ", "eject "][..]),
        ("e", &["eject "]),
        ("help e", &["help eject "]),
        (
            "eject ",
            &[
                "eject device=",
                "eject force=",
                "eject mode=",
                "eject when=",
            ],
        ),
        ("eject d", &["eject device="]),
        ("eject device=x f", &["eject device=x force="]),
        ("eject device=x d", &[]),
        ("eject mode=", &["eject mode=soft ", "eject mode=hard "]),
        ("eject mode=h", &["eject mode=hard "]),
        ("eject force=t", &["eject force=true "]),
        (
            "eject device='a b' mode=s",
            &["eject device='a b' mode=soft "],
        ),
        ("eject device='a ", &[]),
        ("none-such ", &[]),
        ("eject device.", &[]),
        ("{\"execute\": ", &[]),
    ] {
        assert_eq!(completed(&old, line), expected, "{line}");
    }
}

#[test]
fn completion_follows_unions_and_nested_arguments() {
    let all = completed(&SCHEMA, "blockdev-add ");
    assert_eq!(all.first().unwrap(), "blockdev-add driver=");
    assert!(!all.iter().any(|line| line.ends_with("lazy-refcounts=")));
    let of_qcow2 = completed(&SCHEMA, "blockdev-add driver=qcow2 ");
    assert!(
        of_qcow2
            .iter()
            .any(|line| line.ends_with(" lazy-refcounts="))
    );
    assert!(of_qcow2.iter().any(|line| line.ends_with(" file=")));
    assert!(of_qcow2.iter().any(|line| line.ends_with(" file.")));
    assert_eq!(
        completed(
            &SCHEMA,
            "blockdev-add driver=qcow2 file.driver=file file.filen"
        ),
        ["blockdev-add driver=qcow2 file.driver=file file.filename="]
    );
    assert!(
        completed(&SCHEMA, "blockdev-add driver=q")
            .contains(&"blockdev-add driver=qcow2 ".to_owned())
    );
    // A file that is given by its name has no members to be completed any more.
    assert_eq!(
        completed(&SCHEMA, "blockdev-add driver=qcow2 file=x fil"),
        [""; 0]
    );
}

#[test]
fn the_hint_names_what_is_still_needed() {
    let old = old_schema();
    for (line, expected) in [
        ("eject ", Some("device=<str>")),
        ("eject mode=soft ", Some("device=<str>")),
        ("eject device=x ", None),
        ("eject", None),
        ("none-such ", None),
    ] {
        assert_eq!(missing(&old, line).as_deref(), expected, "{line}");
    }
}

#[test]
fn help_lists_arguments_by_the_branch_that_is_given() {
    let text = explain::entity(&old_schema(), "eject", &[]).unwrap();
    assert_eq!(
        text,
        "\
command eject
  device: str
  mode: soft|hard (optional)
  force: bool (optional)
  when: int or str (optional)
returns {}
"
    );
    let union = explain::entity(&SCHEMA, "blockdev-add", &[]).unwrap();
    assert!(!union.contains("lazy-refcounts"), "{union}");
    assert!(union.contains("help ... driver=VALUE"), "{union}");
    let branch = explain::entity(&SCHEMA, "blockdev-add", &["driver=qcow2"]).unwrap();
    assert!(
        branch.contains("  lazy-refcounts: bool (optional)\n"),
        "{branch}"
    );
    let event = explain::entity(&SCHEMA, "JOB_STATUS_CHANGE", &[]).unwrap();
    assert!(
        event.starts_with("event JOB_STATUS_CHANGE\n  id: str\n"),
        "{event}"
    );
    assert!(explain::entity(&SCHEMA, "none-such", &[]).is_err());
    assert!(explain::overview(&SCHEMA).contains("query-version"));
}

#[test]
fn types_that_contain_themselves_come_to_an_end() {
    let schema = Introspection::new(json!([
        {"name": "c", "meta-type": "command", "arg-type": "1", "ret-type": "1"},
        {"name": "1", "meta-type": "object", "tag": "t", "members": [
            {"name": "t", "type": "2"}, {"name": "again", "type": "1"},
        ], "variants": [{"case": "x", "type": "1"}]},
        {"name": "2", "meta-type": "enum", "values": ["x"]},
        {"name": "3", "meta-type": "array", "element-type": "3"},
        {"name": "4", "meta-type": "alternate", "members": [{"type": "4"}, {"type": "4"}]},
    ]));
    assert!(!complete(&schema, "c t=x a").1.is_empty());
    assert!(
        explain::entity(&schema, "c", &["t=x"])
            .unwrap()
            .lines()
            .count()
            < 500
    );
    assert_eq!(schema.kind("3"), Kind::Array("3"));
    assert!(schema.describe("3").len() < 100);
    assert!(schema.describe("4").len() < 10_000);
}

#[test]
fn values_stand_on_one_line_as_long_as_they_fit() {
    let look = Look::PLAIN;
    assert_eq!(
        look.value(&json!({"a": [1, null], "b": {}})),
        r#"{"a": [1, null], "b": {}}"#
    );
    let long = "x".repeat(100);
    let value = json!({"a": [long], "b": [1, 2], "c": {}});
    let expected =
        format!("{{\n  \"a\": [\n    \"{long}\"\n  ],\n  \"b\": [1, 2],\n  \"c\": {{}}\n}}");
    assert_eq!(look.value(&value), expected);
    let colored = Look { color: true }.value(&json!({"a": "b"}));
    assert_eq!(colored, "{\x1b[36m\"a\"\x1b[0m: \x1b[32m\"b\"\x1b[0m}");
}

#[test]
fn a_server_cannot_write_to_the_terminal() {
    let hostile = "\x1b]0;title\x07\u{9b}2J\u{202e}\r\n\u{7f}";
    let shown = Look::PLAIN.value(&json!({hostile: hostile}));
    let error = Look::PLAIN.error(hostile, hostile);
    for text in [shown, error, printable(hostile)] {
        assert!(
            !text.chars().any(|c| c.is_control() || c == '\u{202e}'),
            "{text:?}"
        );
    }
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        "[^\\p{Cn}\\p{Co}]{0,40}".prop_map(Value::from),
    ];
    leaf.prop_recursive(5, 60, 8, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..8).prop_map(Value::from),
            proptest::collection::btree_map("[a-z]{1,30}", inner, 0..8)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

proptest! {
    /// What is shown is the value: read again, it is the same.
    #[test]
    fn pretty_output_is_json(value in any_json()) {
        prop_assert_eq!(parse_json(&Look::PLAIN.value(&value)), Ok(value));
    }

    /// Whatever is typed, nothing panics, and words are parts of the line.
    #[test]
    fn no_line_harms(line in "(blockdev-add |help |\\{)?([ a-z.=0-9'\"\\[{}\\]\\\\é]|driver=qcow2 |file\\.){0,40}") {
        for word in words(&line) {
            prop_assert_eq!(&line[word.start..word.start + word.text.len()], word.text);
        }
        let (start, _) = complete(&SCHEMA, &line);
        prop_assert!(line.is_char_boundary(start));
        let _ = missing(&SCHEMA, &line);
        let _ = parse_raw(&line);
        if !words(&line).is_empty() {
            let _ = arguments(&SCHEMA, &line);
        }
    }
}
