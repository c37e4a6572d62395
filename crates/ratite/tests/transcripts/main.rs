//! Plays the recorded conversations of `tests/transcripts` against our daemon, one test per file.
//!
//! The format, and what counts as equal, is in `tests/transcripts/README.md`. Where we differ from
//! the recording, `tests/transcripts/differs.toml` says what we answer instead, and why; a listed
//! difference that does not occur any more is a failure too.
//!
//! `RATITE_PROPOSE=FOLDER` writes entries for that list, without reasons, for what was found.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test"
)]

#[path = "../support/mod.rs"]
mod support;

mod differs;
mod equal;
mod play;
mod transcript;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use libtest_mimic::{Arguments, Failed, Trial};

use differs::Differences;
use play::Finding;

/// Most of the time goes to waiting for other processes, so more run at once than there are cores.
const PARALLEL: usize = 4;

/// Fewer files than this, and something is wrong with the folder.
const FEWEST_FILES: usize = 40;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/transcripts")
}

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = arguments.test_threads.or(Some(PARALLEL));
    let list = fs::read_to_string(folder().join("differs.toml")).expect("differs.toml");
    let differences = Differences::parse(&list).unwrap_or_else(|why| panic!("differs.toml: {why}"));

    let mut names: Vec<String> = fs::read_dir(folder())
        .expect("the folder of transcripts")
        .map(|entry| {
            entry
                .expect("a file")
                .file_name()
                .to_string_lossy()
                .into_owned()
        })
        .filter(|name| name.ends_with(".txt"))
        .collect();
    names.sort();
    assert!(
        names.len() >= FEWEST_FILES,
        "only {} transcripts",
        names.len()
    );
    let unknown: Vec<String> = differences
        .files()
        .filter(|file| !names.contains(file))
        .cloned()
        .collect();

    let mut trials: Vec<Trial> = names
        .into_iter()
        .map(|name| {
            let differences = differences.of(&name);
            Trial::test(name.clone(), move || test(&name, differences))
        })
        .collect();
    trials.push(Trial::test("listed-files-exist", move || {
        if unknown.is_empty() {
            Ok(())
        } else {
            Err(format!("no such files: {unknown:?}").into())
        }
    }));
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn test(name: &str, differences: differs::OfFile) -> Result<(), Failed> {
    let text = fs::read_to_string(folder().join(name)).map_err(|error| error.to_string())?;
    let parts = transcript::parse(&text)?;
    let findings = play::file(&parts, differences)?;
    if findings.is_empty() {
        return Ok(());
    }
    if let Ok(folder) = std::env::var("RATITE_PROPOSE") {
        let proposal: String = findings
            .iter()
            .map(|finding| differs::propose(name, finding))
            .collect();
        fs::write(Path::new(&folder).join(format!("{name}.toml")), proposal)
            .map_err(|error| error.to_string())?;
    }
    let text: Vec<String> = findings.iter().map(Finding::to_string).collect();
    Err(format!("{} differences\n{}", findings.len(), text.join("\n")).into())
}
