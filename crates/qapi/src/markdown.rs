//! Reference documentation in Markdown: a section per module, an entry per definition.

use std::fmt::Write as _;

use crate::documentation::{Documentation, SectionTag};
use crate::schema::{
    Condition, Definition, DefinitionId, DefinitionKind, Feature, Member, ModuleItem, NamedType,
    Schema, TypeRef,
};

/// The documentation of everything in the schema that was not taken out.
pub fn markdown(schema: &Schema) -> String {
    let mut out = String::new();
    for module in schema.modules() {
        if !module.items.is_empty() {
            let _ = writeln!(out, "# Module {}\n", module.name());
        }
        for item in &module.items {
            match item {
                ModuleItem::FreeForm(documentation) => free_form(&mut out, documentation),
                ModuleItem::Definition(id) if !schema.get(*id).removed => {
                    definition(&mut out, schema, *id);
                }
                ModuleItem::Definition(_) => {}
            }
        }
    }
    out
}

fn free_form(out: &mut String, documentation: &Documentation) {
    if let Some((level, heading)) = &documentation.heading {
        // Below the module's own heading; Markdown has six levels.
        let _ = writeln!(out, "{} {heading}\n", "#".repeat((level + 1).min(6)));
    }
    paragraph(out, &documentation.overview);
}

fn paragraph(out: &mut String, text: &str) {
    if !text.is_empty() {
        let _ = writeln!(out, "{}\n", references(text));
    }
}

/// `@name` of documentation text as code.
fn references(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('@') {
        out.push_str(before);
        let word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
        let end = after.find(|c| !word(c)).unwrap_or(after.len());
        let (name, tail) = after.split_at(end);
        let begins_word = !before.ends_with(word);
        if begins_word && !name.is_empty() {
            let _ = write!(out, "`{name}`");
        } else {
            let _ = write!(out, "@{name}");
        }
        rest = tail;
    }
    out.push_str(rest);
    out
}

fn definition(out: &mut String, schema: &Schema, id: DefinitionId) {
    let definition = schema.get(id);
    let _ = writeln!(
        out,
        "### {} ({})\n",
        definition.name,
        definition.meta_type()
    );
    let documentation = definition.documentation.as_ref();
    if let Some(documentation) = documentation {
        paragraph(out, &documentation.overview);
    }
    match &definition.kind {
        DefinitionKind::Enum { values, .. } => {
            list(
                out,
                "Values",
                values.iter().map(|value| {
                    let notes = notes(&value.features, value.condition.as_ref());
                    (format!("`{}`{notes}", value.name), value.name.as_str())
                }),
                documentation,
            );
        }
        DefinitionKind::Struct { base, members } => {
            members_of(out, schema, "Members", *base, members, documentation);
        }
        DefinitionKind::Union {
            base,
            discriminator,
            branches,
        } => {
            type_members(out, schema, "Members", Some(*base), documentation);
            let lines = branches.iter().map(|branch| {
                let ty = &schema.get(branch.ty).name;
                (
                    format!(
                        "when `{discriminator}` is `{}`: the members of `{ty}`",
                        branch.case
                    ),
                    "",
                )
            });
            list(out, "Branches", lines, None);
        }
        DefinitionKind::Alternate { alternatives } => {
            let lines = alternatives.iter().map(|alternative| {
                let ty = schema.type_name(alternative.ty);
                (
                    format!("`{}`: `{ty}`", alternative.name),
                    alternative.name.as_str(),
                )
            });
            list(out, "Alternatives", lines, documentation);
        }
        DefinitionKind::Command(command) => {
            type_members(out, schema, "Arguments", command.arguments, documentation);
            if let Some(returns) = command.returns {
                let _ = writeln!(out, "**Result type:** `{}`\n", schema.type_name(returns));
            }
        }
        DefinitionKind::Event { arguments, .. } => {
            type_members(out, schema, "Data", *arguments, documentation);
        }
    }
    tail(out, definition);
}

