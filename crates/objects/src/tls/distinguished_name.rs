//! The name of a certificate's owner as text.

use std::fmt::Write as _;

use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;
use x509_parser::x509::AttributeTypeAndValue;

use crate::error::ObjectError;

/// Attribute types by the names that QEMU shows them with; others are shown as dotted numbers.
const ATTRIBUTE_NAMES: [(&str, &str); 22] = [
    ("2.5.4.3", "CN"),
    ("2.5.4.4", "surName"),
    ("2.5.4.5", "serialNumber"),
    ("2.5.4.6", "C"),
    ("2.5.4.7", "L"),
    ("2.5.4.8", "ST"),
    ("2.5.4.9", "street"),
    ("2.5.4.10", "O"),
    ("2.5.4.11", "OU"),
    ("2.5.4.12", "title"),
    ("2.5.4.13", "description"),
    ("2.5.4.15", "businessCategory"),
    ("2.5.4.17", "postalCode"),
    ("2.5.4.41", "name"),
    ("2.5.4.42", "givenName"),
    ("2.5.4.43", "initials"),
    ("2.5.4.44", "generationQualifier"),
    ("2.5.4.46", "dnQualifier"),
    ("2.5.4.65", "pseudonym"),
    ("0.9.2342.19200300.100.1.1", "UID"),
    ("0.9.2342.19200300.100.1.25", "DC"),
    ("1.2.840.113549.1.9.1", "EMAIL"),
];

/// The distinguished name of a certificate's owner, as QEMU gives it to authorization objects: the
/// parts in the certificate's order, values escaped as RFC 4514 section 2.4 says.
///
/// # Errors
/// The bytes are no certificate.
pub fn distinguished_name(certificate_der: &[u8]) -> Result<String, ObjectError> {
    let parsed = X509Certificate::from_der(certificate_der);
    let (_, certificate) = parsed.map_err(|error| {
        ObjectError::invalid(format!("cannot read the peer's certificate: {error}"))
    })?;
    let mut name = String::new();
    for part in certificate.subject().iter_rdn() {
        let mut separator = if name.is_empty() { "" } else { "," };
        for attribute in part.iter() {
            name.push_str(separator);
            write_attribute(attribute, &mut name);
            separator = "+";
        }
    }
    Ok(name)
}

fn write_attribute(attribute: &AttributeTypeAndValue<'_>, out: &mut String) {
    let kind = attribute.attr_type().to_id_string();
    let known = ATTRIBUTE_NAMES.iter().find(|(id, _)| *id == kind);
    out.push_str(known.map_or(kind.as_str(), |(_, name)| name));
    out.push('=');
    match (known, attribute.as_str()) {
        (Some(_), Ok(value)) => write_escaped(value, out),
        _ => {
            let value = attribute.attr_value();
            out.push('#');
            // Writing to a string cannot fail.
            let _ = write!(out, "{:02x}", value.tag().0);
            write_length(value.data.len(), out);
            for byte in value.data {
                let _ = write!(out, "{byte:02x}");
            }
        }
    }
}

/// A DER length in hexadecimal digits.
fn write_length(length: usize, out: &mut String) {
    let bytes = length.to_be_bytes();
    let significant = bytes.iter().skip_while(|&&byte| byte == 0);
    if length >= 0x80 {
        let _ = write!(out, "{:02x}", 0x80 | significant.clone().count());
    }
    if length == 0 {
        out.push_str("00");
    }
    for byte in significant {
        let _ = write!(out, "{byte:02x}");
    }
}

fn write_escaped(value: &str, out: &mut String) {
    let last = value.chars().count().saturating_sub(1);
    for (index, c) in value.chars().enumerate() {
        let escaped = match c {
            ',' | '+' | '"' | '\\' | '<' | '>' | ';' => true,
            '#' => index == 0,
            ' ' => index == 0 || index == last,
            '\0' => {
                out.push_str("\\00");
                continue;
            }
            _ => false,
        };
        if escaped {
            out.push('\\');
        }
        out.push(c);
    }
}
