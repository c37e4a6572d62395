//! `--chardev`: the flat form that QEMU's command line has for chardevs, and JSON.

use api::{ChardevAddArgs, ChardevBackend, QmpError};
use serde_json::{Value, json};

use crate::flat_options::Flat;

/// Reads the option's text: an id and a backend.
///
/// # Errors
/// Words for people, as QEMU's.
pub(crate) fn parse(text: &str) -> Result<ChardevAddArgs, QmpError> {
    if text.starts_with('{') {
        return api::keyval::Options::parse(text, None)?.read();
    }
    let mut flat = Flat::parse(text, "backend")?;
    let id = flat
        .take("id")
        .ok_or_else(|| QmpError::generic("chardev: no id specified"))?;
    if !api::is_well_formed_id(&id) {
        return Err(QmpError::generic("Parameter 'id' expects an identifier"));
    }
    let Some(backend) = flat.take("backend") else {
        return Err(QmpError::generic(format!(
            "chardev: \"{id}\" missing backend"
        )));
    };
    let data = match backend.as_str() {
        "socket" => socket(&mut flat)?,
        "file" => {
            let out = flat.required("file", "path", "no filename given")?;
            flat.object(
                &[("out", Some(out.into()))],
                &["append"],
                &[("input-path", "in")],
            )?
        }
        "pipe" => {
            let device = flat.required("pipe", "path", "no device path given")?;
            flat.object(&[("device", Some(device.into()))], &[], &[])?
        }
        "pty" => flat.object(&[], &[], &[("path", "path")])?,
        "stdio" => flat.object(&[], &["signal"], &[])?,
        "null" => flat.object(&[], &[], &[])?,
        "ringbuf" | "memory" => {
            let size = flat.size("size")?;
            flat.object(&[("size", size)], &[], &[])?
        }
        unknown => {
            return Err(QmpError::generic(format!(
                "'{unknown}' is not a valid char driver name"
            )));
        }
    };
    flat.end()?;
    let backend: ChardevBackend = api::from_json(json!({"type": backend, "data": data}))?;
    Ok(ChardevAddArgs { id, backend })
}

fn socket(flat: &mut Flat) -> Result<Value, QmpError> {
    let (path, host, fd) = (flat.take("path"), flat.take("host"), flat.take("fd"));
    let given = [&path, &host, &fd]
        .into_iter()
        .filter(|value| value.is_some())
        .count();
    if given > 1 {
        return Err(QmpError::generic(
            "None or one of 'path', 'fd' or 'host' option required.",
        ));
    }
    let address = if let Some(path) = path {
        let data = flat.object(&[("path", Some(path.into()))], &["abstract", "tight"], &[])?;
        json!({"type": "unix", "data": data})
    } else if let Some(fd) = fd {
        json!({"type": "fd", "data": {"str": fd}})
    } else {
        let port = flat.take("port");
        let port = match (port, &host) {
            (Some(port), _) => port,
            (None, Some(_)) => {
                return Err(QmpError::generic("chardev: socket: no port given"));
            }
            (None, None) => {
                return Err(QmpError::generic(
                    "None or one of 'path', 'fd' or 'host' option required.",
                ));
            }
        };
        let to = flat.number("to")?;
        let fixed = [
            ("host", Some(host.unwrap_or_default().into())),
            ("port", Some(port.into())),
            ("to", to),
        ];
        let data = flat.object(&fixed, &["ipv4", "ipv6", "keep-alive"], &[])?;
        json!({"type": "inet", "data": data})
    };
    let server = flat.switch("server")?.unwrap_or(Value::Bool(false));
    let reconnect = flat.number("reconnect")?;
    let reconnect_ms = flat.number("reconnect-ms")?;
    // On the command line a server waits for its first client unless told otherwise.
    let wait = match flat.switch("wait")? {
        None if server == Value::Bool(true) => Some(Value::Bool(true)),
        wait => wait,
    };
    let fixed = [
        ("addr", Some(address)),
        ("server", Some(server)),
        ("wait", wait),
        ("reconnect", reconnect),
        ("reconnect-ms", reconnect_ms),
    ];
    let switches = ["nodelay"];
    flat.object(&fixed, &switches, &[])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_are_read() {
        let read = parse("socket,id=c,path=/a,,b,server=on,wait=off").unwrap();
        let expected: ChardevBackend = api::from_json(json!({
            "type": "socket",
            "data": {
                "addr": {"type": "unix", "data": {"path": "/a,b"}},
                "server": true,
                "wait": false
            }
        }))
        .unwrap();
        assert_eq!(read.id, "c");
        assert_eq!(read.backend, expected);
    }

    #[test]
    fn complaints_are_qemus() {
        for (text, complaint) in [
            ("nosuch,id=c", "'nosuch' is not a valid char driver name"),
            ("null", "chardev: no id specified"),
            ("id=c", "chardev: \"c\" missing backend"),
            ("null,id=1c", "Parameter 'id' expects an identifier"),
            (
                "socket,id=c,path=/x,server=maybe",
                "Parameter 'server' expects 'on' or 'off'",
            ),
            (
                "socket,id=c,host=127.0.0.1",
                "chardev: socket: no port given",
            ),
            ("socket,id=c,path=/x,nosuch=1", "Invalid parameter 'nosuch'"),
            ("file,id=c", "chardev: file: no filename given"),
            (
                "ringbuf,id=c,size=1x",
                "Parameter 'size' expects a non-negative number below 2^64",
            ),
        ] {
            assert_eq!(parse(text).unwrap_err().desc, complaint, "{text}");
        }
    }
}
