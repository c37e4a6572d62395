mod lookups;
mod tls;
#[cfg(feature = "tls-anon-psk")]
mod tls_without_certificates;
mod transcripts;
mod tree;

use std::sync::Arc;

use api::{CommandTable, QmpError, Return};
use serde_json::Value;

use crate::{ObjectHandlers, ObjectTree, standard_types};

/// A tree behind its commands.
struct Server {
    tree: Arc<ObjectTree>,
    table: CommandTable<()>,
    runtime: tokio::runtime::Runtime,
}

impl Server {
    fn new() -> Self {
        let tree = Arc::new(ObjectTree::new(standard_types()));
        let mut table = CommandTable::new();
        api::register_qom(&mut table, ObjectHandlers::new(Arc::clone(&tree)));
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        Self {
            tree,
            table,
            runtime: runtime.unwrap(),
        }
    }

    fn run(&self, command: &str, arguments: Value) -> Result<Value, QmpError> {
        let handler = &self.table.get(command).expect(command).handler;
        match self.runtime.block_on(handler(Arc::new(()), arguments))? {
            // What has nothing to say is written as null, and by the session as an empty object.
            Return::Value(Value::Null) | Return::Nothing => Ok(serde_json::json!({})),
            Return::Value(value) => Ok(value),
            Return::Encoded(text) => Ok(serde_json::from_str(&text).unwrap()),
        }
    }

    fn add(&self, options: Value) -> Result<(), String> {
        let added = self.run("object-add", options);
        added.map(drop).map_err(|error| error.desc)
    }
}
