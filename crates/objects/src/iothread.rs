//! `iothread`: a thread that serves block nodes and devices.

use std::any::Any;
use std::sync::Arc;

use api::{IothreadProperties, ObjectOptionsBranch, ObjectType};
use host_io::{Engine, Executor, ExecutorHandle};
use parking_lot::Mutex;
use serde_json::Value;

use crate::error::ObjectError;
use crate::object::{Object, Property, as_options, property_not_found};
use crate::types::{ObjectTypes, TypeSpec, USER_CREATABLE};

/// `poll-max-ns` when nobody says otherwise, in nanoseconds.
const POLL_MAX_NS_DEFAULT: i64 = 32_768;

/// `thread-pool-max` when nobody says otherwise, in threads.
const THREAD_POOL_MAX_DEFAULT: i64 = 64;

/// The most threads that `thread-pool-min` and `thread-pool-max` may ask for.
pub const THREAD_POOL_MAX: i64 = i32::MAX as i64;

pub(crate) fn register(types: &mut ObjectTypes) {
    let shared = vec![
        Property::writable("thread-pool-min", "int"),
        Property::writable("aio-max-batch", "int"),
        Property::writable("thread-pool-max", "int"),
    ];
    types.register(
        TypeSpec::abstract_type("event-loop-base", "object", shared).with_interface(USER_CREATABLE),
    );
    let own = vec![
        Property::writable("poll-max-ns", "int"),
        Property::writable("poll-grow", "int"),
        Property::writable("poll-shrink", "int"),
    ];
    types.register(TypeSpec::concrete("iothread", "event-loop-base", own));
    types.register_factory(
        ObjectType::Iothread,
        Box::new(|_tree, id, options| match options {
            ObjectOptionsBranch::Iothread(options) => Ok(Arc::new(IoThread::start(id, &options)?)),
            other => Err(ObjectError::NotCreatable(other.kind().to_string())),
        }),
    );
}

/// An iothread's properties. They are kept for those who ask; the executor chooses its polling,
/// batches and threads itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IoThreadSettings {
    /// Nanoseconds to poll at most before going to sleep.
    pub poll_max_ns: i64,
    /// Factor by which the polling time grows.
    pub poll_grow: i64,
    /// Divisor by which it shrinks.
    pub poll_shrink: i64,
    /// Requests handed to the kernel at once at most; 0 lets the server choose.
    pub aio_max_batch: i64,
    /// Worker threads kept ready.
    pub thread_pool_min: i64,
    /// Worker threads at most.
    pub thread_pool_max: i64,
}

impl Default for IoThreadSettings {
    fn default() -> Self {
        Self {
            poll_max_ns: POLL_MAX_NS_DEFAULT,
            poll_grow: 0,
            poll_shrink: 0,
            aio_max_batch: 0,
            thread_pool_min: 0,
            thread_pool_max: THREAD_POOL_MAX_DEFAULT,
        }
    }
}

fn assign(slot: &mut i64, name: &str, value: Option<i64>) -> Result<(), ObjectError> {
    match value {
        Some(value) if value < 0 => Err(ObjectError::invalid(format!(
            "{name} value must be in range [0, {}]",
            i64::MAX
        ))),
        Some(value) => {
            *slot = value;
            Ok(())
        }
        None => Ok(()),
    }
}

impl IoThreadSettings {
    /// Tells the executor what concerns it.
    fn apply(&self, executor: &ExecutorHandle) {
        // Negative values were refused.
        let number = |value: i64| u64::try_from(value).unwrap_or(0);
        executor.polling().set(
            number(self.poll_max_ns),
            number(self.poll_grow),
            number(self.poll_shrink),
        );
    }

    /// These with what is given in `properties`.
    fn with(mut self, properties: &IothreadProperties) -> Result<Self, ObjectError> {
        let IothreadProperties {
            aio_max_batch,
            thread_pool_min,
            thread_pool_max,
            poll_max_ns,
            poll_grow,
            poll_shrink,
        } = properties;
        assign(&mut self.aio_max_batch, "aio-max-batch", *aio_max_batch)?;
        assign(
            &mut self.thread_pool_min,
            "thread-pool-min",
            *thread_pool_min,
        )?;
        assign(
            &mut self.thread_pool_max,
            "thread-pool-max",
            *thread_pool_max,
        )?;
        assign(&mut self.poll_max_ns, "poll-max-ns", *poll_max_ns)?;
        assign(&mut self.poll_grow, "poll-grow", *poll_grow)?;
        assign(&mut self.poll_shrink, "poll-shrink", *poll_shrink)?;
        let pool = self.thread_pool_min..=self.thread_pool_max;
        if pool.is_empty() || !(1..=THREAD_POOL_MAX).contains(&self.thread_pool_max) {
            return Err(ObjectError::invalid(
                "bad thread-pool-min/thread-pool-max values",
            ));
        }
        Ok(self)
    }
}

/// A thread with its executor; both end with the last user of the iothread.
pub struct IoThread {
    // Taken out when it is dropped.
    executor: Option<Executor>,
    handle: ExecutorHandle,
    settings: Mutex<IoThreadSettings>,
}

impl IoThread {
    fn start(id: &str, properties: &IothreadProperties) -> Result<Self, ObjectError> {
        let settings = IoThreadSettings::default().with(properties)?;
        let executor = Executor::start(&format!("IO {id}"), Engine::Uring);
        let executor = executor.map_err(|source| ObjectError::Thread {
            id: id.to_owned(),
            source,
        })?;
        settings.apply(&executor.handle());
        Ok(Self {
            handle: executor.handle(),
            executor: Some(executor),
            settings: Mutex::new(settings),
        })
    }

    /// The executor. Who gives it work keeps the iothread itself as long as the work lasts.
    pub fn handle(&self) -> &ExecutorHandle {
        &self.handle
    }

    /// The properties as they are now.
    pub fn settings(&self) -> IoThreadSettings {
        *self.settings.lock()
    }
}

impl Drop for IoThread {
    fn drop(&mut self) {
        let Some(executor) = self.executor.take() else {
            return;
        };
        // A thread cannot wait for its own end: when the last user was a task of this very
        // executor, another thread does.
        if self.handle.is_current() {
            std::thread::spawn(move || drop(executor));
        }
    }
}

impl Object for IoThread {
    fn type_name(&self) -> &str {
        "iothread"
    }

    fn get(&self, property: &str) -> Result<Value, ObjectError> {
        let settings = self.settings();
        Ok(Value::from(match property {
            "thread-pool-min" => settings.thread_pool_min,
            "aio-max-batch" => settings.aio_max_batch,
            "thread-pool-max" => settings.thread_pool_max,
            "poll-max-ns" => settings.poll_max_ns,
            "poll-grow" => settings.poll_grow,
            "poll-shrink" => settings.poll_shrink,
            _ => return Err(property_not_found(self, property)),
        }))
    }

    fn set(&self, property: &str, value: Value) -> Result<(), ObjectError> {
        let properties: IothreadProperties = api::from_json(as_options(property, value))?;
        let mut settings = self.settings.lock();
        *settings = settings.with(&properties)?;
        settings.apply(&self.handle);
        Ok(())
    }

    fn as_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}
