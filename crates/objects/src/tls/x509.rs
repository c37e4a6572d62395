//! `tls-creds-x509`: TLS with certificates.

use std::any::Any;
use std::sync::Arc;

use api::{
    ObjectOptionsBranch, ObjectType, QCryptoTLSCredsEndpoint, TlsCredsX509Properties, ToQapi,
};
use parking_lot::Mutex;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme};
use serde_json::Value;

use super::{End, check_priority, files, wrong_setup};
use crate::error::ObjectError;
use crate::object::{Object, Property, as_options, property_not_found};
use crate::tree::ObjectTree;
use crate::types::{ObjectTypes, TypeSpec, USER_CREATABLE};

pub(super) fn register(types: &mut ObjectTypes) {
    let own = vec![
        Property::writable("sanity-check", "bool"),
        Property::writable("passwordid", "string"),
    ];
    types.register(
        TypeSpec::concrete("tls-creds-x509", "tls-creds", own).with_interface(USER_CREATABLE),
    );
    types.register_factory(
        ObjectType::TlsCredsX509,
        Box::new(|tree, _id, options| match options {
            ObjectOptionsBranch::TlsCredsX509(options) => {
                Ok(Arc::new(TlsCredsX509::load(tree, *options)?))
            }
            other => Err(ObjectError::NotCreatable(other.kind().to_string())),
        }),
    );
}

/// Credentials with certificates. What they give is decided when they are made; setting their
/// properties later changes what they show and nothing else.
pub struct TlsCredsX509 {
    end: End,
    shown: Mutex<TlsCredsX509Properties>,
}

impl TlsCredsX509 {
    fn load(tree: &ObjectTree, options: TlsCredsX509Properties) -> Result<Self, ObjectError> {
        let dir = options.dir.as_deref();
        let dir = dir.ok_or_else(|| ObjectError::invalid("Missing 'dir' property value"))?;
        check_priority(options.priority.as_deref())?;
        let endpoint = options.endpoint.unwrap_or(QCryptoTLSCredsEndpoint::Client);
        let verify_peer = options.verify_peer.unwrap_or(true);
        let password = match &options.passwordid {
            Some(id) => Some(tree.secret(id)?),
            None => None,
        };
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let files = files::Files::read(dir, endpoint)?;
        let sanity_check = options.sanity_check.unwrap_or(true);
        let material = files.load(endpoint, sanity_check, password.as_deref(), &provider)?;
        let end = match endpoint {
            QCryptoTLSCredsEndpoint::Server => {
                End::Server(server_config(provider, material, verify_peer)?.into())
            }
            // With `verify-peer` the server's certificate must name the host in its subject
            // alternative names.
            QCryptoTLSCredsEndpoint::Client => {
                End::Client(client_config(provider, material, verify_peer)?.into())
            }
        };
        Ok(Self {
            end,
            shown: Mutex::new(options),
        })
    }

    /// The end of TLS sessions that they are for.
    pub(super) fn end(&self) -> &End {
        &self.end
    }
}

fn server_config(
    provider: Arc<CryptoProvider>,
    material: files::Material,
    verify_peer: bool,
) -> Result<Arc<ServerConfig>, ObjectError> {
    let key = material.own.ok_or_else(|| wrong_setup("no certificate"))?;
    let verifier = if verify_peer {
        let roots = roots(&material.authorities)?;
        let builder = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider));
        // A list of revoked certificates says nothing of authorities that it is not from.
        builder
            .with_crls(material.revoked)
            .allow_unknown_revocation_status()
            .build()
            .map_err(wrong_setup)?
    } else {
        WebPkiClientVerifier::no_client_auth()
    };
    let builder = ServerConfig::builder_with_provider(provider);
    let builder = builder
        .with_safe_default_protocol_versions()
        .map_err(wrong_setup)?
        .with_client_cert_verifier(verifier);
    let config = builder.with_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(key)));
    Ok(Arc::new(config))
}

fn client_config(
    provider: Arc<CryptoProvider>,
    material: files::Material,
    verify_peer: bool,
) -> Result<Arc<ClientConfig>, ObjectError> {
    let verifier: Arc<dyn ServerCertVerifier> = if verify_peer {
        let roots = roots(&material.authorities)?;
        let builder = WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(&provider));
        builder
            .with_crls(material.revoked)
            .allow_unknown_revocation_status()
            .build()
            .map_err(wrong_setup)?
    } else {
        Arc::new(AnyServer(Arc::clone(&provider)))
    };
    let builder = ClientConfig::builder_with_provider(provider);
    let builder = builder
        .with_safe_default_protocol_versions()
        .map_err(wrong_setup)?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let config = match material.own {
        Some(key) => {
            let key = rustls::sign::SingleCertAndKey::from(key);
            builder.with_client_cert_resolver(Arc::new(key))
        }
        None => builder.with_no_client_auth(),
    };
    Ok(Arc::new(config))
}

fn roots(authorities: &[CertificateDer<'static>]) -> Result<Arc<RootCertStore>, ObjectError> {
    let mut roots = RootCertStore::empty();
    for authority in authorities {
        roots.add(authority.clone()).map_err(wrong_setup)?;
    }
    Ok(Arc::new(roots))
}

/// Takes any server's certificate, as `verify-peer=off` asks for. The server must still have the
/// certificate's key.
#[derive(Debug)]
struct AnyServer(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

impl Object for TlsCredsX509 {
    fn type_name(&self) -> &str {
        "tls-creds-x509"
    }

    fn get(&self, property: &str) -> Result<Value, ObjectError> {
        let shown = self.shown.lock();
        let text = |text: &Option<String>| Value::from(text.as_deref().unwrap_or_default());
        let endpoint = shown.endpoint.unwrap_or(QCryptoTLSCredsEndpoint::Client);
        Ok(match property {
            "endpoint" => endpoint.to_qapi(),
            "dir" => text(&shown.dir),
            "verify-peer" => Value::from(shown.verify_peer.unwrap_or(true)),
            "priority" => text(&shown.priority),
            "sanity-check" => Value::from(shown.sanity_check.unwrap_or(true)),
            "passwordid" => text(&shown.passwordid),
            _ => return Err(property_not_found(self, property)),
        })
    }

    fn set(&self, property: &str, value: Value) -> Result<(), ObjectError> {
        let new: TlsCredsX509Properties = api::from_json(as_options(property, value))?;
        let mut shown = self.shown.lock();
        match property {
            "endpoint" => shown.endpoint = new.endpoint,
            "dir" => shown.dir = new.dir,
            "verify-peer" => shown.verify_peer = new.verify_peer,
            "priority" => shown.priority = new.priority,
            "sanity-check" => shown.sanity_check = new.sanity_check,
            "passwordid" => shown.passwordid = new.passwordid,
            _ => return Err(property_not_found(self, property)),
        }
        Ok(())
    }

    fn as_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}
