//! A job's record as it is kept, and a job as callers see it.

use bytes::Bytes;
use prost::Message;
use thicket_jobs::State;
use thicket_jobstore::Stored;
use thicket_proto::v1::{self, JobSpec, JobState, PartCount, QueryProgress};
use thicket_runtime::Fault;

use super::clock::now_unix_ms;

/// What the store keeps without understanding it.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Body {
    /// What was asked for, everything filled in.
    #[prost(message, optional, tag = "1")]
    spec: Option<JobSpec>,
    /// Folder of its objects.
    #[prost(string, tag = "2")]
    pub(super) folder: String,
}

impl Body {
    pub(super) fn new(spec: JobSpec, folder: String) -> Self {
        Self { spec: Some(spec), folder }
    }

    pub(super) fn encode(&self) -> Bytes {
        self.encode_to_vec().into()
    }

    /// The body of a job.
    pub(super) fn of(stored: &Stored) -> Result<Self, Fault> {
        let damaged = |reason: &str| Fault::DataLoss {
            message: format!("the record of job `{}` is damaged: {reason}", stored.id),
        };
        let body = Self::decode(stored.body.clone()).map_err(|error| damaged(&error.to_string()))?;
        match &body.spec {
            Some(_) if !body.folder.is_empty() => Ok(body),
            _ => Err(damaged("it lacks parts")),
        }
    }

    pub(super) fn spec(&self) -> JobSpec {
        self.spec.clone().unwrap_or_default()
    }
}

/// A job as callers see it.
pub(super) fn job(stored: &Stored) -> Result<v1::Job, Fault> {
    let mut spec = Body::of(stored)?.spec();
    // It may have been moved since.
    spec.deadline_unix_ms = stored.job.deadline();
    let progress = stored.job.progress();
    Ok(v1::Job {
        spec: Some(spec),
        state: state(stored.job.state(now_unix_ms())).into(),
        created_unix_ms: stored.created_unix_ms,
        parts: Some(PartCount { pending: progress.pending, leased: progress.leased, done: progress.done }),
        queries: Some(QueryProgress {
            total: stored.job.plan().queries(),
            succeeded: progress.queries.succeeded,
            failed: progress.queries.failed,
        }),
    })
}

fn state(state: State) -> JobState {
    match state {
        State::Pending => JobState::Pending,
        State::Running => JobState::Running,
        State::Done => JobState::Done,
        State::Cancelled => JobState::Cancelled,
        State::Expired => JobState::Expired,
        State::Deleting => JobState::Deleting,
    }
}
