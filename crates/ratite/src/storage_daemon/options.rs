//! The storage daemon's options: one table for parsing, help, completions and the manual page.

use std::ffi::OsString;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, ArgAction, ArgMatches, Command};

/// What one option on the command line asks for, in the order given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Step {
    /// The option's name without its dashes.
    pub(crate) option: &'static str,
    /// Its argument as given.
    pub(crate) text: String,
}

/// The whole command line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct CommandLine {
    /// What to set up, in order.
    pub(crate) steps: Vec<Step>,
    /// Go to the background once everything is set up.
    pub(crate) daemonize: bool,
    /// Where to leave the process id.
    pub(crate) pidfile: Option<String>,
}

/// What came of reading the command line.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Parsed {
    /// Go on with this.
    Run(CommandLine),
    /// Print this and end well.
    Print(String),
}

/// The options that set something up: name, what stands for the argument, help.
const SETUP: &[(&str, &str, &str)] = &[
    (
        "object",
        "TYPE,id=ID[,PROP=VALUE...]",
        "create an object: secret, iothread, tls-creds-x509 ...",
    ),
    (
        "chardev",
        "BACKEND,id=ID[,...]",
        "create a character device: socket, stdio, pty, file ...",
    ),
    (
        "monitor",
        "[chardev=]ID[,mode=control][,pretty=on]",
        "serve QMP on a character device",
    ),
    (
        "blockdev",
        "[driver=]DRIVER,node-name=NAME[,...]",
        "add a block node",
    ),
    (
        "nbd-server",
        "addr.type=unix,addr.path=PATH[,...]",
        "start the NBD server",
    ),
    (
        "export",
        "[type=]nbd,id=ID,node-name=NAME[,...]",
        "export a block node",
    ),
];

const EXAMPLES: &str = "\
Each option takes key=value pairs with dotted keys, or JSON. Options take effect in the order given.

Examples:
  Serve disk.qcow2 over NBD, with QMP on a socket:

    ratite storage-daemon \\
        --chardev socket,id=qmp,path=/tmp/qmp.sock,server=on,wait=off --monitor chardev=qmp \\
        --blockdev driver=qcow2,node-name=disk,file.driver=file,file.filename=disk.qcow2 \\
        --nbd-server addr.type=unix,addr.path=/tmp/nbd.sock \\
        --export type=nbd,id=e0,node-name=disk,name=disk,writable=on

  Read it:   nbdcopy 'nbd+unix:///disk?socket=/tmp/nbd.sock' copy.raw
  Steer it:  qmp-shell /tmp/qmp.sock
";

/// The table.
pub(crate) fn command() -> Command {
    let setup = SETUP.iter().map(|(name, value, help)| {
        Arg::new(*name)
            .long(*name)
            .value_name(*value)
            .help(*help)
            .action(ArgAction::Append)
            .allow_hyphen_values(true)
    });
    Command::new("storage-daemon")
        .about("Serve block nodes, jobs and exports under QMP, without a machine.")
        .after_help(EXAMPLES)
        .disable_version_flag(true)
        .infer_long_args(true)
        .args(setup)
        .arg(
            Arg::new("daemonize")
                .long("daemonize")
                .help("go to the background once everything is set up")
                .action(ArgAction::SetTrue),
        )
        .arg(
            Arg::new("pidfile")
                .long("pidfile")
                .value_name("PATH")
                .help("leave the process id there; the file goes when the daemon ends")
                .overrides_with("pidfile"),
        )
        .arg(
            Arg::new("version")
                .long("version")
                .short('V')
                .help("print the version")
                .action(ArgAction::SetTrue),
        )
        .arg(Arg::new("stray").hide(true).action(ArgAction::Append))
}

