//! The monitor for people: what `human-monitor-command` runs, and what a person types at `-monitor`.
//!
//! There is one table, [`COMMANDS`]; `help` prints it, and `info` prints that of its subjects (`info.rs`). A new command: a
//! line in the table and its function. One that does what a QMP command does calls that (`actions.rs`).
//!
//! Words are parted by spaces; a word with spaces in it stands in quotation marks, in which a backslash keeps the character
//! behind it.

mod actions;
mod block;
mod examine;
mod info;
mod registers;

use std::fmt::Write;
use std::pin::Pin;
use std::sync::Arc;

use api::QmpError;
use monitor::{HumanCommands, HumanReply};

use crate::commands::MachineHandlers;
use crate::control::Control;
use crate::machine::Machine;

/// What is wrong with a line.
#[derive(Debug)]
enum Complaint {
    /// The command cannot be done.
    Failed(QmpError),
    /// The command is not written as it should be.
    Written(String),
    /// A number or a format in it is not.
    Expression(String),
}

impl From<QmpError> for Complaint {
    fn from(error: QmpError) -> Self {
        Self::Failed(error)
    }
}

/// What a command prints, with line feeds at the ends of lines.
type Answer = Result<String, Complaint>;
type Pending<'a> = Pin<Box<dyn Future<Output = Answer> + Send + 'a>>;

/// How a command is run, with the words behind its name.
enum Run {
    /// By itself.
    Alone(fn(&[String]) -> Answer),
    /// On the machine's thread; with the processor that is looked at.
    Machine(fn(&mut Control, &[String], i64) -> Answer),
    /// Beside it: what may take its time.
    Beside(for<'a> fn(&'a MachineHandlers, &'a [String], i64) -> Pending<'a>),
}

/// A command of the monitor.
struct Command {
    name: &'static str,
    /// A shorter name, or none.
    alias: &'static str,
    arguments: &'static str,
    help: &'static str,
    /// How many words it takes at most.
    most_words: usize,
    run: Run,
}

const fn command(
    names: (&'static str, &'static str),
    arguments: &'static str,
    help: &'static str,
    most_words: usize,
    run: Run,
) -> Command {
    let (name, alias) = names;
    Command {
        name,
        alias,
        arguments,
        help,
        most_words,
        run,
    }
}

const COMMANDS: &[Command] = &[
    command(
        ("balloon", ""),
        "target",
        "how much memory the balloon is to leave the guest, in MiB",
        1,
        Run::Beside(actions::balloon),
    ),
    command(
        ("cont", "c"),
        "",
        "let the guest run on",
        0,
        Run::Beside(actions::cont),
    ),
    command(
        ("device_add", ""),
        "driver[,prop=value][,...]",
        "plug a device in; takes what -device takes",
        1,
        Run::Beside(actions::device_add),
    ),
    command(
        ("device_del", ""),
        "device",
        "unplug a device",
        1,
        Run::Beside(actions::device_del),
    ),
    command(
        ("help", "?"),
        "[cmd]",
        "what there is, or how one command is used",
        2,
        Run::Alone(help),
    ),
    command(
        ("info", ""),
        "[subcommand]",
        "look at something; without a word: at what",
        usize::MAX,
        Run::Machine(info::run),
    ),
    command(
        ("memsave", ""),
        "addr size file",
        "write SIZE bytes of memory, as the CPU at hand sees ADDR, to a file",
        3,
        Run::Beside(actions::memsave),
    ),
    command(
        ("nmi", ""),
        "",
        "a non-maskable interrupt for every CPU",
        0,
        Run::Beside(actions::nmi),
    ),
    command(
        ("pmemsave", ""),
        "addr size file",
        "write SIZE bytes of physical memory from ADDR on to a file",
        3,
        Run::Beside(actions::pmemsave),
    ),
    command(
        ("qemu-io", ""),
        "[-d] [device] \"[command]\"",
        "read, write, flush or discard on a disk, in qemu-io's words",
        3,
        Run::Beside(block::qemu_io),
    ),
    command(
        ("quit", "q"),
        "",
        "switch off at once and end the program",
        0,
        Run::Machine(actions::quit),
    ),
    command(
        ("sendkey", ""),
        "keys [hold_ms]",
        "press keys together, as in ctrl-alt-delete; for 100 ms unless told otherwise",
        2,
        Run::Beside(actions::sendkey),
    ),
    command(
        ("stop", "s"),
        "",
        "let the guest stand still",
        0,
        Run::Beside(actions::stop),
    ),
    command(
        ("system_powerdown", ""),
        "",
        "press the power button",
        0,
        Run::Beside(actions::system_powerdown),
    ),
    command(
        ("system_reset", ""),
        "",
        "press the reset button",
        0,
        Run::Beside(actions::system_reset),
    ),
    command(
        ("system_wakeup", ""),
        "",
        "end the guest's sleep",
        0,
        Run::Beside(actions::system_wakeup),
    ),
    command(
        ("watchdog_action", ""),
        "[reset|shutdown|poweroff|pause|debug|none|inject-nmi]",
        "what follows when the watchdog has starved",
        1,
        Run::Beside(actions::watchdog_action),
    ),
    command(
        ("x", ""),
        "/fmt addr",
        "look at memory as the CPU at hand sees it",
        usize::MAX,
        Run::Machine(examine::linear),
    ),
    command(
        ("xp", ""),
        "/fmt addr",
        "look at physical memory",
        usize::MAX,
        Run::Machine(examine::physical),
    ),
];

