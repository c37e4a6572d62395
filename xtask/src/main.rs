//! The project's own tasks: `cargo xtask TASK`.

mod bench;
mod codegen;
mod schema_diff;
mod soak;
mod test;
mod test_guests;
mod tidy;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};

const USAGE: &str = "\
usage: cargo xtask TASK

  bench [--profile PROFILE] [ROW...]
                      measure Ratite against QEMU's storage daemon; --help says more
  test                install what the tests need, then run every check and test
  codegen [--check]   write crates/api/src/generated from the schema, or say whether it is stale
  schema-diff REFERENCE.json [--machine] [--only-served]
                      compare the storage daemon's introspection, or the machine's, with a
                      reference; --only-served leaves out what is pending
  tidy                check layers, sizes and names
  soak [SECONDS [TARGET...]]
                      run each fuzz target for so long (60); needs nightly Rust and cargo-fuzz
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (task, rest) = match arguments.split_first() {
        Some((task, rest)) => (task.as_str(), rest),
        None => ("help", [].as_slice()),
    };
    let done = match task {
        "bench" => bench::run(rest),
        "codegen" => codegen::run(rest),
        "schema-diff" => schema_diff::run(rest),
        "test" => test::run(),
        "soak" => soak::run(rest),
        "tidy" => tidy::run(),
        "help" | "--help" | "-h" => {
            print!("{USAGE}");
            Ok(ExitCode::SUCCESS)
        }
        unknown => Err(anyhow::anyhow!("unknown task '{unknown}'\n\n{USAGE}")),
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The workspace's root folder.
fn root() -> Result<PathBuf> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent()
        .map(Path::to_path_buf)
        .context("xtask lies in the workspace")
}
