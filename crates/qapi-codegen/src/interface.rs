//! What each program serves of the schema: the names of its commands and events, and its
//! introspection.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use qapi::Schema;
use qapi::introspect::{compact, introspect};
use qapi::schema::DefinitionKind;

use crate::{CodegenError, WithoutFeature};

/// What one program serves: the schema that types are generated from, or a part of it.
#[derive(Debug, Clone, Copy)]
pub struct Interface<'a> {
    /// What tells its files and constants from those of other programs: `machine` makes
    /// `machine-introspection.json` and `MACHINE_COMMAND_NAMES`. Empty makes the bare names.
    pub name: &'a str,
    /// What the program serves.
    pub schema: &'a Schema,
    /// The same in a build without the cargo feature, if there is one.
    pub without: Option<WithoutFeature<'a>>,
}

impl<'a> Interface<'a> {
    /// That of the one program of a schema.
    pub fn only(schema: &'a Schema) -> Self {
        Self {
            name: "",
            schema,
            without: None,
        }
    }

    /// Refuses commands and events that `whole`, which the text is made of, does not have.
    pub(crate) fn check(&self, whole: &Schema) -> Result<(), CodegenError> {
        let is_message = |kind: &DefinitionKind| {
            matches!(
                kind,
                DefinitionKind::Command(_) | DefinitionKind::Event { .. }
            )
        };
        for (_, definition) in self.schema.definitions() {
            if is_message(&definition.kind) && whole.find(&definition.name).is_none() {
                return Err(CodegenError::Unsupported {
                    definition: definition.name.clone(),
                    reason: format!(
                        "the interface '{}' has it, and the whole schema does not",
                        self.name
                    ),
                });
            }
        }
        Ok(())
    }

    /// Its introspection files by name: `introspection.json`, and with a cargo feature
    /// `introspection-FEATURE.json` for builds that have it.
    pub(crate) fn introspection(&self) -> BTreeMap<String, String> {
        let text = |schema| compact(&introspect(schema)) + "\n";
        let stem = match self.name {
            "" => "introspection".to_owned(),
            name => format!("{name}-introspection"),
        };
        let always = self.without.map_or(self.schema, |without| without.schema);
        let mut files = BTreeMap::from([(format!("{stem}.json"), text(always))]);
        if let Some(WithoutFeature { feature, .. }) = self.without {
            files.insert(format!("{stem}-{feature}.json"), text(self.schema));
        }
        files
    }

    /// The name of one of its constants.
    pub(crate) fn constant(&self, what: &str) -> String {
        match self.name {
            "" => what.to_owned(),
            name => format!("{}_{what}", name.replace('-', "_").to_ascii_uppercase()),
        }
    }

    /// The constant with the names of its events, in the schema's order.
    pub(crate) fn event_names(&self) -> String {
        let names = self
            .schema
            .definitions()
            .filter(|(_, definition)| matches!(definition.kind, DefinitionKind::Event { .. }))
            .map(|(_, definition)| definition.name.as_str());
        self.names("EVENT_NAMES", "events, in the schema's order", names)
    }

    /// The constant with the names of its commands, in ascending order.
    pub(crate) fn command_names(&self) -> String {
        let names: BTreeSet<&str> = self
            .schema
            .definitions()
            .filter(|(_, definition)| matches!(definition.kind, DefinitionKind::Command(_)))
            .map(|(_, definition)| definition.name.as_str())
            .collect();
        self.names(
            "COMMAND_NAMES",
            "commands, in ascending order",
            names.into_iter(),
        )
    }

    fn names<'n>(
        &self,
        constant: &str,
        what: &str,
        names: impl Iterator<Item = &'n str>,
    ) -> String {
        let of = match self.name {
            "" => String::new(),
            name => format!("the {name}'s "),
        };
        let mut out = format!(
            "\n/// The names of all {of}{what}.\npub const {}: &[&str] = &[\n",
            self.constant(constant)
        );
        for name in names {
            let _ = writeln!(out, "    \"{name}\",");
        }
        out.push_str("];\n");
        out
    }
}
