//! `secret`: bytes that other objects and block nodes need and that should not be seen.

use std::any::Any;
use std::path::Path;
use std::sync::Arc;

use aes::Aes256;
use aes::cipher::block_padding::NoPadding;
use aes::cipher::{BlockModeDecrypt, KeyIvInit};
use api::{ObjectOptionsBranch, ObjectType, QCryptoSecretFormat, SecretProperties, ToQapi};
use base64::Engine as _;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use parking_lot::Mutex;
use serde_json::Value;
use zeroize::{Zeroize, Zeroizing};

use crate::error::ObjectError;
use crate::file::read_bounded;
use crate::object::{Object, Property, as_options, property_not_found};
use crate::tree::ObjectTree;
use crate::types::{ObjectTypes, TypeSpec, USER_CREATABLE};

/// The largest file that is read as a secret, in bytes.
pub const SECRET_FILE_BYTES_MAX: u64 = 1 << 20;

/// Bytes of an AES-256 key.
const KEY_BYTES: usize = 32;
/// Bytes of an AES block and of its initialization vector.
const BLOCK_BYTES: usize = 16;

pub(crate) fn register(types: &mut ObjectTypes) {
    let shared = vec![
        Property::writable("iv", "string"),
        Property::writable("keyid", "string"),
        Property::writable("format", "QCryptoSecretFormat"),
    ];
    types.register(
        TypeSpec::abstract_type("secret_common", "object", shared).with_interface(USER_CREATABLE),
    );
    let own = vec![
        Property::writable("file", "string"),
        Property::writable("data", "string"),
    ];
    types.register(TypeSpec::concrete("secret", "secret_common", own));
    types.register_factory(
        ObjectType::Secret,
        Box::new(|tree, _id, options| match options {
            ObjectOptionsBranch::Secret(options) => Ok(Arc::new(Secret::load(tree, *options)?)),
            other => Err(ObjectError::NotCreatable(other.kind().to_string())),
        }),
    );
}

/// A secret. Its bytes are those it was created with; setting its properties later changes what they
/// show and nothing else.
pub struct Secret {
    bytes: Zeroizing<Vec<u8>>,
    shown: Mutex<SecretProperties>,
}

impl Secret {
    fn load(tree: &ObjectTree, options: SecretProperties) -> Result<Self, ObjectError> {
        // First, so that the text is overwritten on every way out.
        let secret = Self {
            bytes: Zeroizing::default(),
            shown: Mutex::new(options),
        };
        let bytes = {
            let options = secret.shown.lock();
            let bytes = read_input(&options)?;
            match &options.keyid {
                Some(key_id) => decrypt_input(tree, &options, key_id, bytes)?,
                None if is_base64(&options) => decode_base64(&bytes)?,
                None => bytes,
            }
        };
        let mut secret = secret;
        secret.bytes = bytes;
        Ok(secret)
    }

    /// The secret itself. Copies should be [`Zeroizing`] too.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        self.shown.get_mut().data.zeroize();
    }
}

fn is_base64(options: &SecretProperties) -> bool {
    options.format == Some(QCryptoSecretFormat::Base64)
}

fn read_input(options: &SecretProperties) -> Result<Zeroizing<Vec<u8>>, ObjectError> {
    match (&options.file, &options.data) {
        (Some(_), Some(_)) => Err(ObjectError::invalid(
            "'file' and 'data' are mutually exclusive",
        )),
        (None, None) => Err(ObjectError::invalid(
            "Either 'file' or 'data' must be provided",
        )),
        (Some(file), None) => read_bounded(Path::new(file), SECRET_FILE_BYTES_MAX),
        (None, Some(data)) => Ok(Zeroizing::new(data.clone().into_bytes())),
    }
}

fn decrypt_input(
    tree: &ObjectTree,
    options: &SecretProperties,
    key_id: &str,
    bytes: Zeroizing<Vec<u8>>,
) -> Result<Zeroizing<Vec<u8>>, ObjectError> {
    let key = tree.secret(key_id)?;
    let key = <[u8; KEY_BYTES]>::try_from(key.bytes());
    let key =
        Zeroizing::new(key.map_err(|_| {
            ObjectError::invalid(format!("Key should be {KEY_BYTES} bytes in length"))
        })?);
    let iv = options.iv.as_deref();
    let iv = iv.ok_or_else(|| ObjectError::invalid("IV is required to decrypt secret"))?;
    let iv = decode_base64(iv.as_bytes())?;
    let iv = <[u8; BLOCK_BYTES]>::try_from(iv.as_slice()).map_err(|_| {
        let length = iv.len();
        ObjectError::invalid(format!(
            "IV should be {BLOCK_BYTES} bytes in length not {length}"
        ))
    })?;
    let bytes = match is_base64(options) {
        true => decode_base64(&bytes)?,
        false => bytes,
    };
    decrypt(&key, &iv, bytes)
}

/// AES-256 in CBC mode, padded as PKCS #7 says.
fn decrypt(
    key: &[u8; KEY_BYTES],
    iv: &[u8; BLOCK_BYTES],
    mut bytes: Zeroizing<Vec<u8>>,
) -> Result<Zeroizing<Vec<u8>>, ObjectError> {
    let length = bytes.len();
    if !length.is_multiple_of(BLOCK_BYTES) {
        return Err(ObjectError::invalid(format!(
            "Length {length} must be a multiple of block size {BLOCK_BYTES}"
        )));
    }
    let cipher = cbc::Decryptor::<Aes256>::new(key.into(), iv.into());
    let decrypted = cipher.decrypt_padded::<NoPadding>(&mut bytes);
    decrypted.map_err(|_| ObjectError::invalid("the secret cannot be decrypted"))?;
    let Some(&padding) = bytes.last() else {
        return Ok(bytes);
    };
    let padding_bytes = usize::from(padding);
    let kept = length.checked_sub(padding_bytes);
    match kept {
        Some(kept) if (1..=BLOCK_BYTES).contains(&padding_bytes) => {
            bytes.truncate(kept);
            Ok(bytes)
        }
        _ => Err(ObjectError::Padding(padding)),
    }
}

