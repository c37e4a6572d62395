//! What `query-qmp-schema` answers (`qapi-code-gen.rst`, "Client JSON Protocol introspection").
//!
//! Commands and events come first, in source order; types follow in the order of their first use,
//! and the names of all but the builtin ones are their numbers in that order.

use std::collections::{HashMap, VecDeque};

use serde_json::{Map, Value, json};

use crate::schema::{
    Builtin, DefinitionId, DefinitionKind, Feature, Member, NamedType, Schema, TypeRef,
};

/// The `SchemaInfo` array. Conditions are not looked at: restrict the schema first.
pub fn introspect(schema: &Schema) -> Value {
    let mut writer = Writer {
        schema,
        numbers: HashMap::new(),
        arrays: HashMap::new(),
        builtins: HashMap::new(),
        queue: VecDeque::new(),
        out: Vec::new(),
    };
    for (id, definition) in schema.definitions() {
        match &definition.kind {
            DefinitionKind::Command(command) => {
                let arguments = writer.object(command.arguments);
                let returns = match command.returns {
                    Some(ty) => writer.use_type(ty),
                    None => writer.object(None),
                };
                let mut info = writer.start(&definition.name, "command");
                info.insert("arg-type".to_owned(), arguments.into());
                info.insert("ret-type".to_owned(), returns.into());
                if command.allow_oob {
                    info.insert("allow-oob".to_owned(), true.into());
                }
                writer.finish(info, &schema.get(id).features);
            }
            DefinitionKind::Event { arguments, .. } => {
                let arguments = writer.object(*arguments);
                let mut info = writer.start(&definition.name, "event");
                info.insert("arg-type".to_owned(), arguments.into());
                writer.finish(info, &definition.features);
            }
            _ => {}
        }
    }
    while let Some(next) = writer.queue.pop_front() {
        writer.describe(next);
    }
    Value::Array(writer.out)
}

/// The array as one line of ASCII JSON text.
pub fn compact(introspection: &Value) -> String {
    ascii(&introspection.to_string())
}

/// The array as ASCII JSON text with one entry per line.
pub fn pretty(introspection: &Value) -> String {
    let Value::Array(entries) = introspection else {
        return compact(introspection);
    };
    let lines: Vec<String> = entries
        .iter()
        .map(|entry| ascii(&entry.to_string()))
        .collect();
    format!("[\n  {}\n]\n", lines.join(",\n  "))
}

/// Schema strings are ASCII; this keeps the promise even so.
fn ascii(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    let mut units = [0u16; 2];
    for c in json.chars() {
        if c.is_ascii() {
            out.push(c);
        } else {
            for unit in c.encode_utf16(&mut units) {
                out.push_str(&format!("\\u{unit:04x}"));
            }
        }
    }
    out
}

struct Writer<'a> {
    schema: &'a Schema,
    numbers: HashMap<DefinitionId, usize>,
    arrays: HashMap<String, ()>,
    builtins: HashMap<&'static str, ()>,
    queue: VecDeque<TypeRef>,
    out: Vec<Value>,
}

