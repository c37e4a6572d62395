//! All jobs of one daemon, and the verbs.

use std::sync::Arc;

use api::{Event, EventSink, JobInfo, JobStatus, JobStatusChangeEvent, JobType, JobVerb, QmpError};
use indexmap::IndexMap;
use parking_lot::Mutex;

use crate::context::{JobContext, Progress, Wishes};
use crate::status::{accepts, may_follow};
use crate::{JobFailure, JobWork};

/// The most jobs that exist at a time.
pub const MAX_JOBS: usize = 1024;

/// How a job ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JobOptions {
    /// Goes from pending on by itself; else waits for `job-finalize`.
    pub auto_finalize: bool,
    /// Goes away by itself when concluded; else waits for `job-dismiss`.
    pub auto_dismiss: bool,
}

struct State {
    status: JobStatus,
    error: Option<String>,
}

/// One job.
pub struct Job {
    id: String,
    job_type: JobType,
    options: JobOptions,
    state: Mutex<State>,
    progress: Progress,
    pub(crate) wishes: Wishes,
    events: Arc<dyn EventSink>,
}

impl Job {
    /// Its id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Its state.
    pub fn status(&self) -> JobStatus {
        self.state.lock().status
    }

    /// How far it has come.
    pub fn progress(&self) -> &Progress {
        &self.progress
    }

    fn info(&self) -> JobInfo {
        let state = self.state.lock();
        JobInfo {
            id: self.id.clone(),
            r#type: self.job_type,
            status: state.status,
            current_progress: i64::try_from(self.progress.current()).unwrap_or(i64::MAX),
            total_progress: i64::try_from(self.progress.total()).unwrap_or(i64::MAX),
            error: state.error.clone(),
        }
    }

    /// Goes to `status` if the table allows it; says whether it did.
    fn go(&self, status: JobStatus) -> bool {
        {
            let mut state = self.state.lock();
            if !may_follow(state.status, status) {
                return false;
            }
            state.status = status;
        }
        let change = JobStatusChangeEvent {
            id: self.id.clone(),
            status,
        };
        self.events.emit(Event::JobStatusChange(change));
        true
    }

    pub(crate) fn enter_pause(&self) {
        let paused = if self.status() == JobStatus::Ready {
            JobStatus::Standby
        } else {
            JobStatus::Paused
        };
        self.go(paused);
    }

    pub(crate) fn leave_pause(&self) {
        let running = if self.status() == JobStatus::Standby {
            JobStatus::Ready
        } else {
            JobStatus::Running
        };
        self.go(running);
    }

    pub(crate) fn become_ready(&self) {
        self.go(JobStatus::Ready);
    }

    fn fail(&self, failure: JobFailure) {
        let message = match failure {
            JobFailure::Failed(message) => message,
            // The host's words for ECANCELED, which clients know from QEMU.
            JobFailure::Cancelled => "Operation canceled".to_owned(),
        };
        self.state.lock().error = Some(message);
    }

    fn check(&self, verb: JobVerb) -> Result<(), QmpError> {
        let status = self.status();
        if accepts(status, verb) {
            return Ok(());
        }
        Err(QmpError::generic(format!(
            "Job '{}' in state '{status}' cannot accept command verb '{verb}'",
            self.id
        )))
    }
}

/// All jobs of one daemon or machine.
pub struct JobRegistry {
    jobs: Mutex<IndexMap<String, Arc<Job>>>,
    events: Arc<dyn EventSink>,
}

impl JobRegistry {
    /// No jobs yet; changes of state go to `events`.
    pub fn new(events: Arc<dyn EventSink>) -> Arc<Self> {
        Arc::new(Self {
            jobs: Mutex::default(),
            events,
        })
    }

    /// Starts `work` as the job `id`.
    ///
    /// # Errors
    /// When the id is taken or breaks the rules for identifiers, or there are too many jobs.
    pub fn start(
        self: &Arc<Self>,
        id: &str,
        job_type: JobType,
        options: JobOptions,
        work: Box<dyn JobWork>,
    ) -> Result<Arc<Job>, QmpError> {
        let job = Arc::new(Job {
            id: id.to_owned(),
            job_type,
            options,
            state: Mutex::new(State {
                status: JobStatus::Undefined,
                error: None,
            }),
            progress: Progress::default(),
            wishes: Wishes::default(),
            events: Arc::clone(&self.events),
        });
        {
            let mut jobs = self.jobs.lock();
            if !api::is_well_formed_id(id) {
                return Err(QmpError::generic(format!("Invalid job ID '{id}'")));
            }
            if jobs.contains_key(id) {
                return Err(QmpError::generic(format!("Job ID '{id}' already in use")));
            }
            if jobs.len() >= MAX_JOBS {
                return Err(QmpError::generic(format!(
                    "There are {MAX_JOBS} jobs already"
                )));
            }
            jobs.insert(id.to_owned(), Arc::clone(&job));
        }
        // Both states are told before the caller's answer, as QEMU does.
        job.go(JobStatus::Created);
        job.go(JobStatus::Running);
        let registry = Arc::clone(self);
        let running = Arc::clone(&job);
        tokio::spawn(async move {
            run(&running, work).await;
            if running.options.auto_dismiss {
                registry.forget(&running);
            }
        });
        Ok(job)
    }

