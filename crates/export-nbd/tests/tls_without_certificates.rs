//! TLS with shared keys and with nothing at all, against the tools' GnuTLS.
#![cfg(feature = "tls-anon-psk")]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod rig;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use export_nbd::NbdServerOptions;
use nbd_wire::{ClientHandshake, ClientStatus, ClientWishes, Goal};
use rig::{Rig, eventually, tool, tool_ok, write_pattern};
use tls_session::{ClientTls, ServerTls, SharedKeys, TlsSession};
use zeroize::Zeroizing;

const MIB: u64 = 1 << 20;
const KEY: [u8; 32] = [0x5a; 32];

fn keys() -> SharedKeys {
    let mut keys = SharedKeys::default();
    keys.add(b"qemu", Zeroizing::new(KEY.to_vec())).unwrap();
    keys.add(b"rich", Zeroizing::new(vec![1; 16])).unwrap();
    keys
}

fn psk_server() -> ServerTls {
    ServerTls::shared_keys(keys(), None).unwrap()
}

fn options(tls: ServerTls) -> NbdServerOptions {
    NbdServerOptions {
        tls: Some(tls),
        ..NbdServerOptions::default()
    }
}

/// A folder with `keys.psk`, for QEMU and for libnbd.
fn key_folder(rig: &Rig, name: &str, text: &str) -> String {
    let folder = rig.path(name);
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("keys.psk"), text).unwrap();
    folder.to_str().unwrap().to_owned()
}

