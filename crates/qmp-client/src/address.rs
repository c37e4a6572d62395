//! Where a server listens.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use crate::Error;

/// Where a server listens.
///
/// Its text forms: `unix:PATH` or `PATH`; `unix:@NAME` or `@NAME` for a name in Linux' abstract
/// namespace; `tcp:HOST:PORT` or `HOST:PORT` (an IPv6 address in brackets). A text with a slash in it
/// is a path unless a prefix says otherwise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// A Unix socket in the file system.
    Unix(PathBuf),
    /// A Unix socket in the abstract namespace, without the leading zero byte.
    Abstract(String),
    /// A TCP port.
    Tcp {
        /// Host name or address, without brackets.
        host: String,
        /// Port number.
        port: u16,
    },
}

impl FromStr for Address {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let wrong = |why| Error::Address {
            text: text.to_owned(),
            why,
        };
        if let Some(rest) = text.strip_prefix("tcp:") {
            return parse_tcp(rest).ok_or_else(|| wrong("after 'tcp:' comes HOST:PORT"));
        }
        let (named_unix, rest) = match text.strip_prefix("unix:") {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        if let Some(name) = rest.strip_prefix('@').filter(|name| !name.is_empty()) {
            return Ok(Self::Abstract(name.to_owned()));
        }
        if rest.is_empty() || rest == "@" {
            return Err(wrong("it names no socket"));
        }
        if rest.contains('\0') {
            return Err(wrong("a path has no zero byte"));
        }
        if !named_unix
            && !rest.contains('/')
            && let Some(tcp) = parse_tcp(rest)
        {
            return Ok(tcp);
        }
        Ok(Self::Unix(PathBuf::from(rest)))
    }
}

fn parse_tcp(text: &str) -> Option<Address> {
    let (host, port) = text.rsplit_once(':')?;
    let port = port.parse().ok()?;
    let host = match host.strip_prefix('[') {
        Some(bracketed) => bracketed.strip_suffix(']')?,
        // More colons without brackets would leave open where the port begins.
        None if host.contains(':') => return None,
        None => host,
    };
    (!host.is_empty()).then(|| Address::Tcp {
        host: host.to_owned(),
        port,
    })
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Abstract(name) => write!(f, "unix:@{name}"),
            Self::Tcp { host, port } if host.contains(':') => write!(f, "tcp:[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "tcp:{host}:{port}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(host: &str, port: u16) -> Address {
        Address::Tcp {
            host: host.to_owned(),
            port,
        }
    }

    #[test]
    fn every_form_is_read_and_shown_so_that_it_reads_the_same() {
        for (text, expected) in [
            ("qmp.sock", Address::Unix("qmp.sock".into())),
            ("/run/a:1", Address::Unix("/run/a:1".into())),
            (
                "unix:localhost:4444",
                Address::Unix("localhost:4444".into()),
            ),
            ("unix:/run/qmp", Address::Unix("/run/qmp".into())),
            ("@monitor", Address::Abstract("monitor".to_owned())),
            ("unix:@monitor", Address::Abstract("monitor".to_owned())),
            ("localhost:4444", tcp("localhost", 4444)),
            ("tcp:127.0.0.1:1", tcp("127.0.0.1", 1)),
            ("[::1]:4444", tcp("::1", 4444)),
            ("tcp:[fe80::1]:9", tcp("fe80::1", 9)),
            ("::1:4444", Address::Unix("::1:4444".into())),
            ("host:65536", Address::Unix("host:65536".into())),
        ] {
            let parsed: Address = text.parse().unwrap();
            assert_eq!(parsed, expected, "{text}");
            assert_eq!(parsed.to_string().parse::<Address>().unwrap(), parsed);
        }
    }

    #[test]
    fn what_names_nothing_is_refused() {
        for text in [
            "", "unix:", "@", "unix:@", "tcp:", "tcp:host", "tcp::1", "tcp:h:x", "a\0b",
        ] {
            let refused = text.parse::<Address>();
            assert!(
                matches!(refused, Err(Error::Address { .. })),
                "{text}: {refused:?}"
            );
        }
    }
}
