//! Tasks of development: `cargo xtask TASK`.

mod codegen;
mod schema_diff;

use std::process::ExitCode;

const USAGE: &str = "usage: cargo xtask TASK
  codegen [--check]                       write crates/api/src/generated from the schema, or see whether it is stale
  schema-diff REFERENCE.json [--only-served]
                                          compare our introspection with a reference
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (task, rest) = match arguments.split_first() {
        Some((task, rest)) => (task.as_str(), rest),
        None => ("", [].as_slice()),
    };
    let done = match task {
        "codegen" => codegen::run(rest),
        "schema-diff" => schema_diff::run(rest),
        _ => Err(anyhow::anyhow!("unknown task '{task}'\n{USAGE}")),
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
