//! The host's words for its errors.

use std::io;

/// The host's words for an error, as `strerror(3)`: without Rust's "(os error N)" behind them.
pub fn strerror(error: &io::Error) -> String {
    let text = error.to_string();
    match text.split_once(" (os error ") {
        Some((words, _)) => words.to_owned(),
        None => text,
    }
}
