//! The list of differences that are on purpose, or pending.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::play::Finding;
use super::transcript::Answer;

/// The whole list.
pub struct Differences(BTreeMap<String, OfFile>);

/// What is listed for one file, by line and by which occurrence of that line in the file.
#[derive(Clone, Default)]
pub struct OfFile(BTreeMap<(String, usize), Listed>);

/// What we answer, and whether it was met.
#[derive(Clone)]
pub enum Listed {
    /// To a step.
    Answers(Vec<Answer>),
    /// At the end of a part: lines `exit:` and `stderr:`.
    End(Vec<String>),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct List {
    #[serde(default)]
    difference: Vec<Entry>,
}

/// Differences in one file that have one reason.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    file: String,
    reason: String,
    /// The cargo feature with which there is no difference.
    without_feature: Option<String>,
    step: Vec<EntryStep>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EntryStep {
    /// The line as it stands in the file; for what a part ends with, `args:` and its arguments.
    line: String,
    /// Which of several equal lines of the file, from 1.
    #[serde(default = "first")]
    occurrence: usize,
    answers: Vec<String>,
}

fn first() -> usize {
    1
}

/// Whether the daemon under test is built with a cargo feature.
fn has_feature(name: &str) -> Result<bool, String> {
    match name {
        "tls-anon-psk" => Ok(cfg!(feature = "tls-anon-psk")),
        _ => Err(format!("there is no cargo feature '{name}'")),
    }
}

impl Differences {
    pub fn parse(text: &str) -> Result<Self, String> {
        let list: List = toml::from_str(text).map_err(|error| error.to_string())?;
        let mut files: BTreeMap<String, OfFile> = BTreeMap::new();
        for entry in list.difference {
            if entry.reason.trim().is_empty() {
                return Err(format!("{}: a difference without a reason", entry.file));
            }
            if let Some(feature) = &entry.without_feature
                && has_feature(feature)?
            {
                continue;
            }
            let of_file = files.entry(entry.file.clone()).or_default();
            for step in entry.step {
                let listed = listed(&step)?;
                let line = step.line.clone();
                if of_file
                    .0
                    .insert((step.line, step.occurrence), listed)
                    .is_some()
                {
                    return Err(format!("{}: listed twice: {line}", entry.file));
                }
            }
        }
        Ok(Self(files))
    }

    pub fn files(&self) -> impl Iterator<Item = &String> {
        self.0.keys()
    }

    pub fn of(&self, file: &str) -> OfFile {
        self.0.get(file).cloned().unwrap_or_default()
    }
}

fn listed(step: &EntryStep) -> Result<Listed, String> {
    if step.line.starts_with("args:") {
        return Ok(Listed::End(step.answers.clone()));
    }
    let answers: Result<_, _> = step
        .answers
        .iter()
        .map(|line| Answer::parse(line))
        .collect();
    Ok(Listed::Answers(answers?))
}

impl OfFile {
    /// Takes what is listed for an occurrence of a line.
    pub fn take(&mut self, line: &str, occurrence: usize) -> Option<Listed> {
        self.0.remove(&(line.to_owned(), occurrence))
    }

    /// Lines that are listed and were not met.
    pub fn left(&self) -> impl Iterator<Item = &(String, usize)> {
        self.0.keys()
    }
}

/// An entry for a finding, to be completed with a reason.
pub fn propose(file: &str, finding: &Finding) -> String {
    let quote = |text: &str| {
        if text.contains('\'') {
            serde_json::Value::from(text).to_string()
        } else {
            format!("'{text}'")
        }
    };
    let came: String = finding
        .came
        .iter()
        .map(|line| format!("    {},\n", quote(line)))
        .collect();
    let occurrence = match finding.occurrence {
        1 => String::new(),
        other => format!("occurrence = {other}\n"),
    };
    let expected: String = finding
        .expected
        .iter()
        .map(|line| format!("# recorded: {line}\n"))
        .collect();
    format!(
        "[[difference]]\nfile = \"{file}\"\nreason = \"\"\n[[difference.step]]\n\
         {expected}line = {}\n{occurrence}answers = [\n{came}]\n\n",
        quote(&finding.line)
    )
}
