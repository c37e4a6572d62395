//! Clients over in-memory streams.

use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use api::{
    CommandSpec, CommandTable, Event, EventSink, Interface, JobStatus, JobStatusChangeEvent,
    NoArguments, QmpError, Return,
};
use chardev::ByteStream;
use qmp_wire::Style;
use serde_json::{Value, json};
use tokio::io::{
    AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader, DuplexStream, ReadBuf,
};
use tokio::sync::{Notify, Semaphore};

use super::*;

struct TestStream {
    inner: DuplexStream,
    fds: Vec<OwnedFd>,
}

impl ByteStream for TestStream {
    fn take_fds(&mut self) -> Vec<OwnedFd> {
        std::mem::take(&mut self.fds)
    }
}

impl AsyncRead for TestStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl AsyncWrite for TestStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

fn spec(name: &'static str, allow_oob: bool) -> CommandSpec {
    CommandSpec {
        name,
        allow_oob,
        allow_preconfig: false,
        success_response: true,
        coroutine: false,
        features: &[],
    }
}

struct World {
    server: Arc<MonitorServer>,
    bus: Arc<EventBus>,
    /// Lets `slow` end, one permit each.
    gate: Arc<Semaphore>,
}

fn world() -> World {
    world_of(Interface::STORAGE_DAEMON)
}

/// The world of a program.
fn world_of(interface: Interface) -> World {
    let runtime = tokio::runtime::Handle::current();
    let bus = EventBus::new(runtime.clone());
    let gate = Arc::new(Semaphore::new(0));
    let mut table = CommandTable::<Caller>::new();
    let control = ControlHandlers::new(interface, Arc::<Notify>::default());
    api::register_control(&mut table, Arc::clone(&control));
    api::register_introspect(&mut table, control);
    api::register_fdset(&mut table, FdHandlers::new(Arc::default()));
    let slow_gate = Arc::clone(&gate);
    table.add(
        spec("slow", false),
        move |_: Arc<Caller>, _: NoArguments| {
            let gate = Arc::clone(&slow_gate);
            async move {
                gate.acquire()
                    .await
                    .map_err(|error| QmpError::generic(error.to_string()))?
                    .forget();
                Ok::<_, QmpError>(())
            }
        },
    );
    table.add_raw(spec("quick-oob", true), |_: Arc<Caller>, _| async {
        Ok::<_, QmpError>(Return::empty())
    });
    table.add_raw(spec("explode", false), |_: Arc<Caller>, _| async {
        assert!(std::hint::black_box(false), "on purpose");
        Ok::<_, QmpError>(Return::empty())
    });
    let server = MonitorServer::new(table, Arc::clone(&bus), &version_info(), runtime);
    World { server, bus, gate }
}

struct TestClient {
    stream: BufReader<DuplexStream>,
}

