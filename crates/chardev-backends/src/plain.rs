//! Backends that are one stream for good: stdio, file, pipe, pty, null, ring buffer.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::Arc;

use api::{ChardevFile, ChardevHostdev, ChardevPty, ChardevStdio, QmpError};
use chardev::{ByteStream, CONNECTION_BACKLOG, Chardev, Connections, RingBuffer};
use host_io::strerror;
use parking_lot::Mutex;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};
use tokio::sync::mpsc;

use crate::stream::{OpenCount, PairStream};
use crate::{Opened, StdioClaim, Surroundings, ring_of};

/// A backend whose connections, if it has any, were there from the start.
struct PlainChardev {
    type_name: &'static str,
    name: String,
    connections: Mutex<Option<Connections>>,
    ring: Option<RingBuffer>,
    _stdio: Option<Terminal>,
    _pty: Option<PtyPeer>,
}

impl Chardev for PlainChardev {
    fn type_name(&self) -> &'static str {
        self.type_name
    }

    fn filename(&self) -> String {
        self.name.clone()
    }

    fn take_connections(&self) -> Option<Connections> {
        self.connections.lock().take()
    }

    fn return_connections(&self, connections: Connections) {
        *self.connections.lock() = Some(connections);
    }

    fn ring_buffer(&self) -> Option<&RingBuffer> {
        self.ring.as_ref()
    }

    fn send_break(&self) {}
}

fn plain(type_name: &'static str, stream: Option<PairStream>) -> PlainChardev {
    let (sender, receiver) = mpsc::channel::<Box<dyn ByteStream>>(CONNECTION_BACKLOG);
    if let Some(stream) = stream {
        // The queue is new and has room.
        let _ = sender.try_send(Box::new(stream));
    }
    PlainChardev {
        type_name,
        name: type_name
            .strip_prefix("chardev-")
            .unwrap_or(type_name)
            .to_owned(),
        connections: Mutex::new(Some(receiver)),
        ring: None,
        _stdio: None,
        _pty: None,
    }
}

fn opened(chardev: PlainChardev) -> Opened {
    Opened {
        chardev: Arc::new(chardev),
        pty: None,
    }
}

fn pair(input: Option<OwnedFd>, output: Option<OwnedFd>) -> Result<PairStream, QmpError> {
    PairStream::new(input, output, Arc::<OpenCount>::default().opened()).map_err(|error| {
        QmpError::generic(format!("Cannot use the descriptor: {}", strerror(&error)))
    })
}

fn could_not_open(path: &str) -> impl Fn(io::Error) -> QmpError {
    move |error| QmpError::generic(format!("Could not open '{path}': {}", strerror(&error)))
}

/// `null`: reads wait for ever, writes vanish.
pub(crate) fn open_null() -> Result<Opened, QmpError> {
    Ok(opened(plain("chardev-null", Some(pair(None, None)?))))
}

/// `ringbuf` and its older name `memory`.
pub(crate) fn open_ring(type_name: &'static str, size: Option<i64>) -> Result<Opened, QmpError> {
    let mut chardev = plain(type_name, None);
    chardev.ring = Some(ring_of(size)?);
    Ok(opened(chardev))
}

/// `file`: output to a file, input perhaps from another.
pub(crate) fn open_file(options: &ChardevFile) -> Result<Opened, QmpError> {
    let append = options.append == Some(true);
    let output = OpenOptions::new()
        .write(true)
        .create(true)
        .append(append)
        .truncate(!append)
        .open(&options.out)
        .map_err(could_not_open(&options.out))?;
    let input = match &options.r#in {
        Some(path) => Some(File::open(path).map_err(could_not_open(path))?.into()),
        None => None,
    };
    Ok(opened(plain(
        "chardev-file",
        Some(pair(input, Some(output.into()))?),
    )))
}

/// `pipe`: the pair `PATH.in` and `PATH.out`, or one fifo for both ways.
pub(crate) fn open_pipe(options: &ChardevHostdev) -> Result<Opened, QmpError> {
    let path = &options.device;
    // Opened for both ways, so that opening does not wait for the other side.
    let open = |path: &str| {
        OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc_nonblock())
            .open(path)
    };
    let sides = (open(&format!("{path}.in")), open(&format!("{path}.out")));
    let (input, output) = match sides {
        (Ok(input), Ok(output)) => (input, output),
        _ => {
            let both = open(path).map_err(could_not_open(path))?;
            (both.try_clone().map_err(could_not_open(path))?, both)
        }
    };
    Ok(opened(plain(
        "chardev-pipe",
        Some(pair(Some(input.into()), Some(output.into()))?),
    )))
}

