//! Monitors for people: a prompt on a chardev, lines edited as at a terminal ([`Readline`]), and whoever runs them.
//!
//! Each connection of the chardev is a person with a line and a history of their own. One line is run at a time; while it
//! runs, and while its output is not taken, nothing more is read.

mod readline;

use std::pin::Pin;
use std::sync::Arc;

use chardev::ByteStream;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;

pub use readline::{HISTORY_LINES, MAX_LINE_CHARS, Readline, Typed};

/// What scripts wait for.
const PROMPT: &str = "(qemu) ";
/// How many bytes are read at a time.
const READ_BYTES: usize = 1024;
/// How much is put out at a time: one key may show a whole line anew.
const WRITE_BYTES: usize = 64 << 10;

/// What a line prints, once it has been run.
pub type HumanReply<'a> = Pin<Box<dyn Future<Output = String> + Send + 'a>>;

/// The commands of people.
pub trait HumanCommands: Send + Sync + 'static {
    /// Runs a line; what it prints, each line with its CR and LF.
    fn run<'a>(&'a self, line: &'a str) -> HumanReply<'a>;

    /// What the last word of `typed`, a line up to the cursor, can become.
    fn complete(&self, typed: &str) -> Vec<String>;
}

/// Serves a person until they go, or until `closing` says that the program does.
pub(crate) async fn serve(
    stream: Box<dyn ByteStream>,
    commands: Arc<dyn HumanCommands>,
    banner: String,
    mut closing: watch::Receiver<bool>,
) {
    tokio::select! {
        ended = talk(stream, &*commands, &banner) => {
            if let Err(error) = ended {
                tracing::debug!(%error, "a connection of a monitor for people ended");
            }
        }
        _ = closing.wait_for(|closing| *closing) => {}
    }
}

async fn talk(
    mut stream: Box<dyn ByteStream>,
    commands: &dyn HumanCommands,
    banner: &str,
) -> std::io::Result<()> {
    let mut readline = Readline::new(PROMPT);
    let mut out = format!("{banner}\r\n");
    readline.show(&mut out);
    let mut input = [0; READ_BYTES];
    loop {
        send(&mut stream, &mut out).await?;
        let count = stream.read(&mut input).await?;
        // Descriptors that come along are nobody's here.
        drop(stream.take_fds());
        if count == 0 {
            return Ok(());
        }
        for byte in input.iter().take(count) {
            match readline.feed(*byte, &mut out) {
                Typed::Nothing => {}
                Typed::Complete(typed) => readline.complete(&commands.complete(&typed), &mut out),
                Typed::Line(line) => {
                    send(&mut stream, &mut out).await?;
                    out.push_str(&commands.run(&line).await);
                    readline.show(&mut out);
                }
            }
            if out.len() >= WRITE_BYTES {
                send(&mut stream, &mut out).await?;
            }
        }
    }
}

async fn send(stream: &mut Box<dyn ByteStream>, out: &mut String) -> std::io::Result<()> {
    stream.write_all(out.as_bytes()).await?;
    stream.flush().await?;
    out.clear();
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::os::fd::OwnedFd;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::{Context, Poll};

    use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

    use super::*;

    /// A terminal where all has been typed already.
    struct Typist {
        typed: VecDeque<u8>,
        /// The most that was put out at once.
        longest: Arc<AtomicUsize>,
    }

    impl AsyncRead for Typist {
        fn poll_read(
            mut self: Pin<&mut Self>,
            _cx: &mut Context<'_>,
            buf: &mut ReadBuf<'_>,
        ) -> Poll<std::io::Result<()>> {
            let count = buf.remaining().min(self.typed.len());
            buf.put_slice(&self.typed.drain(..count).collect::<Vec<_>>());
            Poll::Ready(Ok(()))
        }
    }

    impl AsyncWrite for Typist {
        fn poll_write(
            self: Pin<&mut Self>,
            _cx: &mut Context<'_>,
            buf: &[u8],
        ) -> Poll<std::io::Result<usize>> {
            self.longest.fetch_max(buf.len(), Ordering::Relaxed);
            Poll::Ready(Ok(buf.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    impl ByteStream for Typist {
        fn take_fds(&mut self) -> Vec<OwnedFd> {
            Vec::new()
        }
    }

    struct Nothing;

    impl HumanCommands for Nothing {
        fn run<'a>(&'a self, _line: &'a str) -> HumanReply<'a> {
            Box::pin(async { String::new() })
        }

        fn complete(&self, _typed: &str) -> Vec<String> {
            Vec::new()
        }
    }

    /// One byte typed may show a whole line: what waits to be put out is bounded all the same.
    #[tokio::test]
    async fn keys_that_show_much_are_put_out_bit_by_bit() {
        let mut typed: VecDeque<u8> = "ü".repeat(MAX_LINE_CHARS).bytes().collect();
        typed.push_back(b'\n');
        let (up, down) = (0x10, 0x0e);
        typed.extend([up, down].repeat(READ_BYTES));
        let longest = Arc::<AtomicUsize>::default();
        let stream = Typist {
            typed,
            longest: Arc::clone(&longest),
        };
        talk(Box::new(stream), &Nothing, "hello").await.unwrap();
        let longest = longest.load(Ordering::Relaxed);
        let one_line = 4 * MAX_LINE_CHARS;
        assert!(longest < WRITE_BYTES + one_line, "{longest} bytes at once");
    }
}
