//! What spans all modules: the enum of events, and the commands as a client sees them.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use qapi::Schema;
use qapi::schema::DefinitionKind;

use crate::names::{Names, camel};
use crate::types::{definition_doc, type_ref};
use crate::{HEADER, Interface};

/// `events.rs`.
pub fn events(schema: &Schema, names: &Names, interfaces: &[Interface<'_>]) -> String {
    let events: Vec<_> = schema
        .definitions()
        .filter_map(|(_, definition)| match &definition.kind {
            DefinitionKind::Event { arguments, .. } => {
                let data = arguments.map(|id| names.ty(id).to_owned());
                Some((definition, camel(&definition.name, true), data))
            }
            _ => None,
        })
        .collect();
    let mut out = format!("{HEADER}\n//! Every event of the schema.\n\nuse super::prelude::*;\n");
    out.extend(interfaces.iter().map(Interface::event_names));
    out.push_str(
        "\n/// An event with its data.\n#[derive(Debug, Clone, PartialEq)]\npub enum Event {\n",
    );
    for (definition, variant, data) in &events {
        for line in definition_doc(definition).lines() {
            let _ = writeln!(out, "    {line}");
        }
        let data = data
            .as_ref()
            .map_or(String::new(), |data| format!("({data})"));
        let _ = writeln!(out, "    {variant}{data},");
    }
    out.push_str("}\n\nimpl Event {\n    /// Its name on the wire.\n    pub fn name(&self) -> &'static str {\n        match *self {\n");
    for (definition, variant, data) in &events {
        let pattern = if data.is_some() { "(_)" } else { "" };
        let _ = writeln!(
            out,
            "            Self::{variant}{pattern} => \"{}\",",
            definition.name
        );
    }
    out.push_str("        }\n    }\n\n    /// Its data: an object, without members where the event has none.\n    pub fn data(&self) -> Value {\n        match self {\n");
    for (_, variant, _) in events.iter().filter(|(_, _, data)| data.is_some()) {
        let _ = writeln!(out, "            Self::{variant}(data) => data.to_qapi(),");
    }
    if events.iter().any(|(_, _, data)| data.is_none()) || events.is_empty() {
        out.push_str("            _ => Value::Object(Map::new()),\n");
    }
    out.push_str("        }\n    }\n\n    /// The event of this name, read from what a server sent; none for an unknown name.\n    ///\n    /// # Errors\n    /// When the data do not fit; unknown members do.\n    pub fn from_parts(name: &str, data: Value) -> Result<Option<Self>, QmpError> {\n        Ok(Some(match name {\n");
    for (definition, variant, data) in &events {
        let read = if data.is_some() {
            "(crate::reply_from_json(data)?.0)"
        } else {
            ""
        };
        let _ = writeln!(
            out,
            "            \"{}\" => Self::{variant}{read},",
            definition.name
        );
    }
    out.push_str("            _ => return Ok(None),\n        }))\n    }\n}\n");
    out
}

/// `commands.rs`.
pub fn commands(schema: &Schema, names: &Names, interfaces: &[Interface<'_>]) -> String {
    let mut out = format!(
        "{HEADER}\n//! Every command of the schema, for clients.\n\nuse super::prelude::*;\nuse super as schema;\n"
    );
    let mut all = BTreeSet::new();
    for (_, definition) in schema.definitions() {
        let DefinitionKind::Command(command) = &definition.kind else {
            continue;
        };
        all.insert(definition.name.as_str());
        let arguments = match command.arguments {
            _ if command.open_arguments => "Value".to_owned(),
            Some(id) => format!("schema::{}", names.ty(id)),
            None => "NoArguments".to_owned(),
        };
        let output = command
            .returns
            .map_or("()".to_owned(), |ty| qualified(&type_ref(names, ty)));
        let name = camel(&definition.name, false);
        let _ = writeln!(
            out,
            "\n{}pub struct {name};\n\nimpl Command for {name} {{\n    const NAME: &'static str = \"{}\";\n    type Args = {arguments};\n    type Output = {output};\n}}",
            definition_doc(definition),
            definition.name,
        );
    }
    out.extend(interfaces.iter().map(Interface::command_names));
    out.push_str("\n/// Calls a macro with the types of all commands.\n#[cfg(test)]\nmacro_rules! for_each_command {\n    ($macro:ident, $($prefix:tt)*) => {\n        $macro! { $($prefix)*\n");
    for name in &all {
        let _ = writeln!(out, "            {}", camel(name, false));
    }
    out.push_str("        }\n    };\n}\n#[cfg(test)]\npub(crate) use for_each_command;\n");
    out
}

/// A type's name as seen from a module whose own types hide some of the schema's.
fn qualified(ty: &str) -> String {
    let builtin = |name: &str| {
        matches!(name, "String" | "Value" | "Null" | "bool" | "f64")
            || name.starts_with(['i', 'u']) && name.len() <= 3
    };
    match ty
        .strip_prefix("Vec<")
        .and_then(|rest| rest.strip_suffix('>'))
    {
        Some(element) => format!("Vec<{}>", qualified(element)),
        None if builtin(ty) => ty.to_owned(),
        None => format!("schema::{ty}"),
    }
}