/// Features, condition and tagged sections.
fn tail(out: &mut String, definition: &Definition) {
    let Some(documentation) = &definition.documentation else {
        return;
    };
    let lines = documentation
        .features
        .iter()
        .map(|feature| (format!("`{}`", feature.name), feature.text.as_str()));
    described(out, "Features", lines);
    for section in &documentation.sections {
        if section.tag != SectionTag::Todo {
            // A list begins on a line of its own.
            let list = section.text.starts_with(['-', '*']);
            let gap = if list { "\n\n" } else { " " };
            let text = references(&section.text);
            let _ = writeln!(out, "**{}:**{gap}{text}\n", section.tag.title());
        }
    }
    if let Some(condition) = &definition.condition {
        let _ = writeln!(out, "**If:** {}\n", condition_text(condition));
    }
}

fn type_members(
    out: &mut String,
    schema: &Schema,
    title: &str,
    ty: Option<DefinitionId>,
    documentation: Option<&Documentation>,
) {
    let Some(id) = ty else { return };
    match &schema.get(id).kind {
        DefinitionKind::Struct { base, members } if schema.get(id).implicit => {
            members_of(out, schema, title, *base, members, documentation);
        }
        _ => {
            let _ = writeln!(
                out,
                "**{title}:** the members of `{}`\n",
                schema.get(id).name
            );
        }
    }
}

fn members_of(
    out: &mut String,
    schema: &Schema,
    title: &str,
    base: Option<DefinitionId>,
    members: &[Member],
    documentation: Option<&Documentation>,
) {
    if let Some(base) = base {
        let _ = writeln!(
            out,
            "**{title}:** the members of `{}`, and those below\n",
            schema.get(base).name
        );
    }
    let lines = members.iter().map(|member| {
        let optional = if member.optional { ", optional" } else { "" };
        let notes = notes(&member.features, member.condition.as_ref());
        let ty = member_type(schema, member.ty);
        (
            format!("`{}` ({ty}{optional}){notes}", member.name),
            member.name.as_str(),
        )
    });
    list(out, title, lines, documentation);
}

fn member_type(schema: &Schema, ty: TypeRef) -> String {
    let name = format!("`{}`", schema.type_name(TypeRef::One(ty.element())));
    let implicit = matches!(ty.element(), NamedType::Defined(id) if schema.get(id).implicit);
    let name = if implicit { "object".to_owned() } else { name };
    match ty {
        TypeRef::One(_) => name,
        TypeRef::Array(_) => format!("array of {name}"),
    }
}

fn list<'a>(
    out: &mut String,
    title: &str,
    lines: impl Iterator<Item = (String, &'a str)>,
    documentation: Option<&'a Documentation>,
) {
    let lines = lines.map(|(line, name)| {
        (
            line,
            documentation
                .and_then(|documentation| documentation.member(name))
                .unwrap_or_default(),
        )
    });
    described(out, title, lines);
}

fn described<'a>(out: &mut String, title: &str, lines: impl Iterator<Item = (String, &'a str)>) {
    let mut first = true;
    for (line, text) in lines {
        if std::mem::take(&mut first) {
            let _ = writeln!(out, "**{title}**\n");
        }
        let text = references(text).replace('\n', "\n  ");
        let colon = if text.is_empty() { "" } else { ": " };
        let _ = writeln!(out, "- {line}{colon}{text}");
    }
    if !first {
        out.push('\n');
    }
}

fn notes(features: &[Feature], condition: Option<&Condition>) -> String {
    let mut text = String::new();
    for feature in features {
        let _ = write!(text, " [{}]", feature.name);
    }
    if let Some(condition) = condition {
        let _ = write!(text, " (if {})", condition_text(condition));
    }
    text
}

fn condition_text(condition: &Condition) -> String {
    let join = |list: &[Condition], word: &str| {
        let parts: Vec<String> = list.iter().map(condition_text).collect();
        format!("({})", parts.join(word))
    };
    match condition {
        Condition::Name(name) => format!("`{name}`"),
        Condition::All(list) => join(list, " and "),
        Condition::Any(list) => join(list, " or "),
        Condition::Not(inner) => format!("not {}", condition_text(inner)),
    }
}
