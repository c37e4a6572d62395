//! What a cargo feature of the generated crate adds to the schema.

use qapi::Schema;
use qapi::schema::{DefinitionKind, EnumValue};

use crate::CodegenError;

/// The schema of a build without a cargo feature, beside that of a build with it.
///
/// A feature may add enum values, and with them branches of unions. Each combination of features
/// has an introspection of its own, so there is one feature until more are needed.
#[derive(Debug, Clone, Copy)]
pub struct WithoutFeature<'a> {
    /// The cargo feature.
    pub feature: &'a str,
    /// The schema without it.
    pub schema: &'a Schema,
}

impl WithoutFeature<'_> {
    /// The feature, if it is what adds this value to the enum.
    pub(crate) fn adds(&self, enumeration: &str, value: &EnumValue) -> Option<&str> {
        match &self.schema.find(enumeration)?.kind {
            DefinitionKind::Enum { values, .. } => {
                let always = values.iter().any(|known| known.name == value.name);
                (!always).then_some(self.feature)
            }
            _ => None,
        }
    }

    /// Refuses a feature that adds, to the schema `with` it, what the text has no form for.
    pub(crate) fn check(&self, with: &Schema) -> Result<(), CodegenError> {
        for (_, definition) in with.definitions() {
            let known = self.schema.find(&definition.name);
            let same = match (&definition.kind, known.map(|known| &known.kind)) {
                (_, None) => false,
                (DefinitionKind::Struct { members, .. }, Some(known)) => {
                    matches!(known, DefinitionKind::Struct { members: known, .. } if known.len() == members.len())
                }
                (DefinitionKind::Alternate { alternatives }, Some(known)) => {
                    matches!(known, DefinitionKind::Alternate { alternatives: known } if known.len() == alternatives.len())
                }
                _ => true,
            };
            if !same {
                return Err(CodegenError::Unsupported {
                    definition: definition.name.clone(),
                    reason: format!(
                        "the cargo feature '{}' may add nothing but enum values and their branches",
                        self.feature
                    ),
                });
            }
        }
        Ok(())
    }
}
