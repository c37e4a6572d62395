//! A checked schema: an arena of definitions in source order.

use std::collections::BTreeSet;
use std::collections::HashMap;

use crate::documentation::Documentation;
use crate::source::Position;

/// Name of the implicit struct without members that stands for "no arguments" and "no result".
pub const EMPTY_OBJECT: &str = "q_empty";

/// The number of a definition within its schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DefinitionId(pub(crate) u32);

/// A predefined type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Builtin {
    /// Any JSON string.
    Str,
    /// Any JSON number.
    Number,
    /// 64-bit signed.
    Int,
    /// 8-bit signed.
    Int8,
    /// 16-bit signed.
    Int16,
    /// 32-bit signed.
    Int32,
    /// 64-bit signed.
    Int64,
    /// 8-bit unsigned.
    Uint8,
    /// 16-bit unsigned.
    Uint16,
    /// 32-bit unsigned.
    Uint32,
    /// 64-bit unsigned.
    Uint64,
    /// 64-bit unsigned, with size suffixes on a command line.
    Size,
    /// `true` or `false`.
    Bool,
    /// JSON `null`.
    Null,
    /// Any JSON value.
    Any,
    /// The names of the JSON types, as a string.
    QType,
}

/// What kind of JSON value a type has on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum JsonKind {
    /// A string.
    String,
    /// A number; integers included.
    Number,
    /// `true` or `false`.
    Boolean,
    /// `null`.
    Null,
    /// An object.
    Object,
    /// Anything.
    Value,
}

impl Builtin {
    /// Every builtin with its name.
    pub const ALL: [(&'static str, Self); 16] = [
        ("str", Self::Str),
        ("number", Self::Number),
        ("int", Self::Int),
        ("int8", Self::Int8),
        ("int16", Self::Int16),
        ("int32", Self::Int32),
        ("int64", Self::Int64),
        ("uint8", Self::Uint8),
        ("uint16", Self::Uint16),
        ("uint32", Self::Uint32),
        ("uint64", Self::Uint64),
        ("size", Self::Size),
        ("bool", Self::Bool),
        ("null", Self::Null),
        ("any", Self::Any),
        ("QType", Self::QType),
    ];

    /// The name in a schema.
    pub fn name(self) -> &'static str {
        Self::ALL
            .iter()
            .find(|(_, builtin)| *builtin == self)
            .map_or("any", |(name, _)| name)
    }

    /// The builtin of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(_, builtin)| *builtin)
    }

    /// The kind of its JSON value.
    pub fn json_kind(self) -> JsonKind {
        match self {
            Self::Str | Self::QType => JsonKind::String,
            Self::Bool => JsonKind::Boolean,
            Self::Null => JsonKind::Null,
            Self::Any => JsonKind::Value,
            _ => JsonKind::Number,
        }
    }

    /// The name of its introspection entry and that entry's `json-type`. All integers are one.
    pub fn introspected(self) -> (&'static str, &'static str) {
        match self {
            Self::Str => ("str", "string"),
            Self::QType => ("QType", "string"),
            Self::Bool => ("bool", "boolean"),
            Self::Null => ("null", "null"),
            Self::Any => ("any", "value"),
            Self::Number => ("number", "number"),
            _ => ("int", "int"),
        }
    }
}

/// A type that has a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NamedType {
    /// A predefined one.
    Builtin(Builtin),
    /// An enum, struct, union or alternate of the schema.
    Defined(DefinitionId),
}

/// A use of a type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TypeRef {
    /// One value.
    One(NamedType),
    /// An array of values.
    Array(NamedType),
}

impl TypeRef {
    /// The type itself, or the type of the elements.
    pub fn element(self) -> NamedType {
        match self {
            Self::One(named) | Self::Array(named) => named,
        }
    }
}

/// A condition on names that the build configuration sets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// The name is set.
    Name(String),
    /// All hold.
    All(Vec<Condition>),
    /// At least one holds.
    Any(Vec<Condition>),
    /// It does not hold.
    Not(Box<Condition>),
}

impl Condition {
    /// Whether the condition holds when exactly `names` are set.
    pub fn holds(&self, names: &BTreeSet<String>) -> bool {
        match self {
            Self::Name(name) => names.contains(name),
            Self::All(list) => list.iter().all(|condition| condition.holds(names)),
            Self::Any(list) => list.iter().any(|condition| condition.holds(names)),
            Self::Not(condition) => !condition.holds(names),
        }
    }
}

/// A feature string of a definition, member or enum value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Feature {
    /// Its name.
    pub name: String,
    /// When it is there.
    pub condition: Option<Condition>,
}

