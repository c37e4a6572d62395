//! The files of credentials, and what is in them.

use std::fs::File;
use std::io;
use std::path::PathBuf;

use api::QCryptoTLSCredsEndpoint;
use pkcs8::EncryptedPrivateKeyInfoRef;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{
    CertificateDer, CertificateRevocationListDer, PrivateKeyDer, PrivatePkcs8KeyDer,
};
use rustls::sign::CertifiedKey;
use zeroize::Zeroizing;

use super::certificates;
use crate::error::{ObjectError, PathBufDisplay};
use crate::file::{ReadError, read_open};
use crate::secret::Secret;

/// The largest PEM file of credentials, in bytes.
pub const TLS_FILE_BYTES_MAX: u64 = 4 << 20;

/// A file's path and content.
pub(super) struct Content {
    pub(super) path: PathBuf,
    pub(super) bytes: Zeroizing<Vec<u8>>,
}

impl Content {
    pub(super) fn display(&self) -> std::path::Display<'_> {
        self.path.display()
    }

    /// The certificates in it. None when what is there is no certificate.
    fn certificates(&self) -> Option<Vec<CertificateDer<'static>>> {
        let all = CertificateDer::pem_slice_iter(&self.bytes);
        let all = all.collect::<Result<Vec<_>, _>>().ok()?;
        (!all.is_empty()).then_some(all)
    }
}

/// The files of one folder.
pub(super) struct Files {
    authorities: Content,
    revoked: Option<Content>,
    own: Option<(Content, Content)>,
}

/// What is in the files.
pub(super) struct Material {
    pub(super) authorities: Vec<CertificateDer<'static>>,
    pub(super) revoked: Vec<CertificateRevocationListDer<'static>>,
    pub(super) own: Option<CertifiedKey>,
}

/// A file of the folder; none when there is no such file.
pub(super) fn read_optional(dir: &str, name: &str) -> Result<Option<Content>, ObjectError> {
    match read_required(dir, name) {
        Ok(content) => Ok(Some(content)),
        Err(ObjectError::Credentials { source, .. })
            if source.kind() == io::ErrorKind::NotFound =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// A file of the folder.
pub(super) fn read_required(dir: &str, name: &str) -> Result<Content, ObjectError> {
    // An empty folder's name is the root, as it is for QEMU.
    let path = PathBuf::from(format!("{dir}/{name}"));
    let unreadable = |source| ObjectError::Credentials {
        path: PathBufDisplay(path.clone()),
        source,
    };
    let file = File::open(&path).map_err(unreadable)?;
    let bytes = read_open(file, TLS_FILE_BYTES_MAX).map_err(|error| match error {
        ReadError::Io(source) => unreadable(source),
        ReadError::TooLarge => ObjectError::FileTooLarge {
            path: PathBufDisplay(path.clone()),
            max_bytes: TLS_FILE_BYTES_MAX,
        },
    })?;
    Ok(Content { path, bytes })
}

impl Files {
    /// Reads the folder. A server must have its certificate and key; a client without both has none.
    pub(super) fn read(dir: &str, endpoint: QCryptoTLSCredsEndpoint) -> Result<Self, ObjectError> {
        let authorities = read_required(dir, "ca-cert.pem")?;
        let revoked = read_optional(dir, "ca-crl.pem")?;
        let own = match endpoint {
            QCryptoTLSCredsEndpoint::Server => Some((
                read_required(dir, "server-cert.pem")?,
                read_required(dir, "server-key.pem")?,
            )),
            QCryptoTLSCredsEndpoint::Client => {
                let certificate = read_optional(dir, "client-cert.pem")?;
                certificate.zip(read_optional(dir, "client-key.pem")?)
            }
        };
        Ok(Self {
            authorities,
            revoked,
            own,
        })
    }

    /// Reads what is in the files and checks it.
    pub(super) fn load(
        self,
        endpoint: QCryptoTLSCredsEndpoint,
        sanity_check: bool,
        password: Option<&Secret>,
        provider: &CryptoProvider,
    ) -> Result<Material, ObjectError> {
        let own = match &self.own {
            Some((certificate, _)) => Some((certificate, import_chain(certificate, endpoint)?)),
            None => None,
        };
        let authorities = self.authorities.certificates().ok_or_else(|| {
            let path = self.authorities.display();
            ObjectError::invalid(format!("Unable to import CA certificate list {path}"))
        })?;
        if sanity_check {
            let own = own
                .as_ref()
                .map(|(content, chain)| (*content, chain.as_slice()));
            let authorities = (&self.authorities, authorities.as_slice());
            certificates::check(own, authorities, endpoint, provider)?;
        }
        let own = match (own, &self.own) {
            (Some((certificate, chain)), Some((_, key))) => {
                Some(certified_key(certificate, chain, key, password, provider)?)
            }
            _ => None,
        };
        let revoked = match &self.revoked {
            Some(content) => import_revoked(content)?,
            None => Vec::new(),
        };
        Ok(Material {
            authorities,
            revoked,
            own,
        })
    }
}

fn import_chain(
    content: &Content,
    endpoint: QCryptoTLSCredsEndpoint,
) -> Result<Vec<CertificateDer<'static>>, ObjectError> {
    content.certificates().ok_or_else(|| {
        ObjectError::invalid(format!(
            "Unable to import {endpoint} certificate {}: Base64 unexpected header error.",
            content.display()
        ))
    })
}

fn import_revoked(
    content: &Content,
) -> Result<Vec<CertificateRevocationListDer<'static>>, ObjectError> {
    let all = CertificateRevocationListDer::pem_slice_iter(&content.bytes);
    let all = all.collect::<Result<Vec<_>, _>>().unwrap_or_default();
    if all.is_empty() {
        return Err(ObjectError::invalid(format!(
            "Cannot load CRL '{}': Base64 decoding error.",
            content.display()
        )));
    }
    Ok(all)
}