    fn forget(&self, job: &Arc<Job>) {
        if job.go(JobStatus::Null) {
            self.jobs.lock().shift_remove(&job.id);
        }
    }

    fn find(&self, id: &str) -> Result<Arc<Job>, QmpError> {
        let found = self.jobs.lock().get(id).cloned();
        found.ok_or_else(|| QmpError::generic("Job not found"))
    }

    /// What `query-jobs` answers: newest first.
    pub fn query(&self) -> Vec<JobInfo> {
        self.jobs
            .lock()
            .values()
            .rev()
            .map(|job| job.info())
            .collect()
    }

    /// The verb `pause`.
    ///
    /// # Errors
    /// No such job, or not in its state.
    pub fn pause(&self, id: &str) -> Result<(), QmpError> {
        let job = self.find(id)?;
        job.check(JobVerb::Pause)?;
        if job.wishes.pause.load(std::sync::atomic::Ordering::SeqCst) {
            return Err(QmpError::generic("Job is already paused"));
        }
        job.wishes.set(&job.wishes.pause, true);
        Ok(())
    }

    /// The verb `resume`.
    ///
    /// # Errors
    /// No such job, or not in its state, or not paused.
    pub fn resume(&self, id: &str) -> Result<(), QmpError> {
        let job = self.find(id)?;
        if !job.wishes.pause.load(std::sync::atomic::Ordering::SeqCst) {
            return Err(QmpError::generic("Can't resume a job that was not paused"));
        }
        job.check(JobVerb::Resume)?;
        job.wishes.set(&job.wishes.pause, false);
        Ok(())
    }

    /// The verb `cancel`.
    ///
    /// # Errors
    /// No such job, or not in its state.
    pub fn cancel(&self, id: &str) -> Result<(), QmpError> {
        let job = self.find(id)?;
        job.check(JobVerb::Cancel)?;
        job.wishes.set(&job.wishes.cancel, true);
        // It has been woken for its end: there is no pause left that could be resumed.
        job.wishes.set(&job.wishes.pause, false);
        Ok(())
    }

    /// The verb `complete`.
    ///
    /// # Errors
    /// No such job, or not in its state.
    pub fn complete(&self, id: &str) -> Result<(), QmpError> {
        let job = self.find(id)?;
        job.check(JobVerb::Complete)?;
        job.wishes.set(&job.wishes.complete, true);
        Ok(())
    }

    /// The verb `finalize`.
    ///
    /// # Errors
    /// No such job, or not in its state.
    pub fn finalize(&self, id: &str) -> Result<(), QmpError> {
        let job = self.find(id)?;
        job.check(JobVerb::Finalize)?;
        job.wishes.set(&job.wishes.finalize, true);
        Ok(())
    }

    /// The verb `dismiss`.
    ///
    /// # Errors
    /// No such job, or not in its state.
    pub fn dismiss(&self, id: &str) -> Result<(), QmpError> {
        let job = self.find(id)?;
        job.check(JobVerb::Dismiss)?;
        self.forget(&job);
        Ok(())
    }

    /// Cancels every job and waits until each has come to its end: for shutting down.
    pub async fn cancel_all(&self) {
        let jobs: Vec<_> = self.jobs.lock().values().cloned().collect();
        for job in &jobs {
            job.wishes.set(&job.wishes.cancel, true);
        }
        for job in &jobs {
            job.wishes
                .wait_until(|_| matches!(job.status(), JobStatus::Concluded | JobStatus::Null))
                .await;
        }
    }
}

/// A job's life from running to concluded.
async fn run(job: &Arc<Job>, mut work: Box<dyn JobWork>) {
    let context = JobContext {
        job: Arc::clone(job),
    };
    let mut result = work.run(&context).await;
    if result.is_ok() && job.wishes.is_cancelled() {
        result = Err(JobFailure::Cancelled);
    }
    if result.is_ok() {
        result = settle(job, &mut work).await;
    }
    if let Err(failure) = result {
        job.fail(failure);
        job.go(JobStatus::Aborting);
        work.abort().await;
    }
    job.go(JobStatus::Concluded);
    job.wishes.changed.notify_waiters();
}

/// From waiting over pending to the commit.
async fn settle(job: &Arc<Job>, work: &mut Box<dyn JobWork>) -> Result<(), JobFailure> {
    job.go(JobStatus::Waiting);
    job.go(JobStatus::Pending);
    if !job.options.auto_finalize {
        job.wishes
            .wait_until(|wishes| {
                wishes.is_cancelled() || wishes.finalize.load(std::sync::atomic::Ordering::SeqCst)
            })
            .await;
        if job.wishes.is_cancelled() {
            return Err(JobFailure::Cancelled);
        }
    }
    work.commit().await
}
