//! The format of a transcript.

use serde_json::Value;

/// An answer or event that is expected, or came.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The JSON; a string when the line is none.
    pub value: Value,
    /// Arrays in it are sets.
    pub has_sets: bool,
}

impl Answer {
    /// Reads a line that begins with `<`.
    pub fn parse(line: &str) -> Result<Self, String> {
        let rest = line
            .strip_prefix('<')
            .ok_or_else(|| format!("not an answer: {line}"))?;
        let (has_sets, rest) = match rest.strip_prefix('~') {
            Some(rest) => (true, rest),
            None => (false, rest),
        };
        let value = serde_json::from_str(rest).map_err(|error| format!("{error}: {line}"))?;
        Ok(Self { value, has_sets })
    }

    pub fn is_event(&self) -> bool {
        self.value.get("event").is_some()
    }
}

/// What is done to the daemon in one step.
#[derive(Clone, Debug)]
pub enum Action {
    Send(String),
    Bytes(Vec<u8>),
    Run(String),
}

/// One step and what it brings.
#[derive(Clone, Debug)]
pub struct Step {
    /// The line, as it stands in the file.
    pub line: String,
    pub action: Action,
    pub answers: Vec<Answer>,
}

/// The life of one daemon.
#[derive(Clone, Debug, Default)]
pub struct Part {
    pub setup: Vec<String>,
    pub arguments: String,
    pub greeting: Option<Answer>,
    pub steps: Vec<Step>,
    pub checks: Vec<String>,
    pub exit: i32,
    pub stderr: Vec<String>,
}

/// Reads a file.
pub fn parse(text: &str) -> Result<Vec<Part>, String> {
    let mut parts = vec![Part::default()];
    for line in text.lines() {
        if line == "---" {
            parts.push(Part::default());
        } else if !line.trim().is_empty() && !line.starts_with('#') {
            let part = parts.last_mut().ok_or("no part")?;
            add_line(part, line)?;
        }
    }
    Ok(parts)
}

fn add_line(part: &mut Part, line: &str) -> Result<(), String> {
    if line.starts_with('<') {
        let answer = Answer::parse(line)?;
        match part.steps.last_mut() {
            Some(step) => step.answers.push(answer),
            None => part.greeting = Some(answer),
        }
        return Ok(());
    }
    if let Some(text) = line.strip_prefix('>') {
        let text = text.strip_prefix(' ').unwrap_or(text).to_owned();
        add_step(part, line, Action::Send(text));
        return Ok(());
    }
    let (keyword, rest) = line
        .split_once(':')
        .ok_or_else(|| format!("cannot read: {line}"))?;
    let rest = rest.strip_prefix(' ').unwrap_or(rest).to_owned();
    match keyword {
        "setup" => part.setup.push(rest),
        "args" => {
            part.arguments.push(' ');
            part.arguments.push_str(&rest);
        }
        "bytes" => {
            let bytes: Result<Vec<u8>, _> = rest
                .split_whitespace()
                .map(|pair| u8::from_str_radix(pair, 16))
                .collect();
            add_step(
                part,
                line,
                Action::Bytes(bytes.map_err(|error| format!("{error}: {line}"))?),
            );
        }
        "run" => add_step(part, line, Action::Run(rest)),
        "check" => part.checks.push(rest),
        "exit" => part.exit = rest.parse().map_err(|error| format!("{error}: {line}"))?,
        "stderr" => part.stderr.push(rest),
        _ => return Err(format!("cannot read: {line}")),
    }
    Ok(())
}

fn add_step(part: &mut Part, line: &str, action: Action) {
    part.steps.push(Step {
        line: line.to_owned(),
        action,
        answers: Vec::new(),
    });
}
