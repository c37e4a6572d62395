//! What `-serial`, `-monitor`, `-qmp` and their like take: a chardev in one word.

use api::{ChardevAddArgs, QmpError};

use crate::storage_daemon::chardev_option;

/// What such an option means.
#[derive(Debug, PartialEq)]
pub(crate) enum LegacyChardev {
    /// Nothing is connected (`none`).
    None,
    /// A chardev that is there.
    Existing(String),
    /// A chardev to be made.
    New(Box<ChardevAddArgs>),
}

/// Reads the option's text; a new chardev is called `id`.
///
/// # Errors
/// Words for people.
pub(crate) fn parse(text: &str, id: &str) -> Result<LegacyChardev, QmpError> {
    if text == "none" {
        return Ok(LegacyChardev::None);
    }
    if let Some(id) = text.strip_prefix("chardev:") {
        return Ok(LegacyChardev::Existing(id.to_owned()));
    }
    let option = match text.split_once(':') {
        None if matches!(text, "stdio" | "null" | "pty") => format!("{text},id={id}"),
        Some(("file", path)) => format!("file,id={id},path={path}"),
        Some(("pipe", path)) => format!("pipe,id={id},path={path}"),
        Some(("pty", path)) => format!("pty,id={id},path={path}"),
        Some(("unix", address)) => format!("socket,id={id},path={address}"),
        Some(("tcp", address)) => tcp(address, id)?,
        _ => {
            return Err(QmpError::generic(format!(
                "'{text}' is not a valid char driver: stdio, none, null, pty, file:PATH, pipe:PATH, \
                 unix:PATH[,server=on][,wait=off], tcp:HOST:PORT[,server=on] and chardev:ID are"
            )));
        }
    };
    let arguments = chardev_option::parse(&option)?;
    Ok(LegacyChardev::New(Box::new(arguments)))
}

fn tcp(address: &str, id: &str) -> Result<String, QmpError> {
    let (place, rest) = match address.split_once(',') {
        Some((place, rest)) => (place, format!(",{rest}")),
        None => (address, String::new()),
    };
    let (host, port) = place
        .rsplit_once(':')
        .ok_or_else(|| QmpError::generic(format!("tcp:{place}: a host and a port are expected")))?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    Ok(format!("socket,id={id},host={host},port={port}{rest}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id_of(text: &str) -> String {
        match parse(text, "serial0").unwrap() {
            LegacyChardev::None => "none".to_owned(),
            LegacyChardev::Existing(id) => format!("existing {id}"),
            LegacyChardev::New(arguments) => format!("{:?}", arguments.backend.r#type),
        }
    }

    #[test]
    fn one_word_is_a_chardev() {
        assert_eq!(id_of("none"), "none");
        assert_eq!(id_of("chardev:c0"), "existing c0");
        for (text, part) in [
            ("stdio", "Stdio"),
            ("null", "Null"),
            ("file:/tmp/x", "/tmp/x"),
            ("unix:/tmp/s,server,nowait", "Unix"),
            ("tcp:127.0.0.1:4444,server=on,wait=off", "4444"),
        ] {
            assert!(id_of(text).contains(part), "{text}: {}", id_of(text));
        }
        assert!(parse("nosuch:x", "a").is_err());
        // Serial ports alone share their terminal with a monitor.
        assert!(parse("mon:stdio", "a").is_err());
        assert!(parse("tcp:nothing", "a").is_err());
    }
}
