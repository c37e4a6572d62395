//! Credentials with certificates made for each test.

use std::path::Path;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose,
    RevokedCertParams, SerialNumber, date_time_ymd,
};
use serde_json::{Value, json};
use tls_session::{ClientTls, ServerTls, TlsSession};

use super::Server;
use crate::{TLS_FILE_BYTES_MAX, distinguished_name};

const KEY: &str = include_str!("key.pem");
/// `openssl pkcs8 -topk8 -in key.pem -passout pass:letmein -v2 aes-256-cbc`.
const KEY_PBKDF2: &str = include_str!("key-pbkdf2.pem");
/// `openssl pkcs8 -topk8 -in key.pem -passout pass:letmein -scrypt`.
const KEY_SCRYPT: &str = include_str!("key-scrypt.pem");
/// `openssl ec -in key.pem -passout pass:letmein -aes256`.
const KEY_LEGACY: &str = include_str!("key-legacy.pem");
/// A certificate with parts of many kinds in its owner's name.
const NAMES: &str = include_str!("names.pem");

struct Authority {
    params: CertificateParams,
    key: KeyPair,
}

impl Authority {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        Self {
            params,
            key: KeyPair::generate().unwrap(),
        }
    }

    fn pem(&self) -> String {
        self.params.self_signed(&self.key).unwrap().pem()
    }

    fn issuer(&self) -> Issuer<'_, &KeyPair> {
        Issuer::from_params(&self.params, &self.key)
    }

    fn sign(&self, params: &CertificateParams, key: &KeyPair) -> String {
        params.signed_by(key, &self.issuer()).unwrap().pem()
    }
}

fn leaf(name: &str, purpose: ExtendedKeyUsagePurpose, serial: u64) -> CertificateParams {
    let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::OrganizationName, "Acme");
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![purpose];
    params.serial_number = Some(SerialNumber::from(serial));
    params
}

fn server_leaf() -> CertificateParams {
    leaf("server", ExtendedKeyUsagePurpose::ServerAuth, 2)
}

/// A folder with everything that both ends need.
fn write_credentials(dir: &Path, authority: &Authority) {
    let write = |name: &str, text: &str| std::fs::write(dir.join(name), text).unwrap();
    write("ca-cert.pem", &authority.pem());
    let key = KeyPair::from_pem(KEY).unwrap();
    write("server-cert.pem", &authority.sign(&server_leaf(), &key));
    write("server-key.pem", KEY);
    let key = KeyPair::generate().unwrap();
    let client = leaf("client", ExtendedKeyUsagePurpose::ClientAuth, 3);
    write("client-cert.pem", &authority.sign(&client, &key));
    write("client-key.pem", &key.serialize_pem());
}

struct Setup {
    server: Server,
    authority: Authority,
    dir: tempfile::TempDir,
    next: std::cell::Cell<u32>,
}

impl Setup {
    fn new() -> Self {
        let authority = Authority::new("CA");
        let dir = tempfile::tempdir().unwrap();
        write_credentials(dir.path(), &authority);
        Self {
            server: Server::new(),
            authority,
            dir,
            next: std::cell::Cell::new(0),
        }
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.dir.path().join(name), text).unwrap();
    }

    fn write_server(&self, params: &CertificateParams) {
        let key = KeyPair::from_pem(KEY).unwrap();
        self.write("server-cert.pem", &self.authority.sign(params, &key));
    }

    /// Makes credentials; the folder's name is left out of the error.
    fn add(&self, endpoint: &str, more: Value) -> Result<String, String> {
        self.next.set(self.next.get() + 1);
        let id = format!("t{}", self.next.get());
        let dir = self.dir.path().to_str().unwrap();
        let mut options = json!({"qom-type": "tls-creds-x509", "id": id, "dir": dir,
            "endpoint": endpoint});
        for (name, value) in more.as_object().unwrap() {
            options[name] = value.clone();
        }
        let added = self.server.add(options);
        added.map_err(|error| error.replace(dir, "D")).map(|()| id)
    }

    /// What the server knows of the client after a handshake.
    fn connect(&self, server: &str, client: &str, host: &str) -> Result<Option<String>, String> {
        let server = self.server.tree.tls_server(server).unwrap();
        let client = self.server.tree.tls_client(client).unwrap();
        handshake(server, client, host)
    }
}

