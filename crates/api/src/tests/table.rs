//! The command table with handlers of the test schema.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use serde_json::{Value, json};

use super::generated::*;
use crate::{Command as _, CommandTable, Interface, QmpError, Return};

/// Polls a future that never waits.
fn finish<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("the handler waits"),
    }
}

struct Handlers;

/// Who calls.
struct Caller(&'static str);

impl LanguageCommands<Caller> for Handlers {
    async fn draw(&self, context: Arc<Caller>, arguments: DrawArgs) -> Result<Shape, QmpError> {
        match arguments.shape {
            Ref::Inline(shape) => Ok(*shape),
            _ => Err(QmpError::generic(format!("{} gave no shape", context.0))),
        }
    }

    async fn add_shape(&self, _: Arc<Caller>, _: Shape) -> Result<(), QmpError> {
        Ok(())
    }

    async fn roll(&self, _: Arc<Caller>) -> Result<Vec<i64>, QmpError> {
        Ok(vec![4])
    }

    async fn reset(&self, _: Arc<Caller>) -> Result<(), QmpError> {
        Ok(())
    }

    async fn raw(&self, _: Arc<Caller>, arguments: Value) -> Result<Return, QmpError> {
        Ok(Return::Encoded(arguments.to_string().into()))
    }
}

fn table() -> CommandTable<Caller> {
    let mut table = CommandTable::new();
    register_language(&mut table, Arc::new(Handlers));
    table
}

fn call(name: &str, arguments: Value) -> Result<Return, QmpError> {
    let table = table();
    let handler = Arc::clone(&table.get(name).unwrap().handler);
    finish(handler(Arc::new(Caller("me")), arguments))
}

#[test]
fn commands_are_called_with_what_they_take() {
    let shape = json!({ "name": "p", "kind": "point" });
    assert_eq!(
        call("draw", json!({ "shape": shape })).unwrap(),
        Return::Value(shape.clone())
    );
    assert_eq!(
        call("draw", json!({ "shape": 1 })).unwrap_err().desc,
        "me gave no shape"
    );
    assert_eq!(
        call("draw", Value::Null).unwrap_err().desc,
        "Parameter 'shape' is missing"
    );
    assert_eq!(call("add-shape", shape).unwrap(), Return::empty());
    assert_eq!(
        call("roll", Value::Null).unwrap(),
        Return::Value(json!([4]))
    );
    assert_eq!(
        call("roll", json!({ "x": 1 })).unwrap_err().desc,
        "Parameter 'x' is unexpected"
    );
    assert_eq!(call("reset", json!({})).unwrap(), Return::Nothing);
    assert_eq!(
        call("raw", json!({ "any": 1 })).unwrap(),
        Return::Encoded("{\"any\":1}".into())
    );
}

#[test]
fn specs_say_what_the_schema_says() {
    let table = table();
    let spec = table.get("draw").unwrap().spec;
    assert!(spec.allow_oob && spec.allow_preconfig && spec.is_unstable() && !spec.is_deprecated());
    assert!(table.get("add-shape").unwrap().spec.coroutine);
    assert!(!table.get("reset").unwrap().spec.success_response);
    assert!(table.get("nothing").is_none());
    let missing = table.missing(COMMAND_NAMES);
    assert!(missing.contains(&"query-width") && !missing.contains(&"draw"));
    assert_eq!(table.specs().count() + missing.len(), COMMAND_NAMES.len());
}

#[test]
fn clients_have_a_type_per_command() {
    fn name<T: crate::Command>() -> &'static str {
        T::NAME
    }
    assert_eq!(commands::Draw::NAME, "draw");
    assert_eq!(name::<commands::NetdevNew>(), "netdev_new");
    let _: fn(<commands::Draw as crate::Command>::Output) -> Shape = |shape| shape;
}

/// The names in an introspection with this meta-type, in its order.
fn names_in<'a>(introspection: &'a Value, meta_type: &str) -> Vec<&'a str> {
    let infos = introspection.as_array().unwrap().iter();
    infos
        .filter(|info| info["meta-type"] == meta_type)
        .map(|info| info["name"].as_str().unwrap())
        .collect()
}

#[test]
fn interfaces_agree_with_their_introspection() {
    for interface in [Interface::STORAGE_DAEMON, Interface::MACHINE] {
        let text = interface.introspection;
        assert!(text.is_ascii() && !text.contains('\n'));
        let parsed: Value = serde_json::from_str(text).unwrap();
        let mut commands = names_in(&parsed, "command");
        commands.sort_unstable();
        assert_eq!(commands, interface.command_names);
        assert_eq!(names_in(&parsed, "event"), interface.event_names);
        // The answer fits its own type.
        let infos: Vec<crate::SchemaInfo> = crate::from_json(parsed).unwrap();
        assert!(infos.len() > interface.command_names.len());
    }
}

#[test]
fn the_machine_has_what_the_daemon_has_and_more() {
    let (daemon, machine) = (Interface::STORAGE_DAEMON, Interface::MACHINE);
    let has = |names: &[&str], name: &&str| names.contains(name);
    assert!(
        daemon
            .command_names
            .iter()
            .all(|name| has(machine.command_names, name))
    );
    assert!(
        daemon
            .event_names
            .iter()
            .all(|name| has(machine.event_names, name))
    );
    for (command, event) in [("stop", "STOP"), ("query-name", "BLOCK_IO_ERROR")] {
        assert!(has(machine.command_names, &command) && !has(daemon.command_names, &command));
        assert!(has(machine.event_names, &event) && !has(daemon.event_names, &event));
    }
}

/// What answers the commands of the schema module `pci`: nothing is plugged in.
struct NoPci;

impl crate::PciCommands<Caller> for NoPci {
    async fn query_pci(&self, _: Arc<Caller>) -> Result<Vec<crate::PciInfo>, QmpError> {
        Ok(Vec::new())
    }
}

#[test]
fn a_table_tells_what_a_program_lacks() {
    let mut table = CommandTable::new();
    crate::register_pci(&mut table, Arc::new(NoPci));
    let missing = table.missing(Interface::MACHINE.command_names);
    assert_eq!(missing.len(), crate::MACHINE_COMMAND_NAMES.len() - 1);
    assert!(missing.contains(&"device_add") && !missing.contains(&"query-pci"));
    assert_eq!(table.missing(crate::COMMAND_NAMES), crate::COMMAND_NAMES);
}
