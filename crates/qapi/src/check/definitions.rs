//! The six kinds of definitions, each by itself.

use super::names::{NameOf, Namespace, check_name};
use super::{Checker, Meta, find};
use crate::dialect::Dialect;
use crate::parser::{Entry, Expr, ExprValue, TopLevel};
use crate::schema::{
    Alternative, Builtin, Command, DefinitionId, DefinitionKind, EnumValue, JsonKind, Member,
    NamedType, TypeRef,
};
use crate::source::{MEMBERS_MAX, Position, Problem};

/// Where members belong, for names of implicit types and for messages.
#[derive(Clone, Copy)]
pub(super) struct Owner<'a> {
    pub name: &'a str,
    pub module: usize,
    pub dialect: Dialect,
}

impl Checker {
    /// Checks one definition by itself and puts it into the arena.
    pub(super) fn define(&mut self, id: DefinitionId, meta: Meta, top: &TopLevel) {
        let definition = self.schema.get(id);
        let (name, module) = (definition.name.clone(), definition.module);
        let owner = Owner {
            name: &name,
            module,
            dialect: self.dialect(module),
        };
        let condition = self.condition(top.get("if"));
        let features = self.features(top.get("features"), &format!("'{name}'"));
        let kind = match meta {
            Meta::Enum => self.enumeration(owner, top),
            Meta::Struct => self.structure(owner, top),
            Meta::Union => self.union(owner, top),
            Meta::Alternate => self.alternate(owner, top),
            Meta::Command => self.command(owner, top),
            Meta::Event => self.event(owner, top),
        };
        let index = usize::try_from(id.0).unwrap_or(usize::MAX);
        if let Some(definition) = self.schema.definitions.get_mut(index) {
            definition.condition = condition;
            definition.features = features;
        }
        if let Some(kind) = kind {
            self.set_kind(id, kind);
        }
    }