impl Command {
    fn find(name: &str) -> Option<&'static Self> {
        let is_it = |command: &&Self| {
            command.name == name || (!command.alias.is_empty() && command.alias == name)
        };
        COMMANDS.iter().find(is_it)
    }

    /// The names as help and complaints show them.
    fn names(&self) -> String {
        match self.alias {
            "" => self.name.to_owned(),
            alias => format!("{}|{alias}", self.name),
        }
    }

    fn hint(&self) -> String {
        format!("Try \"help {}\" for more information\n", self.name)
    }

    fn help_line(&self) -> String {
        format!("{} {} -- {}\n", self.names(), self.arguments, self.help)
    }
}

fn help(words: &[String]) -> Answer {
    match words {
        [] => Ok(COMMANDS.iter().map(Command::help_line).collect()),
        [info] if info == "info" => Ok(info::list()),
        [info, subject] if info == "info" => info::help(subject),
        [name, ..] => match Command::find(name) {
            Some(command) => Ok(command.help_line()),
            None => Ok(format!("unknown command: '{name}'\n")),
        },
    }
}

/// A word that must be there.
fn word(words: &[String], at: usize) -> Result<&str, Complaint> {
    let missing = || Complaint::Written("string expected".to_owned());
    words.get(at).map(String::as_str).ok_or_else(missing)
}

/// The words of a line.
fn split(line: &str) -> Result<Vec<String>, Complaint> {
    let mut words: Vec<String> = Vec::new();
    let mut rest = line.chars().peekable();
    while let Some(first) = rest.next() {
        if first.is_whitespace() {
            continue;
        }
        let mut word = String::new();
        if first == '"' {
            loop {
                match rest.next() {
                    Some('"') => break,
                    Some('\\') => word.extend(rest.next()),
                    Some(c) => word.push(c),
                    None => return Err(Complaint::Written("unterminated string".to_owned())),
                }
            }
        } else {
            word.push(first);
            while let Some(c) = rest.next_if(|c| !c.is_whitespace()) {
                word.push(c);
            }
        }
        words.push(word);
    }
    Ok(words)
}

/// Runs a line; `cpu` is the processor that is looked at.
///
/// # Errors
/// There is no such processor, or no machine any more. What the line itself does wrong stands in the text.
pub(crate) async fn run(
    handlers: &MachineHandlers,
    line: &str,
    cpu: i64,
) -> Result<String, QmpError> {
    let cpus = handlers.ask(|control| control.cpus.len()).await?;
    let has_cpu = usize::try_from(cpu).is_ok_and(|cpu| cpu < cpus);
    if !has_cpu && cpu != 0 {
        return Err(QmpError::invalid_parameter_value(
            "cpu-index",
            "a CPU number",
        ));
    }
    let line = line.trim();
    // A format stands right behind `x`, too.
    let end = line.find([' ', '\t', '/']).unwrap_or(line.len());
    let (name, rest) = line.split_at(end);
    if name.is_empty() {
        return Ok(String::new());
    }
    let Some(command) = Command::find(name) else {
        return Ok(shown(&format!("unknown command: '{name}'\n")));
    };
    let text = match answer(handlers, command, rest, cpu).await {
        Ok(text) => text,
        Err(Complaint::Failed(error)) => format!("Error: {}\n", error.desc),
        Err(Complaint::Written(words)) => {
            let names = command.names();
            format!("{names}: {words}\n{}", command.hint())
        }
        Err(Complaint::Expression(words)) => format!("{words}\n{}", command.hint()),
    };
    Ok(shown(&text))
}

/// A text as a terminal takes it. Names in it come from outside, such as that of a backing file from an image: their
/// control characters reach no terminal.
fn shown(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' => shown.push_str("\r\n"),
            '\t' => shown.push(c),
            c if c.is_control() => shown.extend(c.escape_default()),
            c => shown.push(c),
        }
    }
    shown
}

