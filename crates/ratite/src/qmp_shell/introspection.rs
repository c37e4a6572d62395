//! What a server says of its own commands, looked up by those who complete, explain and check.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use qmp_client::{Client, Error};
use serde_json::{Map, Value};

/// How many nested types are followed at most; types can contain themselves.
pub(crate) const MAX_TYPE_DEPTH: usize = 64;

/// The entities of `query-qmp-schema` by name. It is read leniently, member by member, because
/// servers of every age are asked.
#[derive(Debug, Default)]
pub(crate) struct Introspection {
    entities: HashMap<String, Value>,
    commands: BTreeSet<String>,
    events: BTreeSet<String>,
}

/// What a type is.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Kind<'a> {
    /// By the JSON type: `string`, `int`, `number`, `boolean`, `null`, `value`, ...
    Builtin(&'a str),
    /// By its values.
    Enum(Vec<&'a str>),
    /// By its elements' type.
    Array(&'a str),
    /// A struct or union.
    Object,
    /// By its branches' types.
    Alternate(Vec<&'a str>),
    /// The server did not tell.
    Unknown,
}

/// A member of an object type.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Member<'a> {
    pub(crate) name: &'a str,
    pub(crate) type_name: &'a str,
    pub(crate) optional: bool,
}

impl Introspection {
    /// Asks the server. One that is too old for introspection is asked for its commands' names.
    ///
    /// # Errors
    /// When the connection is lost or the time is over.
    pub(crate) async fn load(client: &Client, limit: Duration) -> Result<Self, Error> {
        match client.run_raw("query-qmp-schema", Value::Null, limit).await {
            Ok(schema) => return Ok(Self::new(schema)),
            Err(Error::Server(_)) => {}
            Err(error) => return Err(error),
        }
        match client.run_raw("query-commands", Value::Null, limit).await {
            Ok(names) => Ok(Self::from_names(&names)),
            Err(Error::Server(_)) => Ok(Self::default()),
            Err(error) => Err(error),
        }
    }

    /// From the reply to `query-qmp-schema`.
    pub(crate) fn new(schema: Value) -> Self {
        let mut this = Self::default();
        let Value::Array(entities) = schema else {
            return this;
        };
        for entity in entities {
            let Some(name) = entity
                .get("name")
                .and_then(Value::as_str)
                .map(str::to_owned)
            else {
                continue;
            };
            match entity.get("meta-type").and_then(Value::as_str) {
                Some("command") => this.commands.insert(name.clone()),
                Some("event") => this.events.insert(name.clone()),
                _ => false,
            };
            this.entities.insert(name, entity);
        }
        this
    }

    fn from_names(reply: &Value) -> Self {
        let names = reply.as_array().into_iter().flatten();
        let names = names.filter_map(|entry| Some(entry.get("name")?.as_str()?.to_owned()));
        Self {
            commands: names.collect(),
            ..Self::default()
        }
    }

    /// The commands' names in alphabetical order.
    pub(crate) fn commands(&self) -> impl Iterator<Item = &str> {
        self.commands.iter().map(String::as_str)
    }

    /// The events' names in alphabetical order.
    pub(crate) fn events(&self) -> impl Iterator<Item = &str> {
        self.events.iter().map(String::as_str)
    }

    pub(crate) fn has_command(&self, name: &str) -> bool {
        self.commands.contains(name)
    }

    pub(crate) fn has_event(&self, name: &str) -> bool {
        self.events.contains(name)
    }

    fn text(&self, entity: &str, member: &str) -> Option<&str> {
        self.entities.get(entity)?.get(member)?.as_str()
    }

    fn list(&self, entity: &str, member: &str) -> impl Iterator<Item = &Value> {
        let list = self
            .entities
            .get(entity)
            .and_then(|entity| entity.get(member)?.as_array());
        list.into_iter().flatten()
    }

    /// The type of a command's arguments, or of an event's data.
    pub(crate) fn argument_type(&self, name: &str) -> Option<&str> {
        self.text(name, "arg-type")
    }

    /// The type of what a command returns.
    pub(crate) fn return_type(&self, command: &str) -> Option<&str> {
        self.text(command, "ret-type")
    }

    /// Feature strings, such as `deprecated`.
    pub(crate) fn features(&self, name: &str) -> Vec<&str> {
        self.list(name, "features")
            .filter_map(Value::as_str)
            .collect()
    }

    /// What a type is.
    pub(crate) fn kind(&self, type_name: &str) -> Kind<'_> {
        let Some((name, entity)) = self.entities.get_key_value(type_name) else {
            return Kind::Unknown;
        };
        let meta_type = entity
            .get("meta-type")
            .and_then(Value::as_str)
            .unwrap_or_default();
        match meta_type {
            "builtin" => Kind::Builtin(self.text(name, "json-type").unwrap_or("value")),
            "enum" => Kind::Enum(
                self.list(name, "values")
                    .filter_map(Value::as_str)
                    .collect(),
            ),
            "array" => self
                .text(name, "element-type")
                .map_or(Kind::Unknown, Kind::Array),
            "object" => Kind::Object,
            "alternate" => {
                let branches = self.list(name, "members");
                Kind::Alternate(
                    branches
                        .filter_map(|branch| branch.get("type")?.as_str())
                        .collect(),
                )
            }
            _ => Kind::Unknown,
        }
    }

    /// The members of an object type. A union's branch adds its own once `given` says which it is.
    pub(crate) fn members(&self, type_name: &str, given: Option<&Value>) -> Vec<Member<'_>> {
        let mut members = Vec::new();
        let mut next = Some(type_name.to_owned());
        for _ in 0..MAX_TYPE_DEPTH {
            let Some(name) = next else { break };
            members.extend(self.list(&name, "members").filter_map(member));
            next = self.branch(&name, given).map(str::to_owned);
        }
        members
    }

    /// The member that selects a union's branch, with the values that have members of their own.
    pub(crate) fn tag(&self, type_name: &str) -> Option<&str> {
        self.text(type_name, "tag")
    }

    /// The branch's type that `given` selects.
    fn branch(&self, type_name: &str, given: Option<&Value>) -> Option<&str> {
        let tag = self.tag(type_name)?;
        let case = given?.get(tag)?.as_str()?;
        self.list(type_name, "variants")
            .find(|variant| variant.get("case").and_then(Value::as_str) == Some(case))?
            .get("type")?
            .as_str()
    }

    /// The object type that members are looked up in: the type itself, or an alternate's branch.
    pub(crate) fn object_type<'a>(&'a self, type_name: &'a str) -> Option<&'a str> {
        match self.kind(type_name) {
            Kind::Object => Some(type_name),
            Kind::Alternate(branches) => branches
                .into_iter()
                .find(|branch| self.kind(branch) == Kind::Object),
            _ => None,
        }
    }

    /// The type at a dotted path below `type_name`, given what is known of the value so far.
    pub(crate) fn resolve<'a>(
        &'a self,
        type_name: &'a str,
        path: &[&str],
        given: Option<&Value>,
    ) -> Option<&'a str> {
        let mut here = type_name;
        let mut given = given;
        for segment in path {
            let object = self.object_type(here)?;
            let members = self.members(object, given);
            here = members
                .iter()
                .find(|member| member.name == *segment)?
                .type_name;
            given = given.and_then(|value| value.get(segment));
        }
        Some(here)
    }

    /// A type in a few words: `str`, `on|off|auto`, `[int]`, `{...}`.
    pub(crate) fn describe(&self, type_name: &str) -> String {
        self.describe_within(type_name, 0)
    }

    fn describe_within(&self, type_name: &str, depth: usize) -> String {
        if depth > 4 {
            return "...".to_owned();
        }
        match self.kind(type_name) {
            Kind::Builtin(_) => type_name.to_owned(),
            Kind::Enum(values) => values.join("|"),
            Kind::Array(element) => format!("[{}]", self.describe_within(element, depth + 1)),
            Kind::Object => "{...}".to_owned(),
            Kind::Alternate(branches) => {
                let branches = branches
                    .iter()
                    .map(|name| self.describe_within(name, depth + 1));
                branches.collect::<Vec<_>>().join(" or ")
            }
            Kind::Unknown => "?".to_owned(),
        }
    }
}

fn member(value: &Value) -> Option<Member<'_>> {
    let value: &Map<String, Value> = value.as_object()?;
    Some(Member {
        name: value.get("name")?.as_str()?,
        type_name: value.get("type")?.as_str()?,
        // A member that has a default, of which only null is ever told, may be left out.
        optional: value.contains_key("default"),
    })
}
