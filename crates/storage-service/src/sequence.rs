//! One thing after the other: changes of the block graph take turns.

use std::future::Future;
use std::pin::Pin;

use api::QmpError;
use tokio::sync::{mpsc, oneshot};

/// How many changes wait for their turn before callers wait to be let in.
const QUEUE: usize = 64;

type Step = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The owner of the right to change the graph; asked by message.
#[derive(Clone)]
pub(crate) struct Sequence {
    steps: mpsc::Sender<Step>,
}

impl Sequence {
    /// Starts the task that does the steps.
    pub(crate) fn start(runtime: &tokio::runtime::Handle) -> Self {
        let (steps, mut queue) = mpsc::channel::<Step>(QUEUE);
        runtime.spawn(async move {
            while let Some(step) = queue.recv().await {
                // A step that panics ends alone; the next one has its turn all the same.
                if let Err(error) = tokio::spawn(step).await {
                    tracing::error!(%error, "a change of the graph panicked");
                }
            }
        });
        Self { steps }
    }

    /// Does `work` when its turn comes, to its end even if the caller goes away.
    ///
    /// # Errors
    /// The work's own; or that it panicked.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, QmpError>> + Send + 'static,
    ) -> Result<T, QmpError> {
        let (sender, receiver) = oneshot::channel();
        let step: Step = Box::pin(async move {
            // The caller may have gone; the work counts all the same.
            let _ = sender.send(work.await);
        });
        let gone = || QmpError::generic("Internal error while changing the block graph");
        self.steps.send(step).await.map_err(|_| gone())?;
        receiver.await.map_err(|_| gone())?
    }
}
