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
        }
    }
}

async fn send(stream: &mut Box<dyn ByteStream>, out: &mut String) -> std::io::Result<()> {
    stream.write_all(out.as_bytes()).await?;
    stream.flush().await?;
    out.clear();
    Ok(())
}
