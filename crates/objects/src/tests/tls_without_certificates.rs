//! Credentials without certificates. Words of faults are those of qemu-storage-daemon 10.0.2 where
//! it tells them.

use serde_json::{Value, json};

use super::Server;
use super::tls::shake_hands;
use crate::TLS_FILE_BYTES_MAX;

const KEY: &str = "0123456789abcdef0123456789ABCDEF";

struct Setup {
    server: Server,
    dir: tempfile::TempDir,
    next: std::cell::Cell<u32>,
}

impl Setup {
    fn new(keys: &str) -> Self {
        let setup = Self {
            server: Server::new(),
            dir: tempfile::tempdir().unwrap(),
            next: std::cell::Cell::new(0),
        };
        setup.write("keys.psk", keys.as_bytes());
        setup
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        std::fs::write(self.dir.path().join(name), bytes).unwrap();
    }

    /// Makes credentials; the folder's name is left out of the error.
    fn add(&self, kind: &str, endpoint: &str, more: Value) -> Result<String, String> {
        self.next.set(self.next.get() + 1);
        let id = format!("t{}", self.next.get());
        let dir = self.dir.path().to_str().unwrap();
        let kind = format!("tls-creds-{kind}");
        let mut options = json!({"qom-type": kind, "id": id, "dir": dir, "endpoint": endpoint});
        for (name, value) in more.as_object().unwrap() {
            options[name] = value.clone();
        }
        let added = self.server.add(options);
        added.map_err(|error| error.replace(dir, "D")).map(|()| id)
    }

    fn connect(&self, server: &str, client: &str) -> Result<(), String> {
        let server = self.server.tree.tls_server(server).unwrap();
        let client = self.server.tree.tls_client(client).unwrap();
        shake_hands(&server, &client, "").map(drop)
    }
}

#[test]
fn both_ends_have_the_key() {
    let keys = format!("# two keys\n\nqemu:{KEY}\r\n#72696368:00ff\n");
    let setup = Setup::new(&keys);
    let server = setup.add("psk", "server", json!({})).unwrap();
    let client = setup.add("psk", "client", json!({})).unwrap();
    setup.connect(&server, &client).unwrap();
    let rich = setup.add("psk", "client", json!({"username": "rich"}));
    setup.connect(&server, &rich.unwrap()).unwrap();
    setup.write("keys.psk", b"qemu:00ff\n");
    let wrong = setup.add("psk", "client", json!({})).unwrap();
    let refused = setup.connect(&server, &wrong).unwrap_err();
    assert!(refused.starts_with("server: "), "{refused}");
    setup.write("keys.psk", b"nobody:00ff\n");
    let unknown = setup.add("psk", "client", json!({"username": "nobody"}));
    let refused = setup.connect(&server, &unknown.unwrap()).unwrap_err();
    assert!(refused.starts_with("server: "), "{refused}");
    let tree = &setup.server.tree;
    assert_eq!(
        tree.tls_server(&client).err().unwrap().to_string(),
        "Expected TLS credentials for a server endpoint"
    );
    assert_eq!(
        tree.tls_client(&server).err().unwrap().to_string(),
        "Expected TLS credentials for a client endpoint"
    );
}

#[test]
fn anonymous_ends_need_nothing() {
    let setup = Setup::new("");
    let server = setup.add("anon", "server", json!({})).unwrap();
    let client = setup.add("anon", "client", json!({})).unwrap();
    setup.connect(&server, &client).unwrap();
    for options in [
        json!({"qom-type": "tls-creds-anon", "id": "a", "endpoint": "server"}),
        json!({"qom-type": "tls-creds-anon", "id": "b", "endpoint": "server", "dir": "/no/where"}),
    ] {
        setup.server.add(options).unwrap();
    }
    setup.connect("a", &client).unwrap();
    setup.connect("b", &client).unwrap();
    setup.write("dh-params.pem", b"junk");
    setup.add("anon", "client", json!({})).unwrap();
    let junk = setup.add("anon", "server", json!({})).unwrap_err();
    assert_eq!(
        junk,
        "Unable to load DH parameters from D/dh-params.pem: Base64 unexpected header error."
    );
}

