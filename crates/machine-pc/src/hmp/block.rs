//! `info block` and `qemu-io`.

use std::fmt::Write;
use std::sync::Arc;

use block_graph::{BlockBackend, BlockError, Node, Permission, Permissions, WriteFlags};
use host_io::IoBuf;

use crate::control::Control;

/// The most bytes that one `qemu-io` moves.
const MAX_BYTES: u64 = 16 << 20;

/// `info block`.
pub(super) fn info(control: &Control) -> String {
    let mut text = String::new();
    for backend in control.services.graph.backends() {
        let Some(frontend) = backend.frontend() else {
            continue;
        };
        let node = backend.edge().node_arc();
        let name = match frontend.device_name() {
            name if name.is_empty() => node.name().to_owned(),
            name => format!("{name} ({})", node.name()),
        };
        let driver = node.driver();
        let mode = if node.is_read_only() {
            ", read-only"
        } else {
            ""
        };
        // Writing to a string does not fail.
        let _ = write!(
            text,
            "{name}: {} ({}{mode})\r\n    Attached to:      {}\r\n",
            driver.filename(),
            driver.name(),
            frontend.qdev()
        );
        if let Some(backing) = driver.backing_edge() {
            let backing = backing.node().driver().filename();
            let _ = write!(text, "    Backing file:     {backing}\r\n");
        }
    }
    text
}

/// What `qemu-io` shall do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operation {
    Read {
        pattern: Option<u8>,
        offset: u64,
        length: u64,
    },
    Write {
        pattern: u8,
        offset: u64,
        length: u64,
    },
    Flush,
    Discard {
        offset: u64,
        length: u64,
    },
}

fn number(text: Option<&str>) -> Result<u64, String> {
    let text = text.ok_or("offset and length are expected")?;
    let hexadecimal = text.strip_prefix("0x");
    let number = match hexadecimal {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => api::keyval::parse_size(text),
    };
    number.ok_or_else(|| format!("non-numeric length argument -- {text}"))
}

fn parse(command: &str) -> Result<Operation, String> {
    let mut words = command.split_whitespace();
    let name = words.next().unwrap_or_default();
    let mut pattern = None;
    let mut words = words.peekable();
    while let Some(option) = words.next_if(|word| word.starts_with('-')) {
        match option {
            "-P" => {
                let byte = number(words.next())?;
                let byte = u8::try_from(byte).map_err(|_| "a pattern is a byte")?;
                pattern = Some(byte);
            }
            "-q" => {}
            other => return Err(format!("unknown option {other}")),
        }
    }
    if name == "flush" {
        return Ok(Operation::Flush);
    }
    let (offset, length) = (number(words.next())?, number(words.next())?);
    if length > MAX_BYTES {
        return Err(format!("at most {MAX_BYTES} bytes at once"));
    }
    match name {
        "read" | "aio_read" => Ok(Operation::Read {
            pattern,
            offset,
            length,
        }),
        "write" | "aio_write" => Ok(Operation::Write {
            // As qemu-io does.
            pattern: pattern.unwrap_or(0xcd),
            offset,
            length,
        }),
        "discard" => Ok(Operation::Discard { offset, length }),
        other => Err(format!("command \"{other}\" not found")),
    }
}

async fn perform(backend: &BlockBackend, operation: Operation) -> Result<String, BlockError> {
    let buffer = |length: u64| usize::try_from(length).unwrap_or(0);
    match operation {
        Operation::Read {
            pattern,
            offset,
            length,
        } => {
            let data = backend.read(offset, IoBuf::zeroed(buffer(length))).await?;
            let differs = pattern.is_some_and(|byte| data.iter().any(|read| *read != byte));
            if differs {
                return Ok(format!(
                    "Pattern verification failed at offset {offset}, {length} bytes\r\n"
                ));
            }
            Ok(format!(
                "read {length}/{length} bytes at offset {offset}\r\n"
            ))
        }
        Operation::Write {
            pattern,
            offset,
            length,
        } => {
            let data = IoBuf::copy_of(&vec![pattern; buffer(length)]);
            backend
                .write(offset, data.into(), WriteFlags::empty())
                .await?;
            Ok(format!(
                "wrote {length}/{length} bytes at offset {offset}\r\n"
            ))
        }
        Operation::Flush => backend.flush().await.map(|()| String::new()),
        Operation::Discard { offset, length } => {
            backend.discard(offset, length).await?;
            Ok(format!(
                "discard {length}/{length} bytes at offset {offset}\r\n"
            ))
        }
    }
}

/// A way in: the device's own, or one for this command.
enum Way {
    Device(Arc<BlockBackend>),
    Own(Arc<BlockBackend>),
}

fn find(control: &Control, name: &str, operation: Operation) -> Result<Way, String> {
    let graph = &control.services.graph;
    for backend in graph.backends() {
        let frontend = backend.frontend();
        if frontend.is_some_and(|it| it.device_name() == name || it.qdev() == name) {
            return Ok(Way::Device(backend));
        }
    }
    let node: Arc<Node> = graph
        .node(name)
        .map_err(|_| format!("Error: Device '{name}' not found\r\n"))?;
    let mut required = Permission::CONSISTENT_READ;
    if !matches!(operation, Operation::Read { .. }) {
        required |= Permission::WRITE;
    }
    let asked = Permissions {
        required,
        shared: Permission::all(),
    };
    let attached = graph.attach_backend("qemu-io", &node, asked);
    attached
        .map(Way::Own)
        .map_err(|error| format!("Error: {error}\r\n"))
}

/// `qemu-io [-d] DEVICE "COMMAND"`.
pub(super) fn qemu_io(control: &mut Control, rest: &str, _cpu: i64) -> String {
    let rest = rest.strip_prefix("-d ").unwrap_or(rest).trim();
    let (name, command) = rest.split_once(' ').unwrap_or((rest, ""));
    let operation = match parse(command.trim().trim_matches('"')) {
        Ok(operation) => operation,
        Err(complaint) => return format!("{complaint}\r\n"),
    };
    let way = match find(control, name, operation) {
        Ok(way) => way,
        Err(complaint) => return complaint,
    };
    let (Way::Device(backend) | Way::Own(backend)) = &way;
    let used = Arc::clone(backend);
    let executor = control.services.data_side.clone();
    let done = executor.spawn(move || async move { perform(&used, operation).await });
    let done = control.services.runtime.block_on(done);
    if let Way::Own(backend) = &way {
        control.services.graph.detach_backend(backend);
    }
    match done {
        Ok(Ok(text)) => text,
        Ok(Err(error)) => format!("{name}: {}\r\n", error.message),
        Err(error) => format!("{name}: {error}\r\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands() {
        let read = parse("read -P 0xab 4k 512").unwrap();
        let expected = Operation::Read {
            pattern: Some(0xab),
            offset: 4096,
            length: 512,
        };
        assert_eq!(read, expected);
        assert_eq!(parse("flush"), Ok(Operation::Flush));
        for wrong in ["", "read 0", "read -z 0 1", "read 0 99G", "erase 0 1"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