/// Standard base64 as QEMU takes it: line feeds are skipped, and characters at the end that do not
/// make four are ignored.
fn decode_base64(text: &[u8]) -> Result<Zeroizing<Vec<u8>>, ObjectError> {
    let invalid = || ObjectError::invalid("Base64 data contains invalid characters");
    let is_base64 = |c: &u8| c.is_ascii_alphanumeric() || matches!(c, b'+' | b'/' | b'=' | b'\n');
    if !text.iter().all(is_base64) {
        return Err(invalid());
    }
    let text = text.iter().copied().filter(|&c| c != b'\n');
    let text = Zeroizing::new(text.collect::<Vec<_>>());
    let config = GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::RequireCanonical)
        .with_decode_allow_trailing_bits(true);
    let engine = GeneralPurpose::new(&base64::alphabet::STANDARD, config);
    let (groups, _rest) = text.as_chunks::<4>();
    let decoded = engine.decode(groups.as_flattened());
    decoded.map(Zeroizing::new).map_err(|_| invalid())
}

impl Object for Secret {
    fn type_name(&self) -> &str {
        "secret"
    }

    fn get(&self, property: &str) -> Result<Value, ObjectError> {
        let shown = self.shown.lock();
        let text = |text: &Option<String>| Value::from(text.as_deref().unwrap_or_default());
        Ok(match property {
            "iv" => text(&shown.iv),
            "keyid" => text(&shown.keyid),
            "format" => shown.format.unwrap_or(QCryptoSecretFormat::Raw).to_qapi(),
            "file" => text(&shown.file),
            "data" => text(&shown.data),
            _ => return Err(property_not_found(self, property)),
        })
    }

    fn set(&self, property: &str, value: Value) -> Result<(), ObjectError> {
        let new: SecretProperties = api::from_json(as_options(property, value))?;
        let mut shown = self.shown.lock();
        match property {
            "iv" => shown.iv = new.iv,
            "keyid" => shown.keyid = new.keyid,
            "format" => shown.format = new.format,
            "file" => shown.file = new.file,
            "data" => {
                shown.data.zeroize();
                shown.data = new.data;
            }
            _ => return Err(property_not_found(self, property)),
        }
        Ok(())
    }

    fn as_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn base64_is_read_as_leniently_as_by_qemu() {
        for (text, decoded) in [
            ("bGV0bWVpbg==", Some(&b"letmein"[..])),
            ("bGV0bWVpbg==\n", Some(b"letmein")),
            ("bGV0\nbWVpbg==\n", Some(b"letmein")),
            ("bGV0bWVpb", Some(b"letmei")),
            ("bGV0bWVpbg", Some(b"letmei")),
            ("", Some(b"")),
            ("=", Some(b"")),
            ("AA AA", None),
            ("AA\r\n", None),
            ("bGV0bWV!", None),
            ("AA=A", None),
        ] {
            let got = decode_base64(text.as_bytes()).ok();
            assert_eq!(got.as_deref().map(Vec::as_slice), decoded, "{text:?}");
        }
    }

    /// `printf DATA | openssl enc -aes-256-cbc -K 3031..66 -iv 0001..0f -base64 -A` with the key
    /// 0123456789abcdef0123456789abcdef.
    #[test]
    fn what_openssl_encrypted_is_decrypted() {
        let key = *b"0123456789abcdef0123456789abcdef";
        let iv = std::array::from_fn(|index| u8::try_from(index).unwrap_or(0));
        for (encrypted, plain) in OPENSSL_VECTORS {
            let bytes = decode_base64(encrypted.as_bytes()).unwrap();
            assert_eq!(decrypt(&key, &iv, bytes).unwrap().as_slice(), *plain);
        }
    }

    const OPENSSL_VECTORS: &[(&str, &[u8])] = &[
        ("A9cv54/AQAFOV2ReiUc4Yw==", b"letmein"),
        ("b7GfSdrqnR1cMmy4e2fc6A==", b""),
        (
            "Q+OEbpMl8zXBEfXzzjOngUqQO8UYgItOwWjWNZQ0Duw=",
            b"exactly16bytes!!",
        ),
        (
            "jnh4CZRWCu70ZIAkcTsYpwJdc83kk2j5KGck9MJEXGE=",
            b"seventeen bytes!!",
        ),
        (
            "s2BEGY/I17DWeSvaX4U8fk/4ji7rd8IsoGjMuum5Wus=",
            b"pass phrase with \xc3\xbc",
        ),
    ];

    proptest! {
        #[test]
        fn canonical_base64_round_trips(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let text = base64::engine::general_purpose::STANDARD.encode(&bytes);
            let decoded = decode_base64(text.as_bytes()).unwrap();
            prop_assert_eq!(decoded.as_slice(), bytes.as_slice());
        }

        #[test]
        fn any_bytes_decrypt_or_fail(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let length = bytes.len();
            if let Ok(plain) = decrypt(&[7; 32], &[9; 16], Zeroizing::new(bytes)) {
                prop_assert!(plain.len() < length || length == 0);
            }
        }
    }
}
