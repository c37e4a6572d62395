//! The command table with handlers of the test schema.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use serde_json::{Value, json};

use super::generated::*;
use crate::{Command as _, CommandTable, QmpError, Return};

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

#[test]
fn introspection_is_one_line_of_ascii() {
    assert!(crate::INTROSPECTION.is_ascii() && !crate::INTROSPECTION.contains('\n'));
    let parsed: Value = serde_json::from_str(crate::INTROSPECTION).unwrap();
    let commands: Vec<&str> = parsed
        .as_array()
        .unwrap()
        .iter()
        .filter(|info| info["meta-type"] == "command")
        .map(|info| info["name"].as_str().unwrap())
        .collect();
    assert_eq!(commands.len(), crate::COMMAND_NAMES.len());
    let count = commands.len();
    // The answer fits its own type.
    let infos: Vec<crate::SchemaInfo> = crate::from_json(parsed).unwrap();
    assert!(infos.len() > count);
}
