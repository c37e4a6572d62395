//! Jobs: long work that clients start, watch and steer. One state machine serves all kinds.
//!
//! ```text
//!   created -> running <-> paused
//!                 |   \
//!                 |    ready <-> standby
//!                 v     v
//!               waiting -> pending -> concluded -> null
//!   (any but the last three) -> aborting -> concluded
//! ```
//!
//! A kind of job implements [`JobWork`]: `run` does the work and asks its [`JobContext`] at each
//! step whether to pause, slow down or stop; `commit` makes the result final, `abort` takes it back, `clean`
//! ends either. [`JobRegistry`] owns all jobs, gives verbs their answer in the words clients
//! know, and reports every change of state as `JOB_STATUS_CHANGE`.
//!
//! Invariants: a state follows another only by the table in `status.rs`; a verb that a state does not accept is an error
//! with its reason; a job's id is taken until it is `null`.

mod context;
mod registry;
mod status;

#[cfg(test)]
mod tests;

pub use context::{JobContext, Progress};
pub use registry::{Job, JobOptions, JobRegistry};

use std::future::Future;
use std::pin::Pin;

/// A future of a job's work, on the control side.
pub type JobFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Why a job's work ended without success.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JobFailure {
    /// Somebody cancelled it.
    #[error("the job was cancelled")]
    Cancelled,
    /// It failed, in words for clients.
    #[error("{0}")]
    Failed(String),
}

/// One kind of long work.
pub trait JobWork: Send + 'static {
    /// Does the work. Called once; returns when all is done but for making it final.
    fn run<'a>(&'a mut self, context: &'a JobContext) -> JobFuture<'a, Result<(), JobFailure>>;

    /// Makes the result final; the last chance to fail.
    fn commit(&mut self) -> JobFuture<'_, Result<(), JobFailure>>;

    /// Takes back what `run` did.
    fn abort(&mut self) -> JobFuture<'_, ()>;
}
