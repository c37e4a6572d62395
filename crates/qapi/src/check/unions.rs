//! Unions, and what needs the whole schema: bases without loops, names disjoint across bases.

use std::collections::HashSet;

use super::definitions::Owner;
use super::names::{NameOf, Namespace, check_name};
use super::{Checker, Meta};
use crate::dialect::Dialect;
use crate::parser::{Entry, ExprValue, TopLevel};
use crate::schema::{Branch, DefinitionId, DefinitionKind, EnumValue, Member, NamedType, TypeRef};
use crate::source::{BASES_MAX, Position, Problem};

impl Checker {
    pub(super) fn union(&mut self, owner: Owner<'_>, top: &TopLevel) -> Option<DefinitionKind> {
        self.keys(
            &top.entries,
            "a union",
            &["union", "base", "discriminator", "data", "if", "features"],
        );
        let Some(data) = top.get("data") else {
            self.problems.at(
                top.position,
                format!("'{}' is missing key 'data'", owner.name),
            );
            return None;
        };
        let ExprValue::Object(branches) = &data.value.value else {
            self.problems
                .at(data.value.position, "'data' of a union must be an object");
            return None;
        };
        if branches.is_empty() {
            self.problems
                .at(data.value.position, "a union needs at least one branch");
        }
        match (top.get("discriminator"), top.get("base")) {
            (None, None) if !owner.dialect.is_modern() => {
                self.simple_union(owner, branches, top.position)
            }
            (None, _) => {
                let problem = Problem::new(
                    top.position,
                    format!("'{}' is missing key 'discriminator'", owner.name),
                );
                self.problems.add(problem);
                None
            }
            (Some(_), None) => {
                self.problems.at(
                    top.position,
                    format!("'{}' is missing key 'base'", owner.name),
                );
                None
            }
            (Some(discriminator), Some(base)) => {
                let base = self.union_base(owner, base)?;
                let Some(discriminator) = discriminator.value.as_str() else {
                    self.problems.at(
                        discriminator.value.position,
                        "'discriminator' must be a string",
                    );
                    return None;
                };
                let branches = self.branches(owner, branches);
                Some(DefinitionKind::Union {
                    base,
                    discriminator: discriminator.to_owned(),
                    branches,
                })
            }
        }
    }

    fn union_base(&mut self, owner: Owner<'_>, base: &Entry) -> Option<DefinitionId> {
        let ExprValue::Object(entries) = &base.value.value else {
            return self.struct_name(base, "'base'");
        };
        let members = self.members(owner, entries);
        let kind = DefinitionKind::Struct {
            base: None,
            members,
        };
        let name = format!("q_obj_{}-base", owner.name);
        Some(self.add_implicit(name, base.value.position, owner.module, kind, None))
    }

    fn branches(&mut self, owner: Owner<'_>, entries: &[Entry]) -> Vec<Branch> {
        let mut branches = Vec::new();
        for entry in entries {
            let what = format!("branch '{}'", entry.key);
            let Some((ty, condition)) = self.branch_type(&entry.value, &what) else {
                continue;
            };
            let complex = match ty {
                TypeRef::One(NamedType::Defined(id)) => {
                    matches!(self.metas.get(&id), Some(Meta::Struct | Meta::Union)).then_some(id)
                }
                _ => None,
            };
            let Some(ty) = complex else {
                let name = self.schema.type_name(ty);
                let message = format!(
                    "{what} of '{}' cannot use type '{name}'; expected a struct",
                    owner.name
                );
                self.problems.at(entry.value.position, message);
                continue;
            };
            let position = entry.key_position;
            branches.push(Branch {
                case: entry.key.clone(),
                ty,
                condition,
                position,
            });
        }
        branches
    }

    /// A union of the older dialects: member `type` selects, member `data` holds the branch.
    fn simple_union(
        &mut self,
        owner: Owner<'_>,
        entries: &[Entry],
        position: Position,
    ) -> Option<DefinitionKind> {
        let mut values = Vec::new();
        let mut branches = Vec::new();
        let mut namespace = Namespace::default();
        for entry in entries {
            let at = entry.key_position;
            let strictness = self.strictness(owner.name, owner.dialect);
            check_name(
                &entry.key,
                NameOf::Branch,
                strictness,
                at,
                &mut self.problems,
            );
            namespace.add("branch", &entry.key, at, &mut self.problems);
            let what = format!("branch '{}'", entry.key);
            let Some((ty, condition)) = self.branch_type(&entry.value, &what) else {
                continue;
            };
            let ty = self.wrapper(owner, ty, at);
            let value = EnumValue {
                name: entry.key.clone(),
                condition: condition.clone(),
                features: Vec::new(),
                position: at,
            };
            values.push(value);
            branches.push(Branch {
                case: entry.key.clone(),
                ty,
                condition,
                position: at,
            });
        }
        let kind = DefinitionKind::Enum {
            values,
            prefix: None,
        };
        let tag = self.add_implicit(
            format!("{}Kind", owner.name),
            position,
            owner.module,
            kind,
            None,
        );
        self.metas.insert(tag, Meta::Enum);
        let member = implied_member("type", TypeRef::One(NamedType::Defined(tag)), position);
        let kind = DefinitionKind::Struct {
            base: None,
            members: vec![member],
        };
        let base_name = format!("q_obj_{}-base", owner.name);
        let base = self.add_implicit(base_name, position, owner.module, kind, None);
        Some(DefinitionKind::Union {
            base,
            discriminator: "type".to_owned(),
            branches,
        })
    }

