//! `cargo xtask schema-diff`: our introspection against another one, by structure.
//!
//! Type names are masked and differ; two types are alike when everything below them is. Loops are cut
//! at a pair of types that is being compared already.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use serde_json::Value;

use crate::codegen::{Program, served_schema, whole_schema};

/// Runs the task; any difference is a failure.
pub fn run(arguments: &[String]) -> anyhow::Result<ExitCode> {
    let only_served = arguments.iter().any(|argument| argument == "--only-served");
    let program = match arguments.iter().any(|argument| argument == "--machine") {
        true => Program::Machine,
        false => Program::StorageDaemon,
    };
    let paths: Vec<&String> = arguments
        .iter()
        .filter(|argument| !argument.starts_with("--"))
        .collect();
    let [path] = paths.as_slice() else {
        bail!("usage: cargo xtask schema-diff REFERENCE.json [--machine] [--only-served]");
    };
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
    let reference: Value =
        serde_json::from_str(&text).with_context(|| format!("{path} is not JSON"))?;
    let reference = reference.get("return").unwrap_or(&reference);
    let whole = qapi::introspect::introspect(&whole_schema(program)?);
    let mut differences = differences_of(&whole, reference, only_served)?;
    if only_served {
        let served = qapi::introspect::introspect(&served_schema(program)?);
        let (unexplained, pending) = split(differences_of(&served, reference, true)?, &differences);
        differences = unexplained;
        eprintln!(
            "{} differences are of what schema/pending.toml lists",
            pending.len()
        );
    }
    for difference in &differences {
        println!("{difference}");
    }
    eprintln!("{} differences", differences.len());
    Ok(if differences.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Every difference, as `path: what`. With `only_served`, what we lack altogether is none.
fn differences_of(
    ours: &Value,
    reference: &Value,
    only_served: bool,
) -> anyhow::Result<Vec<String>> {
    let (ours, reference) = (by_name(ours)?, by_name(reference)?);
    let entities = |side: &BTreeMap<String, &Value>| -> BTreeSet<String> {
        let is_entity = |info: &&Value| matches!(text(info, "meta-type"), "command" | "event");
        side.iter()
            .filter(|(_, info)| is_entity(info))
            .map(|(name, _)| name.clone())
            .collect()
    };
    let (our_names, their_names) = (entities(&ours), entities(&reference));
    let mut diff = Diff {
        ours,
        reference,
        seen: HashSet::new(),
        out: Vec::new(),
    };
    for name in our_names.union(&their_names) {
        match (our_names.contains(name), their_names.contains(name)) {
            (true, true) => diff.entity(name),
            (true, false) => diff.out.push(format!("{name}: not in the reference")),
            (false, true) if !only_served => diff.out.push(format!("{name}: missing")),
            _ => {}
        }
    }
    Ok(diff.out)
}

/// Parts the differences of what is served: those that the whole schema has too, and those that come
/// of leaving out what is pending.
fn split(served: Vec<String>, whole: &[String]) -> (Vec<String>, Vec<String>) {
    served
        .into_iter()
        .partition(|difference| whole.contains(difference))
}

fn by_name(introspection: &Value) -> anyhow::Result<BTreeMap<String, &Value>> {
    let list = introspection
        .as_array()
        .context("introspection is not an array")?;
    Ok(list
        .iter()
        .map(|info| (text(info, "name").to_owned(), info))
        .collect())
}

fn text<'a>(info: &'a Value, key: &str) -> &'a str {
    info.get(key).and_then(Value::as_str).unwrap_or_default()
}

fn list<'a>(info: &'a Value, key: &str) -> &'a [Value] {
    info.get(key)
        .and_then(Value::as_array)
        .map_or(&[], Vec::as_slice)
}

fn features(info: &Value) -> BTreeSet<&str> {
    list(info, "features")
        .iter()
        .filter_map(Value::as_str)
        .collect()
}

struct Diff<'a> {
    ours: BTreeMap<String, &'a Value>,
    reference: BTreeMap<String, &'a Value>,
    seen: HashSet<(String, String)>,
    out: Vec<String>,
}

impl<'a> Diff<'a> {
    fn say(&mut self, path: &str, what: impl std::fmt::Display) {
        self.out.push(format!("{path}: {what}"));
    }

    fn entity(&mut self, name: &str) {
        let (Some(ours), Some(theirs)) = (self.ours.get(name), self.reference.get(name)) else {
            return;
        };
        let (ours, theirs) = (*ours, *theirs);
        let (our_kind, their_kind) = (text(ours, "meta-type"), text(theirs, "meta-type"));
        if our_kind != their_kind {
            return self.say(name, format!("{our_kind} instead of {their_kind}"));
        }
        self.features(name, ours, theirs);
        let oob = |info: &Value| {
            info.get("allow-oob")
                .and_then(Value::as_bool)
                .unwrap_or(false)
        };
        if oob(ours) != oob(theirs) {
            self.say(name, format!("allow-oob is {}", oob(ours)));
        }
        self.types(
            &format!("{name}.arg"),
            text(ours, "arg-type"),
            text(theirs, "arg-type"),
        );
        if our_kind == "command" {
            self.types(
                &format!("{name}.ret"),
                text(ours, "ret-type"),
                text(theirs, "ret-type"),
            );
        }
    }

