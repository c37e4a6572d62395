//! The commands on jobs.

use std::sync::Arc;

use api::{
    JobCancelArgs, JobCommands, JobCompleteArgs, JobDismissArgs, JobFinalizeArgs, JobInfo,
    JobPauseArgs, JobResumeArgs, QmpError,
};
use monitor::Caller;

use crate::service::Handlers;

impl JobCommands<Caller> for Handlers {
    async fn job_pause(&self, _: Arc<Caller>, arguments: JobPauseArgs) -> Result<(), QmpError> {
        self.inner.jobs.pause(&arguments.id)
    }

    async fn job_resume(&self, _: Arc<Caller>, arguments: JobResumeArgs) -> Result<(), QmpError> {
        self.inner.jobs.resume(&arguments.id)
    }

    async fn job_cancel(&self, _: Arc<Caller>, arguments: JobCancelArgs) -> Result<(), QmpError> {
        self.inner.jobs.cancel(&arguments.id)
    }

    async fn job_complete(
        &self,
        _: Arc<Caller>,
        arguments: JobCompleteArgs,
    ) -> Result<(), QmpError> {
        self.inner.jobs.complete(&arguments.id)
    }

    async fn job_dismiss(&self, _: Arc<Caller>, arguments: JobDismissArgs) -> Result<(), QmpError> {
        self.inner.jobs.dismiss(&arguments.id)
    }

    async fn job_finalize(
        &self,
        _: Arc<Caller>,
        arguments: JobFinalizeArgs,
    ) -> Result<(), QmpError> {
        self.inner.jobs.finalize(&arguments.id)
    }

    async fn query_jobs(&self, _: Arc<Caller>) -> Result<Vec<JobInfo>, QmpError> {
        Ok(self.inner.jobs.query())
    }
}
