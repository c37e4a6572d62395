//! `ratite qapi`: the schema language on the command line.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Arg, Command};
use qapi::SourceLoader;

use crate::standard_output;

struct Files;

impl SourceLoader for Files {
    fn load(&self, path: &str) -> Result<Vec<u8>, String> {
        std::fs::read(path).map_err(|error| error.to_string())
    }
}

const EXAMPLES: &str = "\
Examples:
  ratite qapi check qapi-schema.json
  ratite qapi introspect qapi-schema.json > introspection.json
";

/// The table of subcommands.
pub(crate) fn command() -> Command {
    let file = || {
        Arg::new("file")
            .value_name("FILE")
            .required(true)
            .help("the schema's main file")
    };
    let subcommand = |name, about| Command::new(name).about(about).arg(file());
    Command::new("qapi")
        .about("Work with QAPI schemas, of today's dialect or of QEMU's older ones.")
        .after_help(EXAMPLES)
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(subcommand(
            "check",
            "check a schema and count what it defines",
        ))
        .subcommand(subcommand(
            "introspect",
            "print what query-qmp-schema would answer",
        ))
        .subcommand(subcommand(
            "doc",
            "print the reference documentation as Markdown",
        ))
        .subcommand(subcommand(
            "rust",
            "print the Rust types and handler traits",
        ))
}

/// Runs the personality.
pub(crate) fn main(arguments: Vec<OsString>) -> ExitCode {
    let with_name = std::iter::once(OsString::from("ratite qapi")).chain(arguments);
    let matches = match command().try_get_matches_from(with_name) {
        Ok(matches) => matches,
        Err(error) => {
            let good = !error.use_stderr();
            // A closed standard output is nothing to complain about.
            let _ = error.print();
            return if good {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            };
        }
    };
    let Some((name, options)) = matches.subcommand() else {
        return ExitCode::FAILURE;
    };
    let path = options
        .get_one::<String>("file")
        .map(String::as_str)
        .unwrap_or_default();
    let text = match name {
        "check" => qapi::check_text(&Files, path).map_err(|error| error.to_string()),
        "introspect" => qapi::introspect_text(&Files, path).map_err(|error| error.to_string()),
        "doc" => qapi::document_text(&Files, path).map_err(|error| error.to_string()),
        _ => qapi_codegen::rust_text(&Files, path).map_err(|error| error.to_string()),
    };
    match text {
        Ok(text) => standard_output::print("ratite qapi", &format!("{}\n", text.trim_end())),
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
