//! The machine: who owns it, and how it is asked.
//!
//! One thread owns everything that changes the machine as a whole: run state, chips, processors. Commands and
//! devices' requests reach it as messages and are done one after the other; that is the only order there is.

use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Weak};
use std::time::Duration;

use api::EventSink;
use block_graph::BlockIoError;
use device::{MachineRequest, MachineSink};
use parking_lot::Mutex;
use tokio::sync::{oneshot, watch};

use crate::config::MachineConfig;
use crate::control::Control;
use crate::cpu_thread::CpuShared;
use crate::devices::DeviceServices;
use crate::error::MachineError;

/// How long the end of the program waits for readers of devices' output.
const OUTPUT_PATIENCE: Duration = Duration::from_secs(2);

/// Work for the machine's thread.
pub(crate) type Work = Box<dyn FnOnce(&mut Control) + Send>;

enum Message {
    Work(Work),
    /// A device has asked for something; see [`Requests`].
    Requests,
    End,
}

/// Requests that wait for the machine's thread. Bounded: a request that waits already is not noted again.
pub(crate) struct Requests {
    waiting: Mutex<Vec<MachineRequest>>,
    /// Disks' errors, the newest [`MAX_IO_ERRORS`].
    io_errors: Mutex<VecDeque<IoErrorNote>>,
    sender: Sender<Message>,
    cpus: Mutex<Vec<Weak<CpuShared>>>,
}

/// The most errors of disks that wait to be told.
const MAX_IO_ERRORS: usize = 1024;

/// A disk's error, and whose.
pub(crate) struct IoErrorNote {
    pub(crate) qom_path: String,
    pub(crate) device: String,
    pub(crate) error: BlockIoError,
}

impl Requests {
    /// The processors that stand still when something is asked.
    pub(crate) fn set_cpus(&self, cpus: &[Arc<CpuShared>]) {
        *self.cpus.lock() = cpus.iter().map(Arc::downgrade).collect();
    }

    /// Wakes the machine's thread to look at what others have noted.
    pub(crate) fn ring(&self) {
        // Without its thread the machine has ended, and nobody cares.
        let _ = self.sender.send(Message::Requests);
    }

    /// Notes a disk's error.
    pub(crate) fn note_io_error(&self, note: IoErrorNote) {
        let mut errors = self.io_errors.lock();
        if errors.len() >= MAX_IO_ERRORS {
            errors.pop_front();
        }
        errors.push_back(note);
        drop(errors);
        self.ring();
    }

    pub(crate) fn take_io_errors(&self) -> VecDeque<IoErrorNote> {
        std::mem::take(&mut *self.io_errors.lock())
    }

    pub(crate) fn take(&self) -> Vec<MachineRequest> {
        std::mem::take(&mut *self.waiting.lock())
    }
}

impl MachineSink for Requests {
    fn request(&self, request: MachineRequest) {
        let mut waiting = self.waiting.lock();
        if waiting.contains(&request) {
            return;
        }
        waiting.push(request);
        drop(waiting);
        // No guest instruction follows the one that asked.
        for cpu in self.cpus.lock().iter().filter_map(Weak::upgrade) {
            cpu.hold();
        }
        self.ring();
    }
}

/// How a machine came to its end: the status of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExitStatus(pub u8);

/// A machine. Clones are handles of the same one.
#[derive(Clone)]
pub struct Machine {
    sender: Sender<Message>,
    ended: watch::Receiver<Option<ExitStatus>>,
    thread: Arc<Mutex<Option<std::thread::JoinHandle<()>>>>,
}

impl Machine {
    /// Makes a machine; it stands in `prelaunch`.
    ///
    /// # Errors
    /// What it is made from cannot be, or the host refuses memory or threads.
    pub fn new(
        config: MachineConfig,
        events: Arc<dyn EventSink>,
        services: DeviceServices,
    ) -> Result<Self, MachineError> {
        let (sender, receiver) = channel();
        let (end, ended) = watch::channel(None);
        let requests = Arc::new(Requests {
            waiting: Mutex::default(),
            io_errors: Mutex::default(),
            sender: sender.clone(),
            cpus: Mutex::default(),
        });
        let control = Control::new(config, events, services, requests, end)?;
        let thread = std::thread::Builder::new()
            .name("machine".to_owned())
            .spawn(move || live(control, &receiver))
            .map_err(|source| MachineError::Thread {
                what: "the machine",
                source,
            })?;
        Ok(Self {
            sender,
            ended,
            thread: Arc::new(Mutex::new(Some(thread))),
        })
    }

    /// Does something with the machine, after all that was asked before.
    ///
    /// # Errors
    /// The machine has ended.
    pub async fn ask<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Control) -> T + Send + 'static,
    ) -> Result<T, MachineError> {
        let (answer, answered) = oneshot::channel();
        let work: Work = Box::new(move |control| {
            // Whoever asked may have gone.
            let _ = answer.send(work(control));
        });
        let sent = self.sender.send(Message::Work(work));
        sent.map_err(|_| MachineError::Ended)?;
        answered.await.map_err(|_| MachineError::Ended)
    }

    /// Waits until the machine has ended of its own or by a command.
    pub async fn ended(&self) -> ExitStatus {
        let mut ended = self.ended.clone();
        let status = ended.wait_for(Option::is_some).await;
        status
            .ok()
            .and_then(|status| *status)
            .unwrap_or(ExitStatus(0))
    }

    /// Waits until what devices have sent is with those who read it, if they do.
    pub async fn deliver_output(&self) {
        let cables = self
            .ask(|control| control.cables())
            .await
            .unwrap_or_default();
        let all = async {
            for cable in cables {
                cable.drained().await;
            }
        };
        // Who does not read by now does not get it.
        let _ = tokio::time::timeout(OUTPUT_PATIENCE, all).await;
    }

    /// Stops the processors and ends all threads. Blocks until they have ended.
    pub fn close(&self) {
        // Without its thread it is closed already.
        let _ = self.sender.send(Message::End);
        if let Some(thread) = self.thread.lock().take()
            && thread.join().is_err()
        {
            tracing::error!("the machine's thread panicked");
        }
    }
}

fn live(mut control: Control, receiver: &Receiver<Message>) {
    while let Ok(message) = receiver.recv() {
        match message {
            Message::Work(work) => work(&mut control),
            Message::Requests => control.serve_requests(),
            Message::End => break,
        }
    }
    control.close();
}