    fn features(&mut self, path: &str, ours: &Value, theirs: &Value) {
        let (ours, theirs) = (features(ours), features(theirs));
        for feature in theirs.difference(&ours) {
            self.say(path, format!("feature '{feature}' missing"));
        }
        for feature in ours.difference(&theirs) {
            self.say(path, format!("feature '{feature}' not in the reference"));
        }
    }

    fn types(&mut self, path: &str, ours: &str, theirs: &str) {
        if !self.seen.insert((ours.to_owned(), theirs.to_owned())) {
            return;
        }
        let (Some(our_info), Some(their_info)) = (self.ours.get(ours), self.reference.get(theirs))
        else {
            return self.say(
                path,
                format!("type '{ours}' or '{theirs}' is not described"),
            );
        };
        let (ours, theirs) = (*our_info, *their_info);
        let (our_kind, their_kind) = (text(ours, "meta-type"), text(theirs, "meta-type"));
        if our_kind != their_kind {
            return self.say(path, format!("{our_kind} instead of {their_kind}"));
        }
        self.features(path, ours, theirs);
        match our_kind {
            "builtin" => {
                let (our_json, their_json) = (text(ours, "json-type"), text(theirs, "json-type"));
                if our_json != their_json {
                    self.say(path, format!("{our_json} instead of {their_json}"));
                }
            }
            "array" => {
                let element = format!("{path}[]");
                self.types(
                    &element,
                    text(ours, "element-type"),
                    text(theirs, "element-type"),
                );
            }
            "enum" => self.named(
                path,
                "enum value",
                list(ours, "members"),
                list(theirs, "members"),
                "name",
            ),
            "object" => self.object(path, ours, theirs),
            "alternate" => self.alternate(path, ours, theirs),
            _ => self.say(path, format!("unknown meta-type '{our_kind}'")),
        }
    }

    fn object(&mut self, path: &str, ours: &'a Value, theirs: &'a Value) {
        self.named(
            path,
            "member",
            list(ours, "members"),
            list(theirs, "members"),
            "name",
        );
        if text(ours, "tag") != text(theirs, "tag") {
            self.say(
                path,
                format!(
                    "tag '{}' instead of '{}'",
                    text(ours, "tag"),
                    text(theirs, "tag")
                ),
            );
        }
        self.named(
            path,
            "case",
            list(ours, "variants"),
            list(theirs, "variants"),
            "case",
        );
    }

    /// Compares lists of members, values or cases by name.
    fn named(&mut self, path: &str, what: &str, ours: &'a [Value], theirs: &'a [Value], key: &str) {
        for info in theirs {
            let name = text(info, key);
            if !ours.iter().any(|known| text(known, key) == name) {
                self.say(path, format!("{what} '{name}' missing"));
            }
        }
        for info in ours {
            let name = text(info, key);
            let Some(other) = theirs.iter().find(|known| text(known, key) == name) else {
                self.say(path, format!("{what} '{name}' not in the reference"));
                continue;
            };
            let inner = if key == "case" {
                format!("{path}<{name}>")
            } else {
                format!("{path}.{name}")
            };
            self.features(&inner, info, other);
            if info.get("default").is_some() != other.get("default").is_some() {
                let optional = if info.get("default").is_some() {
                    "optional"
                } else {
                    "required"
                };
                self.say(&inner, format!("is {optional}"));
            }
            if what != "enum value" {
                self.types(&inner, text(info, "type"), text(other, "type"));
            }
        }
    }

