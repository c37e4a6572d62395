//! Includes and pragmas: from the first file to everything that the schema consists of.

use std::collections::{BTreeSet, HashMap, HashSet};

use crate::check;
use crate::dialect::Dialect;
use crate::parser::{Entry, Expr, ExprValue, Item, TopLevel, parse};
use crate::schema::Schema;
use crate::source::{
    FILE_BYTES_MAX, FILES_MAX, FileId, INCLUDE_DEPTH_MAX, Position, Problem, Problems, QapiError,
    SourceLoader,
};

/// How a schema is loaded.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The dialect of every file; each file's is detected when there is none.
    pub dialect: Option<Dialect>,
}

/// The pragmas of the whole schema.
#[derive(Debug, Default)]
pub(crate) struct Pragmas {
    pub documentation_required: Option<bool>,
    pub command_name_exceptions: HashSet<String>,
    pub command_returns_exceptions: HashSet<String>,
    pub documentation_exceptions: HashSet<String>,
    pub member_name_exceptions: HashSet<String>,
}

/// A definition as it stands in its file.
#[derive(Debug)]
pub(crate) enum RawItem {
    Definition(TopLevel),
    FreeForm(crate::documentation::Documentation),
}

/// A parsed file.
#[derive(Debug)]
pub(crate) struct RawModule {
    pub path: String,
    pub dialect: Dialect,
}

/// Loads the schema at `path` with everything that it includes, and checks it.
///
/// # Errors
/// [`QapiError::Schema`] with every diagnostic that was found; a syntax error hides the rest of its
/// file, and names are checked only when the syntax of all files is right.
pub fn load(loader: &dyn SourceLoader, path: &str, options: &Options) -> Result<Schema, QapiError> {
    let mut reader = Reader {
        loader,
        options,
        paths: Vec::new(),
        modules: Vec::new(),
        known: HashMap::new(),
        items: Vec::new(),
        pragmas: Pragmas::default(),
        problems: Problems::default(),
    };
    let start = Position {
        file: FileId(0),
        line: 1,
        column: 1,
    };
    reader.file(normalise(path), start, &mut Vec::new());
    let Reader {
        paths,
        modules,
        items,
        pragmas,
        problems,
        ..
    } = reader;
    let mut problems = problems;
    if problems.list.is_empty() {
        match check::check(modules, items, pragmas) {
            Ok(schema) => return Ok(schema),
            Err(found) => problems = found,
        }
    }
    problems.list.sort_by_key(|problem| problem.position);
    let diagnostics = problems
        .list
        .into_iter()
        .map(|problem| problem.into_diagnostic(&paths))
        .collect();
    Err(QapiError::Schema(diagnostics))
}

struct Reader<'a> {
    loader: &'a dyn SourceLoader,
    options: &'a Options,
    paths: Vec<String>,
    modules: Vec<RawModule>,
    known: HashMap<String, FileId>,
    items: Vec<(usize, RawItem)>,
    pragmas: Pragmas,
    problems: Problems,
}

