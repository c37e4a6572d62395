//! Whether certificates are fit for what they are meant for, told before the first connection.

use api::QCryptoTLSCredsEndpoint;
use rustls::RootCertStore;
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;
use x509_parser::time::ASN1Time;

use super::files::Content;
use crate::error::ObjectError;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Authority,
    Server,
    Client,
}

impl Role {
    fn as_str(self) -> &'static str {
        match self {
            Self::Authority => "CA",
            Self::Server => "server",
            Self::Client => "client",
        }
    }
}

type Certificates<'a> = (&'a Content, &'a [CertificateDer<'static>]);

/// Checks our own certificate, if there is one, and those of the authorities: dates, constraints,
/// usage, purpose, and that they fit together.
pub(super) fn check(
    own: Option<Certificates<'_>>,
    authorities: Certificates<'_>,
    endpoint: QCryptoTLSCredsEndpoint,
    provider: &CryptoProvider,
) -> Result<(), ObjectError> {
    let role = match endpoint {
        QCryptoTLSCredsEndpoint::Server => Role::Server,
        QCryptoTLSCredsEndpoint::Client => Role::Client,
    };
    if let Some((content, chain)) = own
        && let Some(leaf) = chain.first()
    {
        check_one(content, leaf, role)?;
    }
    for authority in authorities.1 {
        check_one(authorities.0, authority, Role::Authority)?;
    }
    match own {
        Some(own) => check_chain(own, authorities, role, provider),
        None => Ok(()),
    }
}

fn check_one(content: &Content, der: &[u8], role: Role) -> Result<(), ObjectError> {
    let path = content.display();
    let name = role.as_str();
    let unreadable = |error: String| {
        ObjectError::invalid(format!(
            "Unable to import {name} certificate {path}: {error}"
        ))
    };
    let parsed = X509Certificate::from_der(der);
    let (_, certificate) = parsed.map_err(|error| unreadable(error.to_string()))?;
    let validity = certificate.validity();
    let now = ASN1Time::now();
    if validity.not_after < now {
        return Err(ObjectError::invalid(format!(
            "The {name} certificate {path} has expired"
        )));
    }
    if validity.not_before > now {
        return Err(ObjectError::invalid(format!(
            "The {name} certificate {path} is not yet active"
        )));
    }
    check_constraints(content, &certificate, role)?;
    check_usage(content, &certificate, role)?;
    check_purpose(content, &certificate, role)
}

/// RFC 5280 section 4.2.1.9.
fn check_constraints(
    content: &Content,
    certificate: &X509Certificate<'_>,
    role: Role,
) -> Result<(), ObjectError> {
    let path = content.display();
    let constraints = certificate.basic_constraints();
    let constraints = constraints.map_err(|error| {
        ObjectError::invalid(format!(
            "Unable to query certificate {path} basic constraints: {error}"
        ))
    })?;
    let is_ca = constraints.map(|extension| extension.value.ca);
    Err(ObjectError::invalid(match (role, is_ca) {
        (Role::Authority, Some(false)) => {
            format!("The certificate {path} basic constraints do not show a CA")
        }
        (Role::Authority, None) => {
            format!("The certificate {path} is missing basic constraints for a CA")
        }
        (Role::Server | Role::Client, Some(true)) => format!(
            "The certificate {path} basic constraints show a CA, but we need one for a {}",
            role.as_str()
        ),
        _ => return Ok(()),
    }))
}

/// RFC 5280 section 4.2.1.3. Only what is marked as critical is insisted on. Key encipherment is not
/// asked for, as no cipher that we speak needs it.
fn check_usage(
    content: &Content,
    certificate: &X509Certificate<'_>,
    role: Role,
) -> Result<(), ObjectError> {
    let path = content.display();
    let usage = certificate.key_usage().map_err(|error| {
        ObjectError::invalid(format!(
            "Unable to query certificate {path} key usage: {error}"
        ))
    })?;
    let Some(usage) = usage.filter(|usage| usage.critical) else {
        return Ok(());
    };
    let (permitted, what) = match role {
        Role::Authority => (usage.value.key_cert_sign(), "certificate signing"),
        Role::Server | Role::Client => (usage.value.digital_signature(), "digital signature"),
    };
    if permitted {
        return Ok(());
    }
    Err(ObjectError::invalid(format!(
        "Certificate {path} usage does not permit {what}"
    )))
}

/// RFC 5280 section 4.2.1.12.
fn check_purpose(
    content: &Content,
    certificate: &X509Certificate<'_>,
    role: Role,
) -> Result<(), ObjectError> {
    let path = content.display();
    let purpose = certificate.extended_key_usage().map_err(|error| {
        ObjectError::invalid(format!(
            "Unable to query certificate {path} purpose: {error}"
        ))
    })?;
    let Some(purpose) = purpose.filter(|purpose| purpose.critical) else {
        return Ok(());
    };
    let allowed = purpose.value.any
        || match role {
            Role::Authority => true,
            Role::Server => purpose.value.server_auth,
            Role::Client => purpose.value.client_auth,
        };
    if allowed {
        return Ok(());
    }
    Err(ObjectError::invalid(format!(
        "Certificate {path} purpose does not allow use with a TLS {}",
        role.as_str()
    )))
}

/// Whether an authority of ours vouches for our own certificate.
fn check_chain(
    own: Certificates<'_>,
    authorities: Certificates<'_>,
    role: Role,
    provider: &CryptoProvider,
) -> Result<(), ObjectError> {
    let Some((leaf, intermediates)) = own.1.split_first() else {
        return Ok(());
    };
    let failed = |error: rustls::Error| {
        let why = match error {
            rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer) => {
                "The certificate hasn't got a known issuer".to_owned()
            }
            error => error.to_string(),
        };
        ObjectError::invalid(format!(
            "Our own certificate {} failed validation against {}: {why}",
            own.0.display(),
            authorities.0.display()
        ))
    };
    let mut roots = RootCertStore::empty();
    for authority in authorities.1 {
        roots.add(authority.clone()).map_err(failed)?;
    }
    let now = UnixTime::now();
    if role == Role::Server {
        let leaf = ParsedCertificate::try_from(leaf).map_err(failed)?;
        let algorithms = provider.signature_verification_algorithms.all;
        return verify_server_cert_signed_by_trust_anchor(
            &leaf,
            &roots,
            intermediates,
            now,
            algorithms,
        )
        .map_err(failed);
    }
    let provider = std::sync::Arc::new(provider.clone());
    let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider).build();
    let verifier = verifier.map_err(|error| failed(rustls::Error::General(error.to_string())))?;
    let verified = verifier.verify_client_cert(leaf, intermediates, now);
    verified.map(drop).map_err(failed)
}
