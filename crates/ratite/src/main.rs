//! `ratite`: one program, with personalities that it takes on by its first argument or by the
//! name it is called by.

mod flat_options;
mod manual;
mod newcomer;
mod qapi_command;
mod qmp_shell;
mod service_option;
mod standard_output;
mod storage_daemon;
mod system;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use tracing_subscriber::Layer;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// The names people have in their scripts, and the personality each stands for.
const OTHER_NAMES: &[(&str, &str)] = &[
    ("qemu-system-x86_64", "system"),
    ("qemu-storage-daemon", "storage-daemon"),
    ("qmp-shell", "qmp"),
];

const HELP: &str = "\
Ratite: QEMU's machine protocol, and the machine and the disks behind it.

usage: ratite [COMMAND] [OPTION...]

  (no command)      a first look: a disk, a QMP socket and an NBD export, ready to try
  system            a PC under QMP (qemu-system-x86_64)
  storage-daemon    serve block nodes, jobs and exports under QMP (qemu-storage-daemon)
  qmp               talk QMP with a server: a shell, or one command (qmp-shell)
  qapi              check, introspect, document QAPI schemas, or generate Rust from them
  man FOLDER        write the manual pages there
  completions SHELL print the completions for bash, elvish, fish, powershell or zsh
  help              this text

  ratite COMMAND --help tells more about each.
";

fn main() -> ExitCode {
    start_log();
    let mut arguments: Vec<OsString> = std::env::args_os().collect();
    let called = arguments.first().cloned().unwrap_or_default();
    let called = Path::new(&called)
        .file_name()
        .and_then(|name| name.to_str())
        .unwrap_or("ratite");
    if let Some((name, personality)) = OTHER_NAMES.iter().find(|(name, _)| *name == called) {
        return run(personality, name, arguments.split_off(1));
    }
    let rest = arguments.split_off(1.min(arguments.len()));
    match rest.split_first() {
        None => newcomer::main(),
        Some((first, rest)) => {
            let personality = first.to_string_lossy().into_owned();
            run(
                &personality,
                &format!("ratite {personality}"),
                rest.to_vec(),
            )
        }
    }
}

fn run(personality: &str, program: &str, arguments: Vec<OsString>) -> ExitCode {
    match personality {
        "system" => system::main(program, arguments),
        "storage-daemon" => storage_daemon::main(program, arguments),
        "qmp" => qmp_shell::main(program, arguments),
        "qapi" => qapi_command::main(arguments),
        "man" => manual::write_pages(&arguments),
        "completions" => manual::print_completions(&arguments),
        "help" | "--help" | "-h" => standard_output::print("ratite", HELP),
        "--version" | "-V" | "version" => {
            let version = concat!("ratite ", env!("CARGO_PKG_VERSION"), "\n");
            standard_output::print("ratite", version)
        }
        unknown => {
            eprintln!("ratite: unknown command '{unknown}'; 'ratite help' lists them");
            ExitCode::FAILURE
        }
    }
}

/// Messages for people go to standard error; `RATITE_LOG` chooses how many (`warn` if unset).
fn start_log() {
    // What cannot be read must not keep the program from telling what goes wrong.
    let wanted = std::env::var("RATITE_LOG").ok();
    let wanted = wanted.and_then(|text| text.parse::<Targets>().ok());
    let filter = wanted
        .filter(|targets| *targets != Targets::default())
        .unwrap_or_else(|| Targets::new().with_default(LevelFilter::WARN));
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .without_time()
        .with_target(false);
    tracing_subscriber::registry()
        .with(lines.with_filter(filter))
        .init();
}
