//! With a person at a terminal: editing, history, completion, events above the prompt.

use std::borrow::Cow;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use qmp_client::{Client, Occurrence};
use rustyline::completion::{Completer, Pair};
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::{Hint, Hinter};
use rustyline::history::DefaultHistory;
use rustyline::validate::Validator;
use rustyline::{ColorMode, CompletionType, Config, Context, Editor, ExternalPrinter, Helper};
use tokio::runtime::Handle;

use super::completion::{complete, missing};
use super::introspection::Introspection;
use super::render::{Look, Paint};
use super::shell::{Answer, EXIT_TROUBLE, Failure, Shell, exit, say};

const PROMPT: &str = "qmp> ";
/// How many lines the history keeps.
const HISTORY_LINES: usize = 2000;
/// Lines with one of these in them are not kept in the history.
const PRIVATE: &[&str] = &["secret", "passw"];

type LineEditor = Editor<Assistant, DefaultHistory>;

/// Talks with the person until they leave or the connection is lost. Blocks; must not be called
/// within the runtime, which has to have a thread of its own.
pub(crate) fn converse(runtime: &Handle, mut shell: Shell, look: Look) -> ExitCode {
    if let Err(failure) = runtime.block_on(shell.learn()) {
        return exit(Err(failure));
    }
    let assistant = Assistant {
        schema: Arc::clone(&shell.schema),
        look,
    };
    let mut editor = match line_editor(assistant) {
        Ok(editor) => editor,
        Err(error) => {
            eprintln!("cannot use the terminal: {error}");
            return ExitCode::from(EXIT_TROUBLE);
        }
    };
    say(&format!(
        "Connected: {}. 'help' lists the commands, Tab completes, Ctrl-D leaves.",
        shell.server()
    ));
    show_events(runtime, &mut editor, &shell.client, look);
    let history = history_file();
    if let Some(path) = &history {
        // There is none the first time.
        let _ = editor.load_history(path);
    }
    let status = read_lines(runtime, &mut shell, &mut editor, look);
    if let Some(path) = &history
        && let Err(error) = editor.append_history(path)
    {
        tracing::warn!("the history is not kept: {error}");
    }
    ExitCode::from(status)
}

fn read_lines(runtime: &Handle, shell: &mut Shell, editor: &mut LineEditor, look: Look) -> u8 {
    loop {
        let line = match editor.readline(PROMPT) {
            Ok(line) => line,
            Err(ReadlineError::Interrupted) => continue,
            Err(ReadlineError::Eof) => return 0,
            Err(error) => {
                eprintln!("cannot read from the terminal: {error}");
                return EXIT_TROUBLE;
            }
        };
        if !PRIVATE.iter().any(|word| line.contains(word)) {
            // At worst it is not in the history.
            let _ = editor.add_history_entry(line.as_str());
        }
        match runtime.block_on(answer_or_interrupt(shell, &line)) {
            None => {
                say("Not waiting any more; the command may still be at work.");
            }
            Some(Ok(Answer::Nothing)) => {}
            Some(Ok(Answer::Text(text))) => {
                say(&text);
            }
            Some(Ok(Answer::Leave)) => return 0,
            Some(Ok(Answer::ServerEnds(text))) => {
                say(&text);
                return 0;
            }
            Some(Err(failure)) => {
                say(&failure.text(look));
                if failure.is_lost() {
                    return EXIT_TROUBLE;
                }
            }
        }
        if !shell.client.is_connected() {
            return EXIT_TROUBLE;
        }
    }
}

/// The answer, or none when Ctrl-C came first.
async fn answer_or_interrupt(shell: &mut Shell, line: &str) -> Option<Result<Answer, Failure>> {
    tokio::select! {
        answer = shell.line(line) => Some(answer),
        _ = tokio::signal::ctrl_c() => None,
    }
}

/// Events are printed as they come, by a thread of its own because the terminal may block it.
fn show_events(runtime: &Handle, editor: &mut LineEditor, client: &Client, look: Look) {
    let mut printer = match editor.create_external_printer() {
        Ok(printer) => printer,
        Err(error) => {
            tracing::warn!("events are not shown: {error}");
            return;
        }
    };
    let (mut events, client, runtime) = (client.events(), client.clone(), runtime.clone());
    std::thread::spawn(move || {
        while let Some(occurrence) = runtime.block_on(events.next()) {
            let text = match occurrence {
                Occurrence::Event(event) => look.event(&event),
                Occurrence::Missed(count) => format!("{count} events were missed"),
            };
            if printer.print(format!("{text}\n")).is_err() {
                return;
            }
        }
        let lost = runtime.block_on(client.lost());
        // Nobody to tell is no trouble.
        let _ = printer.print(format!("{lost}; Enter leaves\n"));
    });
}

fn line_editor(assistant: Assistant) -> rustyline::Result<LineEditor> {
    let colors = if assistant.look.color {
        ColorMode::Enabled
    } else {
        ColorMode::Disabled
    };
    let config = Config::builder()
        .max_history_size(HISTORY_LINES)?
        .history_ignore_dups(true)?
        .history_ignore_space(true)
        .completion_type(CompletionType::List)
        .color_mode(colors)
        .build();
    let mut editor = Editor::with_config(config)?;
    editor.set_helper(Some(assistant));
    Ok(editor)
}

/// In the state folder of the XDG Base Directory Specification, which is made if there is none.
fn history_file() -> Option<PathBuf> {
    let state = std::env::var_os("XDG_STATE_HOME")
        .map(PathBuf::from)
        .filter(|p| p.is_absolute());
    let folder = state
        .or_else(|| Some(std::env::home_dir()?.join(".local/state")))?
        .join("ratite");
    std::fs::create_dir_all(&folder).ok()?;
    Some(folder.join("qmp_history"))
}

/// Completes, hints and colours.
struct Assistant {
    schema: Arc<Introspection>,
    look: Look,
}

impl Helper for Assistant {}

impl Validator for Assistant {}

impl Completer for Assistant {
    type Candidate = Pair;

    fn complete(
        &self,
        line: &str,
        position: usize,
        _: &Context<'_>,
    ) -> rustyline::Result<(usize, Vec<Pair>)> {
        let (start, proposals) = complete(&self.schema, line.get(..position).unwrap_or(line));
        let pairs = proposals.into_iter().map(|proposal| Pair {
            display: proposal.shown,
            replacement: proposal.text,
        });
        Ok((start, pairs.collect()))
    }
}

/// Only shown; it is nothing that could be typed.
struct Needed(String);

impl Hint for Needed {
    fn display(&self) -> &str {
        &self.0
    }

    fn completion(&self) -> Option<&str> {
        None
    }
}

impl Hinter for Assistant {
    type Hint = Needed;

    fn hint(&self, line: &str, position: usize, _: &Context<'_>) -> Option<Needed> {
        (position == line.len()).then(|| missing(&self.schema, line).map(Needed))?
    }
}

impl Highlighter for Assistant {
    fn highlight_prompt<'b, 's: 'b, 'p: 'b>(&'s self, prompt: &'p str, _: bool) -> Cow<'b, str> {
        self.look.paint(Paint::Strong, prompt).into()
    }

    fn highlight_hint<'h>(&self, hint: &'h str) -> Cow<'h, str> {
        self.look.paint(Paint::Event, hint).into()
    }
}
