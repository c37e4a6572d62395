//! The eras of the language.

use crate::parser::{ExprValue, Item};

/// Which era's rules a file follows. Each file of a schema has its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Dialect {
    /// About QEMU 1.2: `type` for struct, nested anonymous objects, unions without base, `'**'`,
    /// `'gen': 'no'`, documentation without any rules.
    Era1_2,
    /// About QEMU 2.11: simple unions, `*-whitelist` pragmas, looser documentation.
    Era2_11,
    /// Today's language.
    Modern,
}

impl Dialect {
    /// The oldest era whose constructs the file uses.
    pub(crate) fn detect(items: &[Item]) -> Self {
        items
            .iter()
            .map(Self::of_item)
            .min()
            .unwrap_or(Self::Modern)
    }

    fn of_item(item: &Item) -> Self {
        let Item::Expression(top) = item else {
            return Self::Modern;
        };
        if top.get("type").is_some() {
            return Self::Era1_2;
        }
        let gen_text = top
            .get("gen")
            .is_some_and(|entry| entry.value.as_str().is_some());
        let open = top.get("data").is_some_and(|data| match &data.value.value {
            ExprValue::Object(members) => members
                .iter()
                .any(|member| member.value.as_str() == Some("**")),
            _ => false,
        });
        if gen_text || open {
            return Self::Era1_2;
        }
        let simple_union = top.get("union").is_some() && top.get("discriminator").is_none();
        let whitelist = top
            .get("pragma")
            .is_some_and(|pragma| match &pragma.value.value {
                ExprValue::Object(entries) => entries
                    .iter()
                    .any(|entry| entry.key.ends_with("-whitelist")),
                _ => false,
            });
        if simple_union || whitelist {
            return Self::Era2_11;
        }
        Self::Modern
    }

    /// Whether this era is today's.
    pub fn is_modern(self) -> bool {
        self == Self::Modern
    }
}