fn handshake(server: ServerTls, client: ClientTls, host: &str) -> Result<Option<String>, String> {
    let (server, _) = shake_hands(&server, &client, host)?;
    let peer = server.peer_certificate();
    Ok(peer.map(|certificate| distinguished_name(&certificate).unwrap()))
}

/// A session's two ends, or what one of them says is wrong.
pub(super) fn shake_hands(
    server: &ServerTls,
    client: &ClientTls,
    host: &str,
) -> Result<(TlsSession, TlsSession), String> {
    let mut server = server.session().unwrap();
    let mut client = client.session(host).unwrap();
    let mut bytes = vec![0; 64 << 10];
    for _ in 0..10 {
        let count = client.take_cipher(&mut bytes).unwrap();
        if count > 0 {
            let put = server.put_cipher(&bytes[..count]);
            put.map_err(|error| format!("server: {error}"))?;
        }
        let count = server.take_cipher(&mut bytes).unwrap();
        if count > 0 {
            let put = client.put_cipher(&bytes[..count]);
            put.map_err(|error| format!("client: {error}"))?;
        }
    }
    assert!(!client.is_handshaking() && !server.is_handshaking());
    Ok((server, client))
}

#[test]
fn both_ends_know_each_other() {
    let setup = Setup::new();
    let server = setup.add("server", json!({})).unwrap();
    let client = setup.add("client", json!({})).unwrap();
    let name = setup.connect(&server, &client, "localhost").unwrap();
    assert_eq!(name.as_deref(), Some("O=Acme,CN=client"));
    let wrong_host = setup.connect(&server, &client, "example.org");
    assert!(wrong_host.unwrap_err().starts_with("client: "));
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
fn a_peer_that_nobody_vouches_for_is_refused() {
    let setup = Setup::new();
    let server = setup.add("server", json!({})).unwrap();
    let open_server = setup.add("server", json!({"verify-peer": false})).unwrap();
    let other = Setup::new();
    let stranger = other.add("client", json!({"verify-peer": false})).unwrap();
    let stranger = other.server.tree.tls_client(&stranger).unwrap();
    let tree = &setup.server.tree;
    let config = tree.tls_server(&server).unwrap();
    let refused = handshake(config, stranger.clone(), "localhost");
    assert!(refused.unwrap_err().starts_with("server: "));
    // Neither end asks.
    let config = tree.tls_server(&open_server).unwrap();
    assert_eq!(handshake(config, stranger, "nowhere").unwrap(), None);
    // The client asks.
    let asking = other.add("client", json!({})).unwrap();
    let asking = other.server.tree.tls_client(&asking).unwrap();
    let config = tree.tls_server(&open_server).unwrap();
    let refused = handshake(config, asking, "localhost");
    assert!(refused.unwrap_err().starts_with("client: "));
}

#[test]
fn a_client_needs_no_certificate_of_its_own() {
    let setup = Setup::new();
    let server = setup.add("server", json!({})).unwrap();
    let open_server = setup.add("server", json!({"verify-peer": false})).unwrap();
    std::fs::remove_file(setup.dir.path().join("client-key.pem")).unwrap();
    let client = setup.add("client", json!({})).unwrap();
    assert_eq!(setup.connect(&open_server, &client, "localhost"), Ok(None));
    let refused = setup.connect(&server, &client, "localhost");
    assert!(refused.unwrap_err().starts_with("server: "));
}

#[test]
fn revoked_certificates_are_refused() {
    let setup = Setup::new();
    let now = date_time_ymd(2024, 1, 1);
    let revoked = |serial: u64| RevokedCertParams {
        serial_number: SerialNumber::from(serial),
        revocation_time: now,
        reason_code: None,
        invalidity_date: None,
    };
    let list = |serial| CertificateRevocationListParams {
        this_update: now,
        next_update: date_time_ymd(2099, 1, 1),
        crl_number: SerialNumber::from(1u64),
        issuing_distribution_point: None,
        revoked_certs: vec![revoked(serial)],
        key_identifier_method: KeyIdMethod::Sha256,
    };
    for (serial, fits) in [(3, false), (99, true)] {
        let list = list(serial).signed_by(&setup.authority.issuer()).unwrap();
        setup.write("ca-crl.pem", &list.pem().unwrap());
        let server = setup.add("server", json!({})).unwrap();
        let client = setup.add("client", json!({})).unwrap();
        let connected = setup.connect(&server, &client, "localhost");
        assert_eq!(connected.is_ok(), fits, "{connected:?}");
    }
    setup.write("ca-crl.pem", "junk");
    assert_eq!(
        setup.add("server", json!({})).unwrap_err(),
        "Cannot load CRL 'D/ca-crl.pem': Base64 decoding error."
    );
}

#[test]
fn encrypted_keys_need_their_password() {
    let setup = Setup::new();
    for (id, data) in [("pw", "letmein"), ("bad", "x")] {
        let secret = json!({"qom-type": "secret", "id": id, "data": data});
        setup.server.add(secret).unwrap();
    }
    let failed = "Cannot load certificate 'D/server-cert.pem' & key 'D/server-key.pem': \
                  Decryption has failed.";
    for key in [KEY_PBKDF2, KEY_SCRYPT] {
        setup.write("server-key.pem", key);
        let server = setup.add("server", json!({"passwordid": "pw"})).unwrap();
        let client = setup.add("client", json!({})).unwrap();
        setup.connect(&server, &client, "localhost").unwrap();
        let bad = setup.add("server", json!({"passwordid": "bad"}));
        assert_eq!(bad.unwrap_err(), failed);
        assert_eq!(setup.add("server", json!({})).unwrap_err(), failed);
    }
    let none = setup.add("server", json!({"passwordid": "none"}));
    assert_eq!(none.unwrap_err(), "No secret with id 'none'");
    setup.write("server-key.pem", KEY_LEGACY);
    assert_eq!(setup.add("server", json!({})).unwrap_err(), failed);
    let legacy = setup.add("server", json!({"passwordid": "pw"}));
    assert!(legacy.unwrap_err().contains("legacy format"));
}

/// The words of qemu-storage-daemon 10.0.2 for the same faults.
#[test]
fn unfit_certificates_are_refused_unless_told_otherwise() {
    type Change = fn(&mut CertificateParams);
    let cases: [(&str, Change, bool); 6] = [
        (
            "The server certificate D/server-cert.pem has expired",
            |params| {
                params.not_before = date_time_ymd(2020, 1, 1);
                params.not_after = date_time_ymd(2021, 1, 1);
            },
            true,
        ),
        (
            "The server certificate D/server-cert.pem is not yet active",
            |params| params.not_before = date_time_ymd(2090, 1, 1),
            true,
        ),
        (
            "The certificate D/server-cert.pem basic constraints show a CA, but we need one for a \
             server",
            |params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained),
            true,
        ),
        (
            "Certificate D/server-cert.pem usage does not permit digital signature",
            |params| params.key_usages = vec![KeyUsagePurpose::KeyEncipherment],
            true,
        ),
        (
            "Our own certificate D/server-cert.pem failed validation against D/ca-cert.pem: ",
            |params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth],
            true,
        ),
        ("", |_| (), true),
    ];
    for (words, change, loads_unchecked) in cases {
        let setup = Setup::new();
        let mut params = server_leaf();
        change(&mut params);
        setup.write_server(&params);
        let checked = setup.add("server", json!({}));
        match checked {
            Ok(_) => assert_eq!(words, ""),
            Err(error) => assert!(!words.is_empty() && error.starts_with(words), "{error}"),
        }
        let unchecked = setup.add("server", json!({"sanity-check": false}));
        assert_eq!(unchecked.is_ok(), loads_unchecked, "{unchecked:?}");
    }
}