fn hex(key: &[u8]) -> String {
    key.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn psk_uri(rig: &Rig, user: &str, folder: &str) -> String {
    format!(
        "nbds+unix://{user}@/disk?socket={}&tls-psk-file={folder}/keys.psk",
        rig.socket().to_str().unwrap()
    )
}

/// Runs `qemu-io` over TLS with these credentials.
fn qemu_io(rig: &Rig, creds: &str, commands: &[&str]) -> std::process::Output {
    let object = format!("{creds},id=tls0,endpoint=client");
    let image = format!(
        "driver=nbd,path={},export=disk,tls-creds=tls0",
        rig.socket().to_str().unwrap()
    );
    let mut arguments = vec!["--object", &object, "--image-opts", &image];
    for command in commands {
        arguments.extend(["-c", command]);
    }
    tool("qemu-utils", "qemu-io", &arguments)
}

const COMMANDS: [&str; 3] = ["write -P 0x77 3M 5M", "read -P 0x77 3M 5M", "flush"];

#[test]
fn the_tools_read_and_write_with_a_shared_key() {
    let rig = Rig::start(options(psk_server()));
    write_pattern(&rig.path("disk"), 20 << 20, 4);
    let node = rig.raw_node("disk", 20 * MIB);
    let export = rig.export(&node, true);
    let folder = key_folder(&rig, "keys", &format!("qemu:{}\n", hex(&KEY)));
    let uri = psk_uri(&rig, "qemu", &folder);
    let told = tool_ok("libnbd-bin", "nbdinfo", &[&uri]);
    assert!(told.contains("newstyle-fixed with TLS"), "{told}");
    let out = rig.path("out").to_str().unwrap().to_owned();
    tool_ok("libnbd-bin", "nbdcopy", &[&uri, &out]);
    let original = std::fs::read(rig.path("disk")).unwrap();
    assert!(std::fs::read(&out).unwrap() == original);
    let said = qemu_io(&rig, &format!("tls-creds-psk,dir={folder}"), &COMMANDS);
    assert!(said.status.success(), "{said:?}");
    let file = std::fs::read(rig.path("disk")).unwrap();
    assert!(file[3 << 20..8 << 20].iter().all(|byte| *byte == 0x77));
    // TLS 1.2, in which keys are shared in another way.
    let old = format!("tls-creds-psk,dir={folder},priority=NORMAL:-VERS-TLS1.3");
    let said = qemu_io(&rig, &old, &COMMANDS);
    assert!(said.status.success(), "{said:?}");
    let object = format!("tls-creds-psk,id=tls0,endpoint=client,dir={folder}");
    let socket = rig.socket();
    let list = ["--object", &object, "--tls-creds=tls0", "--list"];
    let list = [&list[..], &["-k", socket.to_str().unwrap()]].concat();
    let listed = tool_ok("qemu-utils", "qemu-nbd", &list);
    assert!(listed.contains("export: 'disk'"), "{listed}");
    eventually("clients have gone", || export.client_count() == 0);
}

#[test]
fn who_lacks_the_key_does_not_get_in() {
    let rig = Rig::start(options(psk_server()));
    let node = rig.raw_node("disk", MIB);
    rig.export(&node, true);
    let wrong = key_folder(&rig, "wrong", &format!("qemu:{}\n", hex(&[1; 32])));
    let unknown = key_folder(&rig, "unknown", &format!("nobody:{}\n", hex(&KEY)));
    for (user, folder) in [("qemu", &wrong), ("nobody", &unknown)] {
        let uri = psk_uri(&rig, user, folder);
        assert!(!tool("libnbd-bin", "nbdinfo", &[&uri]).status.success());
        for priority in ["", ",priority=NORMAL:-VERS-TLS1.3"] {
            let creds = format!("tls-creds-psk,dir={folder},username={user}{priority}");
            assert!(!qemu_io(&rig, &creds, &["read 0 1"]).status.success());
        }
    }
    let plain = tool("libnbd-bin", "nbdinfo", &[&rig.uri("disk")]);
    assert!(!plain.status.success());
    assert!(
        !qemu_io(&rig, "tls-creds-anon", &["read 0 1"])
            .status
            .success()
    );
    // One with the key still gets in after all of them.
    let good = key_folder(&rig, "good", &format!("rich:{}\n", hex(&[1; 16])));
    tool_ok("libnbd-bin", "nbdinfo", &[&psk_uri(&rig, "rich", &good)]);
}

#[test]
fn the_tools_read_and_write_anonymously() {
    let rig = Rig::start(options(ServerTls::anonymous(None).unwrap()));
    let node = rig.raw_node("disk", 20 * MIB);
    let export = rig.export(&node, true);
    let said = qemu_io(&rig, "tls-creds-anon", &COMMANDS);
    assert!(said.status.success(), "{said:?}");
    let file = std::fs::read(rig.path("disk")).unwrap();
    assert!(file[3 << 20..8 << 20].iter().all(|byte| *byte == 0x77));
    let folder = key_folder(&rig, "keys", &format!("qemu:{}\n", hex(&KEY)));
    let uri = psk_uri(&rig, "qemu", &folder);
    assert!(!tool("libnbd-bin", "nbdinfo", &[&uri]).status.success());
    eventually("clients have gone", || export.client_count() == 0);
}

/// Access lists have names of certificates: without one, nobody is on them.
#[test]
fn who_has_no_certificate_is_not_on_an_access_list() {
    let asked = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let seen = Arc::clone(&asked);
    let rig = Rig::start(NbdServerOptions {
        authorizer: Some(Arc::new(move |_| {
            seen.store(true, std::sync::atomic::Ordering::SeqCst);
            true
        })),
        ..options(psk_server())
    });
    let node = rig.raw_node("disk", MIB);
    rig.export(&node, true);
    let folder = key_folder(&rig, "keys", &format!("qemu:{}\n", hex(&KEY)));
    let uri = psk_uri(&rig, "qemu", &folder);
    assert!(!tool("libnbd-bin", "nbdinfo", &[&uri]).status.success());
    assert!(!asked.load(std::sync::atomic::Ordering::SeqCst));
}

const START_TLS: &[u8] = b"\0\0\0\x03IHAVEOPT\0\0\0\x05\0\0\0\0";

#[test]
fn garbage_behind_starttls_ends_the_connection() {
    for tls in [psk_server(), ServerTls::anonymous(None).unwrap()] {
        let rig = Rig::start(options(tls));
        for garbage in [&b"IHAVEOPT\0\0\0\x03\0\0\0\0"[..], &[0; 100], &[0x16; 5000]] {
            let mut stream = rig.connect();
            stream.write_all(START_TLS).unwrap();
            stream.read_exact(&mut [0; 38]).unwrap();
            let _ = stream.write_all(garbage);
            let _ = stream.shutdown(std::net::Shutdown::Write);
            let mut rest = Vec::new();
            let _ = stream.read_to_end(&mut rest);
            assert!(rest.len() < 64, "at most an alert comes back");
        }
        let server = rig.server.as_ref().unwrap();
        eventually("they have gone", || server.client_count() == 0);
    }
}

#[test]
fn who_dawdles_in_the_handshake_is_cut_off() {
    let rig = Rig::start(NbdServerOptions {
        handshake_max_seconds: 1,
        ..options(psk_server())
    });
    let mut stream = rig.connect();
    stream.write_all(START_TLS).unwrap();
    stream.read_exact(&mut [0; 38]).unwrap();
    // The beginning of a handshake record, and no more.
    stream.write_all(&[0x16, 3, 1, 2, 0, 1]).unwrap();
    let began = Instant::now();
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest);
    assert!(began.elapsed() < Duration::from_secs(10), "{rest:?}");
    let server = rig.server.as_ref().unwrap();
    eventually("it has gone", || server.client_count() == 0);
}

