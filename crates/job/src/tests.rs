//! Jobs as clients steer them: every verb in every state, and what is told on the way.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use api::{Event, EventSink, JobInfo, JobStatus, JobType, JobVerb, QmpError};
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::registry::MAX_JOBS;
use crate::status::accepts;
use crate::{JobContext, JobFailure, JobFuture, JobOptions, JobRegistry, JobWork};

/// Columns: undefined, created, running, paused, ready, standby, waiting, pending, aborting,
/// concluded, null.
const ACCEPTED: [(JobVerb, &str); 8] = [
    (JobVerb::Cancel, ".#######..."),
    (JobVerb::Pause, ".#####....."),
    (JobVerb::Resume, ".#####....."),
    (JobVerb::SetSpeed, ".#####....."),
    (JobVerb::Complete, "....#......"),
    (JobVerb::Finalize, ".......#..."),
    (JobVerb::Dismiss, ".........#."),
    (JobVerb::Change, ".#####....."),
];

const STATES: [JobStatus; 11] = [
    JobStatus::Undefined,
    JobStatus::Created,
    JobStatus::Running,
    JobStatus::Paused,
    JobStatus::Ready,
    JobStatus::Standby,
    JobStatus::Waiting,
    JobStatus::Pending,
    JobStatus::Aborting,
    JobStatus::Concluded,
    JobStatus::Null,
];

#[test]
fn the_table_of_verbs_is_as_clients_know_it() {
    assert_eq!(STATES.len(), JobStatus::ALL.len());
    assert_eq!(ACCEPTED.len(), JobVerb::ALL.len());
    for (verb, row) in ACCEPTED {
        for (status, cell) in STATES.into_iter().zip(row.chars()) {
            assert_eq!(accepts(status, verb), cell == '#', "{verb} in {status}");
        }
    }
}

/// The states as they were told.
#[derive(Default)]
struct Told(Mutex<Vec<(String, JobStatus)>>);

impl EventSink for Told {
    fn emit(&self, event: Event) {
        if let Event::JobStatusChange(change) = event {
            self.0.lock().push((change.id, change.status));
        }
    }
}

/// How far a job's work goes by itself.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Course {
    /// Works until it is let go.
    Works,
    /// Becomes ready at once.
    BecomesReady,
    /// Ends at once.
    Ends,
    /// Fails at once.
    Fails,
    /// Ends, and fails at last.
    FailsToCommit,
}

/// What the test and the work share.
struct Strings {
    course: Course,
    let_go: AtomicBool,
    let_abort: Notify,
    hold_abort: bool,
    calls: Mutex<Vec<&'static str>>,
}

struct Work(Arc<Strings>);

impl JobWork for Work {
    fn run<'a>(&'a mut self, context: &'a JobContext) -> JobFuture<'a, Result<(), JobFailure>> {
        Box::pin(async move {
            self.0.calls.lock().push("run");
            match self.0.course {
                Course::Works => {
                    while !self.0.let_go.load(Ordering::SeqCst) {
                        context.checkpoint().await?;
                        context.progress().advance(1);
                        tokio::time::sleep(Duration::from_millis(1)).await;
                    }
                    Ok(())
                }
                Course::BecomesReady => context.ready().await,
                Course::Fails => Err(JobFailure::Failed("it was not to be".to_owned())),
                Course::Ends | Course::FailsToCommit => Ok(()),
            }
        })
    }

    fn commit(&mut self) -> JobFuture<'_, Result<(), JobFailure>> {
        Box::pin(async move {
            self.0.calls.lock().push("commit");
            match self.0.course {
                Course::FailsToCommit => Err(JobFailure::Failed("too late".to_owned())),
                _ => Ok(()),
            }
        })
    }

    fn abort(&mut self) -> JobFuture<'_, ()> {
        Box::pin(async move {
            self.0.calls.lock().push("abort");
            if self.0.hold_abort {
                self.0.let_abort.notified().await;
            }
        })
    }
}

struct Scene {
    told: Arc<Told>,
    registry: Arc<JobRegistry>,
    strings: Arc<Strings>,
}

const MANUAL: JobOptions = JobOptions {
    auto_finalize: false,
    auto_dismiss: false,
};

impl Scene {
    fn start(course: Course, options: JobOptions, hold_abort: bool) -> Self {
        let told = Arc::<Told>::default();
        let registry = JobRegistry::new(Arc::clone(&told) as Arc<dyn EventSink>);
        let strings = Arc::new(Strings {
            course,
            let_go: AtomicBool::new(false),
            let_abort: Notify::new(),
            hold_abort,
            calls: Mutex::default(),
        });
        let work = Box::new(Work(Arc::clone(&strings)));
        registry.start("j", JobType::Create, options, work).unwrap();
        Self {
            told,
            registry,
            strings,
        }
    }

    fn info(&self) -> Option<JobInfo> {
        self.registry.query().into_iter().find(|job| job.id == "j")
    }

