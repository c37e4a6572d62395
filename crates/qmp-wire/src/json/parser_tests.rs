//! The tables hold what qemu-storage-daemon 10.0.2 was seen to answer.

use proptest::prelude::*;
use serde_json::json;

use super::*;

/// All values (as text) and errors, the input fed in blocks of `block` bytes. The stray byte and
/// line end at the end of the input show whether anything was left open.
fn read(input: &[u8], block: usize) -> Vec<String> {
    let mut parser = StreamParser::new();
    let mut seen = Vec::new();
    for bytes in input.chunks(block) {
        parser.feed(bytes);
        while let Some(result) = parser.next_value() {
            seen.push(match result {
                Ok(value) => value.to_string(),
                Err(error) => error.to_string(),
            });
        }
        assert_eq!(parser.unread_bytes(), 0);
    }
    seen
}

fn check(cases: &[(&[u8], &[&str])]) {
    for (input, expected) in cases {
        let mut input = input.to_vec();
        input.push(b'\n');
        for block in [1, 2, 3, input.len()] {
            assert_eq!(read(&input, block), *expected, "{}", input.escape_ascii());
        }
    }
}

const VALUE: &str = "JSON parse error, expecting value";
const LIST: &str = "JSON parse error, expected separator in list";
const DICT: &str = "JSON parse error, expected separator in dict";
const UTF8: &str = "JSON parse error, invalid UTF-8 sequence in string";

