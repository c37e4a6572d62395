//! `tls-creds-anon` and `tls-creds-psk`: TLS without certificates, in builds with the feature
//! `tls-anon-psk`.
//!
//! `keys.psk` has a line per key, as GnuTLS's `psktool` writes them: `USERNAME:HEXKEY`, where a user
//! name that begins with `#` is in hexadecimal itself. Other lines that begin with `#`, and empty
//! ones, say nothing.

use std::any::Any;
use std::sync::Arc;

use api::{
    ObjectOptionsBranch, ObjectType, QCryptoTLSCredsEndpoint, TlsCredsAnonProperties,
    TlsCredsPskProperties, ToQapi,
};
use parking_lot::Mutex;
use serde_json::Value;
use tls_session::{ClientTls, DhParameters, ServerTls, SharedKeys, TlsSetupError};
use zeroize::Zeroizing;

use super::files::{Content, read_optional, read_required};
use super::{End, check_priority, wrong_setup};
use crate::error::ObjectError;
use crate::object::{Object, Property, as_options, property_not_found};
use crate::types::{ObjectTypes, TypeSpec, USER_CREATABLE};

/// The user whose key a client has, where nobody else is asked for.
const DEFAULT_USERNAME: &str = "qemu";

const ANON: &str = "tls-creds-anon";
const PSK: &str = "tls-creds-psk";

pub(super) fn register(types: &mut ObjectTypes) {
    let creds = |name, properties| {
        TypeSpec::concrete(name, "tls-creds", properties).with_interface(USER_CREATABLE)
    };
    types.register(creds(ANON, Vec::new()));
    types.register(creds(PSK, vec![Property::writable("username", "string")]));
    types.register_factory(
        ObjectType::TlsCredsAnon,
        Box::new(|_tree, _id, options| match options {
            ObjectOptionsBranch::TlsCredsAnon(options) => {
                Ok(Arc::new(TlsCredsWithoutCertificates::anon(*options)?))
            }
            other => Err(ObjectError::NotCreatable(other.kind().to_string())),
        }),
    );
    types.register_factory(
        ObjectType::TlsCredsPsk,
        Box::new(|_tree, _id, options| match options {
            ObjectOptionsBranch::TlsCredsPsk(options) => {
                Ok(Arc::new(TlsCredsWithoutCertificates::psk(*options)?))
            }
            other => Err(ObjectError::NotCreatable(other.kind().to_string())),
        }),
    );
}

/// Credentials without certificates, of either type. What they give is decided when they are made;
/// setting their properties later changes what they show and nothing else.
pub struct TlsCredsWithoutCertificates {
    type_name: &'static str,
    end: End,
    /// The properties of `tls-creds-anon` are among these.
    shown: Mutex<TlsCredsPskProperties>,
}

impl TlsCredsWithoutCertificates {
    fn anon(options: TlsCredsAnonProperties) -> Result<Self, ObjectError> {
        check_priority(options.priority.as_deref())?;
        let end = match options.endpoint.unwrap_or(QCryptoTLSCredsEndpoint::Client) {
            QCryptoTLSCredsEndpoint::Server => {
                let group = dh_parameters(options.dir.as_deref())?;
                End::Server(ServerTls::anonymous(group.as_ref()).map_err(wrong_setup)?)
            }
            QCryptoTLSCredsEndpoint::Client => {
                End::Client(ClientTls::anonymous().map_err(wrong_setup)?)
            }
        };
        let TlsCredsAnonProperties {
            verify_peer,
            dir,
            endpoint,
            priority,
        } = options;
        Ok(Self {
            type_name: ANON,
            end,
            shown: Mutex::new(TlsCredsPskProperties {
                verify_peer,
                dir,
                endpoint,
                priority,
                username: None,
            }),
        })
    }

    fn psk(options: TlsCredsPskProperties) -> Result<Self, ObjectError> {
        let dir = options.dir.as_deref();
        let dir = dir.ok_or_else(|| ObjectError::invalid("Missing 'dir' property value"))?;
        check_priority(options.priority.as_deref())?;
        let end = match options.endpoint.unwrap_or(QCryptoTLSCredsEndpoint::Client) {
            QCryptoTLSCredsEndpoint::Server => {
                if options.username.is_some() {
                    return Err(ObjectError::invalid(
                        "username should not be set when endpoint=server",
                    ));
                }
                let group = dh_parameters(Some(dir))?;
                let keys = all_keys(&read_required(dir, "keys.psk")?)?;
                End::Server(ServerTls::shared_keys(keys, group.as_ref()).map_err(wrong_setup)?)
            }
            QCryptoTLSCredsEndpoint::Client => {
                let username = options.username.as_deref().unwrap_or(DEFAULT_USERNAME);
                let keys = key_of(&read_required(dir, "keys.psk")?, username)?;
                End::Client(ClientTls::shared_key(keys, username).map_err(wrong_setup)?)
            }
        };
        Ok(Self {
            type_name: PSK,
            end,
            shown: Mutex::new(options),
        })
    }

