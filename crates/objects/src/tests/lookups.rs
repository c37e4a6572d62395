//! Objects as their users see them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;

use super::Server;
use crate::{LIST_FILE_BYTES_MAX, SECRET_FILE_BYTES_MAX};

fn desc<T>(result: Result<T, crate::ObjectError>) -> String {
    match result {
        Ok(_) => "found".to_owned(),
        Err(error) => error.to_string(),
    }
}

/// The words of qemu-storage-daemon 10.0.2, but for authorization objects.
#[test]
fn lookups_say_what_is_wrong() {
    let server = Server::new();
    server
        .add(json!({"qom-type": "iothread", "id": "io"}))
        .unwrap();
    let secret = json!({"qom-type": "secret", "id": "s", "data": "x"});
    server.add(secret).unwrap();
    let tree = &server.tree;
    assert_eq!(desc(tree.iothread("io")), "found");
    assert_eq!(desc(tree.iothread("no")), "iothread \"no\" not found");
    assert_eq!(desc(tree.iothread("s")), "iothread \"s\" not found");
    assert_eq!(desc(tree.secret("no")), "No secret with id 'no'");
    assert_eq!(
        desc(tree.secret("io")),
        "Object with id 'io' is not a secret"
    );
    assert_eq!(
        desc(tree.tls_server("no")),
        "No TLS credentials with id 'no'"
    );
    assert_eq!(
        desc(tree.tls_client("io")),
        "Object with id 'io' is not TLS credentials"
    );
    assert_eq!(
        desc(tree.throttle_group("io")),
        "Throttle group 'io' does not exist"
    );
    assert_eq!(
        desc(tree.authorizer("no")),
        "No authorization object with id 'no'"
    );
    assert_eq!(
        desc(tree.authorizer("io")),
        "Object with id 'io' is not an authorization object"
    );
    // A throttle group that was not found is not held.
    server.run("object-del", json!({"id": "io"})).unwrap();
}

#[test]
fn an_iothread_runs_and_outlives_its_name() {
    let server = Server::new();
    server
        .add(json!({"qom-type": "iothread", "id": "io"}))
        .unwrap();
    let iothread = server.tree.iothread("io").unwrap();
    assert_eq!(iothread.settings().thread_pool_max, 64);
    server.run("object-del", json!({"id": "io"})).unwrap();
    let name = iothread
        .handle()
        .spawn(|| async { std::thread::current().name().map(str::to_owned) });
    let name = server.runtime.block_on(name).unwrap();
    assert_eq!(name.as_deref(), Some("IO io"));
}

