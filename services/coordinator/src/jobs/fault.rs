//! What goes wrong with jobs, as calls fail with it. The one place where errors of the stores become faults.

use std::time::Duration;

use thicket_blobs::BlobError;
use thicket_jobs::{JobId, Refusal};
use thicket_jobstore::StoreError;
use thicket_runtime::Fault;

/// When to ask again where jobs or objects are kept is away.
const AWAY_PAUSE: Duration = Duration::from_secs(1);
/// When to ask again where others were faster.
const CONTENDED_PAUSE: Duration = Duration::from_millis(100);

/// There is no such job.
pub(super) fn not_found(id: &JobId) -> Fault {
    Fault::not_found("job", id.as_str())
}

pub(super) fn of_store(error: StoreError) -> Fault {
    let message = error.to_string();
    match error {
        StoreError::NotFound { job } => not_found(&job),
        StoreError::Exists { job } => Fault::already_exists("job", job.as_str()),
        StoreError::Refused(Refusal::Finished) => Fault::failed_precondition("JOB_FINISHED", message),
        StoreError::Refused(Refusal::Deleting) => Fault::failed_precondition("JOB_DELETING", message),
        StoreError::Refused(_) | StoreError::Changed => {
            Fault::unavailable("JOB_CONTENDED", message, CONTENDED_PAUSE)
        }
        StoreError::TooMany => {
            Fault::Exhausted { reason: "TOO_MANY_JOBS".into(), message, retry_after: None }
        }
        StoreError::TooLarge { .. } => Fault::out_of_range("spec", "SPEC_TOO_LARGE", message),
        StoreError::Full { .. } => full(message),
        StoreError::Unavailable { .. } => Fault::unavailable("JOBS_UNAVAILABLE", message, AWAY_PAUSE),
        StoreError::Damaged { .. } => Fault::DataLoss { message },
    }
}

pub(super) fn of_objects(error: BlobError) -> Fault {
    let message = error.to_string();
    match error {
        BlobError::Full { .. } => full(message),
        BlobError::Key { .. } | BlobError::TooLarge { .. } => Fault::internal(message),
        BlobError::NotFound { .. } => Fault::DataLoss { message },
        BlobError::TimedOut { .. }
        | BlobError::Denied { .. }
        | BlobError::Unavailable { .. }
        | BlobError::Failed { .. } => away(message),
    }
}

/// The object store cannot be used just now.
pub(super) fn away(message: String) -> Fault {
    Fault::unavailable("JOB_STORE_UNAVAILABLE", message, AWAY_PAUSE)
}

fn full(message: String) -> Fault {
    Fault::Exhausted { reason: "JOB_STORE_FULL".into(), message, retry_after: None }
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;

    #[test]
    fn a_full_store_says_that_waiting_does_not_help() {
        let full = BlobError::Full { operation: "writing", key: "n".into() };
        let fault = of_objects(full);
        assert!(matches!(&fault, Fault::Exhausted { retry_after: None, .. }));
        assert_eq!((fault.code(), &*fault.reason()), (Code::ResourceExhausted, "JOB_STORE_FULL"));
    }

    #[test]
    fn what_a_job_does_not_allow_is_a_precondition() {
        for (refusal, reason) in [(Refusal::Finished, "JOB_FINISHED"), (Refusal::Deleting, "JOB_DELETING")] {
            let fault = of_store(refusal.into());
            assert_eq!((fault.code(), &*fault.reason()), (Code::FailedPrecondition, reason));
        }
    }
}