/// QEMU's own server, for our client's end.
struct QemuNbd {
    process: Child,
    socket: PathBuf,
    _folder: tempfile::TempDir,
}

impl QemuNbd {
    fn start(creds: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(
            folder.path().join("keys.psk"),
            format!("qemu:{}\n", hex(&KEY)),
        )
        .unwrap();
        let socket = folder.path().join("s");
        let dir = folder.path().to_str().unwrap();
        let process = Command::new("qemu-nbd")
            .args([
                "--object",
                &format!("{creds},id=t,endpoint=server,dir={dir}"),
            ])
            .args(["--tls-creds=t", "-t", "-x", "disk", "-k"])
            .arg(&socket)
            .args(["--image-opts", "driver=null-co,size=1048576"])
            .stdin(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("qemu-nbd (Debian package qemu-utils): {error}"));
        eventually("qemu-nbd listens", || UnixStream::connect(&socket).is_ok());
        Self {
            process,
            socket,
            _folder: folder,
        }
    }

    /// The size of the export, negotiated in TLS.
    fn size_through(&self, tls: &ClientTls) -> std::io::Result<u64> {
        let mut stream = UnixStream::connect(&self.socket)?;
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        let wishes = ClientWishes {
            goal: Goal::Transmission("disk".into()),
            tls: true,
            structured: true,
            extended: false,
            meta_contexts: Vec::new(),
        };
        let mut handshake = ClientHandshake::new(wishes);
        let mut session: Option<TlsSession> = None;
        let mut buf = vec![0; 64 << 10];
        loop {
            let output = handshake.take_output();
            match &mut session {
                None => stream.write_all(&output)?,
                Some(session) => {
                    assert_eq!(session.write_plain(&output)?, output.len());
                    flush(session, &mut stream)?;
                }
            }
            let count = match &mut session {
                None => stream.read(&mut buf)?,
                Some(session) => read(session, &mut stream, &mut buf)?,
            };
            if count == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            match handshake.feed(&buf[..count]) {
                ClientStatus::NeedMore => {}
                ClientStatus::StartTls => {
                    let mut begun = tls.session("").unwrap();
                    flush(&mut begun, &mut stream)?;
                    while begun.is_handshaking() {
                        receive(&mut begun, &mut stream)?;
                        flush(&mut begun, &mut stream)?;
                    }
                    session = Some(begun);
                    handshake.tls_started();
                }
                ClientStatus::Ready(ready) => return Ok(ready.export.size_bytes),
                other => panic!("{other:?}"),
            }
        }
    }
}

impl Drop for QemuNbd {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn flush(session: &mut TlsSession, stream: &mut UnixStream) -> std::io::Result<()> {
    let mut cipher = [0; 4096];
    while session.has_cipher() {
        let count = session.take_cipher(&mut cipher)?;
        stream.write_all(&cipher[..count])?;
    }
    Ok(())
}

fn receive(session: &mut TlsSession, stream: &mut UnixStream) -> std::io::Result<()> {
    let mut cipher = [0; 4096];
    let count = stream.read(&mut cipher)?;
    assert_eq!(session.put_cipher(&cipher[..count])?, count);
    Ok(())
}

fn read(
    session: &mut TlsSession,
    stream: &mut UnixStream,
    buf: &mut [u8],
) -> std::io::Result<usize> {
    loop {
        match session.read_plain(buf) {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                receive(session, stream)?;
            }
            done => return done,
        }
    }
}

#[test]
fn our_end_of_a_client_fits_qemus_server() {
    let anonymous = ClientTls::anonymous().unwrap();
    let shared = ClientTls::shared_key(keys(), "qemu").unwrap();
    let stranger = ClientTls::shared_key(keys(), "rich").unwrap();
    let psk = QemuNbd::start("tls-creds-psk");
    assert_eq!(psk.size_through(&shared).unwrap(), MIB);
    assert!(psk.size_through(&stranger).is_err());
    assert!(psk.size_through(&anonymous).is_err());
    let old = QemuNbd::start("tls-creds-psk,priority=NORMAL:-VERS-TLS1.3");
    assert_eq!(old.size_through(&shared).unwrap(), MIB);
    let anon = QemuNbd::start("tls-creds-anon");
    assert_eq!(anon.size_through(&anonymous).unwrap(), MIB);
    assert!(anon.size_through(&shared).is_err());
}
