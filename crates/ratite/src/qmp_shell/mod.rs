//! `ratite qmp`: a QMP client for people and for scripts.
//!
//! `line` reads what is typed, `introspection` knows what the server has, `completion` and `explain`
//! tell it to the person, `render` shows values, `shell` runs a line; `editor` is the way of a person
//! at a terminal, `script` that of everything else. A new way to write arguments goes into `line`,
//! a new word of the shell's own into `shell`.

mod completion;
mod editor;
mod explain;
mod introspection;
mod line;
mod render;
mod script;
mod shell;
#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Duration;

use clap::builder::PossibleValuesParser;
use clap::{Arg, ArgAction, ArgMatches, Command};
use qmp_client::{Address, Client, ConnectOptions, Oob};
use tokio::runtime::Handle;

use render::Look;
use shell::{EXIT_TROUBLE, Failure, Output, Shell, exit};

/// Where the server is when no address is given.
const ADDRESS_VARIABLE: &str = "RATITE_QMP";
/// How long a reply is waited for unless `--timeout` says otherwise.
const REPLY_LIMIT: Duration = Duration::from_secs(300);
/// How long a connection is waited for at most.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// Longest time that `--timeout` takes, in seconds: a year.
const MAX_TIMEOUT_SECONDS: f64 = 366.0 * 86400.0;

const EXAMPLES: &str = "\
ADDRESS is PATH or unix:PATH, unix:@NAME (abstract), tcp:HOST:PORT or HOST:PORT, or '-' for the
one in the environment variable RATITE_QMP, which also holds when no address is given.

Arguments are key=value, nested.key=value, or an object in JSON. Values are JSON if they are JSON,
and what the server's introspection says of them otherwise: strings, on/off, sizes such as 10G.

Examples:
  ratite qmp /run/vm/qmp.sock
  ratite qmp /run/vm/qmp.sock query-version
  ratite qmp localhost:4444 blockdev-add driver=qcow2 node-name=disk \\
      file.driver=file file.filename=disk.qcow2
  ratite qmp /run/vm/qmp.sock '{\"execute\": \"query-jobs\"}'
  ratite qmp /run/vm/qmp.sock --events --output json

Exit status: 0 success, 1 the server replied with an error, 2 usage or connection.
";

/// The table of options.
pub(crate) fn command() -> Command {
    let flag = |name, help| {
        Arg::new(name)
            .long(name)
            .action(ArgAction::SetTrue)
            .help(help)
    };
    Command::new("qmp")
        .about("Talk QMP with a server: a shell, or one command.")
        .after_help(EXAMPLES)
        .arg(
            Arg::new("address")
                .value_name("ADDRESS")
                .help("where the server listens"),
        )
        .arg(
            Arg::new("command")
                .value_name("COMMAND")
                .help("what to run, as in the shell"),
        )
        .arg(
            Arg::new("arguments")
                .value_name("key=value")
                .num_args(0..)
                .help("its arguments"),
        )
        .arg(
            Arg::new("timeout")
                .long("timeout")
                .value_name("SECONDS")
                .value_parser(parse_seconds)
                .help("how long to wait for a reply (300), or to show events (for ever)"),
        )
        .arg(
            Arg::new("output")
                .long("output")
                .value_name("FORM")
                .value_parser(PossibleValuesParser::new(["auto", "pretty", "json"]))
                .default_value("auto")
                .help("pretty, json in one line, or by whether a terminal reads it"),
        )
        .arg(flag("pretty", "the same as --output pretty").short('p'))
        .arg(flag(
            "events",
            "show events, after the command if there is one",
        ))
        .arg(flag("oob", "run the command out of band"))
}

fn parse_seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text
        .parse()
        .map_err(|_| "it is a number of seconds".to_owned())?;
    if !(seconds > 0.0 && seconds <= MAX_TIMEOUT_SECONDS) {
        return Err(format!(
            "it is more than 0 and at most {MAX_TIMEOUT_SECONDS}"
        ));
    }
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}