impl TestClient {
    /// A client that has read its greeting and negotiated, with `oob`.
    async fn connect(world: &World) -> Self {
        let mut client = Self::connect_raw(world, Vec::new(), 1 << 16);
        assert!(client.next().await["QMP"]["capabilities"] == json!(["oob"]));
        client
            .send(r#"{"execute":"qmp_capabilities","arguments":{"enable":["oob"]}}"#)
            .await;
        assert_eq!(client.next().await, json!({"return": {}}));
        client
    }

    fn connect_raw(world: &World, fds: Vec<OwnedFd>, buffer: usize) -> Self {
        let (ours, theirs) = tokio::io::duplex(buffer);
        let stream = Box::new(TestStream { inner: theirs, fds });
        world.server.serve_stream(stream, Style::Compact);
        Self {
            stream: BufReader::new(ours),
        }
    }

    async fn send(&mut self, text: &str) {
        self.stream.write_all(text.as_bytes()).await.unwrap();
    }

    async fn next(&mut self) -> Value {
        let mut line = String::new();
        let read = self.stream.read_line(&mut line);
        tokio::time::timeout(Duration::from_secs(20), read)
            .await
            .expect("an answer")
            .unwrap();
        assert!(line.ends_with("\r\n"), "{line:?}");
        serde_json::from_str(&line).unwrap()
    }

    async fn at_end(&mut self) -> bool {
        let mut line = String::new();
        let read = self.stream.read_line(&mut line);
        let read = tokio::time::timeout(Duration::from_secs(20), read).await;
        read.expect("an end").unwrap() == 0
    }
}

fn job_event(id: usize) -> Event {
    Event::JobStatusChange(JobStatusChangeEvent {
        id: format!("job{id}"),
        status: JobStatus::Created,
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_command_holds_up_nobody_else() {
    let world = world();
    let mut slow = TestClient::connect(&world).await;
    let mut other = TestClient::connect(&world).await;
    slow.send(r#"{"execute":"slow","id":1}{"execute":"query-version","id":2}"#)
        .await;
    other.send(r#"{"execute":"query-version","id":3}"#).await;
    assert_eq!(other.next().await["id"], 3);
    slow.send(r#"{"exec-oob":"quick-oob","id":4}"#).await;
    assert_eq!(
        slow.next().await["id"],
        4,
        "out of band passes the slow one"
    );
    world.gate.add_permits(1);
    assert_eq!(slow.next().await["id"], 1);
    assert_eq!(
        slow.next().await["id"],
        2,
        "in-band commands keep their order"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handler_that_panics_is_an_error_reply() {
    let world = world();
    let mut client = TestClient::connect(&world).await;
    client
        .send(r#"{"execute":"explode","id":1}{"execute":"query-version","id":2}"#)
        .await;
    let reply = client.next().await;
    assert_eq!(reply["error"]["class"], "GenericError");
    assert_eq!(client.next().await["id"], 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pipelined_commands_beyond_the_queue_are_all_answered_in_order() {
    let world = world();
    let mut client = TestClient::connect(&world).await;
    let (count, mut text) = (COMMAND_QUEUE * 20, String::new());
    for id in 0..count {
        text += &format!(r#"{{"execute":"query-version","id":{id}}}"#);
    }
    client.send(&text).await;
    for id in 0..count {
        assert_eq!(client.next().await["id"], id);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_vanishes_in_mid_message_harms_nobody() {
    let world = world();
    let mut other = TestClient::connect(&world).await;
    for _ in 0..50 {
        let mut client = TestClient::connect(&world).await;
        client.send(r#"{"execute":"slow"}{"execute":"que"#).await;
    }
    world.gate.add_permits(50);
    other.send(r#"{"execute":"query-version","id":1}"#).await;
    assert_eq!(other.next().await["id"], 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_does_not_read_is_disconnected_and_others_get_all_events() {
    let world = world();
    let mut deaf = TestClient::connect_raw(&world, Vec::new(), 512);
    deaf.next().await;
    deaf.send(r#"{"execute":"qmp_capabilities"}"#).await;
    deaf.next().await;
    let mut reader = TestClient::connect(&world).await;
    let count = OUTPUT_LIMIT / 100 + EVENT_QUEUE * 2;
    let bus = Arc::clone(&world.bus);
    let emitting = tokio::spawn(async move {
        for id in 0..count {
            bus.emit(job_event(id));
            if id % 64 == 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
    });
    for id in 0..count {
        assert_eq!(reader.next().await["data"]["id"], format!("job{id}"));
    }
    emitting.await.unwrap();
    // What had been written for it may still be read; then comes the end.
    let mut line = String::new();
    while deaf.stream.read_line(&mut line).await.unwrap() > 0 {
        line.clear();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_wait_for_negotiation() {
    let world = world();
    let mut client = TestClient::connect_raw(&world, Vec::new(), 1 << 16);
    client.next().await;
    world.bus.emit(job_event(1));
    client.send(r#"{"execute":"qmp_capabilities"}"#).await;
    assert_eq!(client.next().await, json!({"return": {}}));
    world.bus.emit(job_event(2));
    assert_eq!(client.next().await["data"]["id"], "job2");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rate_limited_events_come_first_and_last_by_kind() {
    let world = world();
    let mut client = TestClient::connect(&world).await;
    let emit = |id: &str, open: bool| {
        world
            .bus
            .publish("VSERPORT_CHANGE", Some(json!({"id": id, "open": open})));
    };
    let began = Instant::now();
    for open in [true, false, true, false] {
        emit("a", open);
    }
    emit("b", true);
    let first = client.next().await;
    assert_eq!(first["data"], json!({"id": "a", "open": true}));
    assert_eq!(
        client.next().await["data"]["id"],
        "b",
        "another kind is not held back"
    );
    assert!(began.elapsed() < Duration::from_millis(900));
    assert_eq!(
        client.next().await["data"],
        json!({"id": "a", "open": false})
    );
    assert!(began.elapsed() >= Duration::from_millis(900));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unclaimed_descriptors_are_closed_with_their_message() {
    let world = world();
    let (kept, sent) = std::os::unix::net::UnixStream::pair().unwrap();
    let mut client = TestClient::connect_raw(&world, vec![sent.into()], 1 << 16);
    client.next().await;
    client.send(r#"{"execute":"qmp_capabilities"}"#).await;
    client.next().await;
    client.send(r#"{"execute":"query-version"}"#).await;
    client.next().await;
    // The peer of a closed socket reads its end.
    kept.set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    let end = tokio::task::spawn_blocking(move || {
        let mut kept = kept;
        std::io::Read::read(&mut kept, &mut [0; 1])
    });
    assert_eq!(end.await.unwrap().unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn descriptors_that_come_with_a_blank_belong_to_the_next_message() {
    let world = world();
    let file = std::fs::File::open("/dev/null").unwrap();
    let mut client = TestClient::connect_raw(&world, vec![file.into()], 1 << 16);
    client.next().await;
    client.send(" ").await;
    // Long enough for the blank to be read by itself.
    tokio::time::sleep(Duration::from_millis(100)).await;
    client
        .send(r#"{"execute":"qmp_capabilities"}{"execute":"add-fd"}"#)
        .await;
    client.next().await;
    assert_eq!(client.next().await["return"]["fdset-id"], 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn passed_descriptors_make_sets() {
    let world = world();
    let file = std::fs::File::open("/dev/null").unwrap();
    let mut client = TestClient::connect_raw(&world, vec![file.into()], 1 << 16);
    client.next().await;
    client
        .send(concat!(
            r#"{"execute":"qmp_capabilities"}"#,
            r#"{"execute":"add-fd","arguments":{"opaque":"x"}}"#,
            r#"{"execute":"add-fd"}"#,
            r#"{"execute":"query-fdsets"}"#,
            r#"{"execute":"remove-fd","arguments":{"fdset-id":0}}"#,
            r#"{"execute":"remove-fd","arguments":{"fdset-id":0}}"#,
        ))
        .await;
    client.next().await;
    assert_eq!(client.next().await["return"]["fdset-id"], 0);
    let none = client.next().await;
    assert_eq!(
        none["error"]["desc"],
        "No file descriptor supplied via SCM_RIGHTS"
    );
    assert_eq!(client.next().await["return"][0]["fds"][0]["opaque"], "x");
    assert_eq!(client.next().await, json!({"return": {}}));
    let gone = client.next().await;
    assert_eq!(
        gone["error"]["desc"],
        "File descriptor named 'fdset-id:0' not found"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closing_lets_commands_end_and_says_goodbye() {
    let world = world();
    let mut client = TestClient::connect(&world).await;
    client.send(r#"{"execute":"slow","id":7}"#).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    let server = Arc::clone(&world.server);
    let closing = tokio::spawn(async move { server.close().await });
    tokio::time::sleep(Duration::from_millis(50)).await;
    world.gate.add_permits(1);
    assert_eq!(client.next().await["id"], 7);
    assert!(client.at_end().await);
    closing.await.unwrap();
}

#[tokio::test]
async fn each_program_lists_its_own_interface() {
    for (interface, is_machine) in [
        (Interface::STORAGE_DAEMON, false),
        (Interface::MACHINE, true),
    ] {
        let world = world_of(interface);
        let mut client = TestClient::connect(&world).await;
        let mut answer = async |command: &str| {
            client
                .send(&json!({ "execute": command }).to_string())
                .await;
            client.next().await["return"].take()
        };
        let commands = answer("query-commands").await;
        let has = |list: &Value, name: &str| {
            let mut names = list.as_array().unwrap().iter().map(|info| &info["name"]);
            names.any(|known| known == name)
        };
        assert!(has(&commands, "query-qmp-schema"));
        assert!(
            !has(&commands, "blockdev-mirror"),
            "pending commands are not listed"
        );
        assert_eq!(has(&commands, "system_reset"), is_machine);
        let events = answer("query-events").await;
        assert!(has(&events, "JOB_STATUS_CHANGE"));
        assert_eq!(has(&events, "STOP"), is_machine);
        let schema = answer("query-qmp-schema").await;
        assert_eq!(
            schema,
            serde_json::from_str::<Value>(interface.introspection).unwrap()
        );
    }
}