    /// Alternatives have no names: they are told apart by their kind of JSON.
    fn alternate(&mut self, path: &str, ours: &'a Value, theirs: &'a Value) {
        let kinds =
            |side: &BTreeMap<String, &'a Value>, info: &'a Value| -> BTreeMap<String, String> {
                list(info, "members")
                    .iter()
                    .map(|member| {
                        let ty = text(member, "type");
                        let info = side.get(ty).copied().unwrap_or(&Value::Null);
                        let json = text(info, "json-type");
                        let kind = if json.is_empty() {
                            text(info, "meta-type")
                        } else {
                            json
                        };
                        (kind.to_owned(), ty.to_owned())
                    })
                    .collect()
            };
        let (ours, theirs) = (kinds(&self.ours, ours), kinds(&self.reference, theirs));
        for kind in theirs.keys().filter(|kind| !ours.contains_key(*kind)) {
            self.say(path, format!("alternative of kind {kind} missing"));
        }
        for (kind, ty) in &ours {
            match theirs.get(kind) {
                Some(other) => self.types(&format!("{path}<{kind}>"), ty, other),
                None => self.say(
                    path,
                    format!("alternative of kind {kind} not in the reference"),
                ),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// What `qemu-system-x86_64` 10.0.2 answers to `query-qmp-schema`.
    const REFERENCE: &str = include_str!("../reference/qmp-schema-system-x86_64-10.0.2.json");

    /// In what the machine's whole schema differs from the reference, and why. What is left out of the
    /// schema until it is built stands with its reason in `schema/pending.toml`.
    const ON_PURPOSE: [(&str, &str); 3] = [
        (
            "block-export-add.arg<nbd>: member 'resizable' not in the reference",
            "NBD_CMD_RESIZE is ours alone",
        ),
        (
            "qom-list-get: not in the reference",
            "it came with QEMU 10.1",
        ),
        (
            "query-events: not in the reference",
            "QEMU dropped it with 6.0, and clients written for older versions ask",
        ),
    ];

    fn introspection(schema: &qapi::Schema) -> Value {
        qapi::introspect::introspect(schema)
    }

    /// Every command, event and type that the machine's schema and the reference both have is the same.
    #[test]
    fn the_machine_is_like_the_reference() {
        let reference: Value = serde_json::from_str(REFERENCE).unwrap();
        let whole = introspection(&whole_schema(Program::Machine).unwrap());
        let differences = differences_of(&whole, &reference, true).unwrap();
        assert_eq!(differences, ON_PURPOSE.map(|(difference, _)| difference));
    }

    /// Nothing of what only the machine has is pending, down to the last member and value.
    #[test]
    fn what_the_machine_adds_is_complete() {
        let reference: Value = serde_json::from_str(REFERENCE).unwrap();
        let daemon = served_schema(Program::StorageDaemon).unwrap();
        let machine = served_schema(Program::Machine).unwrap();
        let mut added = introspection(&machine);
        let infos = added.as_array_mut().unwrap();
        infos.retain(|info| daemon.find(text(info, "name")).is_none());
        let kinds = infos.iter().map(|info| text(info, "meta-type"));
        assert_eq!(kinds.clone().filter(|kind| *kind == "command").count(), 28);
        assert_eq!(kinds.filter(|kind| *kind == "event").count(), 18);
        assert_eq!(
            differences_of(&added, &reference, true).unwrap(),
            Vec::<String>::new()
        );
        let before_the_machine: Vec<&str> = machine
            .definitions()
            .filter(|(_, definition)| daemon.find(&definition.name).is_none())
            .filter_map(|(_, definition)| match &definition.kind {
                qapi::DefinitionKind::Command(command) if command.allow_preconfig => {
                    Some(definition.name.as_str())
                }
                _ => None,
            })
            .collect();
        // Introspection does not tell these; QEMU run with -preconfig does.
        assert_eq!(
            before_the_machine,
            [
                "query-status",
                "set-action",
                "query-name",
                "query-iothreads",
                "query-uuid"
            ]
        );
    }

    fn sample(members: Value) -> Value {
        json!([
            { "name": "go", "meta-type": "command", "arg-type": "0", "ret-type": "1" },
            { "name": "0", "meta-type": "object", "members": members },
            { "name": "1", "meta-type": "object", "members": [] },
            { "name": "2", "meta-type": "enum", "members": [{ "name": "a" }] },
            { "name": "str", "meta-type": "builtin", "json-type": "string" },
        ])
    }

    #[test]
    fn a_schema_is_like_itself() {
        let ours = qapi::introspect::introspect(&whole_schema(Program::Machine).unwrap());
        assert_eq!(
            differences_of(&ours, &ours, false).unwrap(),
            Vec::<String>::new()
        );
    }

    #[test]
    fn what_is_pending_explains_its_differences() {
        let rows = |list: &[&str]| list.iter().map(|row| (*row).to_owned()).collect::<Vec<_>>();
        assert_eq!(
            split(rows(&["a: x", "b: y"]), &rows(&["b: y", "c: z"])),
            (rows(&["b: y"]), rows(&["a: x"]))
        );
    }

    #[test]
    fn each_difference_has_its_path() {
        let ours = sample(json!([{ "name": "x", "type": "str" }, { "name": "k", "type": "2" }]));
        let theirs = sample(json!([
            { "name": "x", "type": "2", "default": null },
            { "name": "y", "type": "str", "features": ["f"] },
        ]));
        assert_eq!(
            differences_of(&ours, &theirs, false).unwrap(),
            [
                "go.arg: member 'y' missing",
                "go.arg.x: is required",
                "go.arg.x: builtin instead of enum",
                "go.arg: member 'k' not in the reference",
            ]
        );
        let extra = differences_of(&ours, &json!([]), false).unwrap();
        assert_eq!(extra, ["go: not in the reference"]);
        assert_eq!(
            differences_of(&json!([]), &ours, false).unwrap(),
            ["go: missing"]
        );
        assert!(differences_of(&json!([]), &ours, true).unwrap().is_empty());
    }
}