#[test]
fn unfit_files_are_refused() {
    let check = |change: &dyn Fn(&Setup), words: &str| {
        let setup = Setup::new();
        change(&setup);
        let error = setup.add("server", json!({})).unwrap_err();
        assert_eq!(error, words);
    };
    let pair = "Cannot load certificate 'D/server-cert.pem' & key 'D/server-key.pem': ";
    check(
        &|setup| setup.write("ca-cert.pem", &Authority::new("Other").pem()),
        "Our own certificate D/server-cert.pem failed validation against D/ca-cert.pem: \
         The certificate hasn't got a known issuer",
    );
    check(
        &|setup| {
            let key = KeyPair::generate().unwrap();
            let leaf = setup.authority.sign(&server_leaf(), &key);
            setup.write("ca-cert.pem", &leaf);
        },
        "The certificate D/ca-cert.pem basic constraints do not show a CA",
    );
    check(
        &|setup| setup.write("server-cert.pem", "junk"),
        "Unable to import server certificate D/server-cert.pem: Base64 unexpected header error.",
    );
    check(
        &|setup| setup.write("server-key.pem", "junk"),
        &format!("{pair}The requested data were not available."),
    );
    check(
        &|setup| {
            let key = KeyPair::generate().unwrap();
            setup.write("server-key.pem", &key.serialize_pem());
        },
        &format!("{pair}The certificate and the given key do not match."),
    );
    check(
        &|setup| {
            let file = std::fs::File::create(setup.dir.path().join("ca-cert.pem")).unwrap();
            file.set_len(TLS_FILE_BYTES_MAX + 1).unwrap();
        },
        &format!("Unable to read D/ca-cert.pem: it is larger than {TLS_FILE_BYTES_MAX} bytes"),
    );
    let setup = Setup::new();
    let priority = setup.add("server", json!({"priority": "NORMAL:-VERS-TLS1.3"}));
    assert!(priority.unwrap_err().contains("is not supported"));
    setup.add("server", json!({"priority": "NORMAL"})).unwrap();
}