/// Reads the command line.
///
/// # Errors
/// One line for people, in getopt's words.
pub(crate) fn parse(arguments: Vec<OsString>) -> Result<Parsed, String> {
    let with_name = std::iter::once(OsString::from("storage-daemon")).chain(arguments);
    let matches = match command().try_get_matches_from(with_name) {
        Ok(matches) => matches,
        Err(error) if error.kind() == ErrorKind::DisplayHelp => {
            return Ok(Parsed::Print(error.to_string()));
        }
        Err(error) => return Err(getopt_words(&error)),
    };
    if let Some(stray) = matches.get_one::<String>("stray") {
        return Err(format!("{stray}: Unexpected argument"));
    }
    if matches.get_flag("version") {
        return Ok(Parsed::Print(format!(
            "ratite storage-daemon {}\n",
            env!("CARGO_PKG_VERSION")
        )));
    }
    Ok(Parsed::Run(CommandLine {
        steps: steps_in_order(&matches),
        daemonize: matches.get_flag("daemonize"),
        pidfile: matches.get_one::<String>("pidfile").cloned(),
    }))
}

fn steps_in_order(matches: &ArgMatches) -> Vec<Step> {
    let mut steps: Vec<(usize, Step)> = Vec::new();
    for (option, _, _) in SETUP {
        let texts = matches.get_many::<String>(option).into_iter().flatten();
        let places = matches.indices_of(option).into_iter().flatten();
        steps.extend(places.zip(texts).map(|(at, text)| {
            (
                at,
                Step {
                    option,
                    text: text.clone(),
                },
            )
        }));
    }
    steps.sort_by_key(|(at, _)| *at);
    steps.into_iter().map(|(_, step)| step).collect()
}

/// A complaint of the table's in the words that getopt has for it.
fn getopt_words(error: &clap::Error) -> String {
    let context = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => text.clone(),
        _ => String::new(),
    };
    let argument = context(ContextKind::InvalidArg);
    let option = argument
        .split([' ', '='])
        .next()
        .unwrap_or_default()
        .to_owned();
    match error.kind() {
        ErrorKind::UnknownArgument => match option.strip_prefix('-') {
            Some(short) if !short.starts_with('-') => format!("invalid option -- '{short}'"),
            _ => format!("unrecognized option '{option}'"),
        },
        ErrorKind::InvalidValue | ErrorKind::NoEquals => {
            format!("option '{option}' requires an argument")
        }
        ErrorKind::TooManyValues | ErrorKind::WrongNumberOfValues => {
            format!("option '{option}' doesn't allow an argument")
        }
        _ => error.render().to_string().trim_end().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(arguments: &[&str]) -> Result<Parsed, String> {
        parse(arguments.iter().map(OsString::from).collect())
    }

    #[test]
    fn steps_keep_their_order_over_different_options() {
        let line = parsed(&[
            "--blockdev",
            "a",
            "--object",
            "b",
            "--blockdev",
            "c",
            "--daemonize",
            "--pid",
            "/p",
        ]);
        let Ok(Parsed::Run(line)) = line else {
            panic!("{line:?}")
        };
        let steps: Vec<_> = line
            .steps
            .iter()
            .map(|step| (step.option, &*step.text))
            .collect();
        assert_eq!(
            steps,
            [("blockdev", "a"), ("object", "b"), ("blockdev", "c")]
        );
        assert!(line.daemonize);
        assert_eq!(line.pidfile.as_deref(), Some("/p"));
    }

    #[test]
    fn complaints_are_getopts() {
        let complaint = |arguments: &[&str]| parsed(arguments).unwrap_err();
        assert_eq!(complaint(&["--nosuch"]), "unrecognized option '--nosuch'");
        assert_eq!(complaint(&["-x"]), "invalid option -- 'x'");
        assert_eq!(complaint(&["stray"]), "stray: Unexpected argument");
        assert_eq!(
            complaint(&["--blockdev"]),
            "option '--blockdev' requires an argument"
        );
        assert_eq!(
            complaint(&["--daemonize=1"]),
            "option '--daemonize' doesn't allow an argument"
        );
    }

    #[test]
    fn the_table_is_sound() {
        command().debug_assert();
    }
}
