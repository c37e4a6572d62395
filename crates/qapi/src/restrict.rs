//! Taking out what a build does not have: conditions that do not hold, and the pending list.

use std::collections::{BTreeMap, BTreeSet};

use crate::schema::{Condition, DefinitionId, DefinitionKind, Feature, NamedType, Schema};
use crate::source::QapiError;

/// What stands in the schema but is not served yet, each with the reason.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pending {
    /// Commands by name.
    pub commands: BTreeMap<String, String>,
    /// Events by name.
    pub events: BTreeMap<String, String>,
    /// Struct members, arguments, enum values (with the branch of unions that they select) and
    /// alternatives, as `TypeName.member` or `command-name.argument`.
    pub members: BTreeMap<String, String>,
}

impl Schema {
    /// The schema as a build has it whose configuration sets exactly the names in `config`, without
    /// what is pending.
    ///
    /// # Errors
    /// [`QapiError::Selection`] when the list names what the schema does not have, or when something
    /// that stays refers to something that is gone.
    pub fn restrict(
        &self,
        config: &BTreeSet<String>,
        pending: &Pending,
    ) -> Result<Self, QapiError> {
        self.check_pending(pending)?;
        let mut schema = self.clone();
        for definition in &mut schema.definitions {
            let listed = match definition.kind {
                DefinitionKind::Command(_) => pending.commands.contains_key(&definition.name),
                DefinitionKind::Event { .. } => pending.events.contains_key(&definition.name),
                _ => false,
            };
            definition.removed |= listed || !holds(definition.condition.as_ref(), config);
            definition.condition = None;
            keep_features(&mut definition.features, config);
            let owner = owner_name(&definition.name, definition.implicit).to_owned();
            let kept = |name: &str, condition: &mut Option<Condition>| {
                let listed = pending.members.contains_key(&format!("{owner}.{name}"));
                let keep = !listed && holds(condition.as_ref(), config);
                *condition = None;
                keep
            };
            match &mut definition.kind {
                DefinitionKind::Enum { values, .. } => values.retain_mut(|value| {
                    keep_features(&mut value.features, config);
                    kept(&value.name, &mut value.condition)
                }),
                DefinitionKind::Struct { members, .. } => members.retain_mut(|member| {
                    keep_features(&mut member.features, config);
                    kept(&member.name, &mut member.condition)
                }),
                DefinitionKind::Union { branches, .. } => {
                    branches.retain_mut(|branch| kept(&branch.case, &mut branch.condition));
                }
                DefinitionKind::Alternate { alternatives } => alternatives
                    .retain_mut(|alternative| kept(&alternative.name, &mut alternative.condition)),
                DefinitionKind::Command(_) | DefinitionKind::Event { .. } => {}
            }
        }
        schema.drop_branches_without_value();
        schema.drop_arguments_without_owner();
        schema.check_closed()?;
        Ok(schema)
    }

    /// A branch goes with the enum value that selects it.
    fn drop_branches_without_value(&mut self) {
        let unions: Vec<(DefinitionId, Vec<String>)> = self
            .definitions()
            .filter_map(|(id, _)| {
                let tag = self.discriminator_enum(id)?;
                let DefinitionKind::Enum { values, .. } = &self.get(tag).kind else {
                    return None;
                };
                Some((id, values.iter().map(|value| value.name.clone()).collect()))
            })
            .collect();
        for (id, values) in unions {
            let index = usize::try_from(id.0).unwrap_or(usize::MAX);
            if let Some(definition) = self.definitions.get_mut(index)
                && let DefinitionKind::Union { branches, .. } = &mut definition.kind
            {
                branches.retain(|branch| values.contains(&branch.case));
            }
        }
    }

    /// Arguments that are written in place go with their command or event.
    fn drop_arguments_without_owner(&mut self) {
        let owned: Vec<(DefinitionId, bool)> = self
            .definitions
            .iter()
            .filter_map(|definition| match &definition.kind {
                DefinitionKind::Command(command) => Some((command.arguments?, definition.removed)),
                DefinitionKind::Event { arguments, .. } => {
                    Some(((*arguments)?, definition.removed))
                }
                _ => None,
            })
            .collect();
        for (id, removed) in owned {
            let index = usize::try_from(id.0).unwrap_or(usize::MAX);
            if let Some(arguments) = self.definitions.get_mut(index).filter(|d| d.implicit) {
                arguments.removed |= removed;
            }
        }
    }

