//! The states of a job, which verb each accepts, and which state may follow which.

use api::{JobStatus, JobVerb};

/// Whether a job in `status` accepts `verb`.
pub(crate) fn accepts(status: JobStatus, verb: JobVerb) -> bool {
    use JobStatus::{Concluded, Created, Paused, Pending, Ready, Running, Standby, Waiting};
    match verb {
        JobVerb::Cancel => matches!(
            status,
            Created | Running | Paused | Ready | Standby | Waiting | Pending
        ),
        JobVerb::Pause | JobVerb::Resume | JobVerb::SetSpeed | JobVerb::Change => {
            matches!(status, Created | Running | Paused | Ready | Standby)
        }
        JobVerb::Complete => status == Ready,
        JobVerb::Finalize => status == Pending,
        JobVerb::Dismiss => status == Concluded,
    }
}

/// Whether a job may go from `from` to `to`.
pub(crate) fn may_follow(from: JobStatus, to: JobStatus) -> bool {
    use JobStatus::{
        Aborting, Concluded, Created, Null, Paused, Pending, Ready, Running, Standby, Undefined,
        Waiting,
    };
    match from {
        Undefined => to == Created,
        Created => matches!(to, Running | Aborting | Null),
        Running => matches!(to, Paused | Ready | Waiting | Aborting),
        Paused => to == Running,
        Ready => matches!(to, Standby | Waiting | Aborting),
        Standby => to == Ready,
        Waiting => matches!(to, Pending | Aborting),
        Pending => matches!(to, Aborting | Concluded),
        Aborting => to == Concluded,
        Concluded => to == Null,
        Null => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_but_the_last_has_a_way_out() {
        for from in JobStatus::ALL {
            let ways = JobStatus::ALL
                .iter()
                .filter(|to| may_follow(*from, **to))
                .count();
            assert_eq!(ways == 0, *from == JobStatus::Null, "{from}");
        }
    }

    #[test]
    fn nothing_accepts_a_verb_after_its_end() {
        for verb in JobVerb::ALL {
            assert!(!accepts(JobStatus::Null, *verb));
            assert!(!accepts(JobStatus::Aborting, *verb));
        }
    }
}
