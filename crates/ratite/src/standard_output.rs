//! Texts that people have asked for, on standard output.

use std::io::{self, ErrorKind, Write};
use std::process::ExitCode;

/// Prints a text, all that the program does. A reader that has gone has read enough; where else it cannot be written,
/// the program has failed.
pub(crate) fn print(program: &str, text: &str) -> ExitCode {
    match write(text) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{program}: cannot write to standard output: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Writes a text; it is nobody's loss if the reader has gone.
///
/// # Errors
/// The host's, such as a full file system.
pub(crate) fn write(text: &str) -> io::Result<()> {
    let mut output = io::stdout().lock();
    let written = output
        .write_all(text.as_bytes())
        .and_then(|()| output.flush());
    match written {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => written,
    }
}
