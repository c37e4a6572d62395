//! Commands: what is known of each, and the table of those that a server has.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use serde_json::{Map, Value};

use crate::error::QmpError;
use crate::visit::{FromQapi, ToQapi, from_json};

/// A command, for clients: its name with the types of its arguments and of its output.
pub trait Command {
    /// The name on the wire.
    const NAME: &'static str;
    /// Its arguments.
    type Args: ToQapi;
    /// What it returns.
    type Output: FromQapi;
}

/// What is known of a command beside its handler.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CommandSpec {
    /// The name on the wire.
    pub name: &'static str,
    /// Whether it may run out of band.
    pub allow_oob: bool,
    /// Whether it is available before the machine is built.
    pub allow_preconfig: bool,
    /// Whether its success has a response.
    pub success_response: bool,
    /// Whether QEMU runs its handler as a coroutine.
    pub coroutine: bool,
    /// Its feature strings, as in introspection.
    pub features: &'static [&'static str],
}

impl CommandSpec {
    /// Whether it may be withdrawn in a later release.
    pub fn is_deprecated(&self) -> bool {
        self.features.contains(&"deprecated")
    }

    /// Whether it may change incompatibly in a later release.
    pub fn is_unstable(&self) -> bool {
        self.features.contains(&"unstable")
    }
}

/// What a command that succeeded has to say.
#[derive(Debug, Clone, PartialEq)]
pub enum Return {
    /// A value.
    Value(Value),
    /// A value that is ASCII JSON text already.
    Encoded(Arc<str>),
    /// No response at all (`'success-response': false`).
    Nothing,
}

impl Return {
    /// The empty object: success with nothing to say.
    pub fn empty() -> Self {
        Self::Value(Value::Object(Map::new()))
    }
}

/// The answer of a handler, while it is at work.
pub type HandlerFuture = Pin<Box<dyn Future<Output = Result<Return, QmpError>> + Send>>;

/// A handler: the caller's context and the `arguments` object (or null) to the answer.
pub type Handler<C> = Arc<dyn Fn(Arc<C>, Value) -> HandlerFuture + Send + Sync>;

/// A command in a table.
pub struct Registered<C> {
    /// What is known of it.
    pub spec: CommandSpec,
    /// What runs it.
    pub handler: Handler<C>,
}

impl<C> Clone for Registered<C> {
    fn clone(&self) -> Self {
        Self {
            spec: self.spec,
            handler: Arc::clone(&self.handler),
        }
    }
}

/// The commands of a server by name. `C` is what a monitor tells handlers of the caller.
pub struct CommandTable<C> {
    commands: BTreeMap<&'static str, Registered<C>>,
}

impl<C> Clone for CommandTable<C> {
    fn clone(&self) -> Self {
        Self {
            commands: self.commands.clone(),
        }
    }
}

impl<C> Default for CommandTable<C> {
    fn default() -> Self {
        Self {
            commands: BTreeMap::new(),
        }
    }
}

impl<C: Send + Sync + 'static> CommandTable<C> {
    /// A table without commands.
    pub fn new() -> Self {
        Self::default()
    }

    /// The command of this name.
    pub fn get(&self, name: &str) -> Option<&Registered<C>> {
        self.commands.get(name)
    }

    /// Every command, by name in ascending order.
    pub fn specs(&self) -> impl Iterator<Item = &CommandSpec> {
        self.commands.values().map(|command| &command.spec)
    }

    /// Those of `names` that have no handler; with the names of a program's [`crate::Interface`] it is
    /// empty for a server that registered every module of its schema.
    pub fn missing(&self, names: &[&'static str]) -> Vec<&'static str> {
        names
            .iter()
            .copied()
            .filter(|name| !self.commands.contains_key(name))
            .collect()
    }

    /// Enters a command whose arguments and result stay JSON. A later entry replaces an earlier one.
    pub fn add_raw<F, Fut>(&mut self, spec: CommandSpec, handler: F)
    where
        F: Fn(Arc<C>, Value) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Return, QmpError>> + Send + 'static,
    {
        let handler: Handler<C> =
            Arc::new(move |context, arguments| Box::pin(handler(context, arguments)));
        self.commands
            .insert(spec.name, Registered { spec, handler });
    }

    /// Enters a command whose arguments and result are typed.
    pub fn add<A, R, F, Fut>(&mut self, spec: CommandSpec, handler: F)
    where
        A: FromQapi + Send + 'static,
        R: ToQapi + Send,
        F: Fn(Arc<C>, A) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<R, QmpError>> + Send + 'static,
    {
        let handler: Handler<C> = Arc::new(move |context, arguments| {
            let arguments = match read_arguments::<A>(arguments) {
                Ok(arguments) => arguments,
                Err(error) => return Box::pin(std::future::ready(Err(error))),
            };
            let running = handler(context, arguments);
            Box::pin(async move {
                let returned = running.await?;
                Ok(match spec.success_response {
                    true => Return::Value(returned.to_qapi()),
                    false => Return::Nothing,
                })
            })
        });
        self.commands
            .insert(spec.name, Registered { spec, handler });
    }
}

/// Arguments that are left out are those of an empty object.
fn read_arguments<A: FromQapi>(arguments: Value) -> Result<A, QmpError> {
    from_json(match arguments {
        Value::Null => Value::Object(Map::new()),
        arguments => arguments,
    })
}
