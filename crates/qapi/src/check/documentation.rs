//! Documentation held against the definition that it documents.

use std::collections::HashSet;

use super::Checker;
use crate::documentation::{Documentation, SectionTag};
use crate::parser::TopLevel;
use crate::schema::{DefinitionId, DefinitionKind};
use crate::source::{Position, Problem};

impl Checker {
    pub(super) fn check_documentation(&mut self, id: DefinitionId, top: &TopLevel) {
        let modern = self.dialect_of(id).is_modern();
        let name = self.schema.get(id).name.clone();
        let required = self.pragmas.documentation_required == Some(true);
        let Some(documentation) = &top.documentation else {
            if required && modern {
                self.problems.add(
                    Problem::new(
                        top.position,
                        format!("documentation of '{name}' is required"),
                    )
                    .hint("pragma 'doc-required' is set"),
                );
            }
            return;
        };
        // The older dialects' comments were for people only.
        if !modern {
            return;
        }
        self.check_form(&name, documentation);
        self.check_features(id, documentation);
        self.check_members(id, &name, documentation, required);
        self.check_sections(id, &name, documentation);
    }

    fn check_form(&mut self, name: &str, documentation: &Documentation) {
        let position = documentation.position;
        if !documentation.closed {
            self.problems
                .at(position, "documentation comment lacks the closing '##'");
        }
        if let Some(symbol) = documentation
            .symbol
            .as_deref()
            .filter(|symbol| *symbol != name)
        {
            let message = format!("documentation is of '{symbol}', but the definition is '{name}'");
            self.problems.at(position, message);
        }
        if let Some(at) = documentation.unindented {
            self.problems.add(
                Problem::new(at, "continuation line of a description is not indented")
                    .hint("indent it by four spaces, or put a blank line before a new paragraph"),
            );
        }
    }

    fn check_features(&mut self, id: DefinitionId, documentation: &Documentation) {
        let names = self.feature_names(id);
        for described in &documentation.features {
            if !names.contains(&described.name) {
                let message = format!("described feature '{}' does not exist", described.name);
                self.problems.at(described.position, message);
            }
        }
        for name in names {
            if !documentation
                .features
                .iter()
                .any(|described| described.name == name)
            {
                self.problems.at(
                    documentation.position,
                    format!("feature '{name}' lacks documentation"),
                );
            }
        }
    }

    /// The features of the definition and of its own members and values.
    fn feature_names(&self, id: DefinitionId) -> Vec<String> {
        let definition = self.schema.get(id);
        let mut names: Vec<String> = definition.features.iter().map(|f| f.name.clone()).collect();
        let nested: Vec<String> = match &definition.kind {
            DefinitionKind::Enum { values, .. } => values
                .iter()
                .flat_map(|value| &value.features)
                .map(|f| f.name.clone())
                .collect(),
            _ => self
                .own_members(id)
                .into_iter()
                .filter_map(|owner| match &self.schema.get(owner).kind {
                    DefinitionKind::Struct { members, .. } => Some(members),
                    _ => None,
                })
                .flatten()
                .flat_map(|member| &member.features)
                .map(|feature| feature.name.clone())
                .collect(),
        };
        names.extend(nested);
        let mut seen = HashSet::new();
        names.retain(|name| seen.insert(name.clone()));
        names
    }

    /// The struct whose members are written in this definition.
    fn own_members(&self, id: DefinitionId) -> Option<DefinitionId> {
        let implicit = |id: DefinitionId| self.schema.get(id).implicit.then_some(id);
        match &self.schema.get(id).kind {
            DefinitionKind::Struct { .. } => Some(id),
            DefinitionKind::Union { base, .. } => implicit(*base),
            DefinitionKind::Command(command) => command.arguments.and_then(implicit),
            DefinitionKind::Event { arguments, .. } => arguments.and_then(implicit),
            _ => None,
        }
    }

    fn check_members(
        &mut self,
        id: DefinitionId,
        name: &str,
        documentation: &Documentation,
        required: bool,
    ) {
        let own: Vec<String> = match &self.schema.get(id).kind {
            DefinitionKind::Enum { values, .. } => values.iter().map(|v| v.name.clone()).collect(),
            DefinitionKind::Alternate { alternatives } => {
                alternatives.iter().map(|a| a.name.clone()).collect()
            }
            _ => match self
                .own_members(id)
                .map(|owner| &self.schema.get(owner).kind)
            {
                Some(DefinitionKind::Struct { members, .. }) => {
                    members.iter().map(|m| m.name.clone()).collect()
                }
                _ => Vec::new(),
            },
        };
        for described in &documentation.members {
            if !own.contains(&described.name) {
                let message = format!("described member '{}' does not exist", described.name);
                self.problems.at(described.position, message);
            }
        }
        if !required || self.pragmas.documentation_exceptions.contains(name) {
            return;
        }
        for member in own {
            if documentation.member(&member).is_none() {
                let message = format!("member '{member}' of '{name}' lacks documentation");
                self.problems.at(documentation.position, message);
            }
        }
    }

    fn check_sections(&mut self, id: DefinitionId, name: &str, documentation: &Documentation) {
        let command = match &self.schema.get(id).kind {
            DefinitionKind::Command(command) => Some(command.returns.is_some()),
            _ => None,
        };
        let mut seen: Vec<SectionTag> = Vec::new();
        let mut found: Vec<(Position, String)> = Vec::new();
        for section in &documentation.sections {
            let title = section.tag.title();
            let at = section.position;
            match (section.tag, command) {
                (SectionTag::Returns | SectionTag::Errors, None) => {
                    found.push((at, format!("'{title}' section is only valid for commands")));
                }
                (SectionTag::Returns, Some(false)) => {
                    found.push((
                        at,
                        format!("'{title}' section, but command '{name}' returns nothing"),
                    ));
                }
                (SectionTag::Notes | SectionTag::Examples, _) => {
                    found.push((
                        at,
                        format!("'{title}:' is not a section of today's dialect"),
                    ));
                }
                _ => {}
            }
            if section.tag != SectionTag::Todo && seen.contains(&section.tag) {
                found.push((at, format!("second '{title}' section")));
            }
            if section.text.is_empty() {
                found.push((at, format!("text required after '{title}:'")));
            }
            seen.push(section.tag);
        }
        for (position, message) in found {
            self.problems.at(position, message);
        }
    }
}