fn certified_key(
    certificate: &Content,
    chain: Vec<CertificateDer<'static>>,
    key: &Content,
    password: Option<&Secret>,
    provider: &CryptoProvider,
) -> Result<CertifiedKey, ObjectError> {
    let wrong = |detail: String| {
        ObjectError::invalid(format!(
            "Cannot load certificate '{}' & key '{}': {detail}",
            certificate.display(),
            key.display()
        ))
    };
    let key = private_key(&key.bytes, password).map_err(|detail| wrong(detail.to_owned()))?;
    CertifiedKey::from_der(chain, key, provider).map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => {
            wrong("The certificate and the given key do not match.".to_owned())
        }
        error => wrong(error.to_string()),
    })
}

/// The first private key of a PEM file, decrypted where it is encrypted as PKCS #8 says (RFC 5958)
/// with PBES2.
fn private_key(
    bytes: &[u8],
    password: Option<&Secret>,
) -> Result<PrivateKeyDer<'static>, &'static str> {
    const DECRYPTION_FAILED: &str = "Decryption has failed.";
    const LEGACY: &str = "The key is encrypted in a legacy format; convert it with 'openssl pkcs8 \
                          -topk8 -v2 aes-256-cbc'.";
    const NO_KEY: &str = "The requested data were not available.";
    // Keys that say DEK-Info are encrypted inside their old containers (RFC 1421).
    if bytes.windows(9).any(|window| window == b"DEK-Info:") {
        return Err(if password.is_some() {
            LEGACY
        } else {
            DECRYPTION_FAILED
        });
    }
    if let Some(encrypted) = encrypted_section(bytes) {
        let password = password.ok_or(DECRYPTION_FAILED)?;
        let encrypted = EncryptedPrivateKeyInfoRef::try_from(encrypted.as_slice());
        let encrypted = encrypted.map_err(|_| DECRYPTION_FAILED)?;
        let decrypted = encrypted.decrypt(password.bytes());
        let decrypted = decrypted.map_err(|_| DECRYPTION_FAILED)?;
        let der = PrivatePkcs8KeyDer::from(decrypted.as_bytes().to_vec());
        return Ok(PrivateKeyDer::Pkcs8(der));
    }
    PrivateKeyDer::from_pem_slice(bytes).map_err(|_| NO_KEY)
}

/// What stands between `BEGIN ENCRYPTED PRIVATE KEY` and its end.
fn encrypted_section(bytes: &[u8]) -> Option<Vec<u8>> {
    const LABEL: &str = "ENCRYPTED PRIVATE KEY";
    let text = std::str::from_utf8(bytes).ok()?;
    let (_, rest) = text.split_once(&format!("-----BEGIN {LABEL}-----"))?;
    let (body, _) = rest.split_once(&format!("-----END {LABEL}-----"))?;
    let body: String = body.split_ascii_whitespace().collect();
    base64::Engine::decode(&base64::engine::general_purpose::STANDARD, body).ok()
}
