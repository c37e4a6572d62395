//! Two frontends on one terminal, such as a serial port and a monitor: `mon:stdio`.
//!
//! What is typed goes to one of them, the one in front; Ctrl-A and a letter say what else is wanted ([`Keys`]). The first
//! frontend's output is shown always; the second one's waits until it is in front. What is typed at one that takes
//! nothing is dropped once [`TYPED_AHEAD_BYTES`] wait for it, so that the terminal can always be switched.

use std::future::poll_fn;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{
    AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf, duplex,
};
use tokio::sync::mpsc;

use crate::{ByteStream, CONNECTION_BACKLOG, Chardev, ChardevClaim, Connections, RingBuffer};

/// How much may be typed, or put out, ahead of its reader.
pub const TYPED_AHEAD_BYTES: usize = 64 << 10;
const ESCAPE: u8 = 0x01;
const READ_BYTES: usize = 4096;
const HELP: &[u8] = b"\r\n\
    C-a h    print this help\r\n\
    C-a x    exit emulator\r\n\
    C-a c    switch between console and monitor\r\n\
    C-a C-a  sends C-a\r\n";
/// How long a terminal has to take its last bytes.
const FAREWELL_PATIENCE: Duration = Duration::from_millis(100);
const FAREWELL: &[u8] = b"QEMU: Terminated\r\n";

/// What a byte from the terminal means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// It goes to the frontend in front.
    Byte(u8),
    /// The other frontend comes to the front.
    Switch,
    /// The program shall end.
    Quit,
    /// The keys are listed.
    Help,
    /// It begins or is something that means nothing yet, or at all.
    Nothing,
}

/// Finds the keys behind Ctrl-A.
#[derive(Debug, Default)]
pub struct Keys {
    after_escape: bool,
}

impl Keys {
    /// Takes a byte.
    pub fn feed(&mut self, byte: u8) -> Key {
        if !std::mem::take(&mut self.after_escape) {
            self.after_escape = byte == ESCAPE;
            return match byte {
                ESCAPE => Key::Nothing,
                byte => Key::Byte(byte),
            };
        }
        match byte {
            ESCAPE => Key::Byte(ESCAPE),
            b'c' => Key::Switch,
            b'x' => Key::Quit,
            b'h' | b'?' => Key::Help,
            _ => Key::Nothing,
        }
    }
}

/// A frontend's side.
struct MuxEnd {
    connections: Mutex<Option<Connections>>,
}

struct EndStream(DuplexStream);

impl AsyncRead for EndStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for EndStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

impl ByteStream for EndStream {
    fn take_fds(&mut self) -> Vec<OwnedFd> {
        Vec::new()
    }
}

impl Chardev for MuxEnd {
    fn type_name(&self) -> &'static str {
        "chardev-mux"
    }

    fn filename(&self) -> String {
        "mux".to_owned()
    }

    fn take_connections(&self) -> Option<Connections> {
        self.connections.lock().take()
    }

    fn return_connections(&self, connections: Connections) {
        *self.connections.lock() = Some(connections);
    }

    fn ring_buffer(&self) -> Option<&RingBuffer> {
        None
    }

    fn send_break(&self) {}
}

/// The terminal's side of both frontends.
struct Mux {
    ends: [DuplexStream; 2],
    keys: Keys,
    /// The frontend in front is the second one.
    second_in_front: bool,
    quit: Box<dyn Fn() + Send>,
}

/// Makes two chardevs of one, the first in front; `quit` is called when the person wants the program's end. They live as
/// long as the runtime.
pub fn multiplex(
    mut terminal: ChardevClaim,
    runtime: &tokio::runtime::Handle,
    quit: Box<dyn Fn() + Send>,
) -> [Arc<dyn Chardev>; 2] {
    let (first, first_end) = end();
    let (second, second_end) = end();
    let mut mux = Mux {
        ends: [first_end, second_end],
        keys: Keys::default(),
        second_in_front: false,
        quit,
    };
    runtime.spawn(async move {
        let Some(connections) = terminal.connections() else {
            return;
        };
        while let Some(stream) = connections.recv().await {
            if let Err(error) = mux.serve(stream).await {
                tracing::debug!(%error, "a terminal of two frontends has gone");
            }
        }
    });
    [first, second]
}

fn end() -> (Arc<dyn Chardev>, DuplexStream) {
    let (outer, inner) = duplex(TYPED_AHEAD_BYTES);
    let (sender, receiver) = mpsc::channel::<Box<dyn ByteStream>>(CONNECTION_BACKLOG);
    // The queue is new and has room.
    let _ = sender.try_send(Box::new(EndStream(outer)));
    let chardev = MuxEnd {
        connections: Mutex::new(Some(receiver)),
    };
    (Arc::new(chardev), inner)
}

