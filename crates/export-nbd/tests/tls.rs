//! TLS with certificates of our own making, against the tools' GnuTLS.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod rig;

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use export_nbd::NbdServerOptions;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, DnValue,
    ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
};
use rig::{Rig, eventually, tool, tool_ok, write_pattern};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};

const MIB: u64 = 1 << 20;
const CLIENT_NAME: &str = "C=GB,ST=London,L=London,O=Example\\, Home,CN=laptop.example.com";

/// An authority, a server's certificate, and folders with what clients need.
struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    config: Arc<ServerConfig>,
}

fn name(parts: &[(DnType, &str)]) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    for (kind, value) in parts {
        // A country is a printable string (RFC 5280, appendix A), and GnuTLS wants it to be.
        let value = match kind {
            DnType::CountryName => DnValue::PrintableString((*value).try_into().unwrap()),
            _ => DnValue::Utf8String((*value).to_owned()),
        };
        name.push(kind.clone(), value);
    }
    name
}

impl Authority {
    fn new(folder: &Path) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name = name(&[(DnType::CommonName, "authority")]);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().unwrap();
        let issuer = CertifiedIssuer::self_signed(params, key).unwrap();
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.distinguished_name = name(&[(DnType::CommonName, "localhost")]);
        params.key_usages = vec![
            KeyUsagePurpose::DigitalSignature,
            KeyUsagePurpose::KeyEncipherment,
        ];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &issuer).unwrap();
        std::fs::write(folder.join("ca-cert.pem"), issuer.pem()).unwrap();
        std::fs::write(folder.join("server-cert.pem"), certificate.pem()).unwrap();
        std::fs::write(folder.join("server-key.pem"), key.serialize_pem()).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(issuer.der().clone()).unwrap();
        let verifier = WebPkiClientVerifier::builder(Arc::new(roots))
            .build()
            .unwrap();
        let key = rustls_pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let config = ServerConfig::builder()
            .with_client_cert_verifier(verifier)
            .with_single_cert(vec![certificate.der().clone()], key)
            .unwrap();
        Self {
            issuer,
            config: Arc::new(config),
        }
    }

    /// A folder as `tls-creds-x509` and libnbd want it.
    fn client(&self, folder: PathBuf) -> String {
        std::fs::create_dir_all(&folder).unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name = name(&[
            (DnType::CountryName, "GB"),
            (DnType::StateOrProvinceName, "London"),
            (DnType::LocalityName, "London"),
            (DnType::OrganizationName, "Example, Home"),
            (DnType::CommonName, "laptop.example.com"),
        ]);
        params.key_usages = vec![
            KeyUsagePurpose::DigitalSignature,
            KeyUsagePurpose::KeyEncipherment,
        ];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        std::fs::write(folder.join("ca-cert.pem"), self.issuer.pem()).unwrap();
        std::fs::write(folder.join("client-cert.pem"), certificate.pem()).unwrap();
        std::fs::write(folder.join("client-key.pem"), key.serialize_pem()).unwrap();
        folder.to_str().unwrap().to_owned()
    }
}

struct TlsRig {
    rig: Rig,
    authority: Authority,
    /// The names that asked.
    names: Arc<Mutex<Vec<String>>>,
    _folder: tempfile::TempDir,
}

impl TlsRig {
    fn start(allowed: &'static str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::new(folder.path());
        let names = Arc::<Mutex<Vec<String>>>::default();
        let seen = Arc::clone(&names);
        let options = NbdServerOptions {
            tls: Some(Arc::clone(&authority.config).into()),
            authorizer: Some(Arc::new(move |name| {
                seen.lock().unwrap().push(name.to_owned());
                name == allowed
            })),
            ..NbdServerOptions::default()
        };
        Self {
            rig: Rig::start(options),
            authority,
            names,
            _folder: folder,
        }
    }

    fn uri(&self, credentials: &str) -> String {
        format!(
            "nbds+unix:///disk?socket={}&tls-certificates={credentials}&tls-hostname=localhost",
            self.rig.socket().to_str().unwrap()
        )
    }
}

#[test]
fn the_tools_read_and_write_over_tls() {
    let tls = TlsRig::start(CLIENT_NAME);
    let rig = &tls.rig;
    write_pattern(&rig.path("disk"), 20 << 20, 4);
    let node = rig.raw_node("disk", 20 * MIB);
    let export = rig.export(&node, true);
    let credentials = tls.authority.client(rig.path("client"));
    let told = tool_ok("libnbd-bin", "nbdinfo", &[&tls.uri(&credentials)]);
    assert!(told.contains("newstyle-fixed with TLS"), "{told}");
    assert_eq!(*tls.names.lock().unwrap(), [CLIENT_NAME]);
    let out = rig.path("out").to_str().unwrap().to_owned();
    tool_ok("libnbd-bin", "nbdcopy", &[&tls.uri(&credentials), &out]);
    let original = std::fs::read(rig.path("disk")).unwrap();
    assert_eq!(std::fs::read(&out).unwrap(), original);
    let object = format!("tls-creds-x509,id=tls0,endpoint=client,dir={credentials}");
    let image = format!(
        "driver=nbd,path={},export=disk,tls-creds=tls0,tls-hostname=localhost",
        rig.socket().to_str().unwrap()
    );
    let arguments = [
        "--object",
        &object,
        "--image-opts",
        &image,
        "-c",
        "write -P 0x77 3M 5M",
        "-c",
        "read -P 0x77 3M 5M",
        "-c",
        "flush",
    ];
    let said = tool_ok("qemu-utils", "qemu-io", &arguments);
    assert!(!said.contains("failed"), "{said}");
    let file = std::fs::read(rig.path("disk")).unwrap();
    assert!(file[3 << 20..8 << 20].iter().all(|byte| *byte == 0x77));
    eventually("clients have gone", || export.client_count() == 0);
}

