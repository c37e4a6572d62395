//! Against QEMU's storage daemon, as it is installed.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use api::commands::{BlockdevAdd, QueryQmpSchema, QueryVersion};
use api::{BlockdevOptions, NoArguments, from_json};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{Address, Client, ConnectOptions, Error, Lost, Occurrence, Oob};

const LONG: Duration = Duration::from_secs(20);

struct Daemon {
    child: Child,
    folder: TempDir,
}

impl Daemon {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("qmp");
        let child = Command::new("qemu-storage-daemon")
            .arg("--chardev")
            .arg(format!(
                "socket,id=c,path={},server=on,wait=off",
                socket.display()
            ))
            .args(["--monitor", "c"])
            .stdin(Stdio::null())
            .spawn()
            .expect("qemu-storage-daemon (Debian package qemu-system-common) is needed");
        let daemon = Self { child, folder };
        let started = Instant::now();
        while !daemon.socket().exists() {
            assert!(started.elapsed() < LONG, "the daemon does not start");
            std::thread::sleep(Duration::from_millis(5));
        }
        daemon
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("qmp")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    async fn connect(&self, oob: Oob) -> Client {
        let options = ConnectOptions { timeout: LONG, oob };
        Client::connect(&Address::Unix(self.socket()), &options)
            .await
            .unwrap()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn file_node(path: &Path) -> BlockdevOptions {
    from_json(json!({"driver": "file", "node-name": "disk", "filename": path})).unwrap()
}

#[tokio::test]
async fn typed_commands_run_and_errors_have_qemus_words() {
    let daemon = Daemon::start();
    let client = daemon.connect(Oob::No).await;
    let version = client
        .run::<QueryVersion>(&NoArguments, LONG)
        .await
        .unwrap();
    let greeted = client.version()["qemu"]["major"].as_i64().unwrap();
    assert_eq!(version.value.qemu.major, greeted);
    assert_eq!(version.unknown, []);

    let failed = client
        .run::<BlockdevAdd>(&file_node(Path::new("/none/such")), LONG)
        .await;
    let Err(Error::Server(error)) = failed else {
        panic!("{failed:?}")
    };
    assert_eq!(error.class, "GenericError");
    assert_eq!(
        error.desc,
        "Could not open '/none/such': No such file or directory"
    );

    let unknown = client
        .run_raw("no-such-command", Value::Null, LONG)
        .await
        .unwrap_err();
    assert_eq!(unknown.server_error().unwrap().class, "CommandNotFound");
}

#[tokio::test]
async fn the_whole_introspection_fits_its_type() {
    let daemon = Daemon::start();
    let client = daemon.connect(Oob::No).await;
    let schema = client
        .run::<QueryQmpSchema>(&NoArguments, LONG)
        .await
        .unwrap();
    assert!(schema.value.len() > 300, "{}", schema.value.len());
}

#[tokio::test]
async fn events_of_a_job_come_in_order_and_typed() {
    let daemon = Daemon::start();
    let client = daemon.connect(Oob::No).await;
    let mut events = client.events();
    let options = json!({"driver": "file", "filename": daemon.path("new"), "size": 65536});
    let arguments = json!({"job-id": "j", "options": options});
    client
        .run_raw("blockdev-create", arguments, LONG)
        .await
        .unwrap();
    let mut seen = Vec::new();
    while seen.last() != Some(&"concluded") {
        let next = tokio::time::timeout(LONG, events.next()).await.unwrap();
        let Some(Occurrence::Event(event)) = next else {
            panic!("{next:?}")
        };
        let Ok(Some(api::Event::JobStatusChange(change))) = event.typed() else {
            panic!("{event:?}");
        };
        assert_eq!(change.id, "j");
        seen.push(change.status.as_str());
    }
    assert_eq!(
        seen,
        ["created", "running", "waiting", "pending", "concluded"]
    );
}

#[tokio::test]
async fn a_thousand_pipelined_commands_are_all_answered() {
    let daemon = Daemon::start();
    let client = daemon.connect(Oob::No).await;
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..1000 {
        let client = client.clone();
        calls.spawn(async move { client.run::<QueryVersion>(&NoArguments, LONG).await });
    }
    while let Some(call) = calls.join_next().await {
        assert!(call.unwrap().unwrap().value.qemu.major >= 7);
    }
}

#[tokio::test]
async fn a_second_client_is_told_that_nobody_greets() {
    let daemon = Daemon::start();
    let _first = daemon.connect(Oob::No).await;
    let options = ConnectOptions {
        timeout: Duration::from_millis(200),
        oob: Oob::No,
    };
    let second = Client::connect(&Address::Unix(daemon.socket()), &options).await;
    assert!(
        matches!(second, Err(Error::GreetingTimedOut { .. })),
        "{second:?}"
    );
}

#[tokio::test]
async fn quit_answers_and_then_the_connection_is_lost() {
    let daemon = Daemon::start();
    let client = daemon.connect(Oob::No).await;
    assert_eq!(
        client.run_raw("quit", Value::Null, LONG).await.unwrap(),
        json!({})
    );
    assert!(matches!(client.lost().await, Lost::Ended));
    let later = client.run_raw("quit", Value::Null, LONG).await;
    assert!(matches!(later, Err(Error::Lost(Lost::Ended))));
}

#[tokio::test]
async fn tcp_and_abstract_addresses_reach_a_server() {
    let name = format!("ratite-client-test-{}", std::process::id());
    for (chardev, address) in [
        (
            format!("socket,id=c,path={name},abstract=on,server=on,wait=off"),
            Address::Abstract(name.clone()),
        ),
        (
            "socket,id=c,host=127.0.0.1,port=47811,server=on,wait=off".to_owned(),
            "127.0.0.1:47811".parse().unwrap(),
        ),
    ] {
        let child = Command::new("qemu-storage-daemon")
            .args(["--chardev", &chardev, "--monitor", "c"])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let _daemon = Daemon {
            child,
            folder: tempfile::tempdir().unwrap(),
        };
        let started = Instant::now();
        let client = loop {
            match Client::connect(&address, &ConnectOptions::default()).await {
                Ok(client) => break client,
                Err(Error::Connect { .. }) if started.elapsed() < LONG => {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                Err(error) => panic!("{error}"),
            }
        };
        client
            .run::<QueryVersion>(&NoArguments, LONG)
            .await
            .unwrap();
    }
}

#[tokio::test]
async fn nobody_there_is_a_connection_error_that_names_the_address() {
    let address: Address = "/none/such.sock".parse().unwrap();
    let error = Client::connect(&address, &ConnectOptions::default())
        .await
        .unwrap_err();
    let text = error.to_string();
    assert!(
        text.starts_with("cannot connect to unix:/none/such.sock: "),
        "{text}"
    );
}