impl Writer<'_> {
    fn start(&self, name: &str, meta_type: &str) -> Map<String, Value> {
        let mut info = Map::new();
        info.insert("name".to_owned(), name.into());
        info.insert("meta-type".to_owned(), meta_type.into());
        info
    }

    fn finish(&mut self, mut info: Map<String, Value>, features: &[Feature]) {
        if !features.is_empty() {
            info.insert("features".to_owned(), feature_names(features));
        }
        self.out.push(Value::Object(info));
    }

    /// The name of an object type; that of the empty object where there is none.
    fn object(&mut self, id: Option<DefinitionId>) -> String {
        let id = id.unwrap_or_else(|| self.schema.empty_object());
        self.use_type(TypeRef::One(NamedType::Defined(id)))
    }

    /// The masked name of a type, which is queued for description at its first use.
    fn use_type(&mut self, ty: TypeRef) -> String {
        match ty {
            TypeRef::One(NamedType::Builtin(builtin)) => {
                let (name, _) = builtin.introspected();
                if self.builtins.insert(name, ()).is_none() {
                    self.queue.push_back(ty);
                }
                name.to_owned()
            }
            TypeRef::One(NamedType::Defined(id)) => match self.numbers.get(&id) {
                Some(number) => number.to_string(),
                None => {
                    let number = self.numbers.len();
                    self.numbers.insert(id, number);
                    self.queue.push_back(ty);
                    number.to_string()
                }
            },
            TypeRef::Array(element) => {
                // The array goes before its element, whose number is the same either way.
                let known = self.element_name(element);
                if self.arrays.insert(known.clone(), ()).is_none() {
                    self.queue.push_back(ty);
                }
                self.use_type(TypeRef::One(element));
                known
            }
        }
    }

    /// `[name]` of an array, without queueing anything.
    fn element_name(&self, element: NamedType) -> String {
        match element {
            NamedType::Builtin(builtin) => format!("[{}]", builtin.introspected().0),
            NamedType::Defined(id) => {
                format!(
                    "[{}]",
                    self.numbers.get(&id).copied().unwrap_or(self.numbers.len())
                )
            }
        }
    }

    fn describe(&mut self, ty: TypeRef) {
        match ty {
            TypeRef::One(NamedType::Builtin(builtin)) => self.describe_builtin(builtin),
            TypeRef::One(NamedType::Defined(id)) => self.describe_definition(id),
            TypeRef::Array(element) => {
                let name = self.element_name(element);
                let mut info = self.start(&name, "array");
                let element = self.use_type(TypeRef::One(element));
                info.insert("element-type".to_owned(), element.into());
                self.finish(info, &[]);
            }
        }
    }

    fn describe_builtin(&mut self, builtin: Builtin) {
        let (name, json_type) = builtin.introspected();
        let mut info = self.start(name, "builtin");
        info.insert("json-type".to_owned(), json_type.into());
        self.finish(info, &[]);
    }

    fn describe_definition(&mut self, id: DefinitionId) {
        let schema = self.schema;
        let definition = schema.get(id);
        let name = self.use_type(TypeRef::One(NamedType::Defined(id)));
        let info = match &definition.kind {
            DefinitionKind::Enum { values, .. } => {
                let mut info = self.start(&name, "enum");
                let members = values.iter().map(|value| {
                    let mut member = Map::new();
                    member.insert("name".to_owned(), value.name.as_str().into());
                    if !value.features.is_empty() {
                        member.insert("features".to_owned(), feature_names(&value.features));
                    }
                    Value::Object(member)
                });
                info.insert("members".to_owned(), members.collect());
                let names = values.iter().map(|value| Value::from(value.name.as_str()));
                info.insert("values".to_owned(), names.collect());
                info
            }
            DefinitionKind::Struct { .. } => {
                let mut info = self.start(&name, "object");
                info.insert("members".to_owned(), self.members(&schema.all_members(id)));
                info
            }
            DefinitionKind::Union {
                discriminator,
                branches,
                ..
            } => {
                let mut info = self.start(&name, "object");
                info.insert("members".to_owned(), self.members(&schema.all_members(id)));
                info.insert("tag".to_owned(), discriminator.as_str().into());
                let mut variants: Vec<Value> = Vec::new();
                for branch in branches {
                    let ty = self.object(Some(branch.ty));
                    variants.push(json!({ "case": branch.case, "type": ty }));
                }
                for case in self.cases_without_branch(id) {
                    let ty = self.object(None);
                    variants.push(json!({ "case": case, "type": ty }));
                }
                info.insert("variants".to_owned(), variants.into());
                info
            }
            DefinitionKind::Alternate { alternatives } => {
                let mut info = self.start(&name, "alternate");
                let members: Vec<Value> = alternatives
                    .iter()
                    .map(|alternative| json!({ "type": self.use_type(alternative.ty) }))
                    .collect();
                info.insert("members".to_owned(), members.into());
                info
            }
            // Not types; nothing queues them.
            DefinitionKind::Command(_) | DefinitionKind::Event { .. } => return,
        };
        self.finish(info, &definition.features);
    }

    fn members(&mut self, members: &[&Member]) -> Value {
        let describe = |member: &&Member| {
            let mut info = Map::new();
            info.insert("name".to_owned(), member.name.as_str().into());
            info.insert("type".to_owned(), self.use_type(member.ty).into());
            if member.optional {
                info.insert("default".to_owned(), Value::Null);
            }
            if !member.features.is_empty() {
                info.insert("features".to_owned(), feature_names(&member.features));
            }
            Value::Object(info)
        };
        members.iter().map(describe).collect()
    }

    /// Values of the discriminator that have no branch: an empty one is implied.
    fn cases_without_branch(&self, id: DefinitionId) -> Vec<String> {
        let DefinitionKind::Union { branches, .. } = &self.schema.get(id).kind else {
            return Vec::new();
        };
        let tag = self
            .schema
            .discriminator_enum(id)
            .map(|tag| &self.schema.get(tag).kind);
        let Some(DefinitionKind::Enum { values, .. }) = tag else {
            return Vec::new();
        };
        let without = |name: &&String| !branches.iter().any(|branch| branch.case == **name);
        values
            .iter()
            .map(|value| &value.name)
            .filter(without)
            .cloned()
            .collect()
    }
}

fn feature_names(features: &[Feature]) -> Value {
    features
        .iter()
        .map(|feature| Value::from(feature.name.as_str()))
        .collect()
}
