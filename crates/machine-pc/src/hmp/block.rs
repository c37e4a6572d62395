//! `info block` and `qemu-io`.

use std::sync::Arc;

use api::QmpError;
use block_graph::{BlockBackend, BlockError, Node, Permission, Permissions, WriteFlags};
use host_io::IoBuf;

use super::{Pending, put, word};
use crate::commands::MachineHandlers;
use crate::control::Control;

/// The most bytes that one `qemu-io` moves.
const MAX_BYTES: u64 = 16 << 20;

/// `info block [DEVICE]`.
pub(super) fn info(control: &Control, words: &[String]) -> String {
    let wanted = words.first();
    let disks = control.services.graph.backends().into_iter();
    let disks = disks.filter_map(|backend| {
        let frontend = backend.frontend()?;
        let (device, qdev) = (frontend.device_name(), frontend.qdev());
        let is_wanted = wanted.is_none_or(|name| *name == device || *name == qdev);
        is_wanted.then(|| describe(&backend, &device, &qdev))
    });
    disks.collect::<Vec<_>>().join("\n")
}

fn describe(backend: &BlockBackend, device: &str, qdev: &str) -> String {
    let mut text = String::new();
    let node = backend.edge().node_arc();
    let name = match device {
        "" => node.name().to_owned(),
        name => format!("{name} ({})", node.name()),
    };
    let driver = node.driver();
    let (file, format) = (driver.filename(), driver.name());
    let mode = if node.is_read_only() {
        ", read-only"
    } else {
        ""
    };
    put(&mut text, format_args!("{name}: {file} ({format}{mode})"));
    put(&mut text, format_args!("    Attached to:      {qdev}"));
    let options = node.options();
    let direct = if options.cache_direct { ", direct" } else { "" };
    let no_flush = if options.cache_no_flush {
        ", ignore flushes"
    } else {
        ""
    };
    put(
        &mut text,
        format_args!("    Cache mode:       writeback{direct}{no_flush}"),
    );
    if let Some(backing) = driver.backing_edge() {
        let file = backing.node().driver().filename();
        let depth = chain_depth(&node);
        put(
            &mut text,
            format_args!("    Backing file:     {file} (chain depth: {depth})"),
        );
    }
    text
}

/// How many images lie below.
fn chain_depth(node: &Arc<Node>) -> usize {
    let below = |node: &Arc<Node>| Some(node.driver().backing_edge()?.node_arc());
    std::iter::successors(below(node), below).count()
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

impl Operation {
    /// What a complaint says has failed.
    fn verb(self) -> &'static str {
        match self {
            Self::Read { .. } => "read",
            Self::Write { .. } => "write",
            Self::Flush => "flush",
            Self::Discard { .. } => "discard",
        }
    }
}

/// A number, with the suffixes of sizes.
fn number(text: &str) -> Result<u64, String> {
    api::keyval::parse_size(text).ok_or_else(|| {
        format!("Parsing error: non-numeric argument, or extraneous/unrecognized suffix -- {text}")
    })
}