async fn answer(handlers: &MachineHandlers, command: &Command, rest: &str, cpu: i64) -> Answer {
    let words = split(rest)?;
    if words.len() > command.most_words {
        let many = "extraneous characters at the end of line";
        return Err(Complaint::Written(many.to_owned()));
    }
    match command.run {
        Run::Alone(run) => run(&words),
        Run::Machine(run) => {
            let asked = handlers.ask(move |control| run(control, &words, cpu));
            asked.await?
        }
        Run::Beside(run) => run(handlers, &words, cpu).await,
    }
}

/// The words that can stand where `typed`, a line up to the cursor, ends.
fn completions(typed: &str) -> Vec<String> {
    let (before, word) = match typed.rfind(char::is_whitespace) {
        Some(at) => typed.split_at(at + 1),
        None => ("", typed),
    };
    let before: Vec<&str> = before.split_whitespace().collect();
    let names: Vec<&str> = match before.as_slice() {
        [] | ["help" | "?"] => COMMANDS.iter().map(|command| command.name).collect(),
        ["info"] | ["help" | "?", "info"] => info::names().collect(),
        _ => Vec::new(),
    };
    let fits = names.into_iter().filter(|name| name.starts_with(word));
    fits.map(str::to_owned).collect()
}

/// The commands for monitors of their own.
struct People {
    handlers: MachineHandlers,
}

/// What the monitors of people run.
#[must_use]
pub fn human_commands(machine: &Machine) -> Arc<dyn HumanCommands> {
    Arc::new(People {
        handlers: MachineHandlers {
            machine: machine.clone(),
        },
    })
}

impl HumanCommands for People {
    fn run<'a>(&'a self, line: &'a str) -> HumanReply<'a> {
        Box::pin(async move {
            match run(&self.handlers, line, 0).await {
                Ok(text) => text,
                // The machine has ended.
                Err(error) => format!("Error: {}\r\n", error.desc),
            }
        })
    }

    fn complete(&self, typed: &str) -> Vec<String> {
        completions(typed)
    }
}

/// Writes a line of an answer; writing to a string does not fail.
fn put(text: &mut String, line: std::fmt::Arguments<'_>) {
    let _ = text.write_fmt(line);
    text.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_quoted_words() {
        let words = |line: &str| split(line).map_err(|_| ());
        assert_eq!(
            words("  a  bc\t"),
            Ok(vec!["a".to_owned(), "bc".to_owned()])
        );
        assert_eq!(
            words(r#"d0 "read -P \"1\" 0 4k" """#),
            Ok(vec![
                "d0".to_owned(),
                "read -P \"1\" 0 4k".to_owned(),
                String::new()
            ])
        );
        assert_eq!(words("\"open"), Err(()));
        assert_eq!(words(""), Ok(vec![]));
    }

    #[test]
    fn control_characters_reach_no_terminal() {
        assert_eq!(shown("a\tb\nc\n"), "a\tb\r\nc\r\n");
        let name = "\x1b]0;title\x07\r\u{9b}2Jü";
        assert_eq!(shown(name), "\\u{1b}]0;title\\u{7}\\r\\u{9b}2Jü");
    }

    #[test]
    fn names_are_unique_and_in_order() {
        let names: Vec<&str> = COMMANDS.iter().map(|command| command.name).collect();
        assert!(names.is_sorted() && names.windows(2).all(|pair| pair[0] != pair[1]));
        for command in COMMANDS {
            assert_eq!(Command::find(command.name).unwrap().name, command.name);
            if !command.alias.is_empty() {
                assert_eq!(Command::find(command.alias).unwrap().name, command.name);
            }
        }
        assert!(Command::find("").is_none());
    }

    #[test]
    fn words_are_completed() {
        assert_eq!(completions("st"), ["stop"]);
        assert_eq!(completions("system_r"), ["system_reset"]);
        assert_eq!(completions("info st"), ["status"]);
        assert_eq!(completions("help info reg"), ["registers"]);
        assert_eq!(completions("help qu"), ["quit"]);
        assert_eq!(completions("").len(), COMMANDS.len());
        assert!(completions("nosuch").is_empty() && completions("stop x").is_empty());
    }

    #[test]
    fn help_knows_every_command() {
        let text = help(&[]).unwrap();
        assert_eq!(text.lines().count(), COMMANDS.len());
        assert!(
            text.contains("\nstop|s  -- let the guest stand still\n"),
            "{text}"
        );
        let of = |name: &str| help(&[name.to_owned()]).unwrap();
        assert_eq!(of("c"), "cont|c  -- let the guest run on\n");
        assert_eq!(of("nosuch"), "unknown command: 'nosuch'\n");
        assert!(of("info").contains("info status  -- "));
    }
}
