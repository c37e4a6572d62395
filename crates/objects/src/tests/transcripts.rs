//! What QEMU's storage daemon answered, as recorded in `tests/transcripts`.

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use super::Server;

/// Objects of types that are not built; their lines are left out.
const NOT_BUILT: [&str; 4] = ["tls-creds-psk", "tls-creds-anon", "/objects/a0", "\"a0\""];

/// JSON equality; without `ordered` lists may be in any order.
fn same(want: &Value, got: &Value, ordered: bool) -> bool {
    match (want, got) {
        (Value::Array(want), Value::Array(got)) if ordered => {
            want.len() == got.len() && want.iter().zip(got).all(|(w, g)| same(w, g, ordered))
        }
        (Value::Array(want), Value::Array(got)) => {
            want.len() == got.len() && want.iter().all(|w| got.iter().any(|g| same(w, g, ordered)))
        }
        (Value::Object(want), Value::Object(got)) => {
            want.len() == got.len()
                && want
                    .iter()
                    .all(|(key, w)| got.get(key).is_some_and(|g| same(w, g, ordered)))
        }
        _ => want == got,
    }
}

fn replay(name: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/transcripts");
    let text = std::fs::read_to_string(path.join(name)).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let text = text.replace("{dir}", dir.path().to_str().unwrap());
    let server = Server::new();
    let mut compared = 0;
    let mut request: Option<Value> = None;
    for line in text.lines() {
        if let Some(setup) = line.strip_prefix("setup: ") {
            let status = Command::new("sh").arg("-c").arg(setup).status().unwrap();
            assert!(status.success(), "{setup}");
        } else if let Some(sent) = line.strip_prefix("> ") {
            let known = !NOT_BUILT.iter().any(|text| sent.contains(text));
            request = known.then(|| serde_json::from_str(sent).unwrap());
        } else if let Some(answer) = line.strip_prefix('<') {
            let ordered = !answer.starts_with('~');
            let want: Value = serde_json::from_str(answer.trim_start_matches('~')).unwrap();
            let Some(sent) = request.take() else {
                continue;
            };
            let command = sent["execute"].as_str().unwrap();
            if command == "qmp_capabilities" {
                continue;
            }
            let got = match server.run(command, sent["arguments"].clone()) {
                Ok(value) => json!({"return": value}),
                Err(error) => {
                    json!({"error": {"class": error.class.as_str(), "desc": error.desc}})
                }
            };
            assert!(
                same(&want, &got, ordered),
                "{sent}\nwant {want}\n got {got}"
            );
            compared += 1;
        }
    }
    assert!(compared > 5, "{name} has only {compared} answers");
}

#[test]
fn authz() {
    replay("object-authz.txt");
}

#[test]
fn iothread() {
    replay("object-iothread.txt");
}

#[test]
fn secret() {
    replay("object-secret.txt");
}

#[test]
fn throttle_group() {
    replay("object-throttle-group.txt");
}

#[test]
fn tls_creds() {
    replay("object-tls-creds.txt");
}

#[test]
fn paths() {
    replay("qom-paths.txt");
}