#[test]
fn values_need_nothing_between_them() {
    check(&[
        (b"1 2 3 true", &["1", "2", "3", "true"]),
        (
            b"1{}[]null\"a\"'b'",
            &["1", "{}", "[]", "null", "\"a\"", "\"b\""],
        ),
        (b"12a", &["12", "JSON parse error, invalid keyword 'a'"]),
        (b"true1", &["true", "1"]),
        (b"0e0", &["0", "JSON parse error, invalid keyword 'e'", "0"]),
        (b"1-1", &["1", "-1"]),
        (b" \t\r\n{ \t\r\n}", &["{}"]),
        (
            b"{'a':\t[1,{}], \"b\" :null}",
            &[r#"{"a":[1,{}],"b":null}"#],
        ),
    ]);
}

#[test]
fn stray_bytes_are_reported_with_what_they_broke_off() {
    let stray = |text: &str| format!("JSON parse error, stray '{text}'");
    let cases: [(&[u8], &str); 21] = [
        (b"01", "01"),
        (b"-01", "-01"),
        (b"- 1", "- "),
        (b"--1", "--"),
        (b"1. 5", "1. "),
        (b"1e+ 5", "1e+ "),
        (b"+1", "+"),
        (b".5", "."),
        (b"%d", "%"),
        (b"\x00", ""),
        (b"\x01", "\u{1}"),
        (b"\xff", "\u{fffd}"),
        (b"\xc3\xa9", "\u{fffd}"),
        (b"\"a\tb\"", "\"a\t"),
        (b"\"abc", "\"abc\n"),
        (b"\"abc\x00", "\"abc"),
        (b"\"\xc3\xa9\x01", "\"\u{e9}\u{1}"),
        (b"\"\xed\xa0\x80\x01", "\"\u{fffd}\u{1}"),
        (b"\"\x80\x80\x01", "\"\u{fffd}\u{fffd}\u{1}"),
        (b"\"\xc0\x80\x01", "\"\u{0}\u{1}"),
        (b"\"\\\xff\"", "\"\\\u{fffd}"),
    ];
    for (input, text) in cases {
        check(&[(input, &[&stray(text)])]);
    }
}

#[test]
fn after_a_stray_byte_reading_goes_on_at_a_structural_byte_or_line_end() {
    let percent = "JSON parse error, stray '%'";
    check(&[
        (b"% foo \"x\" 'y' 1\t2", &[percent]),
        (b"%\n1", &[percent, "1"]),
        (b"%\r1", &[percent, "1"]),
        (b"%\t1", &[percent]),
        (
            b"%\xff1 2",
            &[percent, "JSON parse error, stray '\u{fffd}'"],
        ),
        (b"%}", &[percent, VALUE]),
        (b"%{}", &[percent, "{}"]),
        (b"[[[[%{'a':1}", &[percent, r#"{"a":1}"#]),
        (b"{\"id\":1.e5}", &["JSON parse error, stray '1.e'", VALUE]),
        (b"{\"id\":-}", &["JSON parse error, stray '-}'"]),
    ]);
}

#[test]
fn grammar_errors_come_when_the_message_has_ended() {
    check(&[
        (b"}", &[VALUE]),
        (b"]", &[VALUE]),
        (b",", &[VALUE]),
        (b":", &[VALUE]),
        (b"[}", &[VALUE]),
        (b"{]", &[VALUE]),
        (b"[1,]", &[VALUE]),
        (b"[,]", &[VALUE]),
        (b"{,}", &[VALUE]),
        (b"{'a':1,}", &[VALUE]),
        (b"{'a':}", &[VALUE]),
        (b"[1 2]", &[LIST]),
        (b"[1}", &[LIST]),
        (b"{'a':1 'b'}", &[DICT]),
        (b"{'a':1]", &[DICT]),
        (b"{'id':0e0}", &[DICT]),
        (b"{'a' 1}", &["JSON parse error, missing : in object pair"]),
        (b"{'a'}", &["JSON parse error, missing : in object pair"]),
        (
            b"{1:1}",
            &["JSON parse error, key is not a string in object"],
        ),
        (
            b"{[1]:2}",
            &["JSON parse error, key is not a string in object"],
        ),
        (b"{[1 2]:2}", &[LIST]),
        (b"{a:1}", &["JSON parse error, invalid keyword 'a'"]),
        (b"{'a':1,'a':2}", &["JSON parse error, duplicate key"]),
        (
            b"{'a':1,'a':foo}",
            &["JSON parse error, invalid keyword 'foo'"],
        ),
    ]);
}

#[test]
fn braces_and_brackets_are_counted_apart() {
    check(&[
        (b"{'a':[}", &[]),
        (b"{'a':[}}", &[VALUE]),
        (b"{'a':[}]}", &[VALUE, VALUE]),
        (b"[{]", &[]),
        (b"[{]}", &[VALUE]),
        (b"[[}]", &[VALUE, VALUE]),
    ]);
}

#[test]
fn strings_say_what_their_escapes_stand_for() {
    check(&[
        (
            b"\"\\b\\f\\n\\r\\t\\/\\\\\\\"\\'\"",
            &[r#""\b\f\n\r\t/\\\"'""#],
        ),
        (b"'a\\'b\"c'", &[r#""a'b\"c""#]),
        (b"\"\\ud83d\\uDE00\"", &["\"\u{1f600}\""]),
        (
            b"\"\xf0\x9f\x98\x80\xc3\xa9\\u20ac\"",
            &["\"\u{1f600}\u{e9}\u{20ac}\""],
        ),
        (b"\"\\u12345\"", &["\"\u{1234}5\""]),
        (b"\"\\u0000\"", &["\"\\u0000\""]),
        (b"\"\xc0\x80\"", &["\"\\u0000\""]),
        (b"\"a\x7fb\"", &["\"a\u{7f}b\""]),
        (
            b"\"\\x\"",
            &["JSON parse error, invalid escape sequence in string"],
        ),
        (
            b"\"\\\xc3\xa9\"",
            &["JSON parse error, invalid escape sequence in string"],
        ),
    ]);
    for broken in [
        &b"\xc3"[..],
        b"\x80",
        b"\xc0\x81",
        b"\xe0\x80\x80",
        b"\xed\xa0\x80",
        b"\xef\xbf\xbe",
        b"\xef\xb7\x90",
        b"\xf0\x9f\xbf\xbe",
        b"\xf4\x90\x80\x80",
        b"\xf8\x88\x80\x80\x80",
    ] {
        check(&[(&[b"\"", broken, b"\""].concat(), &[UTF8])]);
    }
}

#[test]
fn escapes_of_what_is_no_character_are_shown() {
    for (input, shown) in [
        ("\\u12", "\\u12\""),
        ("\\u12G4", "\\u12G4"),
        ("\\u+123", "\\u+123"),
        ("\\u", "\\u\""),
        ("\\ud800", "\\ud800"),
        ("\\udc00", "\\udc00"),
        ("\\ud800x", "\\ud800"),
        ("\\ud800\\u0041", "\\ud800"),
        ("\\uD83D\\uzzzz", "\\uD83D"),
        ("\\ud83f\\udffe", "\\ud83f\\udffe"),
        ("\\uffff", "\\uffff"),
        ("\\uFDEF", "\\uFDEF"),
        ("\\u1é€", "\\u1é\u{fffd}"),
    ] {
        let expected = format!("JSON parse error, {shown} is not a valid Unicode character");
        check(&[(format!("\"{input}\"").as_bytes(), &[&expected])]);
    }
}

#[test]
fn integers_keep_all_their_digits() {
    let mut parser = StreamParser::new();
    parser.feed(b"[-0,-9223372036854775808,9223372036854775808,18446744073709551615,");
    parser.feed(b"18446744073709551616,-9223372036854775809,1.0,1E2]");
    let value = parser.next_value().unwrap().unwrap();
    let expected = json!([
        0,
        i64::MIN,
        9223372036854775808_u64,
        u64::MAX,
        18446744073709551616.0,
        -9223372036854775809.0,
        1.0,
        100.0
    ]);
    assert_eq!(value, expected);
}

/// Ours: a Value has no infinity, which is what QEMU makes of it.
#[test]
fn numbers_beyond_a_double_are_refused() {
    check(&[(
        b"[1e309]",
        &["JSON parse error, number '1e309' is out of range"],
    )]);
}

#[test]
fn nesting_ends_at_the_limit() {
    let nested = |depth: usize| [vec![b'['; depth], vec![b']'; depth]].concat();
    assert_eq!(
        read(&nested(1024), 100),
        [String::from_utf8(nested(1024)).unwrap()]
    );
    let seen = read(&nested(1025), 100);
    assert_eq!(seen[0], "JSON nesting depth limit exceeded");
    assert_eq!(seen[1..], vec![VALUE; 1025]);
    // The bracket that was too many is forgotten with the others.
    assert_eq!(
        read(&[&vec![b'['; 1025], &b"{}"[..]].concat(), 100)[1],
        "{}"
    );
}

#[test]
fn tokens_end_at_the_limit() {
    let list = |pairs: usize| [b"[".to_vec(), b"1,".repeat(pairs), b"1]".to_vec()].concat();
    let tokens_at_most = (MAX_MESSAGE_TOKENS - 3) / 2;
    assert_eq!(read(&list(tokens_at_most), 1 << 20).len(), 1);
    assert!(read(&list(tokens_at_most), 1 << 20)[0].starts_with("[1,1"));
    // The token that was too many is forgotten with the others; what is after it is not.
    let limit = "JSON token count limit exceeded";
    assert_eq!(read(&list(tokens_at_most + 1), 1 << 20), [limit]);
    assert_eq!(
        read(&list(tokens_at_most + 2), 1 << 20),
        [limit, "1", VALUE]
    );
}

#[test]
fn bytes_end_at_the_limit_in_one_token_or_in_many() {
    let half = [
        b"\"".to_vec(),
        vec![b'a'; MAX_MESSAGE_BYTES / 2],
        b"\"".to_vec(),
    ]
    .concat();
    let two = [b"[", &half[..], b",", &half, b"]"].concat();
    assert_eq!(
        read(&two, 1 << 20),
        ["JSON token size limit exceeded", VALUE]
    );

    let one = [b"\"", &vec![b'a'; MAX_MESSAGE_BYTES][..], b"{\"{}"].concat();
    assert_eq!(
        read(&one, 1 << 20),
        ["JSON token size limit exceeded", "{}"]
    );

    let spaces = [b"[", &vec![b' '; MAX_MESSAGE_BYTES + 1][..], b"]"].concat();
    assert_eq!(read(&spaces, 1 << 20), ["[]"]);
}

#[test]
fn a_long_stray_text_is_quoted_in_part() {
    let seen = read(
        &[&vec![b'"'; 1][..], &vec![b'a'; 5000], b"\n"].concat(),
        1000,
    );
    assert!(seen[0].ends_with("aaa...'") && seen[0].len() < 1100);
}

#[test]
fn buffers_do_not_stay_large() {
    let mut parser = StreamParser::new();
    parser.feed(&[b"\"".to_vec(), vec![b'a'; 1 << 20], b"\" ".to_vec()].concat());
    assert!(parser.next_value().is_some() && parser.next_value().is_none());
    parser.feed(b"1 ");
    assert!(parser.next_value().is_some());
    assert!(parser.input.capacity() <= KEPT_INPUT_BYTES);
}

/// Bytes that mean something, whole tokens, and any bytes.
fn stream() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        8 => proptest::sample::select(br#"{}[],:"'\-+.eE01 9tfnu%"#.to_vec()).prop_map(|b| vec![b]),
        4 => proptest::sample::select(vec![
            &b"{\"a\":1}"[..], b"[1,2]", b"\"\\u00e9\"", b"\xc3\xa9", b"\"\\ud83d\\ude00\"", b"true",
            b"null", b"\xff", b"\n", b"1e5", b"{\"execute\":", b"18446744073709551615",
        ]).prop_map(<[u8]>::to_vec),
        1 => proptest::collection::vec(any::<u8>(), 0..5),
    ];
    proptest::collection::vec(piece, 0..60).prop_map(|pieces| pieces.concat())
}

/// JSON values, without the floats that serde_json prints in other ways than it reads.
fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>()
            .prop_filter("JSON has no infinity", |n| n.is_finite())
            .prop_map(Value::from),
        any::<String>()
            .prop_filter("noncharacters are refused", |s| !s
                .chars()
                .any(text::is_noncharacter))
            .prop_map(Value::from),
    ];
    leaf.prop_recursive(5, 50, 6, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            proptest::collection::hash_map("[a-z\u{80}-\u{90}\"\\\\]{0,4}", inner, 0..6)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn splitting_changes_nothing(input in stream(), block in 1_usize..20) {
        prop_assert_eq!(read(&input, block), read(&input, input.len().max(1)));
    }

    #[test]
    fn any_bytes_are_survived(input in proptest::collection::vec(any::<u8>(), 0..2000)) {
        read(&input, 64);
    }

    #[test]
    fn what_is_written_is_read_back(value in value(), pretty: bool) {
        use crate::encode::{Style, encode_value};
        let style = if pretty { Style::Pretty } else { Style::Compact };
        let mut text = Vec::new();
        encode_value(&mut text, style, &value).unwrap();
        prop_assert!(text.is_ascii());
        // serde_json as an independent reader: our output is standard JSON.
        prop_assert!(serde_json::from_slice::<Value>(&text).is_ok());
        text.push(b' ');
        let mut parser = StreamParser::new();
        parser.feed(&text);
        let read = parser.next_value().unwrap().unwrap();
        prop_assert!(same(&read, &value), "{read} is not {value}");
    }
}

/// Equality that takes 1.0 and 1 for the same, as QEMU writes both alike.
fn same(left: &Value, right: &Value) -> bool {
    match (left, right) {
        (Value::Number(left), Value::Number(right)) => {
            left == right || left.as_f64() == right.as_f64()
        }
        (Value::Array(left), Value::Array(right)) => {
            left.len() == right.len() && left.iter().zip(right).all(|(l, r)| same(l, r))
        }
        (Value::Object(left), Value::Object(right)) => {
            left.len() == right.len()
                && left
                    .iter()
                    .zip(right)
                    .all(|((lk, l), (rk, r))| lk == rk && same(l, r))
        }
        _ => left == right,
    }
}