/// A member of a struct or union base, or an argument.
#[derive(Debug, Clone)]
pub struct Member {
    /// Its name, without the `*` of optional members.
    pub name: String,
    /// Whether it may be absent.
    pub optional: bool,
    /// Its type.
    pub ty: TypeRef,
    /// When it is there.
    pub condition: Option<Condition>,
    /// Its features.
    pub features: Vec<Feature>,
    /// Where it is defined.
    pub position: Position,
}

/// A value of an enum.
#[derive(Debug, Clone)]
pub struct EnumValue {
    /// The string on the wire.
    pub name: String,
    /// When it is there.
    pub condition: Option<Condition>,
    /// Its features.
    pub features: Vec<Feature>,
    /// Where it is defined.
    pub position: Position,
}

/// A branch of a union: the discriminator's value and the struct (or union) with its members.
#[derive(Debug, Clone)]
pub struct Branch {
    /// The discriminator's value.
    pub case: String,
    /// The type whose members the branch adds.
    pub ty: DefinitionId,
    /// When it is there.
    pub condition: Option<Condition>,
    /// Where it is defined.
    pub position: Position,
}

/// A choice of an alternate.
#[derive(Debug, Clone)]
pub struct Alternative {
    /// Its name; not on the wire.
    pub name: String,
    /// Its type.
    pub ty: TypeRef,
    /// When it is there.
    pub condition: Option<Condition>,
    /// Where it is defined.
    pub position: Position,
}

/// What a command is beside its name.
#[derive(Debug, Clone)]
pub struct Command {
    /// The type with its arguments, implicit or named.
    pub arguments: Option<DefinitionId>,
    /// What it returns.
    pub returns: Option<TypeRef>,
    /// Whether the arguments travel as one struct.
    pub boxed: bool,
    /// Whether arguments and result are marshalled by generated code.
    pub generated: bool,
    /// Whether arguments beyond those named are passed on (`'**'` of the oldest dialect).
    pub open_arguments: bool,
    /// Whether success has a response.
    pub success_response: bool,
    /// Whether it may run out of band.
    pub allow_oob: bool,
    /// Whether it is available before the machine is built.
    pub allow_preconfig: bool,
    /// Whether its handler runs as a coroutine.
    pub coroutine: bool,
}

/// What a definition defines.
#[derive(Debug, Clone)]
pub enum DefinitionKind {
    /// An enumeration type.
    Enum {
        /// Its values in source order.
        values: Vec<EnumValue>,
        /// Prefix of C constants; kept, unused.
        prefix: Option<String>,
    },
    /// A struct type.
    Struct {
        /// The struct whose members come first.
        base: Option<DefinitionId>,
        /// Its own members.
        members: Vec<Member>,
    },
    /// A union type.
    Union {
        /// The struct with the common members; implicit where they are written in place.
        base: DefinitionId,
        /// The common member that selects the branch.
        discriminator: String,
        /// Its branches in source order.
        branches: Vec<Branch>,
    },
    /// An alternate type.
    Alternate {
        /// Its choices in source order.
        alternatives: Vec<Alternative>,
    },
    /// A command.
    Command(Command),
    /// An event.
    Event {
        /// The type with its data, implicit or named.
        arguments: Option<DefinitionId>,
        /// Whether the data travel as one struct.
        boxed: bool,
    },
}

/// A definition of the schema.
#[derive(Debug, Clone)]
pub struct Definition {
    /// Its name.
    pub name: String,
    /// Where it is.
    pub position: Position,
    /// The module (file) that has it: an index into [`Schema::modules`].
    pub module: usize,
    /// Its documentation.
    pub documentation: Option<Documentation>,
    /// When it is there.
    pub condition: Option<Condition>,
    /// Its features.
    pub features: Vec<Feature>,
    /// Whether the checker made it: arguments, union bases, wrappers of simple unions.
    pub implicit: bool,
    /// Whether [`Schema::restrict`] took it out. Such definitions are never listed.
    pub removed: bool,
    /// What it defines.
    pub kind: DefinitionKind,
}

impl Definition {
    /// `enum`, `struct`, ... as in a schema.
    pub fn meta_type(&self) -> &'static str {
        match self.kind {
            DefinitionKind::Enum { .. } => "enum",
            DefinitionKind::Struct { .. } => "struct",
            DefinitionKind::Union { .. } => "union",
            DefinitionKind::Alternate { .. } => "alternate",
            DefinitionKind::Command(_) => "command",
            DefinitionKind::Event { .. } => "event",
        }
    }
}

/// One piece of a module, in source order.
#[derive(Debug, Clone)]
pub enum ModuleItem {
    /// Documentation between definitions.
    FreeForm(Documentation),
    /// A definition.
    Definition(DefinitionId),
}

