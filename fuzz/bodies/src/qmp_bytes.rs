//! A client's bytes on a QMP socket.

use qmp_wire::json::StreamParser;
use qmp_wire::{ClientSession, Incoming, Session, Style, encode_value};
use serde_json::{Map, Value};

use crate::pieces::pieces;

/// What a session made of a stream.
#[derive(Debug, PartialEq)]
struct Conversation {
    incoming: Vec<Incoming>,
    replies: Vec<u8>,
    oob: bool,
    unread_bytes: usize,
    between_messages: bool,
}

/// The first byte chooses the cutting and whether `oob` is offered; the rest is the stream.
pub fn qmp_bytes(data: &[u8]) {
    let Some((&choice, stream)) = data.split_first() else {
        return;
    };
    let offers_oob = choice & 1 != 0;
    let whole = converse(&[stream], offers_oob);
    let cut = converse(&pieces(stream, choice.into()), offers_oob);
    assert_eq!(whole, cut, "the cutting changed the meaning");
    assert!(whole.replies.is_ascii(), "replies are ASCII");
    for incoming in &whole.incoming {
        if let Incoming::Command { .. } = incoming {
            send_again(incoming, whole.oob);
        }
    }
    values_survive(stream);
}

fn converse(blocks: &[&[u8]], offers_oob: bool) -> Conversation {
    let mut session = Session::new(Style::Compact, offers_oob);
    let (mut incoming, mut replies) = (Vec::new(), Vec::new());
    for block in blocks {
        session.feed(block);
        while let Some(request) = session.next_request() {
            if let Incoming::Answer(answer) = &request {
                session
                    .encode_answer(answer, &mut replies)
                    .expect("an answer can be encoded");
            }
            incoming.push(request);
        }
    }
    Conversation {
        incoming,
        replies,
        oob: session.is_oob_enabled(),
        unread_bytes: session.unread_bytes(),
        between_messages: session.is_between_messages(),
    }
}

/// A command that our client sends reaches our server as it was.
fn send_again(command: &Incoming, oob_enabled: bool) {
    let Incoming::Command {
        id,
        name,
        arguments,
        oob,
    } = command
    else {
        return;
    };
    let client = ClientSession::new();
    let mut bytes = Vec::new();
    let capabilities = if oob_enabled {
        serde_json::json!({"enable": ["oob"]})
    } else {
        Value::Object(Map::new())
    };
    client
        .encode_command(
            "qmp_capabilities",
            Some(&capabilities),
            None,
            false,
            &mut bytes,
        )
        .expect("capabilities can be encoded");
    client
        .encode_command(name, arguments.as_ref(), id.as_ref(), *oob, &mut bytes)
        .expect("what was parsed can be encoded");
    let received = converse(&[&bytes], true).incoming;
    let [
        Incoming::Answer(_),
        Incoming::Command {
            id: id2,
            name: name2,
            arguments: arguments2,
            oob: oob2,
        },
    ] = received.as_slice()
    else {
        panic!("one command became {received:?}");
    };
    assert_eq!((name, oob), (name2, oob2));
    let object = |members: &Option<Map<String, Value>>| members.clone().map(Value::Object);
    let options_same = |a: &Option<Value>, b: &Option<Value>| match (a, b) {
        (Some(a), Some(b)) => same(a, b),
        (None, None) => true,
        _ => false,
    };
    assert!(options_same(id, id2), "id {id:?} became {id2:?}");
    assert!(
        options_same(&object(arguments), &object(arguments2)),
        "arguments {arguments:?} became {arguments2:?}"
    );
}

/// Every value of the stream is the same after encoding in either style.
fn values_survive(stream: &[u8]) {
    let mut parser = StreamParser::new();
    parser.feed(stream);
    while let Some(parsed) = parser.next_value() {
        let Ok(value) = parsed else { continue };
        for style in [Style::Compact, Style::Pretty] {
            let mut text = Vec::new();
            encode_value(&mut text, style, &value).expect("what was parsed can be encoded");
            assert!(text.is_ascii(), "output is ASCII");
            // A number ends only with the byte behind it.
            text.push(b'\n');
            let mut again = StreamParser::new();
            again.feed(&text);
            match again.next_value() {
                Some(Ok(back)) => assert!(same(&value, &back), "{value:?} became {back:?}"),
                other => panic!("{value:?} became {other:?}"),
            }
            assert!(again.next_value().is_none() && again.is_between_messages());
        }
    }
}

/// Equality, but for doubles without a fraction, which are written as integers, as QEMU does.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(before), Value::Number(after)) if before.is_f64() => {
            before.as_f64() == after.as_f64()
        }
        (Value::Array(a), Value::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b))
        }
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len()
                && a.iter()
                    .zip(b)
                    .all(|((ka, va), (kb, vb))| ka == kb && same(va, vb))
        }
        _ => a == b,
    }
}
