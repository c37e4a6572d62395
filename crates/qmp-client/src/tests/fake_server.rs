//! Against a server at the other end of a socket pair that does what each test says.

use std::io::{IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::time::Duration;

use api::commands::{QueryJobs, QueryVersion};
use api::{NoArguments, ToQapi};
use proptest::prelude::*;
use qmp_wire::json::StreamParser;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::UnixStream;

use crate::connection::MAX_UNANSWERED;
use crate::{
    Call, Client, ConnectOptions, EVENT_QUEUE, Error, Lost, Occurrence, Oob, ServerError, Stream,
};

const LONG: Duration = Duration::from_secs(20);
const SHORT: Duration = Duration::from_millis(50);
const GREETING: &str = concat!(
    r#"{"QMP": {"version": {"qemu": {"micro": 2, "minor": 0, "major": 10}, "package": "x"}, "#,
    r#""capabilities": ["oob"]}}"#,
    "\r\n"
);

/// The server's end.
struct Peer {
    stream: UnixStream,
    parser: StreamParser,
}

impl Peer {
    async fn say(&mut self, text: &str) {
        self.stream.write_all(text.as_bytes()).await.unwrap();
    }

    /// The next command that arrives.
    async fn hear(&mut self) -> Value {
        loop {
            if let Some(value) = self.parser.next_value() {
                return value.unwrap();
            }
            let mut buffer = [0; 4096];
            let count = self.stream.read(&mut buffer).await.unwrap();
            assert!(count > 0, "the client went away");
            self.parser.feed(&buffer[..count]);
        }
    }

    async fn answer(&mut self, command: &Value, value: Value) {
        let id = &command["id"];
        self.say(&format!("{}\r\n", json!({"return": value, "id": id})))
            .await;
    }
}

fn pair() -> (Peer, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let peer = Peer {
        stream: ours,
        parser: StreamParser::new(),
    };
    (peer, theirs)
}

fn options(oob: Oob) -> ConnectOptions {
    ConnectOptions { timeout: LONG, oob }
}

async fn connected(oob: Oob) -> (Peer, Client) {
    let (mut peer, stream) = pair();
    let serve = async {
        peer.say(GREETING).await;
        let command = peer.hear().await;
        assert_eq!(command["execute"], "qmp_capabilities");
        peer.answer(&command, json!({})).await;
    };
    let options = options(oob);
    let (client, ()) = tokio::join!(Client::over(stream, &options), serve);
    (peer, client.unwrap())
}

#[tokio::test]
async fn the_greeting_is_kept_and_oob_is_asked_for_only_on_demand() {
    for (oob, arguments) in [
        (Oob::No, Value::Null),
        (Oob::IfOffered, json!({"enable": ["oob"]})),
        (Oob::Required, json!({"enable": ["oob"]})),
    ] {
        let (mut peer, stream) = pair();
        let options = options(oob);
        let serve = async {
            peer.say(GREETING).await;
            let command = peer.hear().await;
            assert_eq!(command["arguments"], arguments);
            peer.answer(&command, json!({})).await;
        };
        let (client, ()) = tokio::join!(Client::over(stream, &options), serve);
        let client = client.unwrap();
        assert_eq!(client.has_oob(), oob != Oob::No);
        assert_eq!(client.version()["qemu"]["major"], 10);
        assert_eq!(client.capabilities(), ["oob"]);
    }
}

#[tokio::test]
async fn oob_can_be_required_and_an_old_server_does_not_have_it() {
    let (mut peer, stream) = pair();
    peer.say(r#"{"QMP": {"version": {}, "capabilities": []}}"#)
        .await;
    let refused = Client::over(stream, &options(Oob::Required)).await;
    assert!(matches!(refused, Err(Error::OobNotOffered)));
}

#[tokio::test]
async fn what_is_no_greeting_is_told() {
    for (text, expected) in [
        (
            "{\"return\": {}}\n",
            "the server's first message is no QMP greeting",
        ),
        (
            "SSH-2.0-OpenSSH_9\r\n",
            "the server does not speak QMP: JSON parse error, stray 'S'",
        ),
        ("", "the server ended the connection"),
        (
            "{\"QMP\": ",
            "the server ended the connection in the middle of a message",
        ),
    ] {
        let (mut peer, stream) = pair();
        peer.say(text).await;
        peer.stream.shutdown().await.unwrap();
        let refused = Client::over(stream, &options(Oob::No))
            .await
            .unwrap_err()
            .to_string();
        assert!(
            refused.starts_with(expected.trim_end_matches("'S'")),
            "{text}: {refused}"
        );
    }
}

#[tokio::test]
async fn a_server_that_is_silent_is_waited_for_no_longer_than_asked() {
    let (_peer, stream) = pair();
    let options = ConnectOptions {
        timeout: SHORT,
        oob: Oob::No,
    };
    let refused = Client::over(stream, &options).await;
    assert!(matches!(refused, Err(Error::GreetingTimedOut { .. })));
}

#[tokio::test]
async fn a_refused_negotiation_is_the_servers_error() {
    let (mut peer, stream) = pair();
    let options = options(Oob::No);
    let serve = async {
        peer.say(GREETING).await;
        let id = peer.hear().await["id"].clone();
        let error = json!({"id": id, "error": {"class": "GenericError", "desc": "busy"}});
        peer.say(&error.to_string()).await;
    };
    let (refused, ()) = tokio::join!(Client::over(stream, &options), serve);
    assert_eq!(refused.unwrap_err().server_error().unwrap().desc, "busy");
}

#[tokio::test]
async fn commands_are_pipelined_and_replies_find_their_calls_in_any_order() {
    let (mut peer, client) = connected(Oob::No).await;
    let calls: Vec<_> = (0..100)
        .map(|number| {
            let client = client.clone();
            tokio::spawn(async move {
                let arguments = json!({"number": number});
                let reply = client.run_raw("echo", arguments, LONG).await.unwrap();
                assert_eq!(reply, number);
            })
        })
        .collect();
    let mut commands = Vec::new();
    for _ in 0..100 {
        commands.push(peer.hear().await);
    }
    for command in commands.iter().rev() {
        peer.answer(command, command["arguments"]["number"].clone())
            .await;
    }
    for call in calls {
        call.await.unwrap();
    }
}

#[tokio::test]
async fn a_late_reply_is_dropped_and_disturbs_nothing() {
    let (mut peer, client) = connected(Oob::No).await;
    let late = client.run_raw("slow", Value::Null, SHORT).await;
    assert!(
        matches!(late, Err(Error::TimedOut { command, limit }) if command == "slow" && limit == SHORT)
    );
    let slow = peer.hear().await;
    let serve = async {
        let quick = peer.hear().await;
        peer.answer(&slow, json!("late")).await;
        peer.answer(&quick, json!("quick")).await;
        // An answer nobody asked for.
        peer.say(r#"{"return": 1, "id": "whose"}"#).await;
    };
    let (quick, ()) = tokio::join!(client.run_raw("quick", Value::Null, LONG), serve);
    assert_eq!(quick.unwrap(), "quick");
}

#[tokio::test]
async fn calls_that_were_given_up_make_room() {
    let (mut peer, client) = connected(Oob::No).await;
    for _ in 0..MAX_UNANSWERED {
        let call = tokio::spawn({
            let client = client.clone();
            async move { client.run_raw("never", Value::Null, LONG).await }
        });
        // It was sent, so it is in the table when its caller gives up.
        assert_eq!(peer.hear().await["execute"], "never");
        call.abort();
    }
    let serve = async {
        let command = peer.hear().await;
        peer.answer(&command, json!("at last")).await;
    };
    let (reply, ()) = tokio::join!(client.run_raw("probe", Value::Null, LONG), serve);
    assert_eq!(reply.unwrap(), "at last");
}

#[tokio::test]
async fn calls_beyond_the_table_wait_within_their_deadlines() {
    let (mut peer, client) = connected(Oob::No).await;
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..MAX_UNANSWERED {
        let client = client.clone();
        calls.spawn(async move { client.run_raw("a", Value::Null, LONG).await });
    }
    let mut commands = Vec::new();
    for _ in 0..MAX_UNANSWERED {
        commands.push(peer.hear().await);
    }
    let beyond = client.run_raw("b", Value::Null, SHORT).await;
    assert!(matches!(beyond, Err(Error::TimedOut { .. })), "{beyond:?}");
    for command in &commands {
        peer.answer(command, json!({})).await;
    }
    while let Some(call) = calls.join_next().await {
        assert_eq!(call.unwrap().unwrap(), json!({}));
    }
}

#[tokio::test]
async fn errors_come_with_class_and_desc_even_without_an_id() {
    let (mut peer, client) = connected(Oob::No).await;
    let serve = async {
        peer.hear().await;
        peer.say(r#"{"error": {"class": "KVMMissingCap", "desc": "no id"}}"#)
            .await;
        let id = peer.hear().await["id"].clone();
        let error = json!({"error": {"class": "OfLaterTimes", "desc": "new"}, "id": id});
        peer.say(&error.to_string()).await;
    };
    let calls = async {
        let first = client.run_raw("a", Value::Null, LONG).await.unwrap_err();
        let second = client.run_raw("b", Value::Null, LONG).await.unwrap_err();
        (first, second)
    };
    let ((first, second), ()) = tokio::join!(calls, serve);
    let first = first.server_error().unwrap();
    assert_eq!(first.known_class(), Some(api::ErrorClass::KvmMissingCap));
    assert_eq!(first.desc, "no id");
    let second = second.server_error().unwrap();
    assert_eq!(second.known_class(), None);
    let expected = ServerError {
        class: "OfLaterTimes".to_owned(),
        desc: "new".to_owned(),
    };
    assert_eq!(*second, expected);
}

#[tokio::test]
async fn garbage_ends_the_connection_and_every_call_hears_why() {
    let (mut peer, client) = connected(Oob::No).await;
    let serve = async {
        peer.hear().await;
        peer.hear().await;
        peer.say("{\"return\": }\r\n").await;
    };
    let (one, two, ()) = tokio::join!(
        client.run_raw("a", Value::Null, LONG),
        client.run_raw("b", Value::Null, LONG),
        serve
    );
    for call in [one, two, client.run_raw("later", Value::Null, LONG).await] {
        let Err(Error::Lost(Lost::NotQmp(error))) = call else {
            panic!("{call:?}");
        };
        assert_eq!(error, qmp_wire::Error::ExpectingValue);
    }
    assert!(matches!(client.lost().await, Lost::NotQmp(_)));
}

#[tokio::test]
async fn a_message_of_an_unknown_kind_is_passed_over() {
    let (mut peer, client) = connected(Oob::No).await;
    let serve = async {
        let command = peer.hear().await;
        peer.say("{\"progress\": 50}\r\n[1]\r\n").await;
        peer.answer(&command, json!(1)).await;
    };
    let (reply, ()) = tokio::join!(client.run_raw("a", Value::Null, LONG), serve);
    assert_eq!(reply.unwrap(), 1);
}

#[tokio::test]
async fn a_server_that_leaves_in_the_middle_of_a_reply_is_lost() {
    let (mut peer, client) = connected(Oob::No).await;
    let mut events = client.events();
    let serve = async {
        peer.hear().await;
        peer.say("{\"return\": {\"a\": ").await;
        drop(peer);
    };
    let (call, ()) = tokio::join!(client.run_raw("a", Value::Null, LONG), serve);
    assert!(
        matches!(call, Err(Error::Lost(Lost::EndedInMessage))),
        "{call:?}"
    );
    assert_eq!(events.next().await, None);
    assert_eq!(client.events().next().await, None);
}

#[tokio::test]
async fn typed_replies_keep_what_the_schema_does_not_know() {
    let (mut peer, client) = connected(Oob::No).await;
    let serve = async {
        let command = peer.hear().await;
        assert_eq!(command.get("arguments"), None);
        let version = json!({
            "qemu": {"major": 77, "minor": 1, "micro": 0, "nano": 5},
            "package": "",
            "colour": "blue",
        });
        peer.answer(&command, version).await;
    };
    let (reply, ()) = tokio::join!(client.run::<QueryVersion>(&NoArguments, LONG), serve);
    let reply = reply.unwrap();
    assert_eq!(reply.value.qemu.major, 77);
    let mut unknown: Vec<_> = reply
        .unknown
        .iter()
        .map(|member| (member.path.as_str(), &member.value))
        .collect();
    unknown.sort_unstable_by_key(|(path, _)| *path);
    assert_eq!(
        unknown,
        [("colour", &json!("blue")), ("qemu.nano", &json!(5))]
    );
    assert_eq!(reply.value.to_qapi()["qemu"]["major"], 77);
}

#[tokio::test]
async fn a_reply_that_does_not_fit_is_told_by_its_path() {
    let (mut peer, client) = connected(Oob::No).await;
    let serve = async {
        let command = peer.hear().await;
        let job = json!({
            "id": "a", "type": "create", "status": "running",
            "current-progress": "much", "total-progress": 2,
        });
        peer.answer(&command, json!([job])).await;
    };
    let (reply, ()) = tokio::join!(client.run::<QueryJobs>(&NoArguments, LONG), serve);
    let Err(Error::ReplyDoesNotFit { command, desc }) = reply else {
        panic!("{reply:?}");
    };
    assert_eq!(command, "query-jobs");
    assert!(desc.contains("[0].current-progress"), "{desc}");
}

#[tokio::test]
async fn out_of_band_calls_overtake_and_must_be_negotiated() {
    let (mut peer, client) = connected(Oob::IfOffered).await;
    let in_band = {
        let client = client.clone();
        tokio::spawn(async move { client.run_raw("slow", Value::Null, LONG).await })
    };
    let slow = peer.hear().await;
    let serve = async {
        let urgent = peer.hear().await;
        assert_eq!(urgent["exec-oob"], "query-version");
        let version = json!({"qemu": {"major": 1, "minor": 2, "micro": 3}, "package": ""});
        peer.answer(&urgent, version).await;
    };
    let (urgent, ()) = tokio::join!(client.run_oob::<QueryVersion>(&NoArguments, LONG), serve);
    assert_eq!(urgent.unwrap().value.qemu.minor, 2);
    assert!(!in_band.is_finished());
    peer.answer(&slow, json!(0)).await;
    assert_eq!(in_band.await.unwrap().unwrap(), 0);

    let (_peer, client) = connected(Oob::No).await;
    let refused = client.run_call(Call::new("a").out_of_band(), LONG).await;
    assert!(matches!(refused, Err(Error::OobNotNegotiated)));
}

fn event(number: usize) -> String {
    let timestamp = json!({"seconds": 1, "microseconds": 2});
    let event = json!({"event": "TICK", "data": {"n": number}, "timestamp": timestamp});
    format!("{event}\r\n")
}

#[tokio::test]
async fn events_come_in_order_to_every_listener_also_unknown_ones() {
    let (mut peer, client) = connected(Oob::No).await;
    let mut streams = [client.events(), client.events()];
    let text: String = (0..50).map(event).collect();
    peer.say(&text).await;
    for stream in &mut streams {
        for number in 0..50 {
            let Some(Occurrence::Event(event)) = stream.next().await else {
                panic!("no event {number}");
            };
            assert_eq!(
                (event.name.as_str(), &event.data),
                ("TICK", &Some(json!({"n": number})))
            );
            assert_eq!(event.timestamp.seconds, 1);
            assert_eq!(event.typed(), Ok(None));
        }
    }
}

#[tokio::test]
async fn a_slow_listener_is_told_how_many_events_it_missed() {
    let (mut peer, client) = connected(Oob::No).await;
    let mut events = client.events();
    let extra = 7;
    let text: String = (0..EVENT_QUEUE + extra).map(event).collect();
    let serve = async {
        peer.say(&text).await;
        let command = peer.hear().await;
        peer.answer(&command, json!({})).await;
    };
    let (reply, ()) = tokio::join!(client.run_raw("a", Value::Null, LONG), serve);
    reply.unwrap();
    assert_eq!(events.next().await, Some(Occurrence::Missed(extra as u64)));
    let Some(Occurrence::Event(first)) = events.next().await else {
        panic!()
    };
    assert_eq!(first.data, Some(json!({"n": extra})));
}

#[tokio::test]
async fn the_connection_ends_with_the_last_handle_or_stream() {
    let (mut peer, client) = connected(Oob::No).await;
    let clone = client.clone();
    let events = client.events();
    drop(client);
    drop(clone);
    let mut buffer = [0; 1];
    assert!(
        tokio::time::timeout(SHORT, peer.stream.read(&mut buffer))
            .await
            .is_err()
    );
    drop(events);
    assert_eq!(peer.stream.read(&mut buffer).await.unwrap(), 0);
}

#[tokio::test]
async fn a_server_that_does_not_read_costs_no_call_its_deadline() {
    let (_peer, client) = connected(Oob::No).await;
    let large = json!({"data": "x".repeat(300 << 10)});
    for _ in 0..12 {
        let call = client
            .run_raw("a", large.clone(), Duration::from_millis(5))
            .await;
        assert!(matches!(call, Err(Error::TimedOut { .. })), "{call:?}");
    }
}

#[tokio::test]
async fn large_commands_and_replies_pass_each_other() {
    let (mut peer, client) = connected(Oob::No).await;
    let large = "x".repeat(4 << 20);
    let arguments = json!({"data": large});
    let serve = async {
        // The reply is on its way before the command is read.
        let command = peer.hear().await;
        peer.answer(&command, json!(large)).await;
    };
    let (reply, ()) = tokio::join!(client.run_raw("a", arguments, LONG), serve);
    assert_eq!(reply.unwrap(), large);
}

#[tokio::test]
async fn a_command_longer_than_servers_accept_is_not_sent() {
    let (_peer, client) = connected(Oob::No).await;
    let arguments = json!({"data": "x".repeat(qmp_wire::json::MAX_MESSAGE_BYTES)});
    let refused = client.run_raw("a", arguments, LONG).await;
    assert!(matches!(
        refused,
        Err(Error::Encode(qmp_wire::Error::TokenSize))
    ));
}

#[tokio::test]
async fn any_stream_will_do_but_carries_no_descriptors() {
    let (mut far, near) = tokio::io::duplex(64);
    let serve = tokio::spawn(async move {
        far.write_all(GREETING.as_bytes()).await.unwrap();
        let mut command = [0; "{\"execute\": \"qmp_capabilities\", \"id\": 1}\r\n".len()];
        far.read_exact(&mut command).await.unwrap();
        far.write_all(b"{\"return\": {}, \"id\": 1}").await.unwrap();
        assert_eq!(far.read(&mut [0]).await.unwrap(), 0);
        String::from_utf8(command.to_vec()).unwrap()
    });
    let client = Client::over(Stream::Other(Box::new(near)), &options(Oob::No))
        .await
        .unwrap();
    let descriptor = std::fs::File::open("/dev/null").unwrap().into();
    let call = Call::new("getfd").descriptors(vec![descriptor]);
    let refused = client.run_call(call, LONG).await;
    assert!(matches!(refused, Err(Error::DescriptorsNotPossible)));
    drop(client);
    assert_eq!(
        serve.await.unwrap(),
        "{\"execute\": \"qmp_capabilities\", \"id\": 1}\r\n"
    );
}

/// What one look at the socket brings: text, and the descriptors that came with it.
fn receive(stream: &UnixStream) -> std::io::Result<(String, Vec<OwnedFd>)> {
    let mut bytes = [0; 4096];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(
        stream,
        &mut [IoSliceMut::new(&mut bytes)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    let descriptors = control
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
            _ => None,
        })
        .flatten()
        .collect();
    Ok((
        String::from_utf8_lossy(&bytes[..received.bytes]).into_owned(),
        descriptors,
    ))
}

#[tokio::test]
async fn descriptors_arrive_with_their_command_and_are_closed_here() {
    let (mut peer, client) = connected(Oob::No).await;
    let (mut reader, writer) = std::io::pipe().unwrap();
    let second = std::fs::File::open("/dev/null").unwrap().into();
    let call = Call::new("getfd")
        .arguments(json!({"fdname": "a"}))
        .descriptors(vec![writer.into(), second]);
    let serve = async {
        let stream = &peer.stream;
        let received = stream
            .async_io(Interest::READABLE, || receive(stream))
            .await;
        let (text, descriptors) = received.unwrap();
        peer.say("{\"return\": {}, \"id\": 2}\r\n").await;
        (text, descriptors)
    };
    let (reply, (text, descriptors)) = tokio::join!(client.run_call(call, LONG), serve);
    reply.unwrap();
    assert_eq!(
        text,
        "{\"execute\": \"getfd\", \"arguments\": {\"fdname\": \"a\"}, \"id\": 2}\r\n"
    );
    let [first, _] = <[OwnedFd; 2]>::try_from(descriptors).unwrap();
    std::fs::File::from(first)
        .write_all(b"through the pipe")
        .unwrap();
    let mut all = String::new();
    // Ends only because no copy of the writing end is left.
    reader.read_to_string(&mut all).unwrap();
    assert_eq!(all, "through the pipe");
    // The next command brings none.
    let serve = async {
        let command = peer.hear().await;
        peer.answer(&command, json!({})).await;
    };
    let (reply, ()) = tokio::join!(client.run_raw("a", Value::Null, LONG), serve);
    reply.unwrap();
}

#[tokio::test]
async fn more_descriptors_than_fit_are_refused() {
    let (_peer, client) = connected(Oob::No).await;
    let descriptors = (0..17)
        .map(|_| std::fs::File::open("/dev/null").unwrap().into())
        .collect::<Vec<_>>();
    let refused = client
        .run_call(Call::new("getfd").descriptors(descriptors), LONG)
        .await;
    assert!(matches!(
        refused,
        Err(Error::TooManyDescriptors { count: 17, max: 16 })
    ));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever bytes a server sends, calls end and nothing panics.
    #[test]
    fn no_bytes_of_a_server_harm(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (mut peer, client) = connected(Oob::No).await;
            let _ = peer.stream.write_all(&bytes).await;
            peer.stream.shutdown().await.unwrap();
            let call = client.run_raw("a", Value::Null, LONG).await;
            assert!(matches!(call, Err(Error::Lost(_))), "{call:?}");
        });
    }
}