#[test]
fn the_last_user_may_be_a_task_of_the_iothread() {
    let server = Server::new();
    server
        .add(json!({"qom-type": "iothread", "id": "io"}))
        .unwrap();
    let iothread = server.tree.iothread("io").unwrap();
    server.run("object-del", json!({"id": "io"})).unwrap();
    let handle = iothread.handle().clone();
    let weak = Arc::downgrade(&iothread);
    let done = handle.spawn(move || async move { drop(iothread) });
    server.runtime.block_on(done).unwrap();
    assert!(weak.upgrade().is_none());
    // The thread ends: work is not taken any more.
    let deadline = Instant::now() + Duration::from_secs(10);
    while server.runtime.block_on(handle.spawn(|| async {})).is_ok() {
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn secrets_come_out_as_they_went_in() {
    let server = Server::new();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("key");
    std::fs::write(&file, b"0123456789abcdef0123456789abcdef").unwrap();
    let bytes = |id| server.tree.secret(id).unwrap().bytes().to_vec();
    server
        .add(json!({"qom-type": "secret", "id": "key", "file": file}))
        .unwrap();
    server
        .add(json!({"qom-type": "secret", "id": "b", "data": "//4A", "format": "base64"}))
        .unwrap();
    assert_eq!(bytes("b"), [0xff, 0xfe, 0]);
    server
        .add(
            json!({"qom-type": "secret", "id": "e", "data": "A9cv54/AQAFOV2ReiUc4Yw==",
            "format": "base64", "iv": "AAECAwQFBgcICQoLDA0ODw==", "keyid": "key"}),
        )
        .unwrap();
    assert_eq!(bytes("e"), b"letmein");
    // The properties can be changed, the secret cannot.
    let set = json!({"path": "/objects/e", "property": "data", "value": "other"});
    server.run("qom-set", set).unwrap();
    assert_eq!(bytes("e"), b"letmein");
    server
        .add(json!({"qom-type": "iothread", "id": "io"}))
        .unwrap();
    let wrong = json!({"qom-type": "secret", "id": "w", "data": "x", "keyid": "io"});
    assert_eq!(
        server.add(wrong).unwrap_err(),
        "Object with id 'io' is not a secret"
    );
}

#[test]
fn huge_files_are_refused() {
    let server = Server::new();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("huge");
    let file = std::fs::File::create(&path).unwrap();
    file.set_len(SECRET_FILE_BYTES_MAX).unwrap();
    let secret =
        |id: &str, file: &str| server.add(json!({"qom-type": "secret", "id": id, "file": file}));
    let name = path.to_str().unwrap();
    secret("fits", name).unwrap();
    file.set_len(SECRET_FILE_BYTES_MAX + 1).unwrap();
    assert_eq!(
        secret("huge", name).unwrap_err(),
        format!("Unable to read {name}: it is larger than {SECRET_FILE_BYTES_MAX} bytes")
    );
    // This one does not say how large it is.
    assert!(secret("zero", "/dev/zero").unwrap_err().contains("larger"));
    file.set_len(LIST_FILE_BYTES_MAX + 1).unwrap();
    let list = json!({"qom-type": "authz-listfile", "id": "l", "filename": name});
    assert!(server.add(list).unwrap_err().contains("larger"));
}

#[test]
fn lists_decide_by_their_first_rule() {
    let server = Server::new();
    server
        .add(
            json!({"qom-type": "authz-list", "id": "l", "policy": "allow", "rules": [
                {"match": "CN=fred", "policy": "allow"},
                {"match": "CN=f*", "policy": "deny", "format": "glob"},
                {"match": "CN=f*", "policy": "deny"},
            ]}),
        )
        .unwrap();
    let list = server.tree.authorizer("l").unwrap();
    assert!(list.is_allowed("CN=fred"));
    assert!(!list.is_allowed("CN=frank"));
    assert!(list.is_allowed("CN=bob"));
    server
        .add(json!({"qom-type": "authz-list", "id": "none"}))
        .unwrap();
    assert!(!server.tree.authorizer("none").unwrap().is_allowed("x"));
    let simple = json!({"qom-type": "authz-simple", "id": "s", "identity": "CN=fred"});
    server.add(simple).unwrap();
    let simple = server.tree.authorizer("s").unwrap();
    assert!(simple.is_allowed("CN=fred"));
    assert!(!simple.is_allowed("CN=fre"));
}

#[test]
fn a_list_in_a_file_follows_it() {
    let server = Server::new();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("list");
    let only = |name: &str| json!({"rules": [{"match": name, "policy": "allow"}]}).to_string();
    // As editors do it: the new file takes the old one's place at once.
    let write = |text: &str| {
        let new = dir.path().join("new");
        std::fs::write(&new, text).unwrap();
        std::fs::rename(&new, &path).unwrap();
    };
    write(&only("a"));
    for (id, refresh) in [("follows", true), ("stays", false)] {
        let options = json!({"qom-type": "authz-listfile", "id": id, "filename": path,
            "refresh": refresh});
        server.add(options).unwrap();
    }
    let follows = server.tree.authorizer("follows").unwrap();
    let stays = server.tree.authorizer("stays").unwrap();
    assert!(follows.is_allowed("a") && stays.is_allowed("a"));
    write(&only("b"));
    assert!(follows.is_allowed("b") && !follows.is_allowed("a"));
    assert!(stays.is_allowed("a") && !stays.is_allowed("b"));
    write("garbage");
    assert!(follows.is_allowed("b"));
    std::fs::remove_file(&path).unwrap();
    assert!(follows.is_allowed("b"));
    write(&only("c"));
    assert!(follows.is_allowed("c") && !follows.is_allowed("b"));
}

#[test]
fn wrong_lists_are_refused() {
    let server = Server::new();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("list");
    let deep = "[".repeat(100_000);
    for (text, why) in [
        ("", "is not JSON text"),
        ("garbage", "is not JSON text"),
        ("[]", "must be a JSON object"),
        (r#"{"policy": "maybe"}"#, "does not accept value 'maybe'"),
        (
            r#"{"rules": [{"match": "x"}]}"#,
            "'rules[0].policy' is missing",
        ),
        (r#"{"nosuch": 1}"#, "'nosuch' is unexpected"),
        (deep.as_str(), "is not JSON text"),
    ] {
        std::fs::write(&path, text).unwrap();
        let options = json!({"qom-type": "authz-listfile", "id": "l", "filename": path});
        let error = server.add(options).unwrap_err();
        assert!(error.contains(why), "{error}");
    }
}

/// The answers of qemu-storage-daemon 10.0.2 that the transcripts do not have.
#[test]
fn throttle_limits_are_checked() {
    let server = Server::new();
    for (options, desc) in [
        (
            json!({"x-iops-total": -1}),
            "Property values cannot be negative",
        ),
        (
            json!({"x-iops-total": 5, "x-iops-read": 5}),
            "bps/iops/max total values and read/write values cannot be used at the same time",
        ),
        (
            json!({"x-iops-total": 5, "limits": {"iops-read": 3}}),
            "bps/iops/max total values and read/write values cannot be used at the same time",
        ),
        (
            json!({"x-iops-total-max-length": 0}),
            "the burst length cannot be 0",
        ),
        (
            json!({"x-iops-total-max-length": 5_000_000_000u64}),
            "x-iops-total-max-length value must be in therange [0, 4294967295]",
        ),
        (
            json!({"limits": {"iops-total-max-length": 5_000_000_000u64}}),
            "iops-total-max-length value must be in the range [0, 4294967295]",
        ),
        (
            json!({"limits": {"iops-total": 3, "iops-total-max": 10, "iops-total-max-length": -1}}),
            "burst length too high for this burst rate",
        ),
        (
            json!({"limits": {"iops-total": 3, "iops-total-max": 500_000_000_000_001u64,
                "iops-total-max-length": 2}}),
            "burst length too high for this burst rate",
        ),
    ] {
        let mut options = options;
        options["qom-type"] = json!("throttle-group");
        options["id"] = json!("t");
        assert_eq!(server.add(options).unwrap_err(), desc);
    }
    server
        .add(
            json!({"qom-type": "throttle-group", "id": "t", "x-iops-total": 5,
            "limits": {"iops-total": 3, "iops-total-max": 500_000_000_000_000u64,
                "iops-total-max-length": 2, "iops-size": -1}}),
        )
        .unwrap();
    let (group, _hold) = server.tree.throttle_group("t").unwrap();
    assert_eq!(group.limits().iops_total, Some(3));
    // A change that does not fit changes nothing.
    let set = |value| {
        server.run(
            "qom-set",
            json!({"path": "t", "property": "limits", "value": value}),
        )
    };
    set(json!({"bps-total": 7, "iops-read": 1})).unwrap_err();
    assert_eq!(group.limits().bps_total, Some(0));
    set(json!({"bps-total": 7})).unwrap();
    assert_eq!(group.limits().bps_total, Some(7));
    assert_eq!(group.limits().iops_total, Some(3));
}