impl Mux {
    async fn serve(&mut self, stream: Box<dyn ByteStream>) -> std::io::Result<()> {
        let (mut reader, mut writer) = tokio::io::split(stream);
        let (mut typed, mut said) = ([0; READ_BYTES], [0; READ_BYTES]);
        let mut second_said = [0; READ_BYTES];
        let mut is_open = [true; 2];
        // What the terminal has not taken yet. Keys are looked at all the same.
        let mut shown = Vec::new();
        loop {
            let [first, second] = &mut self.ends;
            let [first_open, second_open] = &mut is_open;
            let has_room = shown.is_empty();
            tokio::select! {
                count = reader.read(&mut typed) => match count? {
                    0 => return Ok(()),
                    count => {
                        for byte in typed.iter().take(count) {
                            self.typed(*byte, &mut shown, &mut writer).await;
                        }
                    }
                },
                count = writer.write(&shown), if !has_room => match count? {
                    0 => return Err(std::io::ErrorKind::WriteZero.into()),
                    count => {
                        shown.drain(..count.min(shown.len()));
                    }
                },
                count = first.read(&mut said), if has_room && *first_open => {
                    let count = count?;
                    *first_open = count > 0;
                    shown.extend(said.iter().take(count));
                }
                count = second.read(&mut second_said),
                    if has_room && *second_open && self.second_in_front =>
                {
                    let count = count?;
                    *second_open = count > 0;
                    shown.extend(second_said.iter().take(count));
                }
            }
        }
    }

    async fn typed(
        &mut self,
        byte: u8,
        shown: &mut Vec<u8>,
        terminal: &mut (impl AsyncWrite + Unpin),
    ) {
        match self.keys.feed(byte) {
            Key::Byte(byte) => self.pass(byte).await,
            Key::Switch => self.second_in_front = !self.second_in_front,
            // Once is enough for a terminal that takes nothing.
            Key::Help if shown.len() <= READ_BYTES => shown.extend(HELP),
            Key::Help => {}
            Key::Quit => {
                shown.extend(FAREWELL);
                // A terminal that takes nothing does not keep the program from ending.
                let last = terminal.write_all(shown);
                let _ = tokio::time::timeout(FAREWELL_PATIENCE, last).await;
                shown.clear();
                (self.quit)();
            }
            Key::Nothing => {}
        }
    }

    /// Gives a byte to the frontend in front, if that has room.
    async fn pass(&mut self, byte: u8) {
        let [first, second] = &mut self.ends;
        let end = if self.second_in_front { second } else { first };
        poll_fn(|cx| {
            // Without room, or without a frontend, it is dropped.
            let _ = Pin::new(&mut *end).poll_write(cx, &[byte]);
            Poll::Ready(())
        })
        .await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_behind_the_escape() {
        let mut keys = Keys::default();
        let mut all = |bytes: &[u8]| {
            let keys = bytes.iter().map(|byte| keys.feed(*byte));
            let keys = keys.filter(|key| *key != Key::Nothing);
            keys.collect::<Vec<_>>()
        };
        let (a, b) = (Key::Byte(b'a'), Key::Byte(b'b'));
        assert_eq!(all(b"a\x01cb"), [a, Key::Switch, b]);
        assert_eq!(all(b"\x01\x01a"), [Key::Byte(1), a]);
        assert_eq!(all(b"\x01zb\x01x\x01h"), [b, Key::Quit, Key::Help]);
        assert_eq!(all(b"c\x01"), [Key::Byte(b'c')]);
        // What began goes on.
        assert_eq!(all(b"c"), [Key::Switch]);
    }

    /// As with a pager behind standard output.
    #[tokio::test]
    async fn keys_count_where_nothing_is_read() {
        let (mut person, terminal) = duplex(64);
        let ((first, first_end), (second, second_end)) = (end(), end());
        let connection = |end: &Arc<dyn Chardev>| {
            let mut connections = end.take_connections().unwrap();
            connections.try_recv().unwrap()
        };
        let (mut guest, _monitor) = (connection(&first), connection(&second));
        let (told, mut quit) = mpsc::unbounded_channel();
        let mut mux = Mux {
            ends: [first_end, second_end],
            keys: Keys::default(),
            second_in_front: false,
            quit: Box::new(move || told.send(()).unwrap()),
        };
        guest.write_all(&[b'x'; 10_000]).await.unwrap();
        let typing = async {
            // More than one typed byte has room for at a time, and more help than anybody reads.
            for _ in 0..2000 {
                person.write_all(b"\x01h").await.unwrap();
            }
            person.write_all(b"\x01x").await.unwrap();
            quit.recv().await.unwrap();
        };
        let stream = Box::new(EndStream(terminal));
        tokio::select! {
            ended = mux.serve(stream) => panic!("{ended:?}"),
            ended = tokio::time::timeout(Duration::from_secs(20), typing) => ended.unwrap(),
        }
    }
}