fn libc_nonblock() -> i32 {
    rustix::fs::OFlags::NONBLOCK.bits().cast_signed()
}

/// Keeps a pty open on the other side, so that it lives while nobody is there, and its link.
struct PtyPeer {
    _peer: OwnedFd,
    link: Option<PathBuf>,
}

impl Drop for PtyPeer {
    fn drop(&mut self) {
        if let Some(link) = &self.link {
            // Somebody else may have removed it: then there is nothing to do.
            let _ = std::fs::remove_file(link);
        }
    }
}

/// `pty`: a new pseudo-terminal.
pub(crate) fn open_pty(options: &ChardevPty) -> Result<Opened, QmpError> {
    let (controller, peer, name) = make_pty().map_err(|error| {
        QmpError::generic(format!("Failed to create PTY: {}", strerror(&error)))
    })?;
    if let Some(link) = &options.path {
        std::os::unix::fs::symlink(&name, link).map_err(|error| {
            QmpError::generic(format!(
                "Failed to create PTY symlink: {}",
                strerror(&error)
            ))
        })?;
    }
    let output = controller.try_clone().map_err(could_not_open(&name))?;
    let mut chardev = plain("chardev-pty", Some(pair(Some(controller), Some(output))?));
    chardev.name = format!("pty:{name}");
    chardev._pty = Some(PtyPeer {
        _peer: peer,
        link: options.path.as_ref().map(PathBuf::from),
    });
    Ok(Opened {
        chardev: Arc::new(chardev),
        pty: Some(name),
    })
}

fn make_pty() -> io::Result<(OwnedFd, OwnedFd, String)> {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    let controller = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    grantpt(&controller)?;
    unlockpt(&controller)?;
    let name = ptsname(&controller, Vec::new())?
        .to_string_lossy()
        .into_owned();
    let peer = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(rustix::fs::OFlags::NOCTTY.bits().cast_signed())
        .open(&name)?;
    let mut modes = tcgetattr(&peer)?;
    modes.make_raw();
    tcsetattr(&peer, OptionalActions::Now, &modes)?;
    Ok((controller, peer.into(), name))
}

/// The terminal behind standard input, put back as it was at the end.
struct Terminal {
    before: Option<Termios>,
    _claim: StdioClaim,
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let stdin = io::stdin();
        if let Some(before) = &self.before {
            // At the end of the program nobody can be told.
            let _ = tcsetattr(stdin.as_fd(), OptionalActions::Now, before);
        }
        let _ = rustix::io::ioctl_fionbio(stdin.as_fd(), false);
    }
}

/// `stdio`: the process's standard input and output.
pub(crate) fn open_stdio(
    options: &ChardevStdio,
    surroundings: &Surroundings,
) -> Result<Opened, QmpError> {
    let claim = surroundings.claim_stdio()?;
    let duplicate = |fd: &dyn AsFd| fd.as_fd().try_clone_to_owned();
    let input = duplicate(&io::stdin()).map_err(could_not_open("standard input"))?;
    let output = duplicate(&io::stdout()).map_err(could_not_open("standard output"))?;
    let before = tcgetattr(&input).ok();
    if let Some(before) = &before {
        set_raw(&input, before.clone(), options.signal != Some(false))
            .map_err(could_not_open("the terminal"))?;
    }
    let mut chardev = plain("chardev-stdio", Some(pair(Some(input), Some(output))?));
    chardev._stdio = Some(Terminal {
        before,
        _claim: claim,
    });
    Ok(opened(chardev))
}

/// Characters come one by one and unchanged; output still gets its carriage returns.
fn set_raw(fd: &OwnedFd, mut modes: Termios, signals: bool) -> io::Result<()> {
    use rustix::termios::{LocalModes, OutputModes};
    modes.make_raw();
    modes.output_modes |= OutputModes::OPOST;
    if signals {
        modes.local_modes |= LocalModes::ISIG;
    }
    Ok(tcsetattr(fd, OptionalActions::Now, &modes)?)
}
