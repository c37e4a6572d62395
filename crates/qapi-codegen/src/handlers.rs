//! Per schema module, the trait of its command handlers and the function that registers them.

use std::fmt::Write as _;

use qapi::schema::{Command, DefinitionKind};
use qapi::{Definition, Schema};

use crate::names::{self, Names, camel, field};
use crate::types::{definition_doc, type_ref};

/// The trait and the function, or nothing for a module without commands.
pub fn module(schema: &Schema, names: &Names, index: usize) -> String {
    let commands: Vec<(&Definition, &Command)> = schema
        .definitions()
        .filter(|(_, definition)| definition.module == index)
        .filter_map(|(_, definition)| match &definition.kind {
            DefinitionKind::Command(command) => Some((definition, command)),
            _ => None,
        })
        .collect();
    let Some(module) = schema.modules().get(index).filter(|_| !commands.is_empty()) else {
        return String::new();
    };
    let trait_name = format!("{}Commands", camel(module.name(), false));
    let mut out = String::new();
    let _ = writeln!(
        out,
        "\n/// The handlers of the commands of schema module `{}`. `C` is what a monitor tells them of the caller.\npub trait {trait_name}<C>: Send + Sync + 'static {{",
        module.name()
    );
    for (position, (definition, command)) in commands.iter().enumerate() {
        if position > 0 {
            out.push('\n');
        }
        method(&mut out, names, definition, command);
    }
    let _ = writeln!(
        out,
        "}}\n\n/// Enters the commands of schema module `{}` into a table.\npub fn register_{}<C, H>(table: &mut CommandTable<C>, handler: Arc<H>)\nwhere\n    C: Send + Sync + 'static,\n    H: {trait_name}<C>,\n{{",
        module.name(),
        names::module(module.name()).trim_start_matches("r#"),
    );
    for (definition, command) in &commands {
        registration(&mut out, definition, command, names);
    }
    out.push_str("}\n");
    out
}

fn method(out: &mut String, names: &Names, definition: &Definition, command: &Command) {
    for line in definition_doc(definition).lines() {
        let _ = writeln!(out, "    {line}");
    }
    let arguments = arguments(names, command);
    let parameter = if command.arguments.is_some() || is_raw(command) {
        format!(", arguments: {arguments}")
    } else {
        String::new()
    };
    let _ = writeln!(
        out,
        "    fn {}(&self, context: Arc<C>{parameter}) -> impl Future<Output = Result<{}, QmpError>> + Send;",
        field(&definition.name),
        output(names, command),
    );
}

fn registration(out: &mut String, definition: &Definition, command: &Command, names: &Names) {
    let features: Vec<String> = definition
        .features
        .iter()
        .map(|feature| format!("\"{}\"", feature.name))
        .collect();
    let _ = writeln!(
        out,
        "    let spec = CommandSpec {{ name: \"{}\", allow_oob: {}, allow_preconfig: {}, success_response: {}, coroutine: {}, features: &[{}] }};",
        definition.name,
        command.allow_oob,
        command.allow_preconfig,
        command.success_response,
        command.coroutine,
        features.join(", "),
    );
    let pass = if command.arguments.is_some() || is_raw(command) {
        ", arguments"
    } else {
        ""
    };
    let unused = if pass.is_empty() { "_" } else { "" };
    let add = if is_raw(command) { "add_raw" } else { "add" };
    let ty = if is_raw(command) {
        "Value".to_owned()
    } else {
        arguments(names, command)
    };
    let _ = writeln!(
        out,
        "    let shared = Arc::clone(&handler);\n    table.{add}(spec, move |context, {unused}arguments: {ty}| {{\n        let handler = Arc::clone(&shared);\n        async move {{ handler.{}(context{pass}).await }}\n    }});",
        field(&definition.name),
    );
}

/// Whether a handler takes and gives JSON (`'gen': false`).
fn is_raw(command: &Command) -> bool {
    !command.generated || command.open_arguments
}

fn arguments(names: &Names, command: &Command) -> String {
    match command.arguments {
        _ if is_raw(command) => "Value".to_owned(),
        Some(id) => names.ty(id).to_owned(),
        None => "NoArguments".to_owned(),
    }
}

fn output(names: &Names, command: &Command) -> String {
    match command.returns {
        _ if is_raw(command) => "Return".to_owned(),
        Some(ty) => type_ref(names, ty),
        None => "()".to_owned(),
    }
}