    /// Waits until the job was told to be in `status`.
    async fn reach(&self, status: JobStatus) {
        for _ in 0..5000 {
            if self.states().last() == Some(&status) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        panic!("the job is not {status} but {:?}", self.states());
    }

    fn states(&self) -> Vec<JobStatus> {
        self.told
            .0
            .lock()
            .iter()
            .map(|(_, status)| *status)
            .collect()
    }

    fn apply(&self, verb: JobVerb) -> Result<(), QmpError> {
        match verb {
            JobVerb::Cancel => self.registry.cancel("j"),
            JobVerb::Pause => self.registry.pause("j"),
            JobVerb::Resume => self.registry.resume("j"),
            JobVerb::Complete => self.registry.complete("j"),
            JobVerb::Finalize => self.registry.finalize("j"),
            JobVerb::Dismiss => self.registry.dismiss("j"),
            JobVerb::SetSpeed | JobVerb::Change => unreachable!("no such verb here"),
        }
    }
}

/// A job that is in `status` and stays there.
async fn job_in(status: JobStatus) -> Scene {
    let (course, hold_abort) = match status {
        JobStatus::Running | JobStatus::Paused => (Course::Works, false),
        JobStatus::Ready | JobStatus::Standby => (Course::BecomesReady, false),
        JobStatus::Pending => (Course::Ends, false),
        JobStatus::Aborting => (Course::Fails, true),
        JobStatus::Concluded => (Course::Fails, false),
        other => panic!("no job stays {other}"),
    };
    let scene = Scene::start(course, MANUAL, hold_abort);
    match status {
        JobStatus::Paused => scene.registry.pause("j").unwrap(),
        JobStatus::Standby => {
            scene.reach(JobStatus::Ready).await;
            scene.registry.pause("j").unwrap();
        }
        _ => {}
    }
    scene.reach(status).await;
    scene
}

/// The state that a job comes to by a verb that it accepts.
fn led_to(status: JobStatus, verb: JobVerb) -> JobStatus {
    match (verb, status) {
        (JobVerb::Cancel, _) => JobStatus::Concluded,
        (JobVerb::Pause, JobStatus::Ready) => JobStatus::Standby,
        (JobVerb::Pause, _) => JobStatus::Paused,
        (JobVerb::Resume, JobStatus::Standby) => JobStatus::Ready,
        (JobVerb::Resume, _) => JobStatus::Running,
        (JobVerb::Complete, _) => JobStatus::Pending,
        (JobVerb::Finalize, _) => JobStatus::Concluded,
        (_, _) => JobStatus::Null,
    }
}

async fn one_verb(status: JobStatus, verb: JobVerb) {
    let scene = job_in(status).await;
    let is_paused = matches!(status, JobStatus::Paused | JobStatus::Standby);
    let words = match verb {
        JobVerb::Resume if !is_paused => Some("Can't resume a job that was not paused".to_owned()),
        JobVerb::Pause if is_paused => Some("Job is already paused".to_owned()),
        _ if accepts(status, verb) => None,
        _ => Some(format!(
            "Job 'j' in state '{status}' cannot accept command verb '{verb}'"
        )),
    };
    let answer = scene.apply(verb).err().map(|error| error.desc);
    assert_eq!(answer, words, "{verb} in {status}");
    if answer.is_none() {
        scene.reach(led_to(status, verb)).await;
    } else {
        tokio::time::sleep(Duration::from_millis(5)).await;
        assert_eq!(scene.states().last(), Some(&status), "{verb} in {status}");
    }
    let there = scene.info().map(|info| info.status);
    let gone = verb == JobVerb::Dismiss && answer.is_none();
    assert_eq!(there.is_none(), gone, "{verb} in {status}");
}

#[tokio::test]
async fn every_verb_in_every_state_has_its_answer() {
    for status in [
        JobStatus::Running,
        JobStatus::Paused,
        JobStatus::Ready,
        JobStatus::Standby,
        JobStatus::Pending,
        JobStatus::Aborting,
        JobStatus::Concluded,
    ] {
        for verb in [
            JobVerb::Cancel,
            JobVerb::Pause,
            JobVerb::Resume,
            JobVerb::Complete,
            JobVerb::Finalize,
            JobVerb::Dismiss,
        ] {
            one_verb(status, verb).await;
        }
    }
}

#[tokio::test]
async fn verbs_for_no_job_say_so() {
    let registry = JobRegistry::new(Arc::<Told>::default());
    for answer in [
        registry.pause("j"),
        registry.resume("j"),
        registry.cancel("j"),
        registry.complete("j"),
        registry.finalize("j"),
        registry.dismiss("j"),
    ] {
        assert_eq!(answer.unwrap_err().desc, "Job not found");
    }
}

#[tokio::test]
async fn a_good_job_tells_every_state_on_its_way() {
    use JobStatus::{Concluded, Created, Null, Paused, Pending, Ready, Running, Standby, Waiting};
    let automatic = JobOptions {
        auto_finalize: true,
        auto_dismiss: true,
    };
    let scene = Scene::start(Course::Ends, automatic, false);
    scene.reach(Null).await;
    let plain = [Created, Running, Waiting, Pending, Concluded, Null];
    assert_eq!(scene.states(), plain);
    assert_eq!(*scene.strings.calls.lock(), ["run", "commit"]);

    let scene = Scene::start(Course::BecomesReady, MANUAL, false);
    scene.reach(Ready).await;
    scene.registry.pause("j").unwrap();
    scene.reach(Standby).await;
    scene.registry.resume("j").unwrap();
    scene.reach(Ready).await;
    scene.registry.complete("j").unwrap();
    scene.reach(Pending).await;
    assert_eq!(*scene.strings.calls.lock(), ["run"]);
    scene.registry.finalize("j").unwrap();
    scene.reach(Concluded).await;
    scene.registry.dismiss("j").unwrap();
    let steered = [
        Created, Running, Ready, Standby, Ready, Waiting, Pending, Concluded, Null,
    ];
    assert_eq!(scene.states(), steered);

    let scene = Scene::start(Course::Works, automatic, false);
    scene.registry.pause("j").unwrap();
    scene.reach(Paused).await;
    let done = scene.info().unwrap().current_progress;
    tokio::time::sleep(Duration::from_millis(10)).await;
    assert_eq!(scene.info().unwrap().current_progress, done, "it works on");
    scene.registry.resume("j").unwrap();
    scene.strings.let_go.store(true, Ordering::SeqCst);
    scene.reach(Null).await;
    let paused = [
        Created, Running, Paused, Running, Waiting, Pending, Concluded, Null,
    ];
    assert_eq!(scene.states(), paused);
}

#[tokio::test]
async fn a_job_that_fails_says_why_and_takes_back_what_it_did() {
    use JobStatus::{Aborting, Concluded, Created, Pending, Running, Waiting};
    let dismissed = JobOptions {
        auto_finalize: true,
        auto_dismiss: false,
    };
    for (course, words, calls, states) in [
        (
            Course::Fails,
            "it was not to be",
            vec!["run", "abort"],
            vec![Created, Running, Aborting, Concluded],
        ),
        (
            Course::FailsToCommit,
            "too late",
            vec!["run", "commit", "abort"],
            vec![Created, Running, Waiting, Pending, Aborting, Concluded],
        ),
    ] {
        let scene = Scene::start(course, dismissed, false);
        scene.reach(Concluded).await;
        assert_eq!(scene.info().unwrap().error.as_deref(), Some(words));
        assert_eq!(*scene.strings.calls.lock(), calls);
        assert_eq!(scene.states(), states);
    }
}

#[tokio::test]
async fn a_cancelled_job_takes_back_what_it_did() {
    for status in [
        JobStatus::Running,
        JobStatus::Paused,
        JobStatus::Ready,
        JobStatus::Standby,
        JobStatus::Pending,
    ] {
        let scene = job_in(status).await;
        scene.registry.cancel("j").unwrap();
        scene.reach(JobStatus::Concluded).await;
        assert_eq!(*scene.strings.calls.lock(), ["run", "abort"], "{status}");
        let states = scene.states();
        assert!(states.contains(&JobStatus::Aborting), "{states:?}");
        let error = scene.info().unwrap().error;
        assert_eq!(error.as_deref(), Some("Operation canceled"), "{status}");
        let resumed = scene.registry.resume("j").unwrap_err().desc;
        assert_eq!(resumed, "Can't resume a job that was not paused");
    }
}

#[tokio::test]
async fn ids_are_taken_until_the_job_is_gone() {
    let scene = job_in(JobStatus::Concluded).await;
    let again = |id: &str| {
        let work = Box::new(Work(Arc::clone(&scene.strings)));
        let started = scene.registry.start(id, JobType::Create, MANUAL, work);
        started.map(|_| ()).map_err(|error| error.desc)
    };
    assert_eq!(again("j"), Err("Job ID 'j' already in use".to_owned()));
    assert_eq!(again("1 j"), Err("Invalid job ID '1 j'".to_owned()));
    scene.registry.dismiss("j").unwrap();
    assert_eq!(again("j"), Ok(()));
    assert_eq!(again("k"), Ok(()));
    let ids: Vec<_> = scene
        .registry
        .query()
        .into_iter()
        .map(|job| job.id)
        .collect();
    assert_eq!(ids, ["k", "j"], "newest first");
    for number in 2..MAX_JOBS {
        assert_eq!(again(&format!("j{number}")), Ok(()));
    }
    assert!(again("one-more").is_err());
}

#[tokio::test]
async fn shutting_down_ends_every_job_whatever_it_waits_for() {
    for status in [
        JobStatus::Running,
        JobStatus::Paused,
        JobStatus::Standby,
        JobStatus::Pending,
        JobStatus::Concluded,
    ] {
        let scene = job_in(status).await;
        let all = scene.registry.cancel_all();
        let ended = tokio::time::timeout(Duration::from_secs(5), all).await;
        assert!(ended.is_ok(), "{status}");
        assert_eq!(scene.info().unwrap().status, JobStatus::Concluded);
    }
}
