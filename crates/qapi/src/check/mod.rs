//! From parsed expressions to a checked schema: names, types, flags, conditions, documentation.

mod condition;
mod definitions;
mod documentation;
mod names;
mod unions;

use std::collections::HashMap;

use crate::dialect::Dialect;
use crate::load::{Pragmas, RawItem, RawModule};
use crate::parser::{Entry, Expr, ExprValue, TopLevel};
use crate::schema::{
    Builtin, Definition, DefinitionId, DefinitionKind, EMPTY_OBJECT, Feature, Module, ModuleItem,
    NamedType, Schema, TypeRef,
};
use crate::source::{DEFINITIONS_MAX, FileId, Position, Problem, Problems};
use names::{NameOf, Namespace, Strictness, check_name};

/// The keys that name a definition, with what they define.
const META: [(&str, Meta); 7] = [
    ("enum", Meta::Enum),
    ("struct", Meta::Struct),
    ("type", Meta::Struct),
    ("union", Meta::Union),
    ("alternate", Meta::Alternate),
    ("command", Meta::Command),
    ("event", Meta::Event),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Meta {
    Enum,
    Struct,
    Union,
    Alternate,
    Command,
    Event,
}

/// Checks everything and gives the schema, or every problem.
pub(crate) fn check(
    modules: Vec<RawModule>,
    items: Vec<(usize, RawItem)>,
    pragmas: Pragmas,
) -> Result<Schema, Problems> {
    let mut checker = Checker::new(modules, pragmas);
    let mut declared = Vec::new();
    for (module, item) in items {
        match item {
            RawItem::FreeForm(documentation) => {
                checker.free_form(module, documentation);
            }
            RawItem::Definition(top) => {
                if let Some((id, meta)) = checker.declare(module, &top) {
                    declared.push((id, meta, top));
                }
            }
        }
    }
    for (id, meta, top) in &declared {
        checker.define(*id, *meta, top);
    }
    if checker.problems.list.is_empty() {
        checker.check_bases();
    }
    // The rest walks bases, so it needs a schema whose names and bases are right.
    if checker.problems.list.is_empty() {
        for (id, meta, top) in &declared {
            checker.check_whole(*id, *meta, top);
        }
    }
    if checker.problems.list.is_empty() {
        Ok(checker.schema)
    } else {
        Err(checker.problems)
    }
}

struct Checker {
    schema: Schema,
    metas: HashMap<DefinitionId, Meta>,
    dialects: Vec<Dialect>,
    pragmas: Pragmas,
    namespace: Namespace,
    problems: Problems,
}

impl Checker {
    fn new(modules: Vec<RawModule>, pragmas: Pragmas) -> Self {
        let dialects = modules.iter().map(|module| module.dialect).collect();
        let modules = modules
            .into_iter()
            .map(|module| Module {
                path: module.path,
                items: Vec::new(),
            })
            .collect();
        let mut checker = Self {
            schema: Schema {
                definitions: Vec::new(),
                by_name: HashMap::new(),
                modules,
            },
            metas: HashMap::new(),
            dialects,
            pragmas,
            namespace: Namespace::default(),
            problems: Problems::default(),
        };
        let position = Position {
            file: FileId(0),
            line: 1,
            column: 1,
        };
        let kind = DefinitionKind::Struct {
            base: None,
            members: Vec::new(),
        };
        checker.add_implicit(EMPTY_OBJECT.to_owned(), position, 0, kind, None);
        checker
    }

    fn free_form(&mut self, module: usize, documentation: crate::documentation::Documentation) {
        if self.dialect(module).is_modern() {
            if !documentation.closed {
                self.problems.at(
                    documentation.position,
                    "documentation comment lacks the closing '##'",
                );
            }
            if let Some(symbol) = &documentation.symbol {
                self.problems.add(
                    Problem::new(
                        documentation.position,
                        format!("documentation of '{symbol}' is not followed by its definition"),
                    )
                    .hint("the definition must come next"),
                );
            }
        }
        if let Some(module) = self.schema.modules.get_mut(module) {
            module.items.push(ModuleItem::FreeForm(documentation));
        }
    }

    fn dialect(&self, module: usize) -> Dialect {
        self.dialects
            .get(module)
            .copied()
            .unwrap_or(Dialect::Modern)
    }

    fn dialect_of(&self, id: DefinitionId) -> Dialect {
        self.dialect(self.schema.get(id).module)
    }

    /// Gives the definition its number, so that others may refer to it before it is checked.
    fn declare(&mut self, module: usize, top: &TopLevel) -> Option<(DefinitionId, Meta)> {
        let dialect = self.dialect(module);
        let found = META.iter().find_map(|(key, meta)| {
            let entry = top.get(key)?;
            (*key != "type" || dialect == Dialect::Era1_2).then_some((entry, *meta))
        });
        let Some((entry, meta)) = found else {
            self.problems.add(Problem::new(top.position, "expression is missing its kind").hint(
                "expected one of 'enum', 'struct', 'union', 'alternate', 'command', 'event', 'include', 'pragma'",
            ));
            return None;
        };
        let Some(name) = entry.value.as_str() else {
            let message = format!("value of '{}' must be a string", entry.key);
            self.problems.at(entry.value.position, message);
            return None;
        };
        let position = entry.value.position;
        self.check_definition_name(name, meta, dialect, position);
        if Builtin::from_name(name).is_some() {
            self.problems.at(
                position,
                format!("built-in type '{name}' cannot be defined"),
            );
            return None;
        }
        if let Some(first) = self.schema.by_name.get(name) {
            let first = self.schema.get(*first).position;
            self.problems.add(
                Problem::new(position, format!("'{name}' is defined twice"))
                    .hint(format!("the first definition is at line {}", first.line)),
            );
            return None;
        }
        self.namespace
            .add("name", name, position, &mut self.problems);
        let kind = DefinitionKind::Struct {
            base: None,
            members: Vec::new(),
        };
        let id = self.add(Definition {
            name: name.to_owned(),
            position: top.position,
            module,
            documentation: top.documentation.clone(),
            condition: None,
            features: Vec::new(),
            implicit: false,
            removed: false,
            kind,
        })?;
        self.metas.insert(id, meta);
        if let Some(module) = self.schema.modules.get_mut(module) {
            module.items.push(ModuleItem::Definition(id));
        }
        Some((id, meta))
    }

    fn check_definition_name(
        &mut self,
        name: &str,
        meta: Meta,
        dialect: Dialect,
        position: Position,
    ) {
        let relaxed = !dialect.is_modern() || self.pragmas.command_name_exceptions.contains(name);
        let (of, strictness) = match meta {
            Meta::Command if relaxed => (NameOf::Command, Strictness::Relaxed),
            Meta::Command => (NameOf::Command, Strictness::Full),
            Meta::Event => (NameOf::Event, Strictness::Full),
            _ => (NameOf::Type, Strictness::Full),
        };
        check_name(name, of, strictness, position, &mut self.problems);
    }

    fn add(&mut self, definition: Definition) -> Option<DefinitionId> {
        let index = self.schema.definitions.len();
        if index >= DEFINITIONS_MAX {
            self.problems.at(
                definition.position,
                format!("more than {DEFINITIONS_MAX} definitions"),
            );
            return None;
        }
        let id = DefinitionId(u32::try_from(index).ok()?);
        self.schema.by_name.insert(definition.name.clone(), id);
        self.schema.definitions.push(definition);
        Some(id)
    }

    /// Adds a type that the schema implies. The empty object stands in where there are too many.
    fn add_implicit(
        &mut self,
        name: String,
        position: Position,
        module: usize,
        kind: DefinitionKind,
        condition: Option<crate::schema::Condition>,
    ) -> DefinitionId {
        self.add(Definition {
            name,
            position,
            module,
            documentation: None,
            condition,
            features: Vec::new(),
            implicit: true,
            removed: false,
            kind,
        })
        .unwrap_or(DefinitionId(0))
    }

    fn set_kind(&mut self, id: DefinitionId, kind: DefinitionKind) {
        let index = usize::try_from(id.0).unwrap_or(usize::MAX);
        if let Some(definition) = self.schema.definitions.get_mut(index) {
            definition.kind = kind;
        }
    }

    fn strictness(&self, definition: &str, dialect: Dialect) -> Strictness {
        if !dialect.is_modern() || self.pragmas.member_name_exceptions.contains(definition) {
            Strictness::Relaxed
        } else {
            Strictness::Full
        }
    }

    /// Reports keys that the construct does not have.
    fn keys(&mut self, entries: &[Entry], what: &str, known: &[&str]) {
        for entry in entries {
            if !known.contains(&entry.key.as_str()) {
                let keys = known
                    .iter()
                    .map(|key| format!("'{key}'"))
                    .collect::<Vec<_>>()
                    .join(", ");
                self.problems.add(
                    Problem::new(
                        entry.key_position,
                        format!("unknown key '{}' in {what}", entry.key),
                    )
                    .hint(format!("expected {keys}")),
                );
            }
        }
    }

    /// Resolves the name of a type.
    fn named_type(&mut self, name: &str, position: Position) -> Option<NamedType> {
        if let Some(builtin) = Builtin::from_name(name) {
            return Some(NamedType::Builtin(builtin));
        }
        match self.schema.by_name.get(name).copied() {
            Some(id)
                if !matches!(
                    self.metas.get(&id),
                    None | Some(Meta::Command | Meta::Event)
                ) =>
            {
                Some(NamedType::Defined(id))
            }
            Some(_) => {
                self.problems
                    .at(position, format!("'{name}' is not a type"));
                None
            }
            None => {
                self.problems
                    .at(position, format!("type '{name}' is not defined"));
                None
            }
        }
    }

    /// A type name or an array of one.
    fn type_ref(&mut self, expr: &Expr, what: &str) -> Option<TypeRef> {
        match &expr.value {
            ExprValue::String(name) => self.named_type(name, expr.position).map(TypeRef::One),
            ExprValue::List(list) => match list.as_slice() {
                [
                    Expr {
                        value: ExprValue::String(name),
                        position,
                    },
                ] => self.named_type(name, *position).map(TypeRef::Array),
                _ => {
                    let message = format!("array type of {what} must contain a single type name");
                    self.problems.at(expr.position, message);
                    None
                }
            },
            _ => {
                let message = format!(
                    "type of {what} must be a string or an array, not {}",
                    expr.what()
                );
                self.problems.at(expr.position, message);
                None
            }
        }
    }

    /// The list of features at key `features`.
    fn features(&mut self, entry: Option<&Entry>, what: &str) -> Vec<Feature> {
        let Some(entry) = entry else {
            return Vec::new();
        };
        let ExprValue::List(list) = &entry.value.value else {
            self.problems.at(
                entry.value.position,
                format!("'features' of {what} must be an array"),
            );
            return Vec::new();
        };
        let mut features = Vec::new();
        let mut namespace = Namespace::default();
        for item in list {
            let position = item.position;
            let (name, condition) = match &item.value {
                ExprValue::String(name) => (Some(name.as_str()), None),
                ExprValue::Object(entries) => {
                    self.keys(entries, "a feature", &["name", "if"]);
                    let condition = self.condition(find(entries, "if"));
                    (
                        find(entries, "name").and_then(|entry| entry.value.as_str()),
                        condition,
                    )
                }
                _ => (None, None),
            };
            let Some(name) = name else {
                self.problems.at(
                    position,
                    format!("a feature of {what} must be a string or an object with 'name'"),
                );
                continue;
            };
            check_name(
                name,
                NameOf::Feature,
                Strictness::Full,
                position,
                &mut self.problems,
            );
            namespace.add("feature", name, position, &mut self.problems);
            features.push(Feature {
                name: name.to_owned(),
                condition,
            });
        }
        features
    }

    /// A flag that may only be given with the one value that differs from its default.
    fn flag(&mut self, top: &TopLevel, key: &str, only: bool) -> bool {
        match top.get(key) {
            None => !only,
            Some(Entry {
                value:
                    Expr {
                        value: ExprValue::Bool(value),
                        ..
                    },
                ..
            }) if *value == only => only,
            Some(entry) => {
                self.problems.at(
                    entry.value.position,
                    format!("flag '{key}' may only use {only} value"),
                );
                !only
            }
        }
    }
}

fn find<'a>(entries: &'a [Entry], key: &str) -> Option<&'a Entry> {
    entries.iter().find(|entry| entry.key == key)
}