#[test]
fn any_bytes_in_the_files_are_an_error() {
    let setup = Setup::new();
    let files = ["ca-cert.pem", "server-cert.pem", "server-key.pem"];
    for name in files {
        let path = setup.dir.path().join(name);
        let good = std::fs::read(&path).unwrap();
        for position in (0..good.len()).step_by(23) {
            let mut bad = good.clone();
            bad[position] ^= 0x15;
            bad.truncate(good.len() - position % 7);
            std::fs::write(&path, &bad).unwrap();
            // Some changes do no harm; none may panic.
            let _ = setup.add("server", json!({}));
        }
        std::fs::write(&path, good).unwrap();
    }
    setup.add("server", json!({})).unwrap();
}

/// As qemu-nbd 10.0.2 names the owner of this very certificate when `tls-authz` denies it.
#[test]
fn names_are_written_as_by_qemu() {
    use rustls::pki_types::{CertificateDer, pem::PemObject};
    let certificate = CertificateDer::from_pem_slice(NAMES.as_bytes()).unwrap();
    let name = distinguished_name(&certificate).unwrap();
    assert_eq!(name, QEMU_NAME);
    assert!(distinguished_name(&certificate[1..]).is_err());
}

const QEMU_NAME: &str = r#"C=GB,ST=London,L=Lon\,don,O=Acme+OU=Höh,street=Road \\\; 1,DC=ex,UID=u1,EMAIL=a@b.c,surName=Sur,serialNumber=42,title=Dr,description=de,name=na,givenName=gi,initials=in,generationQualifier=III,dnQualifier=dq,pseudonym=ps,postalCode=12,businessCategory=bc,1.2.840.113549.1.9.2=#0c02756e,2.5.4.16=#0c027061,CN=\ #x\"y\<z\>\ "#;
