//! The tables hold what qemu-storage-daemon 10.0.2 was seen to answer.

use proptest::prelude::*;
use serde_json::json;

use super::*;

/// What a server without any commands says to the input, from its first byte on.
fn talk(session: &mut Session, input: &[u8]) -> String {
    session.feed(input);
    let mut out = Vec::new();
    while let Some(request) = session.next_request() {
        let answer = match request {
            Incoming::Answer(answer) => answer,
            Incoming::Command { id, name, .. } => Answer::unknown_command(id, &name),
        };
        session.encode_answer(&answer, &mut out).unwrap();
    }
    String::from_utf8(out).unwrap()
}

fn negotiated(oob: bool) -> Session {
    let mut session = Session::new(Style::Compact, true);
    let enable = if oob { r#"["oob"]"# } else { "[]" };
    let command = r#"{"execute":"qmp_capabilities","arguments":{"enable":ENABLE}}"#;
    let reply = talk(&mut session, command.replace("ENABLE", enable).as_bytes());
    assert_eq!(reply, "{\"return\": {}}\r\n");
    session
}

fn error(class: &str, desc: &str) -> String {
    format!("{{\"error\": {{\"class\": \"{class}\", \"desc\": \"{desc}\"}}}}\r\n")
}

fn generic(desc: &str) -> String {
    error("GenericError", desc)
}

#[test]
fn the_greeting_looks_as_qemus() {
    let version = json!({"qemu": {"micro": 2, "minor": 0, "major": 10}, "package": "x"});
    let mut out = Vec::new();
    Session::new(Style::Compact, true)
        .encode_greeting(&version, &mut out)
        .unwrap();
    let expected = concat!(
        r#"{"QMP": {"version": {"qemu": {"micro": 2, "minor": 0, "major": 10}, "package": "x"}, "#,
        "\"capabilities\": [\"oob\"]}}\r\n"
    );
    assert_eq!(String::from_utf8(out).unwrap(), expected);

    let mut out = Vec::new();
    Session::new(Style::Pretty, false)
        .encode_greeting(&json!({}), &mut out)
        .unwrap();
    let expected = concat!(
        "{\r\n    \"QMP\": {\r\n        \"version\": {\r\n        },\r\n",
        "        \"capabilities\": [\r\n        ]\r\n    }\r\n}\r\n"
    );
    assert_eq!(String::from_utf8(out).unwrap(), expected);
}

#[test]
fn nothing_but_negotiation_is_possible_at_first() {
    let mut session = Session::new(Style::Compact, true);
    let expecting = error(
        "CommandNotFound",
        "Expecting capabilities negotiation with 'qmp_capabilities'",
    );
    assert_eq!(
        talk(&mut session, br#"{"execute":"query-version"}"#),
        expecting
    );
    assert_eq!(talk(&mut session, br#"{"execute":"nope"}"#), expecting);
    let unexpected = generic("QMP input member 'exec-oob' is unexpected");
    assert_eq!(
        talk(&mut session, br#"{"exec-oob":"qmp_capabilities"}"#),
        unexpected
    );
    assert!(!session.is_negotiated());
}

#[test]
fn capabilities_are_checked_before_they_are_enabled() {
    let cases = [
        (
            r#"{"enable":["foo"]}"#,
            "Parameter 'null' does not accept value 'foo'",
        ),
        (
            r#"{"enable":["oob",null]}"#,
            "Invalid parameter type for 'enable[1]', expected: string",
        ),
        (
            r#"{"enable":"oob"}"#,
            "Invalid parameter type for 'enable', expected: array",
        ),
        (
            r#"{"enable":null}"#,
            "Invalid parameter type for 'enable', expected: array",
        ),
        (
            r#"{"enable":1,"x":1}"#,
            "Invalid parameter type for 'enable', expected: array",
        ),
        (r#"{"enable":["oob"],"x":1}"#, "Parameter 'x' is unexpected"),
        (r#"[]"#, "QMP input member 'arguments' must be an object"),
    ];
    let mut session = Session::new(Style::Compact, true);
    for (arguments, desc) in cases {
        let input = format!(r#"{{"execute":"qmp_capabilities","arguments":{arguments}}}"#);
        assert_eq!(
            talk(&mut session, input.as_bytes()),
            generic(desc),
            "{arguments}"
        );
        assert!(!session.is_negotiated());
    }
    let input = br#"{"execute":"qmp_capabilities","arguments":{"enable":["oob","oob"]},"id":1}"#;
    assert_eq!(talk(&mut session, input), "{\"return\": {}, \"id\": 1}\r\n");
    assert!(session.is_negotiated() && session.is_oob_enabled());
}

#[test]
fn oob_cannot_be_enabled_where_it_is_not_offered() {
    let mut session = Session::new(Style::Compact, false);
    let input = br#"{"execute":"qmp_capabilities","arguments":{"enable":["oob"]}}"#;
    assert_eq!(
        talk(&mut session, input),
        generic("Capability 'oob' is not available")
    );
    assert!(!session.is_negotiated());
}

#[test]
fn negotiation_happens_once() {
    let mut session = negotiated(false);
    let again = br#"{"id": {"a":[1,2.5]}, "execute":"qmp_capabilities"}"#;
    let expected = concat!(
        r#"{"id": {"a": [1, 2.5]}, "error": {"class": "CommandNotFound", "#,
        r#""desc": "Capabilities negotiation is already complete, command ignored"}}"#,
        "\r\n"
    );
    assert_eq!(talk(&mut session, again), expected);
    let wrong = br#"{"execute":"qmp_capabilities","arguments":{"enable":["foo"]}}"#;
    let expected = generic("Parameter 'null' does not accept value 'foo'");
    assert_eq!(talk(&mut session, wrong), expected);
}

#[test]
fn the_envelope_is_checked() {
    let cases = [
        ("[]", "QMP input must be a JSON object"),
        ("1 ", "QMP input must be a JSON object"),
        ("{}", "QMP input lacks member 'execute'"),
        (r#"{"arguments":{}}"#, "QMP input lacks member 'execute'"),
        (
            r#"{"execute":1}"#,
            "QMP input member 'execute' must be a string",
        ),
        (
            r#"{"execute":"x","y":1}"#,
            "QMP input member 'y' is unexpected",
        ),
        (
            r#"{"execute":1,"y":1}"#,
            "QMP input member 'y' is unexpected",
        ),
        (
            r#"{"execute":"x","arguments":null}"#,
            "QMP input member 'arguments' must be an object",
        ),
        (
            r#"{"exec-oob":"x"}"#,
            "QMP input member 'exec-oob' is unexpected",
        ),
        ("{", ""),
        ("\u{1}", "JSON parse error, stray '\\u0001'"),
        ("{]", "JSON parse error, expecting value"),
    ];
    let mut session = negotiated(false);
    for (input, desc) in cases {
        let expected = if desc.is_empty() {
            String::new()
        } else {
            generic(desc)
        };
        assert_eq!(talk(&mut session, input.as_bytes()), expected, "{input}");
    }
}

#[test]
fn out_of_band_commands_come_out_marked() {
    let mut session = negotiated(true);
    session.feed(br#"{"exec-oob":"a","arguments":{"x":1},"id":null}{"execute":"b"}"#);
    let arguments = Some(Map::from_iter([("x".to_owned(), json!(1))]));
    let (id, name) = (Some(Value::Null), "a".to_owned());
    let expected = Incoming::Command {
        id,
        name,
        arguments,
        oob: true,
    };
    assert_eq!(session.next_request(), Some(expected));
    let name = "b".to_owned();
    let expected = Incoming::Command {
        id: None,
        name,
        arguments: None,
        oob: false,
    };
    assert_eq!(session.next_request(), Some(expected));
    assert_eq!(session.next_request(), None);

    let cases = [
        (
            r#"{"exec-oob":1}"#,
            "QMP input member 'exec-oob' must be a string",
        ),
        (
            r#"{"exec-oob":"x","execute":"x"}"#,
            "QMP input member 'execute' clashes with 'exec-oob'",
        ),
        (
            r#"{"exec-oob":"qmp_capabilities"}"#,
            "The command qmp_capabilities does not support OOB",
        ),
    ];
    for (input, desc) in cases {
        assert_eq!(talk(&mut session, input.as_bytes()), generic(desc));
    }
}

#[test]
fn events_and_stored_results_look_as_qemus() {
    let session = negotiated(false);
    let mut out = Vec::new();
    let timestamp = Timestamp {
        seconds: 1795163181,
        microseconds: 874439,
    };
    let data = json!({"status": "created", "id": "j"});
    session
        .encode_event("JOB_STATUS_CHANGE", Some(&data), timestamp, &mut out)
        .unwrap();
    session
        .encode_event("STOP", None::<&Value>, timestamp, &mut out)
        .unwrap();
    session
        .encode_return_json(Some(&json!("x")), "[1, {}]", &mut out)
        .unwrap();
    let expected = concat!(
        r#"{"timestamp": {"seconds": 1795163181, "microseconds": 874439}, "#,
        r#""event": "JOB_STATUS_CHANGE", "data": {"status": "created", "id": "j"}}"#,
        "\r\n",
        r#"{"timestamp": {"seconds": 1795163181, "microseconds": 874439}, "event": "STOP"}"#,
        "\r\n",
        r#"{"return": [1, {}], "id": "x"}"#,
        "\r\n",
    );
    assert_eq!(String::from_utf8(out).unwrap(), expected);

    let mut stored = Vec::new();
    let mut direct = Vec::new();
    let session = Session::new(Style::Pretty, false);
    session
        .encode_return_json(None, "[{}]", &mut stored)
        .unwrap();
    session
        .encode_return(None, &json!([{}]), &mut direct)
        .unwrap();
    assert_eq!(stored, direct);
}

#[test]
fn a_reply_that_cannot_be_written_leaves_nothing_behind() {
    let session = negotiated(false);
    let mut out = b"before".to_vec();
    let keyed_by_list = std::collections::BTreeMap::from([(vec![1], 2)]);
    assert!(
        session
            .encode_return(None, &keyed_by_list, &mut out)
            .is_err()
    );
    assert_eq!(out, b"before");
}

proptest! {
    #[test]
    fn splitting_changes_nothing(
        pieces in proptest::collection::vec(proptest::sample::select(vec![
            "{\"execute\":\"qmp_capabilities\"}", "{\"execute\":\"x\"}", "{\"id\":1}", "[", "}", "\"",
            "{\"execute\":\"qmp_capabilities\",\"arguments\":{\"enable\":[\"oob\"]}}", "\n", "%",
            "{\"exec-oob\":\"x\",\"id\":\"y\"}",
        ]), 0..12),
        block in 1_usize..30,
    ) {
        let input = pieces.concat();
        let whole = talk(&mut Session::new(Style::Compact, true), input.as_bytes());
        let mut session = Session::new(Style::Compact, true);
        let parts: String = input.as_bytes().chunks(block).map(|b| talk(&mut session, b)).collect();
        prop_assert_eq!(parts, whole);
    }
}

#[test]
fn a_half_message_is_noticed() {
    let mut session = Session::new(Style::Compact, false);
    assert!(session.is_between_messages());
    for (bytes, between) in [("{", false), ("}\n", true), ("1", false), ("2 ", true)] {
        session.feed(bytes.as_bytes());
        while session.next_request().is_some() {}
        assert_eq!(session.is_between_messages(), between, "{bytes}");
    }
}