#[test]
fn faults_are_told() {
    let psk = |keys: &str, endpoint: &str, more: Value| {
        let setup = Setup::new(keys);
        setup.add("psk", endpoint, more).err().unwrap_or_default()
    };
    let good = format!("qemu:{KEY}\n");
    assert_eq!(psk(&good, "server", json!({})), "");
    assert_eq!(
        psk(&good, "server", json!({"username": "qemu"})),
        "username should not be set when endpoint=server"
    );
    assert_eq!(
        psk(&good, "client", json!({"username": "rich"})),
        "Username rich not found in PSK file D/keys.psk"
    );
    for bad in ["qemu:0g\n", "qemu:012\n"] {
        assert_eq!(
            psk(bad, "client", json!({})),
            "Cannot set PSK client credentials: Error in parsing."
        );
    }
    // QEMU's server finds out with its first client.
    for (bad, words) in [
        ("", "there is no key in it"),
        ("\n# nothing: here\n#\n#00\n", "there is no key in it"),
        ("qemu\n", "line 1: it is not USERNAME:HEXKEY"),
        ("\nqemu:0g\n", "line 2: the key is not hexadecimal"),
        (
            "qemu:\n",
            "line 1: the key of 'qemu' has 0 bytes; it must have 1 to 256",
        ),
        (
            ":00\n",
            "line 1: the user name '' must have 1 to 128 bytes, none of them zero",
        ),
    ] {
        let said = psk(bad, "server", json!({}));
        assert_eq!(said, format!("Cannot read PSK file D/keys.psk: {words}"));
    }
    let priority = psk(&good, "server", json!({"priority": "NORMAL:+PSK"}));
    assert!(priority.contains("is not supported"));
    let setup = Setup::new("");
    let no_dir = json!({"qom-type": "tls-creds-psk", "id": "a", "endpoint": "server"});
    let no_dir = setup.server.add(no_dir).unwrap_err();
    assert_eq!(no_dir, "Missing 'dir' property value");
    let path = setup.dir.path().join("keys.psk");
    let file = std::fs::File::create(&path).unwrap();
    file.set_len(TLS_FILE_BYTES_MAX + 1).unwrap();
    assert_eq!(
        setup.add("psk", "server", json!({})).unwrap_err(),
        format!("Unable to read D/keys.psk: it is larger than {TLS_FILE_BYTES_MAX} bytes")
    );
    std::fs::remove_file(&path).unwrap();
    for endpoint in ["server", "client"] {
        assert_eq!(
            setup.add("psk", endpoint, json!({})).unwrap_err(),
            "Unable to access credentials D/keys.psk: No such file or directory"
        );
    }
}

#[test]
fn any_bytes_in_the_file_are_keys_or_an_error() {
    let setup = Setup::new("");
    let good = format!("qemu:{KEY}\n#7265:00\n");
    for position in 0..good.len() {
        for change in [0x15, 0x80, 0xff] {
            let mut bytes = good.clone().into_bytes();
            bytes[position] ^= change;
            setup.write("keys.psk", &bytes);
            // Some changes give other names or keys; none may panic.
            let _ = setup.add("psk", "server", json!({}));
            let _ = setup.add("psk", "client", json!({}));
        }
    }
    setup.write("keys.psk", good.as_bytes());
    setup.add("psk", "server", json!({})).unwrap();
}

#[test]
fn properties_are_shown() {
    let setup = Setup::new(&format!("qemu:{KEY}\n"));
    let psk = setup.add("psk", "client", json!({})).unwrap();
    let anon = setup.add("anon", "server", json!({"verify-peer": false}));
    let anon = anon.unwrap();
    let tree = &setup.server.tree;
    let get = |id: &str, name: &str| tree.get(&format!("/objects/{id}"), name);
    assert_eq!(get(&psk, "username").unwrap(), "");
    assert_eq!(get(&psk, "endpoint").unwrap(), "client");
    assert_eq!(get(&psk, "verify-peer").unwrap(), true);
    assert_eq!(get(&anon, "verify-peer").unwrap(), false);
    assert_eq!(
        get(&anon, "username").unwrap_err().to_string(),
        "Property 'tls-creds-anon.username' not found"
    );
    let path = format!("/objects/{psk}");
    tree.set(&path, "username", json!("x")).unwrap();
    assert_eq!(get(&psk, "username").unwrap(), "x");
    assert_eq!(get(&psk, "type").unwrap(), "tls-creds-psk");
}