    /// The struct with member `data` around a branch of a simple union.
    fn wrapper(&mut self, owner: Owner<'_>, ty: TypeRef, position: Position) -> DefinitionId {
        let list = if matches!(ty, TypeRef::Array(_)) {
            "List"
        } else {
            ""
        };
        let element = self.schema.type_name(TypeRef::One(ty.element()));
        let name = format!("q_obj_{element}{list}-wrapper");
        if let Some(id) = self.schema.by_name.get(&name) {
            return *id;
        }
        let members = vec![implied_member("data", ty, position)];
        let kind = DefinitionKind::Struct {
            base: None,
            members,
        };
        self.add_implicit(name, position, owner.module, kind, None)
    }

    /// Refuses structs that are their own base, and chains of bases without measure.
    pub(super) fn check_bases(&mut self) {
        let all: Vec<DefinitionId> = self.schema.definitions().map(|(id, _)| id).collect();
        for start in all {
            let definition = self.schema.get(start);
            let (position, name) = (definition.position, definition.name.clone());
            let mut next = self.base_of(start);
            let mut bases = 0;
            while let Some(id) = next {
                bases += 1;
                if id == start {
                    self.problems
                        .at(position, format!("struct '{name}' is its own base"));
                    break;
                }
                if bases > BASES_MAX {
                    let message = format!("struct '{name}' has more than {BASES_MAX} bases");
                    self.problems.at(position, message);
                    break;
                }
                next = self.base_of(id);
            }
        }
    }

    fn base_of(&self, id: DefinitionId) -> Option<DefinitionId> {
        match &self.schema.get(id).kind {
            DefinitionKind::Struct { base, .. } => *base,
            _ => None,
        }
    }

    /// The checks of one definition that look at others.
    pub(super) fn check_whole(&mut self, id: DefinitionId, meta: Meta, top: &TopLevel) {
        match meta {
            Meta::Struct => self.check_inherited(id),
            Meta::Union => {
                self.check_inherited(id);
                self.check_union(id, top);
            }
            Meta::Alternate => self.check_alternatives(id),
            _ => {}
        }
        self.check_documentation(id, top);
    }

    /// Members of a struct must differ from those of its bases.
    fn check_inherited(&mut self, id: DefinitionId) {
        let members: Vec<(String, Position)> = self
            .schema
            .all_members(id)
            .iter()
            .map(|m| (m.name.clone(), m.position))
            .collect();
        let mut namespace = Namespace::default();
        for (name, position) in members {
            namespace.add("member", &name, position, &mut self.problems);
        }
    }

    fn check_union(&mut self, id: DefinitionId, top: &TopLevel) {
        let DefinitionKind::Union {
            discriminator,
            branches,
            ..
        } = self.schema.get(id).kind.clone()
        else {
            return;
        };
        let at = top
            .get("discriminator")
            .map_or(top.position, |entry| entry.value.position);
        let Some(values) = self.check_discriminator(id, &discriminator, at) else {
            return;
        };
        let mut seen = HashSet::new();
        for branch in &branches {
            if !values.contains(&branch.case) {
                let message = format!(
                    "branch '{}' is not a value of the discriminator's enum",
                    branch.case
                );
                self.problems.at(branch.position, message);
            }
            if !seen.insert(branch.case.clone()) {
                self.problems.at(
                    branch.position,
                    format!("branch '{}' is defined twice", branch.case),
                );
            }
            let common: Vec<String> = self
                .schema
                .all_members(id)
                .iter()
                .map(|member| member.name.clone())
                .collect();
            let clash = self
                .schema
                .all_members(branch.ty)
                .into_iter()
                .find(|member| common.contains(&member.name))
                .map(|member| member.name.clone());
            if let Some(name) = clash {
                let message = format!(
                    "member '{name}' of branch '{}' collides with the base",
                    branch.case
                );
                self.problems.at(branch.position, message);
            }
        }
    }

    /// The values of the discriminator's enum.
    fn check_discriminator(
        &mut self,
        id: DefinitionId,
        discriminator: &str,
        at: Position,
    ) -> Option<HashSet<String>> {
        let found = self
            .schema
            .all_members(id)
            .into_iter()
            .find(|member| member.name == discriminator)
            .map(|member| (member.ty, member.optional, member.condition.is_some()));
        let Some((ty, optional, conditional)) = found else {
            self.problems.at(
                at,
                format!("discriminator '{discriminator}' is not a member of 'base'"),
            );
            return None;
        };
        if optional && self.dialect_of(id) != Dialect::Era1_2 {
            self.problems.at(
                at,
                format!("discriminator member '{discriminator}' must not be optional"),
            );
        }
        if conditional {
            self.problems.at(
                at,
                format!("discriminator member '{discriminator}' must not be conditional"),
            );
        }
        if let TypeRef::One(NamedType::Defined(tag)) = ty
            && let DefinitionKind::Enum { values, .. } = &self.schema.get(tag).kind
        {
            return Some(values.iter().map(|value| value.name.clone()).collect());
        }
        self.problems.at(
            at,
            format!("discriminator member '{discriminator}' must be of enum type"),
        );
        None
    }
}

fn implied_member(name: &str, ty: TypeRef, position: Position) -> Member {
    let (condition, features) = (None, Vec::new());
    Member {
        name: name.to_owned(),
        optional: false,
        ty,
        condition,
        features,
        position,
    }
}