    fn check_pending(&self, pending: &Pending) -> Result<(), QapiError> {
        let unknown = |what: &str, name: &str| {
            Err(QapiError::Selection(format!(
                "pending {what} '{name}' is not in the schema"
            )))
        };
        for name in pending.commands.keys() {
            if !self
                .find(name)
                .is_some_and(|d| matches!(d.kind, DefinitionKind::Command(_)))
            {
                return unknown("command", name);
            }
        }
        for name in pending.events.keys() {
            if !self
                .find(name)
                .is_some_and(|d| matches!(d.kind, DefinitionKind::Event { .. }))
            {
                return unknown("event", name);
            }
        }
        let known: BTreeSet<String> = self
            .definitions()
            .flat_map(|(_, definition)| {
                let owner = owner_name(&definition.name, definition.implicit);
                member_names(&definition.kind)
                    .into_iter()
                    .map(move |name| format!("{owner}.{name}"))
            })
            .collect();
        for name in pending.members.keys() {
            if !known.contains(name) {
                return unknown("member", name);
            }
        }
        Ok(())
    }

    /// Everything that is referred to is still there.
    fn check_closed(&self) -> Result<(), QapiError> {
        for (_, definition) in self.definitions() {
            for id in self.references(&definition.kind) {
                let target = self.get(id);
                if target.removed {
                    return Err(QapiError::Selection(format!(
                        "'{}' uses '{}', whose condition does not hold",
                        definition.name, target.name
                    )));
                }
            }
            if let DefinitionKind::Union {
                base,
                discriminator,
                ..
            } = &definition.kind
            {
                let there = self
                    .all_members(*base)
                    .iter()
                    .any(|m| m.name == *discriminator);
                if !there {
                    return Err(QapiError::Selection(format!(
                        "discriminator '{discriminator}' of '{}' cannot be pending",
                        definition.name
                    )));
                }
            }
        }
        Ok(())
    }

    /// The definitions that a definition names.
    pub(crate) fn references(&self, kind: &DefinitionKind) -> Vec<DefinitionId> {
        let defined = |named: NamedType| match named {
            NamedType::Defined(id) => Some(id),
            NamedType::Builtin(_) => None,
        };
        match kind {
            DefinitionKind::Enum { .. } => Vec::new(),
            DefinitionKind::Struct { base, members } => {
                let types = members
                    .iter()
                    .filter_map(|member| defined(member.ty.element()));
                base.iter().copied().chain(types).collect()
            }
            DefinitionKind::Union { base, branches, .. } => std::iter::once(*base)
                .chain(branches.iter().map(|branch| branch.ty))
                .collect(),
            DefinitionKind::Alternate { alternatives } => alternatives
                .iter()
                .filter_map(|a| defined(a.ty.element()))
                .collect(),
            DefinitionKind::Command(command) => {
                let returned = command.returns.and_then(|ty| defined(ty.element()));
                command.arguments.into_iter().chain(returned).collect()
            }
            DefinitionKind::Event { arguments, .. } => arguments.iter().copied().collect(),
        }
    }
}

fn member_names(kind: &DefinitionKind) -> Vec<&str> {
    match kind {
        DefinitionKind::Enum { values, .. } => values.iter().map(|v| v.name.as_str()).collect(),
        DefinitionKind::Struct { members, .. } => members.iter().map(|m| m.name.as_str()).collect(),
        DefinitionKind::Union { branches, .. } => {
            branches.iter().map(|b| b.case.as_str()).collect()
        }
        DefinitionKind::Alternate { alternatives } => {
            alternatives.iter().map(|a| a.name.as_str()).collect()
        }
        DefinitionKind::Command(_) | DefinitionKind::Event { .. } => Vec::new(),
    }
}

/// The name under which members are listed: an implicit type's is that of its definition.
fn owner_name(name: &str, implicit: bool) -> &str {
    if !implicit {
        return name;
    }
    let stem = name.strip_prefix("q_obj_").unwrap_or(name);
    stem.strip_suffix("-arg")
        .or_else(|| stem.strip_suffix("-base"))
        .unwrap_or(name)
}

fn holds(condition: Option<&Condition>, config: &BTreeSet<String>) -> bool {
    condition.is_none_or(|condition| condition.holds(config))
}

fn keep_features(features: &mut Vec<Feature>, config: &BTreeSet<String>) {
    features.retain_mut(|feature| {
        let keep = holds(feature.condition.as_ref(), config);
        feature.condition = None;
        keep
    });
}