#[test]
fn who_is_not_allowed_does_not_get_in() {
    let tls = TlsRig::start("CN=somebody else");
    let rig = &tls.rig;
    let node = rig.raw_node("disk", MIB);
    rig.export(&node, true);
    let credentials = tls.authority.client(rig.path("client"));
    let refused = tool("libnbd-bin", "nbdinfo", &[&tls.uri(&credentials)]);
    assert!(!refused.status.success());
    assert_eq!(*tls.names.lock().unwrap(), [CLIENT_NAME]);
    // A certificate of another authority, and none at all, are not even asked about.
    let other = tempfile::tempdir().unwrap();
    let stranger = Authority::new(other.path()).client(rig.path("stranger"));
    std::fs::copy(
        format!("{credentials}/ca-cert.pem"),
        format!("{stranger}/ca-cert.pem"),
    )
    .unwrap();
    assert!(
        !tool("libnbd-bin", "nbdinfo", &[&tls.uri(&stranger)])
            .status
            .success()
    );
    std::fs::remove_file(format!("{stranger}/client-cert.pem")).unwrap();
    assert!(
        !tool("libnbd-bin", "nbdinfo", &[&tls.uri(&stranger)])
            .status
            .success()
    );
    let plain = tool("libnbd-bin", "nbdinfo", &[&rig.uri("disk")]);
    assert!(!plain.status.success());
    assert_eq!(tls.names.lock().unwrap().len(), 1);
}

#[test]
fn plain_text_or_garbage_behind_starttls_ends_the_connection() {
    let tls = TlsRig::start(CLIENT_NAME);
    let start = b"\0\0\0\x03IHAVEOPT\0\0\0\x05\0\0\0\0";
    for garbage in [&b"IHAVEOPT\0\0\0\x03\0\0\0\0"[..], &[0; 100], &[0x16; 5000]] {
        let mut stream = tls.rig.connect();
        stream.write_all(&start[..]).unwrap();
        let mut replies = [0; 38];
        stream.read_exact(&mut replies).unwrap();
        let _ = stream.write_all(garbage);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest);
        assert!(rest.len() < 64, "at most an alert comes back");
    }
    let server = tls.rig.server.as_ref().unwrap();
    eventually("they have gone", || server.client_count() == 0);
}

/// The name that `authz-simple` has to be given for QEMU's own server to let a client in is the
/// one that ours asks about.
#[test]
fn qemu_reads_the_same_name_from_the_certificate() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new(folder.path());
    let credentials = authority.client(folder.path().join("client"));
    let socket = folder.path().join("qemu.sock");
    let socket = socket.to_str().unwrap();
    let path = folder.path().to_str().unwrap();
    let log = folder.path().join("log");
    for (identity, allowed) in [(CLIENT_NAME, true), ("CN=laptop.example.com", false)] {
        let _ = std::fs::remove_file(socket);
        let identity = identity.replace(',', ",,");
        let mut server = Command::new("qemu-nbd")
            .args([
                "--object",
                &format!("tls-creds-x509,id=tls0,endpoint=server,dir={path}"),
            ])
            .args([
                "--object",
                &format!("authz-simple,id=a0,identity={identity}"),
            ])
            .args([
                "--tls-creds=tls0",
                "--tls-authz=a0",
                "-t",
                "-k",
                socket,
                "-x",
                "disk",
            ])
            .args(["--image-opts", "driver=null-co,size=1048576"])
            .args(["--trace", "enable=qauthz*"])
            .stderr(std::fs::File::create(&log).unwrap())
            .stdin(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("qemu-nbd (Debian package qemu-utils): {error}"));
        eventually("qemu-nbd listens", || std::path::Path::new(socket).exists());
        std::thread::sleep(Duration::from_millis(100));
        let uri = format!(
            "nbds+unix:///disk?socket={socket}&tls-certificates={credentials}&tls-hostname=localhost"
        );
        let output = tool("libnbd-bin", "nbdinfo", &[&uri]);
        server.kill().unwrap();
        server.wait().unwrap();
        let said = std::fs::read_to_string(&log).unwrap();
        assert_eq!(
            output.status.success(),
            allowed,
            "{identity}: {said} {output:?}"
        );
    }
}
