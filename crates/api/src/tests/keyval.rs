//! The text of options.

use proptest::prelude::*;
use serde_json::json;

use crate::keyval::{Options, parse, parse_size};

#[test]
fn text_becomes_a_tree() {
    assert_eq!(parse("", None).unwrap(), json!({}));
    assert_eq!(
        parse("a=1,b.c=2,b.d.0=x,b.d.1=y", None).unwrap(),
        json!({ "a": "1", "b": { "c": "2", "d": { "0": "x", "1": "y" } } })
    );
    assert_eq!(
        parse("a=x,,y,b==,", None).unwrap(),
        json!({ "a": "x,y", "b": "=" })
    );
    assert_eq!(
        parse("nbd,id=x,,y", Some("type")).unwrap(),
        json!({ "type": "nbd", "id": "x,y" })
    );
    assert_eq!(
        parse("type=nbd", Some("type")).unwrap(),
        json!({ "type": "nbd" })
    );
    assert_eq!(parse("a=1,a=2", None).unwrap(), json!({ "a": "2" }));
    assert_eq!(
        Options::parse("{\"a\":1}", None).unwrap(),
        Options::Json(json!({ "a": 1 }))
    );
}

#[test]
fn wrong_text_says_why() {
    for (text, expected) in [
        (
            "driver=null-co,read-only",
            "Expected '=' after parameter 'read-only'",
        ),
        ("a..b=3", "Invalid parameter 'a..b'"),
        (".x=3", "Invalid parameter '.x'"),
        ("x.=3", "Invalid parameter 'x.'"),
        ("=3", "Invalid parameter ''"),
        ("1x=3", "Invalid parameter '1x'"),
        ("x.y=3,x=4", "Parameters 'x.*' used inconsistently"),
        ("x=3,x.y=4", "Parameters 'x.*' used inconsistently"),
        ("b.0=a,b.x=3", "Parameters 'b.*' used inconsistently"),
    ] {
        assert_eq!(parse(text, None).unwrap_err().desc, expected, "{text}");
    }
    assert!(Options::parse("{\"a\":1}}", None).is_err());
    let deep = vec!["a"; 4000].join(".") + "=1";
    assert!(parse(&deep, None).is_err());
}

#[test]
fn sizes_have_suffixes() {
    for (text, bytes) in [
        ("0", Some(0)),
        ("1K", Some(1 << 10)),
        ("1k", Some(1 << 10)),
        ("2M", Some(2 << 20)),
        ("1.25G", Some(1_342_177_280)),
        ("1T", Some(1 << 40)),
        ("1P", Some(1 << 50)),
        ("15E", Some(15 << 60)),
        ("16E", None),
        ("15.99E", Some(18_435_214_858_663_483_146)),
        ("18446744073709551615", Some(u64::MAX)),
        ("18446744073709551616", None),
        (".5k", None),
        ("1.k", None),
        ("1.5b", None),
        ("k", None),
        ("1kk", None),
        ("0x", None),
        ("0x1k", None),
    ] {
        assert_eq!(parse_size(text), bytes, "{text}");
    }
}

proptest! {
    #[test]
    fn no_text_panics(text in "\\PC{0,40}", other in "[a-c0-2.,=]{0,24}") {
        for text in [text, other] {
            let _ = parse(&text, None);
            let _ = parse(&text, Some("implied"));
            let _ = parse_size(&text);
        }
    }

    /// What is written as options is read back.
    #[test]
    fn values_survive(values in proptest::collection::btree_map("[a-z]{1,4}", "[ -~]{0,8}", 0..6)) {
        let text: Vec<String> =
            values.iter().map(|(key, value)| format!("{key}={}", value.replace(',', ",,"))).collect();
        // An empty value before a comma would read as a comma that is doubled.
        let parsed = parse(&text.join(","), None).unwrap();
        prop_assert_eq!(parsed, serde_json::to_value(&values).unwrap_or_default());
    }
}