/// Runs the personality; `program` is the name for messages.
pub(crate) fn main(program: &str, arguments: Vec<OsString>) -> ExitCode {
    let with_name = std::iter::once(OsString::from(program)).chain(arguments);
    match command().bin_name(program).try_get_matches_from(with_name) {
        Ok(matches) => run(&matches),
        Err(error) => {
            let good = !error.use_stderr();
            // A closed standard output is nothing to complain about.
            let _ = error.print();
            if good {
                ExitCode::SUCCESS
            } else {
                ExitCode::from(EXIT_TROUBLE)
            }
        }
    }
}

fn run(options: &ArgMatches) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("qmp")
        .enable_all()
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => return exit(Err(Failure::Usage(format!("cannot start: {error}")))),
    };
    let status = run_within(options, runtime.handle());
    // A read from standard input may be under way.
    runtime.shutdown_background();
    status
}

fn run_within(options: &ArgMatches, runtime: &Handle) -> ExitCode {
    let timeout = options.get_one::<Duration>("timeout").copied();
    let limit = timeout.unwrap_or(REPLY_LIMIT);
    let address = options.get_one::<String>("address").map(String::as_str);
    let client = match address_of(address) {
        Ok(address) => runtime.block_on(connect(&address, limit)),
        Err(failure) => Err(failure),
    };
    let client = match client {
        Ok(client) => client,
        Err(failure) => return exit(Err(failure)),
    };
    let texts = |name| options.get_many::<String>(name).unwrap_or_default();
    let command = texts("command").next().map(|name| {
        (
            name.as_str(),
            texts("arguments").map(String::as_str).collect::<Vec<_>>(),
        )
    });
    let events = options.get_flag("events");
    let shell = Shell::new(client, limit, output(options));
    if command.is_some() || events {
        let oob = options.get_flag("oob");
        return runtime.block_on(script::once(shell, command, oob, events, timeout));
    }
    if std::io::stdin().is_terminal() && std::io::stdout().is_terminal() {
        editor::converse(runtime, shell, Look::of(&std::io::stdout()))
    } else {
        runtime.block_on(script::lines(shell))
    }
}

fn output(options: &ArgMatches) -> Output {
    let form = options
        .get_one::<String>("output")
        .map(String::as_str)
        .unwrap_or_default();
    let out = std::io::stdout();
    match form {
        _ if options.get_flag("pretty") => Output::Pretty(Look::of(&out)),
        "pretty" => Output::Pretty(Look::of(&out)),
        "json" => Output::Json,
        _ if out.is_terminal() => Output::Pretty(Look::of(&out)),
        _ => Output::Json,
    }
}

fn address_of(given: Option<&str>) -> Result<Address, Failure> {
    let text = match given {
        Some(text) if text != "-" => text.to_owned(),
        _ => std::env::var(ADDRESS_VARIABLE).map_err(|_| {
            let text = format!("no address: give one, or set {ADDRESS_VARIABLE} (see --help)");
            Failure::Usage(text)
        })?,
    };
    text.parse().map_err(Failure::Call)
}

async fn connect(address: &Address, limit: Duration) -> Result<Client, Failure> {
    let options = ConnectOptions {
        timeout: limit.min(CONNECT_LIMIT),
        oob: Oob::IfOffered,
    };
    Ok(Client::connect(address, &options).await?)
}

/// The shell on a connection that is there already, for a person at the terminal; `on_exit` runs
/// when they leave. Blocks; must not be called within the runtime, which has to have a thread of its
/// own.
pub(crate) fn interactive(runtime: &Handle, client: Client, on_exit: impl FnOnce()) -> ExitCode {
    let look = Look::of(&std::io::stdout());
    let status = editor::converse(
        runtime,
        Shell::new(client, REPLY_LIMIT, Output::Pretty(look)),
        look,
    );
    on_exit();
    status
}