impl Reader<'_> {
    /// Reads one file; `from` is where it was included, `chain` the files that are being read.
    fn file(&mut self, path: String, from: Position, chain: &mut Vec<String>) {
        let file = FileId(u32::try_from(self.paths.len()).unwrap_or(u32::MAX));
        let first = self.paths.is_empty();
        let text = match self.text(&path) {
            Ok(text) => text,
            Err(reason) => {
                if first {
                    self.paths.push(path);
                    self.problems
                        .at(from, format!("cannot read the file: {reason}"));
                } else {
                    self.problems.at(
                        from,
                        format!("cannot read the included file '{path}': {reason}"),
                    );
                }
                return;
            }
        };
        self.paths.push(path.clone());
        self.known.insert(path.clone(), file);
        let text = match text {
            Ok(text) => text,
            Err(valid) => return self.problems.add(not_utf8(file, &valid)),
        };
        let items = match parse(file, &text) {
            Ok(items) => items,
            Err(problem) => return self.problems.add(problem),
        };
        let dialect = self
            .options
            .dialect
            .unwrap_or_else(|| Dialect::detect(&items));
        let module = self.modules.len();
        self.modules.push(RawModule {
            path: path.clone(),
            dialect,
        });
        chain.push(path);
        for item in items {
            self.item(item, module, chain);
        }
        chain.pop();
    }

    /// The text of the file, or of its part before the first byte that is not UTF-8.
    fn text(&self, path: &str) -> Result<Result<String, String>, String> {
        let bytes = self.loader.load(path)?;
        if bytes.len() > FILE_BYTES_MAX {
            return Err(format!("it is larger than {FILE_BYTES_MAX} bytes"));
        }
        Ok(String::from_utf8(bytes).map_err(|error| {
            let valid = error.utf8_error().valid_up_to();
            String::from_utf8_lossy(error.as_bytes().get(..valid).unwrap_or_default()).into_owned()
        }))
    }

    fn item(&mut self, item: Item, module: usize, chain: &mut Vec<String>) {
        let top = match item {
            Item::FreeForm(documentation) => {
                return self.items.push((module, RawItem::FreeForm(documentation)));
            }
            Item::Expression(top) => top,
        };
        let directive = top.get("include").or_else(|| top.get("pragma"));
        let Some(directive) = directive else {
            return self.items.push((module, RawItem::Definition(top)));
        };
        if let Some(documentation) = &top.documentation {
            self.problems.at(
                documentation.position,
                format!("'{}' cannot be documented", directive.key),
            );
        }
        if let Some(other) = top.entries.iter().find(|entry| entry.key != directive.key) {
            let message = format!(
                "unknown key '{}' in the '{}' directive",
                other.key, directive.key
            );
            self.problems.at(other.key_position, message);
        }
        if directive.key == "include" {
            self.include(directive, chain);
        } else {
            self.pragma(directive);
        }
    }

    fn include(&mut self, entry: &Entry, chain: &mut Vec<String>) {
        let position = entry.value.position;
        let Some(target) = entry.value.as_str() else {
            return self
                .problems
                .at(position, "value of 'include' must be a string");
        };
        let folder = chain
            .last()
            .and_then(|path| path.rsplit_once('/'))
            .map_or("", |(dir, _)| dir);
        let path = if target.starts_with('/') || folder.is_empty() && !is_absolute_chain(chain) {
            normalise(target)
        } else {
            normalise(&format!("{folder}/{target}"))
        };
        if chain.contains(&path) {
            return self
                .problems
                .at(position, format!("inclusion loop for '{target}'"));
        }
        if self.known.contains_key(&path) {
            return;
        }
        if chain.len() >= INCLUDE_DEPTH_MAX {
            let message = format!("includes nested deeper than {INCLUDE_DEPTH_MAX} levels");
            return self.problems.at(position, message);
        }
        if self.paths.len() >= FILES_MAX {
            return self
                .problems
                .at(position, format!("more than {FILES_MAX} files"));
        }
        self.file(path, position, chain);
    }

    fn pragma(&mut self, entry: &Entry) {
        let ExprValue::Object(pragmas) = &entry.value.value else {
            return self
                .problems
                .at(entry.value.position, "value of 'pragma' must be an object");
        };
        for pragma in pragmas {
            let list = match pragma.key.as_str() {
                "doc-required" => {
                    self.documentation_required(&pragma.value);
                    continue;
                }
                "command-name-exceptions" => &mut self.pragmas.command_name_exceptions,
                "command-returns-exceptions" | "returns-whitelist" => {
                    &mut self.pragmas.command_returns_exceptions
                }
                "documentation-exceptions" => &mut self.pragmas.documentation_exceptions,
                "member-name-exceptions" | "name-case-whitelist" => {
                    &mut self.pragmas.member_name_exceptions
                }
                key => {
                    self.problems
                        .at(pragma.key_position, format!("unknown pragma '{key}'"));
                    continue;
                }
            };
            match strings(&pragma.value) {
                Some(names) => list.extend(names),
                None => self.problems.at(
                    pragma.value.position,
                    format!("pragma '{}' must be an array of strings", pragma.key),
                ),
            }
        }
    }

    fn documentation_required(&mut self, value: &Expr) {
        let ExprValue::Bool(required) = value.value else {
            return self
                .problems
                .at(value.position, "pragma 'doc-required' must be boolean");
        };
        if self
            .pragmas
            .documentation_required
            .is_some_and(|known| known != required)
        {
            self.problems.at(
                value.position,
                "pragma 'doc-required' is already set differently",
            );
        }
        self.pragmas.documentation_required = Some(required);
    }
}

fn is_absolute_chain(chain: &[String]) -> bool {
    chain.last().is_some_and(|path| path.starts_with('/'))
}

fn strings(value: &Expr) -> Option<BTreeSet<String>> {
    match &value.value {
        ExprValue::List(list) => list
            .iter()
            .map(|item| item.as_str().map(str::to_owned))
            .collect(),
        _ => None,
    }
}

fn not_utf8(file: FileId, valid: &str) -> Problem {
    let line = valid.matches('\n').count() + 1;
    let column = valid
        .rsplit('\n')
        .next()
        .unwrap_or_default()
        .chars()
        .count()
        + 1;
    let number = |count| u32::try_from(count).unwrap_or(u32::MAX);
    Problem::new(
        Position {
            file,
            line: number(line),
            column: number(column),
        },
        "not UTF-8 text",
    )
}

/// The path without `.` and, where a folder precedes them, `..` parts.
fn normalise(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|last| *last != "..") => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    let joined = parts.join("/");
    if path.starts_with('/') {
        format!("/{joined}")
    } else {
        joined
    }
}
