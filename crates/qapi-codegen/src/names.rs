//! Names of the schema as names of Rust.

use std::collections::{BTreeMap, HashMap};

use qapi::schema::{DefinitionId, DefinitionKind, EMPTY_OBJECT};
use qapi::{Definition, Schema};

use crate::CodegenError;

/// Words that need `r#` as a name.
const KEYWORDS: [&str; 46] = [
    "abstract", "as", "async", "await", "become", "box", "break", "const", "continue", "do", "dyn",
    "else", "enum", "extern", "false", "final", "fn", "for", "gen", "if", "impl", "in", "let",
    "loop", "macro", "match", "mod", "move", "mut", "override", "priv", "pub", "ref", "return",
    "static", "struct", "trait", "true", "try", "type", "typeof", "unsized", "use", "virtual",
    "where", "while",
];

/// Words that cannot be a name even with `r#`, beside `yield` and `unsafe`, which read badly with it.
const RESERVED: [&str; 6] = ["self", "super", "crate", "Self", "yield", "unsafe"];

/// Names of types that generated text uses itself.
const TAKEN_TYPES: [&str; 24] = [
    "Arc",
    "Box",
    "Command",
    "CommandSpec",
    "CommandTable",
    "Event",
    "FromQapi",
    "Future",
    "Input",
    "Map",
    "Members",
    "NoArguments",
    "Null",
    "Option",
    "QapiObject",
    "QmpError",
    "Result",
    "Return",
    "String",
    "ToQapi",
    "Value",
    "ValueKind",
    "Vec",
    "Default",
];

/// Puts `r#` or `_` where a name is a word of the language.
fn escape(name: String) -> String {
    if KEYWORDS.contains(&name.as_str()) {
        format!("r#{name}")
    } else if RESERVED.contains(&name.as_str()) {
        format!("{name}_")
    } else {
        name
    }
}

/// `node-name` to `node_name`.
pub fn field(name: &str) -> String {
    let snake = name.replace(['-', '.'], "_").to_ascii_lowercase();
    if snake.starts_with(|c: char| c.is_ascii_digit()) {
        format!("n{snake}")
    } else {
        escape(snake)
    }
}

/// `block-core` to `block_core`.
pub fn module(name: &str) -> String {
    let clean: String = name
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() {
                c.to_ascii_lowercase()
            } else {
                '_'
            }
        })
        .collect();
    if clean.starts_with(|c: char| c.is_ascii_digit()) {
        format!("n{clean}")
    } else {
        escape(clean)
    }
}

/// `job-pause` to `JobPause`; `lower` makes `JOB_PAUSE` the same.
pub fn camel(name: &str, lower: bool) -> String {
    let mut out = String::new();
    for word in name.split(['-', '_', '.']) {
        let mut chars = word.chars();
        if let Some(first) = chars.next() {
            out.push(first.to_ascii_uppercase());
            let rest = chars.as_str();
            out.push_str(&if lower {
                rest.to_ascii_lowercase()
            } else {
                rest.to_owned()
            });
        }
    }
    if out.is_empty() || out.starts_with(|c: char| c.is_ascii_digit()) {
        out.insert(0, 'N');
    }
    escape(out)
}

/// An enum value's variant. Values that are all upper case keep their letters.
pub fn variant(name: &str) -> String {
    camel(name, false)
}

/// The Rust name of every type.
pub struct Names {
    types: HashMap<DefinitionId, String>,
}

impl Names {
    pub fn new(schema: &Schema) -> Result<Self, CodegenError> {
        let arguments = argument_owners(schema);
        let mut types = HashMap::new();
        let mut taken: BTreeMap<String, String> = BTreeMap::new();
        for (id, definition) in schema.definitions() {
            let rust = match (&definition.kind, arguments.get(&id)) {
                (DefinitionKind::Command(_) | DefinitionKind::Event { .. }, _) => continue,
                (_, Some(owner)) if definition.implicit => argument_name(schema.get(*owner)),
                _ => type_name(definition),
            };
            claim(&mut taken, &rust, &definition.name)?;
            if matches!(definition.kind, DefinitionKind::Union { .. }) {
                claim(&mut taken, &format!("{rust}Branch"), &definition.name)?;
            }
            types.insert(id, rust);
        }
        Ok(Self { types })
    }

    /// The Rust name of a type.
    pub fn ty(&self, id: DefinitionId) -> &str {
        self.types.get(&id).map_or("NoArguments", String::as_str)
    }
}

/// Remembers a name, unless something else has it.
pub fn claim(
    taken: &mut BTreeMap<String, String>,
    rust: &str,
    name: &str,
) -> Result<(), CodegenError> {
    match taken.insert(rust.to_owned(), name.to_owned()) {
        None => Ok(()),
        Some(first) => Err(CodegenError::NameClash {
            first,
            second: name.to_owned(),
            rust: rust.to_owned(),
        }),
    }
}

/// The command or event that each implicit type of arguments belongs to.
fn argument_owners(schema: &Schema) -> HashMap<DefinitionId, DefinitionId> {
    schema
        .definitions()
        .filter_map(|(id, definition)| match &definition.kind {
            DefinitionKind::Command(command) => Some((command.arguments?, id)),
            DefinitionKind::Event { arguments, .. } => Some(((*arguments)?, id)),
            _ => None,
        })
        .collect()
}

fn argument_name(owner: &Definition) -> String {
    match owner.kind {
        DefinitionKind::Event { .. } => format!("{}Event", camel(&owner.name, true)),
        _ => format!("{}Args", camel(&owner.name, false)),
    }
}

fn type_name(definition: &Definition) -> String {
    if definition.name == EMPTY_OBJECT {
        return "NoArguments".to_owned();
    }
    let name = camel(
        definition
            .name
            .strip_prefix("q_obj_")
            .unwrap_or(&definition.name),
        false,
    );
    if TAKEN_TYPES.contains(&name.as_str()) {
        format!("{name}Type")
    } else {
        name
    }
}
