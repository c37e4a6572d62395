//! Where text comes from, positions in it, and what is said about it when it is wrong.

use std::collections::BTreeMap;
use std::fmt;

/// Largest schema file that is read, in bytes.
pub const FILE_BYTES_MAX: usize = 16 << 20;
/// Most files that one schema may include.
pub const FILES_MAX: usize = 4096;
/// Deepest nesting of objects and arrays in one expression.
pub const NESTING_MAX: usize = 32;
/// Deepest chain of includes.
pub const INCLUDE_DEPTH_MAX: usize = 64;
/// Most diagnostics that are collected before checking stops.
pub const DIAGNOSTICS_MAX: usize = 100;
/// Most members, values or branches in one definition.
pub const MEMBERS_MAX: usize = 4096;
/// Longest chain of bases of a struct.
pub const BASES_MAX: usize = 64;
/// Most definitions in one schema, implicit ones included.
pub const DEFINITIONS_MAX: usize = 1 << 20;

/// Gives the text of schema files. The core of the language does no file I/O of its own.
pub trait SourceLoader {
    /// The bytes of the file `path`, or why they cannot be had, in words for a diagnostic.
    ///
    /// `path` is the path given to [`crate::load`], or an include path joined to the folder of the
    /// file that includes it.
    ///
    /// # Errors
    /// A sentence without position; the caller adds the position of the include.
    fn load(&self, path: &str) -> Result<Vec<u8>, String>;
}

/// A schema held in memory: path to text.
impl SourceLoader for BTreeMap<String, String> {
    fn load(&self, path: &str) -> Result<Vec<u8>, String> {
        self.get(path)
            .map(|text| text.as_bytes().to_vec())
            .ok_or_else(|| "no such file".to_owned())
    }
}

/// The number of a file in the order of its loading.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileId(pub(crate) u32);

/// A place in a schema file. Lines and columns count from 1; a column counts characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// The file.
    pub file: FileId,
    /// The line, from 1.
    pub line: u32,
    /// The column in characters, from 1.
    pub column: u32,
}

/// One thing that is wrong with a schema.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// Path of the file, as the loader knows it.
    pub path: String,
    /// The line, from 1.
    pub line: u32,
    /// The column in characters, from 1.
    pub column: u32,
    /// What is wrong.
    pub message: String,
    /// What to do about it, where that is not plain.
    pub hint: Option<String>,
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}:{}:{}: {}",
            self.path, self.line, self.column, self.message
        )?;
        match &self.hint {
            Some(hint) => write!(f, "; {hint}"),
            None => Ok(()),
        }
    }
}

/// Why a schema was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QapiError {
    /// The schema itself is wrong: at least one diagnostic, in order of finding.
    #[error("{}", join_lines(.0))]
    Schema(Vec<Diagnostic>),
    /// The pending list or the command line names something that the schema does not have.
    #[error("{0}")]
    Selection(String),
}

fn join_lines(diagnostics: &[Diagnostic]) -> String {
    diagnostics
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join("\n")
}

/// What a phase found wrong, before the file's path is attached.
#[derive(Debug, Clone)]
pub(crate) struct Problem {
    pub position: Position,
    pub message: String,
    pub hint: Option<String>,
}

impl Problem {
    pub fn new(position: Position, message: impl Into<String>) -> Self {
        Self {
            position,
            message: message.into(),
            hint: None,
        }
    }

    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    pub fn into_diagnostic(self, paths: &[String]) -> Diagnostic {
        let index = usize::try_from(self.position.file.0).unwrap_or(usize::MAX);
        Diagnostic {
            path: paths.get(index).cloned().unwrap_or_default(),
            line: self.position.line,
            column: self.position.column,
            message: self.message,
            hint: self.hint,
        }
    }
}

/// A bounded list of problems.
#[derive(Debug, Default)]
pub(crate) struct Problems {
    pub list: Vec<Problem>,
}

impl Problems {
    pub fn add(&mut self, problem: Problem) {
        if self.list.len() < DIAGNOSTICS_MAX {
            self.list.push(problem);
        }
    }

    pub fn at(&mut self, position: Position, message: impl Into<String>) {
        self.add(Problem::new(position, message));
    }
}