    /// The value of a key that must be there.
    fn required<'a>(
        &mut self,
        top: &'a TopLevel,
        key: &str,
        owner: Owner<'_>,
    ) -> Option<&'a Entry> {
        let entry = top.get(key);
        if entry.is_none() {
            self.problems.at(
                top.position,
                format!("'{}' is missing key '{key}'", owner.name),
            );
        }
        entry
    }

    /// Refuses more members than [`MEMBERS_MAX`].
    pub(super) fn check_count(&mut self, count: usize, position: Position) {
        if count > MEMBERS_MAX {
            self.problems
                .at(position, format!("more than {MEMBERS_MAX} members"));
        }
    }

    fn enumeration(&mut self, owner: Owner<'_>, top: &TopLevel) -> Option<DefinitionKind> {
        self.keys(
            &top.entries,
            "an enum",
            &["enum", "data", "prefix", "if", "features"],
        );
        let prefix = match top.get("prefix") {
            Some(entry) if entry.value.as_str().is_none() => {
                self.problems
                    .at(entry.value.position, "'prefix' must be a string");
                None
            }
            entry => entry
                .and_then(|entry| entry.value.as_str())
                .map(str::to_owned),
        };
        let data = self.required(top, "data", owner)?;
        let ExprValue::List(list) = &data.value.value else {
            self.problems
                .at(data.value.position, "'data' of an enum must be an array");
            return None;
        };
        self.check_count(list.len(), data.value.position);
        let mut values = Vec::new();
        let mut namespace = Namespace::default();
        for item in list {
            let Some(value) = self.enum_value(owner, item) else {
                continue;
            };
            namespace.add(
                "enum value",
                &value.name,
                value.position,
                &mut self.problems,
            );
            values.push(value);
        }
        Some(DefinitionKind::Enum { values, prefix })
    }

    fn enum_value(&mut self, owner: Owner<'_>, item: &Expr) -> Option<EnumValue> {
        let position = item.position;
        let (name, condition, features) = match &item.value {
            ExprValue::String(name) => (name.as_str(), None, Vec::new()),
            ExprValue::Object(entries) => {
                self.keys(entries, "an enum value", &["name", "if", "features"]);
                let Some(name) = find(entries, "name").and_then(|entry| entry.value.as_str())
                else {
                    self.problems
                        .at(position, "an enum value needs a 'name' that is a string");
                    return None;
                };
                let condition = self.condition(find(entries, "if"));
                let what = format!("enum value '{name}'");
                (
                    name,
                    condition,
                    self.features(find(entries, "features"), &what),
                )
            }
            _ => {
                self.problems
                    .at(position, "an enum value must be a string or an object");
                return None;
            }
        };
        let strictness = self.strictness(owner.name, owner.dialect);
        check_name(
            name,
            NameOf::EnumValue,
            strictness,
            position,
            &mut self.problems,
        );
        Some(EnumValue {
            name: name.to_owned(),
            condition,
            features,
            position,
        })
    }

    fn structure(&mut self, owner: Owner<'_>, top: &TopLevel) -> Option<DefinitionKind> {
        self.keys(
            &top.entries,
            "a struct",
            &["struct", "type", "data", "base", "if", "features"],
        );
        let base = top
            .get("base")
            .and_then(|entry| self.struct_name(entry, "'base'"));
        let data = self.required(top, "data", owner)?;
        let ExprValue::Object(entries) = &data.value.value else {
            self.problems
                .at(data.value.position, "'data' of a struct must be an object");
            return None;
        };
        let members = self.members(owner, entries);
        Some(DefinitionKind::Struct { base, members })
    }

    /// The struct that a key names.
    pub(super) fn struct_name(&mut self, entry: &Entry, what: &str) -> Option<DefinitionId> {
        let position = entry.value.position;
        let Some(name) = entry.value.as_str() else {
            self.problems
                .at(position, format!("{what} must be the name of a struct"));
            return None;
        };
        match self.named_type(name, position)? {
            NamedType::Defined(id) if self.metas.get(&id) == Some(&Meta::Struct) => Some(id),
            _ => {
                self.problems.at(
                    position,
                    format!("{what} requires a struct type, '{name}' is not one"),
                );
                None
            }
        }
    }

    /// The members of an object of `MEMBERS`.
    pub(super) fn members(&mut self, owner: Owner<'_>, entries: &[Entry]) -> Vec<Member> {
        let strictness = self.strictness(owner.name, owner.dialect);
        if let Some(first) = entries.first() {
            self.check_count(entries.len(), first.key_position);
        }
        let mut namespace = Namespace::default();
        let mut members = Vec::new();
        for entry in entries {
            let (name, optional) = match entry.key.strip_prefix('*') {
                Some(name) => (name, true),
                None => (entry.key.as_str(), false),
            };
            let position = entry.key_position;
            check_name(
                name,
                NameOf::Member,
                strictness,
                position,
                &mut self.problems,
            );
            namespace.add("member", name, position, &mut self.problems);
            if let Some(member) = self.member(owner, name, optional, entry) {
                members.push(member);
            }
        }
        members
    }

    fn member(
        &mut self,
        owner: Owner<'_>,
        name: &str,
        optional: bool,
        entry: &Entry,
    ) -> Option<Member> {
        if owner.dialect == Dialect::Era1_2 && entry.value.as_str() == Some("**") {
            // Stands for any further arguments, not for a member of this name.
            return None;
        }
        let what = format!("member '{name}'");
        let position = entry.key_position;
        let mut condition = None;
        let mut features = Vec::new();
        let ty = match &entry.value.value {
            ExprValue::Object(keys)
                if find(keys, "type").is_some_and(|_| is_member_object(keys)) =>
            {
                condition = self.condition(find(keys, "if"));
                features = self.features(find(keys, "features"), &what);
                let ty = find(keys, "type")?;
                self.member_type(&ty.value, &what, owner)?
            }
            ExprValue::Object(nested) if owner.dialect == Dialect::Era1_2 => TypeRef::One(
                NamedType::Defined(self.nested_struct(owner, name, nested, position)),
            ),
            ExprValue::Object(keys) => {
                self.keys(keys, &what, &["type", "if", "features"]);
                if find(keys, "type").is_none() {
                    self.problems.at(
                        entry.value.position,
                        format!("{what} is missing key 'type'"),
                    );
                }
                return None;
            }
            _ => self.member_type(&entry.value, &what, owner)?,
        };
        Some(Member {
            name: name.to_owned(),
            optional,
            ty,
            condition,
            features,
            position,
        })
    }

    fn member_type(&mut self, expr: &Expr, what: &str, owner: Owner<'_>) -> Option<TypeRef> {
        if owner.dialect == Dialect::Era1_2 && expr.as_str() == Some("visitor") {
            return Some(TypeRef::One(NamedType::Builtin(Builtin::Any)));
        }
        self.type_ref(expr, what)
    }

    /// An anonymous object of the oldest dialect: a struct named after its owner and member.
    fn nested_struct(
        &mut self,
        owner: Owner<'_>,
        name: &str,
        entries: &[Entry],
        position: Position,
    ) -> DefinitionId {
        let implicit_name = format!("q_obj_{}-{name}", owner.name);
        let nested = Owner {
            name: &implicit_name,
            ..owner
        };
        let members = self.members(nested, entries);
        let kind = DefinitionKind::Struct {
            base: None,
            members,
        };
        self.add_implicit(implicit_name, position, owner.module, kind, None)
    }

    fn alternate(&mut self, owner: Owner<'_>, top: &TopLevel) -> Option<DefinitionKind> {
        self.keys(
            &top.entries,
            "an alternate",
            &["alternate", "data", "if", "features"],
        );
        let data = self.required(top, "data", owner)?;
        let ExprValue::Object(entries) = &data.value.value else {
            self.problems.at(
                data.value.position,
                "'data' of an alternate must be an object",
            );
            return None;
        };
        if entries.is_empty() {
            self.problems.at(
                data.value.position,
                "an alternate needs at least one alternative",
            );
        }
        let mut alternatives = Vec::new();
        let mut namespace = Namespace::default();
        for entry in entries {
            let strictness = self.strictness(owner.name, owner.dialect);
            let position = entry.key_position;
            check_name(
                &entry.key,
                NameOf::Branch,
                strictness,
                position,
                &mut self.problems,
            );
            namespace.add("alternative", &entry.key, position, &mut self.problems);
            let what = format!("alternative '{}'", entry.key);
            let Some((ty, condition)) = self.branch_type(&entry.value, &what) else {
                continue;
            };
            alternatives.push(Alternative {
                name: entry.key.clone(),
                ty,
                condition,
                position,
            });
        }
        Some(DefinitionKind::Alternate { alternatives })
    }

    /// The type of a branch or alternative, in its short or long form.
    pub(super) fn branch_type(
        &mut self,
        expr: &Expr,
        what: &str,
    ) -> Option<(TypeRef, Option<crate::schema::Condition>)> {
        match &expr.value {
            ExprValue::Object(entries) => {
                self.keys(entries, what, &["type", "if"]);
                let condition = self.condition(find(entries, "if"));
                let Some(ty) = find(entries, "type") else {
                    self.problems
                        .at(expr.position, format!("{what} is missing key 'type'"));
                    return None;
                };
                Some((self.type_ref(&ty.value, what)?, condition))
            }
            _ => Some((self.type_ref(expr, what)?, None)),
        }
    }

    /// Checks that the alternatives differ on the wire; needs every definition in place.
    pub(super) fn check_alternatives(&mut self, id: DefinitionId) {
        let DefinitionKind::Alternate { alternatives } = self.schema.get(id).kind.clone() else {
            return;
        };
        let mut seen: Vec<(Option<JsonKind>, String)> = Vec::new();
        for alternative in &alternatives {
            let name = &alternative.name;
            let kind = match alternative.ty {
                TypeRef::Array(_) => None,
                TypeRef::One(named) => match self.schema.json_kind(named) {
                    Some(JsonKind::Value) | None => {
                        let ty = self.schema.type_name(alternative.ty);
                        let message = format!("alternative '{name}' cannot use type '{ty}'");
                        self.problems.at(alternative.position, message);
                        continue;
                    }
                    kind => kind,
                },
            };
            match seen.iter().find(|(known, _)| *known == kind) {
                Some((_, first)) => self.problems.at(
                    alternative.position,
                    format!("alternative '{name}' cannot be told from '{first}'"),
                ),
                None => seen.push((kind, name.clone())),
            }
        }
    }

    fn command(&mut self, owner: Owner<'_>, top: &TopLevel) -> Option<DefinitionKind> {
        const KEYS: [&str; 11] = [
            "command",
            "data",
            "returns",
            "boxed",
            "gen",
            "success-response",
            "allow-oob",
            "allow-preconfig",
            "coroutine",
            "if",
            "features",
        ];
        self.keys(&top.entries, "a command", &KEYS);
        let boxed = self.flag(top, "boxed", true);
        let allow_oob = self.flag(top, "allow-oob", true);
        let coroutine = self.flag(top, "coroutine", true);
        if allow_oob && coroutine {
            self.problems.add(Problem::new(
                top.position,
                "flags 'allow-oob' and 'coroutine' are incompatible",
            ));
        }
        let old_no = owner.dialect == Dialect::Era1_2
            && top
                .get("gen")
                .is_some_and(|entry| entry.value.as_str() == Some("no"));
        let generated = !old_no && self.flag(top, "gen", false);
        let open_arguments = owner.dialect == Dialect::Era1_2 && has_open_arguments(top);
        let returns = match top.get("returns") {
            Some(entry)
                if entry.value.as_str() == Some("visitor") && owner.dialect == Dialect::Era1_2 =>
            {
                Some(TypeRef::One(NamedType::Builtin(Builtin::Any)))
            }
            Some(entry) => self.returns(owner, entry),
            None => None,
        };
        let arguments = self.arguments(owner, top, boxed);
        Some(DefinitionKind::Command(Command {
            arguments,
            returns,
            boxed,
            generated,
            open_arguments,
            success_response: self.flag(top, "success-response", false),
            allow_oob,
            allow_preconfig: self.flag(top, "allow-preconfig", true),
            coroutine,
        }))
    }

    fn returns(&mut self, owner: Owner<'_>, entry: &Entry) -> Option<TypeRef> {
        if let (ExprValue::Object(entries), Dialect::Era1_2) = (&entry.value.value, owner.dialect) {
            let id = self.nested_struct(owner, "ret", entries, entry.key_position);
            return Some(TypeRef::One(NamedType::Defined(id)));
        }
        let ty = self.type_ref(&entry.value, "'returns'")?;
        let complex = match ty.element() {
            NamedType::Builtin(_) => false,
            NamedType::Defined(id) => {
                matches!(self.metas.get(&id), Some(Meta::Struct | Meta::Union))
            }
        };
        let excepted = self.pragmas.command_returns_exceptions.contains(owner.name);
        if !complex && !excepted && owner.dialect != Dialect::Era1_2 {
            let name = self.schema.type_name(ty);
            self.problems.add(
                Problem::new(entry.value.position, format!("'{}' cannot return '{name}'", owner.name)).hint(
                    "commands return a struct, a union or an array of them, unless pragma 'command-returns-exceptions' lists them",
                ),
            );
        }
        Some(ty)
    }

    fn event(&mut self, owner: Owner<'_>, top: &TopLevel) -> Option<DefinitionKind> {
        self.keys(
            &top.entries,
            "an event",
            &["event", "data", "boxed", "if", "features"],
        );
        let boxed = self.flag(top, "boxed", true);
        let arguments = self.arguments(owner, top, boxed);
        Some(DefinitionKind::Event { arguments, boxed })
    }

    /// The type of the arguments at key `data`.
    fn arguments(&mut self, owner: Owner<'_>, top: &TopLevel, boxed: bool) -> Option<DefinitionId> {
        let Some(data) = top.get("data") else {
            if boxed {
                self.problems
                    .at(top.position, "'boxed': true requires 'data'");
            }
            return None;
        };
        let position = data.value.position;
        match &data.value.value {
            ExprValue::Object(entries) => {
                if boxed {
                    self.problems.at(
                        position,
                        "'boxed': true requires the name of a type as 'data'",
                    );
                }
                if entries.is_empty() {
                    return None;
                }
                let members = self.members(owner, entries);
                let kind = DefinitionKind::Struct {
                    base: None,
                    members,
                };
                let name = format!("q_obj_{}-arg", owner.name);
                Some(self.add_implicit(name, position, owner.module, kind, None))
            }
            ExprValue::String(name) => {
                let ty = self.named_type(name, position)?;
                let meta = match ty {
                    NamedType::Defined(id) => self.metas.get(&id).map(|meta| (id, *meta)),
                    NamedType::Builtin(_) => None,
                };
                match meta {
                    Some((id, Meta::Struct)) => Some(id),
                    Some((id, Meta::Union)) => {
                        if !boxed {
                            self.problems.at(
                                position,
                                format!("union '{name}' as 'data' requires 'boxed': true"),
                            );
                        }
                        Some(id)
                    }
                    _ => {
                        self.problems.at(
                            position,
                            format!(
                                "'data' cannot be of type '{name}'; expected a struct or union"
                            ),
                        );
                        None
                    }
                }
            }
            _ => {
                self.problems
                    .at(position, "'data' must be an object or the name of a type");
                None
            }
        }
    }
}

/// `{ 'type': ..., 'if': ..., 'features': ... }` and nothing else.
fn is_member_object(keys: &[Entry]) -> bool {
    keys.iter()
        .all(|entry| matches!(entry.key.as_str(), "type" | "if" | "features"))
}

fn has_open_arguments(top: &TopLevel) -> bool {
    match top.get("data").map(|data| &data.value.value) {
        Some(ExprValue::Object(entries)) => entries
            .iter()
            .any(|entry| entry.value.as_str() == Some("**")),
        _ => false,
    }
}