    /// The end of TLS sessions that they are for.
    pub(super) fn end(&self) -> &End {
        &self.end
    }
}

/// The group of `dh-params.pem`, if the folder has that file.
fn dh_parameters(dir: Option<&str>) -> Result<Option<DhParameters>, ObjectError> {
    let Some(dir) = dir else {
        return Ok(None);
    };
    let Some(content) = read_optional(dir, "dh-params.pem")? else {
        return Ok(None);
    };
    let group = DhParameters::from_pem(&content.bytes).map_err(|error| {
        let detail = match error {
            TlsSetupError::NoDhParameters => "Base64 unexpected header error.".to_owned(),
            error => error.to_string(),
        };
        let path = content.display();
        ObjectError::invalid(format!(
            "Unable to load DH parameters from {path}: {detail}"
        ))
    })?;
    Ok(Some(group))
}

/// The lines that have a key, with their numbers from 1: the user's name, and the rest.
fn key_lines(content: &Content) -> impl Iterator<Item = (usize, Result<KeyLine<'_>, &str>)> {
    let lines = content.bytes.split(|byte| *byte == b'\n');
    lines.enumerate().filter_map(|(index, line)| {
        let line = line.trim_ascii();
        if line.is_empty() {
            return None;
        }
        let mut parts = line.splitn(2, |byte| *byte == b':');
        let name = parts.next().unwrap_or_default();
        let key = parts.next();
        let name = match name.strip_prefix(b"#") {
            Some(digits) if key.is_some() => from_hex(digits)?.to_vec(),
            Some(_) => return None,
            None => name.to_vec(),
        };
        let key = key.ok_or("it is not USERNAME:HEXKEY");
        Some((index.saturating_add(1), key.map(|key| (name, key))))
    })
}

type KeyLine<'a> = (Vec<u8>, &'a [u8]);

/// What a server needs: everything, without a fault.
fn all_keys(content: &Content) -> Result<SharedKeys, ObjectError> {
    let wrong = |detail: String| {
        let path = content.display();
        ObjectError::invalid(format!("Cannot read PSK file {path}: {detail}"))
    };
    let mut keys = SharedKeys::default();
    for (number, line) in key_lines(content) {
        let in_line = |detail: &dyn std::fmt::Display| wrong(format!("line {number}: {detail}"));
        let (name, key) = line.map_err(|detail| in_line(&detail))?;
        let key = from_hex(key).ok_or_else(|| in_line(&"the key is not hexadecimal"))?;
        keys.add(&name, key).map_err(|error| in_line(&error))?;
    }
    if keys.is_empty() {
        return Err(wrong("there is no key in it".to_owned()));
    }
    Ok(keys)
}

/// What a client needs: one user's key.
fn key_of(content: &Content, username: &str) -> Result<SharedKeys, ObjectError> {
    let mut lines = key_lines(content).filter_map(|(_, line)| line.ok());
    let found = lines.find(|(name, _)| name == username.as_bytes());
    let Some((name, key)) = found else {
        return Err(ObjectError::invalid(format!(
            "Username {username} not found in PSK file {}",
            content.display()
        )));
    };
    let wrong = |detail: &dyn std::fmt::Display| {
        ObjectError::invalid(format!("Cannot set PSK client credentials: {detail}"))
    };
    let key = from_hex(key).ok_or_else(|| wrong(&"Error in parsing."))?;
    let mut keys = SharedKeys::default();
    keys.add(&name, key).map_err(|error| wrong(&error))?;
    Ok(keys)
}

/// Bytes from pairs of hexadecimal digits.
fn from_hex(digits: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let value = |digit: &u8| char::from(*digit).to_digit(16);
    let mut bytes = Zeroizing::new(Vec::with_capacity(digits.len() / 2));
    for pair in digits.chunks(2) {
        let [high, low] = pair else {
            return None;
        };
        let byte = value(high)?.checked_mul(16)?.checked_add(value(low)?)?;
        bytes.push(u8::try_from(byte).ok()?);
    }
    Some(bytes)
}

impl Object for TlsCredsWithoutCertificates {
    fn type_name(&self) -> &str {
        self.type_name
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
            "username" => text(&shown.username),
            _ => return Err(property_not_found(self, property)),
        })
    }

    fn set(&self, property: &str, value: Value) -> Result<(), ObjectError> {
        let new: TlsCredsPskProperties = api::from_json(as_options(property, value))?;
        let mut shown = self.shown.lock();
        match property {
            "endpoint" => shown.endpoint = new.endpoint,
            "dir" => shown.dir = new.dir,
            "verify-peer" => shown.verify_peer = new.verify_peer,
            "priority" => shown.priority = new.priority,
            "username" => shown.username = new.username,
            _ => return Err(property_not_found(self, property)),
        }
        Ok(())
    }

    fn as_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}
