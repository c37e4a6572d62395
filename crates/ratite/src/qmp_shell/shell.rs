//! One line in, one answer out: what scripts and the editor have in common.

use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use qmp_client::{Call, Client, Error, Event};
use qmp_wire::Style;
use serde_json::{Value, json};

use super::explain;
use super::introspection::Introspection;
use super::line::{CommandLine, needs_schema, parse_raw, parse_words, words};
use super::render::{Look, printable};

/// Exit status: the server replied with an error.
pub(crate) const EXIT_QMP_ERROR: u8 = 1;
/// Exit status: usage, or the connection.
pub(crate) const EXIT_TROUBLE: u8 = 2;

/// How values look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Output {
    /// For people.
    Pretty(Look),
    /// One line of JSON each, for programs.
    Json,
}

impl Output {
    pub(crate) fn value(self, value: &Value) -> String {
        match self {
            Self::Pretty(look) => look.value(value),
            Self::Json => {
                let mut text = Vec::new();
                // A value that came as JSON can be written as JSON.
                match qmp_wire::encode_value(&mut text, Style::Compact, value) {
                    Ok(()) => String::from_utf8_lossy(&text).into_owned(),
                    Err(error) => error.to_string(),
                }
            }
        }
    }

    pub(crate) fn event(self, event: &Event) -> String {
        match self {
            Self::Pretty(look) => look.event(event),
            Self::Json => {
                let timestamp = json!({
                    "seconds": event.timestamp.seconds,
                    "microseconds": event.timestamp.microseconds,
                });
                let mut message = json!({"event": event.name, "timestamp": timestamp});
                if let (Some(data), Some(members)) = (&event.data, message.as_object_mut()) {
                    members.insert("data".to_owned(), data.clone());
                }
                self.value(&message)
            }
        }
    }
}

/// Writes a line; false when nobody reads any more.
pub(crate) fn say(text: &str) -> bool {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{text}").and_then(|()| out.flush()).is_ok()
}

/// Why a line had no result.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The line makes no sense.
    Usage(String),
    /// The call failed.
    Call(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Call(error)
    }
}

impl Failure {
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Call(Error::Server(_)) => EXIT_QMP_ERROR,
            _ => EXIT_TROUBLE,
        }
    }

    pub(crate) fn text(&self, look: Look) -> String {
        match self {
            Self::Usage(text) => look.error("error", text),
            Self::Call(Error::Server(error)) => look.error(&error.class, &error.desc),
            Self::Call(error) => look.error("error", &error.to_string()),
        }
    }

    pub(crate) fn is_lost(&self) -> bool {
        matches!(self, Self::Call(Error::Lost(_)))
    }
}

/// What a line came to.
#[derive(Debug)]
pub(crate) enum Answer {
    /// There was nothing on it.
    Nothing,
    /// Something to print.
    Text(String),
    /// The person wants to leave.
    Leave,
    /// The server was told to end, and did.
    ServerEnds(String),
}

/// A connection and how to talk over it.
pub(crate) struct Shell {
    pub(crate) client: Client,
    pub(crate) schema: Arc<Introspection>,
    pub(crate) limit: Duration,
    pub(crate) output: Output,
}

impl Shell {
    /// A shell that asks the server for its introspection when a line needs it.
    pub(crate) fn new(client: Client, limit: Duration, output: Output) -> Self {
        Self {
            client,
            schema: Arc::default(),
            limit,
            output,
        }
    }

    /// Asks the server for its introspection, unless that was done.
    ///
    /// # Errors
    /// When the connection is lost or the time is over.
    pub(crate) async fn learn(&mut self) -> Result<(), Failure> {
        if self.schema.commands().next().is_none() {
            self.schema = Arc::new(Introspection::load(&self.client, self.limit).await?);
        }
        Ok(())
    }

    /// Does what a line says.
    ///
    /// # Errors
    /// When it makes no sense or fails.
    pub(crate) async fn line(&mut self, line: &str) -> Result<Answer, Failure> {
        let line = line.trim();
        let parts = words(line);
        if let Some(open) = parts
            .iter()
            .find(|word| word.open && !line.starts_with('{'))
        {
            return Err(Failure::Usage(format!(
                "a quote or bracket in '{}' is open",
                open.text
            )));
        }
        let texts: Vec<&str> = parts.iter().map(|word| word.text).collect();
        match texts.split_first() {
            None => Ok(Answer::Nothing),
            Some((&("quit" | "exit"), [])) => Ok(Answer::Leave),
            Some((&("help" | "?"), rest)) => {
                self.learn().await?;
                let text = match rest.split_first() {
                    None => explain::overview(&self.schema),
                    Some((name, rest)) => {
                        explain::entity(&self.schema, name, rest).map_err(Failure::Usage)?
                    }
                };
                Ok(Answer::Text(text.trim_end().to_owned()))
            }
            Some(_) if line.starts_with('{') => {
                let command = parse_raw(line).map_err(Failure::Usage)?;
                self.answer(command).await
            }
            Some((name, rest)) => {
                let command = self.parse(name, rest).await?;
                self.answer(command).await
            }
        }
    }

    async fn parse(&mut self, name: &str, words: &[&str]) -> Result<CommandLine, Failure> {
        if needs_schema(words) {
            self.learn().await?;
        }
        parse_words(name, words, &self.schema).map_err(Failure::Usage)
    }

    async fn answer(&mut self, command: CommandLine) -> Result<Answer, Failure> {
        let ends = command.name == "quit";
        let text = self.output.value(&self.run(command).await?);
        if ends
            && tokio::time::timeout(self.limit, self.client.lost())
                .await
                .is_ok()
        {
            return Ok(Answer::ServerEnds(text));
        }
        Ok(Answer::Text(text))
    }

    async fn run(&self, command: CommandLine) -> Result<Value, Failure> {
        let mut call = Call::new(command.name).arguments(command.arguments);
        if command.oob {
            call = call.out_of_band();
        }
        Ok(self.client.run_call(call, self.limit).await?)
    }

    /// Runs a command whose words are split already, as those of a command line are.
    ///
    /// # Errors
    /// When it makes no sense or fails.
    pub(crate) async fn command(
        &mut self,
        name: &str,
        words: &[&str],
        oob: bool,
    ) -> Result<String, Failure> {
        let mut command = if name.starts_with('{') && words.is_empty() {
            parse_raw(name).map_err(Failure::Usage)?
        } else {
            self.parse(name, words).await?
        };
        command.oob |= oob;
        Ok(self.output.value(&self.run(command).await?))
    }

    /// The greeting's version, for people.
    pub(crate) fn server(&self) -> String {
        let version = self.client.version();
        let part = |name: &str| {
            version
                .get("qemu")
                .and_then(|qemu| qemu.get(name)?.as_u64())
        };
        let package = version
            .get("package")
            .and_then(Value::as_str)
            .unwrap_or_default()
            .trim();
        let package = if package.is_empty() {
            String::new()
        } else {
            format!(" ({package})")
        };
        match (part("major"), part("minor"), part("micro")) {
            (Some(major), Some(minor), Some(micro)) => {
                printable(&format!("version {major}.{minor}.{micro}{package}"))
            }
            _ => "a server of unknown version".to_owned(),
        }
    }
}

/// As an exit status.
pub(crate) fn exit(result: Result<(), Failure>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("{}", failure.text(Look::of(&std::io::stderr())));
            ExitCode::from(failure.exit_code())
        }
    }
}
