//! A certificate's subject as one string, for authorization.

use std::fmt::Write;

use x509_parser::der_parser::asn1_rs::Oid;
use x509_parser::prelude::{FromDer, X509Certificate};

/// The subject of a certificate in DER, written as access lists of QEMU expect it: with the short
/// names and escapes of RFC 4514, but in the certificate's own order, as GnuTLS does:
/// `C=GB,L=London,O=Example Home,CN=laptop`.
///
/// None if the certificate cannot be read or a part is no text.
pub(crate) fn subject_of(certificate: &[u8]) -> Option<String> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    let mut text = String::new();
    for (index, part) in certificate.subject().iter_rdn().enumerate() {
        if index > 0 {
            text.push(',');
        }
        for (index, attribute) in part.iter().enumerate() {
            if index > 0 {
                text.push('+');
            }
            push_type(&mut text, attribute.attr_type());
            text.push('=');
            push_value(&mut text, attribute.as_str().ok()?);
        }
    }
    Some(text)
}

/// The short names of RFC 4514, and those beyond it that GnuTLS has.
const SHORT_NAMES: [(&str, &str); 13] = [
    ("2.5.4.3", "CN"),
    ("2.5.4.7", "L"),
    ("2.5.4.8", "ST"),
    ("2.5.4.10", "O"),
    ("2.5.4.11", "OU"),
    ("2.5.4.6", "C"),
    ("2.5.4.9", "street"),
    ("0.9.2342.19200300.100.1.25", "DC"),
    ("0.9.2342.19200300.100.1.1", "UID"),
    ("1.2.840.113549.1.9.1", "EMAIL"),
    ("2.5.4.5", "serialNumber"),
    ("2.5.4.12", "title"),
    ("2.5.4.42", "givenName"),
];

fn push_type(text: &mut String, oid: &Oid<'_>) {
    let oid = oid.to_id_string();
    let known = SHORT_NAMES.iter().find(|(number, _)| *number == oid);
    text.push_str(known.map_or(oid.as_str(), |(_, name)| name));
}

/// Appends a value with the escapes of RFC 4514, section 2.4.
fn push_value(text: &mut String, value: &str) {
    let last = value.chars().count().saturating_sub(1);
    for (index, letter) in value.chars().enumerate() {
        let is_edge_space = letter == ' ' && (index == 0 || index == last);
        let is_leading_hash = letter == '#' && index == 0;
        match letter {
            '\0' => text.push_str("\\00"),
            '"' | '+' | ',' | ';' | '<' | '>' | '\\' => {
                let _ = write!(text, "\\{letter}");
            }
            _ if is_edge_space || is_leading_hash => {
                let _ = write!(text, "\\{letter}");
            }
            _ => text.push(letter),
        }
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};

    use super::*;

    #[test]
    fn names_keep_their_order_and_are_escaped() {
        let mut name = DistinguishedName::new();
        name.push(DnType::OrganizationName, "Example, Home; <a>+\"b\" \\");
        name.push(DnType::CustomDnType(vec![2, 5, 4, 42]), "Gn");
        name.push(DnType::CustomDnType(vec![1, 2, 3, 4]), " lead and trail ");
        name.push(DnType::CommonName, "#l\u{e4}ptop#");
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name = name;
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        assert_eq!(
            subject_of(certificate.der()).unwrap(),
            "O=Example\\, Home\\; \\<a\\>\\+\\\"b\\\" \\\\,givenName=Gn,\
             1.2.3.4=\\ lead and trail\\ ,CN=\\#l\u{e4}ptop#"
        );
        assert_eq!(subject_of(b"no certificate"), None);
    }
}