/// A file of the schema.
#[derive(Debug, Clone)]
pub struct Module {
    /// Its path, as given to the loader.
    pub path: String,
    /// What it has, without what it includes.
    pub items: Vec<ModuleItem>,
}

impl Module {
    /// The file's name without folder and `.json`.
    pub fn name(&self) -> &str {
        let file = self.path.rsplit('/').next().unwrap_or(&self.path);
        file.strip_suffix(".json").unwrap_or(file)
    }
}

/// A checked schema.
#[derive(Debug, Clone)]
pub struct Schema {
    pub(crate) definitions: Vec<Definition>,
    pub(crate) by_name: HashMap<String, DefinitionId>,
    pub(crate) modules: Vec<Module>,
}

impl Schema {
    /// The definition of this number.
    ///
    /// Numbers of another schema give an arbitrary definition or, out of range, the first one.
    pub fn get(&self, id: DefinitionId) -> &Definition {
        let index = usize::try_from(id.0).unwrap_or(usize::MAX);
        self.definitions.get(index).unwrap_or_else(|| self.first())
    }

    #[expect(
        clippy::indexing_slicing,
        reason = "a schema always has the empty object at 0"
    )]
    fn first(&self) -> &Definition {
        &self.definitions[0]
    }

    /// The definition of this name, unless it was taken out.
    pub fn find(&self, name: &str) -> Option<&Definition> {
        self.by_name
            .get(name)
            .map(|id| self.get(*id))
            .filter(|definition| !definition.removed)
    }

    /// The implicit struct without members.
    pub fn empty_object(&self) -> DefinitionId {
        DefinitionId(0)
    }

    /// Explicit and implicit definitions in source order, without those taken out.
    pub fn definitions(&self) -> impl Iterator<Item = (DefinitionId, &Definition)> {
        self.definitions
            .iter()
            .enumerate()
            .filter(|(_, definition)| !definition.removed)
            .filter_map(|(index, definition)| {
                Some((DefinitionId(u32::try_from(index).ok()?), definition))
            })
    }

    /// The files of the schema: each before those that it includes first.
    pub fn modules(&self) -> &[Module] {
        &self.modules
    }

    /// The members of a struct or union with those of its bases, bases first.
    ///
    /// A union gives its common members. Other definitions have none.
    pub fn all_members(&self, id: DefinitionId) -> Vec<&Member> {
        let mut chain = Vec::new();
        let mut next = Some(id);
        while let Some(id) = next {
            next = match &self.get(id).kind {
                DefinitionKind::Struct { base, members } => {
                    chain.push(members);
                    *base
                }
                DefinitionKind::Union { base, .. } => Some(*base),
                _ => None,
            };
        }
        chain.into_iter().rev().flatten().collect()
    }

    /// The kind of JSON value of a named type; none for an alternate.
    pub fn json_kind(&self, ty: NamedType) -> Option<JsonKind> {
        match ty {
            NamedType::Builtin(builtin) => Some(builtin.json_kind()),
            NamedType::Defined(id) => match self.get(id).kind {
                DefinitionKind::Enum { .. } => Some(JsonKind::String),
                DefinitionKind::Struct { .. } | DefinitionKind::Union { .. } => {
                    Some(JsonKind::Object)
                }
                _ => None,
            },
        }
    }

    /// The enum that a union's discriminator has.
    pub fn discriminator_enum(&self, union: DefinitionId) -> Option<DefinitionId> {
        let DefinitionKind::Union { discriminator, .. } = &self.get(union).kind else {
            return None;
        };
        let members = self.all_members(union);
        let member = members
            .iter()
            .find(|member| member.name == *discriminator)?;
        match member.ty {
            TypeRef::One(NamedType::Defined(id)) => Some(id),
            _ => None,
        }
    }

    /// How the type is written in a schema.
    pub fn type_name(&self, ty: TypeRef) -> String {
        let name = |named| match named {
            NamedType::Builtin(builtin) => builtin.name().to_owned(),
            NamedType::Defined(id) => self.get(id).name.clone(),
        };
        match ty {
            TypeRef::One(named) => name(named),
            TypeRef::Array(named) => format!("[{}]", name(named)),
        }
    }

    /// How many definitions of each kind there are, in words.
    pub fn summary(&self) -> String {
        let mut text = String::new();
        for kind in ["enum", "struct", "union", "alternate", "command", "event"] {
            let count = self
                .definitions()
                .filter(|(_, definition)| !definition.implicit && definition.meta_type() == kind)
                .count();
            text.push_str(&format!("{kind}: {count}\n"));
        }
        text.push_str(&format!("files: {}\n", self.modules.len()));
        text
    }
}
