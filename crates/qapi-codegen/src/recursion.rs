//! Which members need a box because their type contains, by value, the type they are in.

use std::collections::HashSet;

use qapi::Schema;
use qapi::schema::{DefinitionId, DefinitionKind, Member, NamedType, TypeRef};

/// Whether a member of the type `owner` closes a loop of types that contain each other by value.
///
/// Arrays, branches of unions and objects in alternates are on the heap anyway.
pub fn needs_box(schema: &Schema, owner: DefinitionId, member: &Member) -> bool {
    let Some(start) = by_value(member) else {
        return false;
    };
    let mut seen = HashSet::from([start]);
    let mut next = vec![start];
    while let Some(id) = next.pop() {
        if id == owner {
            return true;
        }
        if !matches!(
            schema.get(id).kind,
            DefinitionKind::Struct { .. } | DefinitionKind::Union { .. }
        ) {
            continue;
        }
        next.extend(
            schema
                .all_members(id)
                .into_iter()
                .filter_map(by_value)
                .filter(|id| seen.insert(*id)),
        );
    }
    false
}

fn by_value(member: &Member) -> Option<DefinitionId> {
    match member.ty {
        TypeRef::One(NamedType::Defined(id)) => Some(id),
        _ => None,
    }
}