fn parse(command: &str) -> Result<Operation, String> {
    let mut words = command.split_whitespace();
    let name = words.next().unwrap_or_default();
    let mut pattern = None;
    let mut words = words.peekable();
    while let Some(option) = words.next_if(|word| word.starts_with('-')) {
        match option {
            "-P" => {
                let byte = number(words.next().unwrap_or_default())?;
                let byte = u8::try_from(byte).map_err(|_| "a pattern is a byte")?;
                pattern = Some(byte);
            }
            // Vectors and fewer words make no difference here.
            "-q" => {}
            other => {
                let letters = other.trim_start_matches('-');
                return Err(format!("{name}: invalid option -- '{letters}'"));
            }
        }
    }
    let arguments: Vec<&str> = words.collect();
    let place = || match arguments.as_slice() {
        [offset, length] => {
            let (offset, length) = (number(offset)?, number(length)?);
            if length > MAX_BYTES {
                return Err(format!("length cannot exceed {MAX_BYTES}, given {length}"));
            }
            Ok((offset, length))
        }
        other => Err(format!(
            "bad argument count {} to {name}, expected 2 arguments",
            other.len()
        )),
    };
    Ok(match name {
        "flush" | "aio_flush" | "f" => Operation::Flush,
        "read" | "readv" | "aio_read" | "r" => {
            let (offset, length) = place()?;
            Operation::Read {
                pattern,
                offset,
                length,
            }
        }
        "write" | "writev" | "aio_write" | "w" => {
            let (offset, length) = place()?;
            Operation::Write {
                // As qemu-io does.
                pattern: pattern.unwrap_or(0xcd),
                offset,
                length,
            }
        }
        "discard" | "d" => {
            let (offset, length) = place()?;
            Operation::Discard { offset, length }
        }
        other => return Err(format!("command \"{other}\" not found")),
    })
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
            let mut text = String::new();
            if differs {
                text = format!("Pattern verification failed at offset {offset}, {length} bytes\n");
            }
            put(
                &mut text,
                format_args!("read {length}/{length} bytes at offset {offset}"),
            );
            Ok(text)
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
                "wrote {length}/{length} bytes at offset {offset}\n"
            ))
        }
        Operation::Flush => backend.flush().await.map(|()| String::new()),
        Operation::Discard { offset, length } => {
            backend.discard(offset, length).await?;
            Ok(format!(
                "discard {length}/{length} bytes at offset {offset}\n"
            ))
        }
    }
}

/// A way in: the device's own, or one for this command.
enum Way {
    Device(Arc<BlockBackend>),
    Own(Arc<BlockBackend>),
}

/// Finds a disk by its drive's or its own name or path, or else a node.
fn find(control: &Control, name: &str, operation: Operation) -> Result<Way, QmpError> {
    let graph = &control.services.graph;
    for backend in graph.backends() {
        let frontend = backend.frontend();
        if frontend.is_some_and(|it| it.device_name() == name || it.qdev() == name) {
            return Ok(Way::Device(backend));
        }
    }
    let node: Arc<Node> = graph
        .node(name)
        .map_err(|_| QmpError::generic(format!("Cannot find device='' nor node-name='{name}'")))?;
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
        .map_err(|error| QmpError::generic(error.to_string()))
}

/// `qemu-io [-d] DEVICE "COMMAND"`. It runs beside the machine: a disk that takes its time keeps nobody waiting but who
/// asked.
pub(super) fn qemu_io<'a>(
    handlers: &'a MachineHandlers,
    words: &'a [String],
    _cpu: i64,
) -> Pending<'a> {
    Box::pin(async move {
        let words = match words {
            [option, rest @ ..] if option == "-d" => rest,
            words => words,
        };
        let (name, command) = (word(words, 0)?.to_owned(), word(words, 1)?);
        if command.trim().is_empty() {
            return Ok(String::new());
        }
        let operation = match parse(command) {
            Ok(operation) => operation,
            Err(complaint) => return Ok(format!("{complaint}\n")),
        };
        let found = handlers.ask(move |control| {
            let way = find(control, &name, operation)?;
            let services = &control.services;
            Ok::<_, QmpError>((way, services.data_side.clone(), Arc::clone(&services.graph)))
        });
        let (way, executor, graph) = found.await??;
        let (Way::Device(backend) | Way::Own(backend)) = &way;
        let used = Arc::clone(backend);
        let done = executor.spawn(move || async move { perform(&used, operation).await });
        let done = done.await;
        if let Way::Own(backend) = &way {
            graph.detach_backend(backend);
        }
        let verb = operation.verb();
        Ok(match done {
            Ok(Ok(text)) => text,
            Ok(Err(error)) => format!("{verb} failed: {}\n", error.message),
            Err(error) => format!("{verb} failed: {error}\n"),
        })
    })
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
        for wrong in [
            "",
            "read 0",
            "read -z 0 1",
            "read 0 99G",
            "read 0 1 2",
            "erase 0 1",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
