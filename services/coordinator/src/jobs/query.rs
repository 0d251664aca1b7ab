//! One query of a job: searched for as any other, and again while it is not the query's fault that it fails.

use std::time::Duration;

use thicket_dispatch::Urgency;
use thicket_jobs::Pauses;
use thicket_proto::v1::search_person_response::Event;
use thicket_proto::v1::{Hit, SearchFinished, SearchPersonRequest};
use thicket_runtime::{Deadline, Fault};
use thicket_telemetry::instruments;
use thicket_thi::Settings;
use tokio::sync::Semaphore;
use tokio_stream::StreamExt;
use uuid::Uuid;

use crate::clients::Clients;
use crate::driven::Driven;
use crate::input::SearchInput;
use crate::search::Search;

const PAUSES: Pauses = Pauses { first: Duration::from_millis(250), longest: Duration::from_secs(15) };
/// Attempts at a query that breaks whoever answers it.
const BREAKING_ATTEMPTS: u32 = 5;

/// The end of a search.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) finished: SearchFinished,
    /// Hash of the anchor's image, which need not be in the ranking; empty without one.
    pub(super) anchor_image: String,
}

/// What follows from a failed attempt.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// It is the query's own fault.
    Record,
    /// Somebody is away or busy: another time it will do.
    Again { asked: Option<Duration> },
    /// Somebody broke. It may be the query that breaks them all.
    Broke,
}

fn judge(fault: &Fault) -> Verdict {
    match fault {
        Fault::Unavailable { retry_after, .. } => Verdict::Again { asked: Some(*retry_after) },
        Fault::Exhausted { retry_after, .. } => Verdict::Again { asked: *retry_after },
        Fault::DeadlineExceeded | Fault::Cancelled => Verdict::Again { asked: None },
        Fault::Internal { .. } | Fault::DataLoss { .. } => Verdict::Broke,
        Fault::InvalidInput { .. }
        | Fault::OutOfRange { .. }
        | Fault::NotFound { .. }
        | Fault::AlreadyExists { .. }
        | Fault::FailedPrecondition { .. }
        | Fault::Unauthenticated { .. }
        | Fault::PermissionDenied { .. } => Verdict::Record,
    }
}

/// Searches, each attempt in a place among the coordinator's `places` and for no longer than `limit`.
///
/// # Errors
/// What the query itself is at fault for. Where others are, it does not return until they are back.
///
/// # Cancel safety
/// Dropping the future stops the search wherever it is.
pub(super) async fn search(
    request: SearchPersonRequest,
    clients: &Clients,
    defaults: &Settings,
    places: &Semaphore,
    limit: Duration,
) -> Result<Found, Fault> {
    let input = SearchInput::parse(request, defaults)?;
    let (mut failures, mut broke) = (0, 0);
    loop {
        let place = places.acquire().await.map_err(Fault::internal)?;
        let outcome = attempt(input.clone(), clients, limit).await;
        drop(place);
        let fault = match outcome {
            Ok(finished) => return Ok(finished),
            Err(fault) => fault,
        };
        failures += 1;
        let asked = match judge(&fault) {
            Verdict::Record => return Err(fault),
            Verdict::Again { asked } => asked,
            Verdict::Broke => {
                broke += 1;
                if broke >= BREAKING_ATTEMPTS {
                    return Err(fault);
                }
                None
            }
        };
        instruments().job_retries.add(1, &[]);
        let pause = PAUSES.after(failures, asked, random());
        tracing::debug!(failures, ?pause, reason = %fault.reason(), "a query of a job is tried again");
        tokio::time::sleep(pause).await;
    }
}

/// Runs the search that every caller's is, and keeps what it ends with.
async fn attempt(input: SearchInput, clients: &Clients, limit: Duration) -> Result<Found, Fault> {
    let deadline = Deadline::after(limit);
    let clients = clients.by(deadline, Urgency::Batch).answered_by(input.adapter.clone());
    let mut events = Driven::spawn(|outlet| Search::new(input, clients, outlet).run());
    let last = async {
        let mut candidates: Vec<Hit> = Vec::new();
        while let Some(event) = events.next().await {
            let response = event.map_err(|status| Fault::from_status(&status))?;
            match response.event {
                Some(Event::CandidatesFound(found)) => candidates = found.hits,
                Some(Event::Finished(finished)) => {
                    let anchor = candidates
                        .into_iter()
                        .filter_map(|hit| hit.item)
                        .find(|item| item.id == finished.anchor_id);
                    let anchor_image = anchor.map(|item| item.image_hash).unwrap_or_default();
                    return Ok(Found { finished, anchor_image });
                }
                _ => {}
            }
        }
        Err(Fault::internal("a search ended without a ranking"))
    };
    match tokio::time::timeout(limit, last).await {
        Ok(outcome) => outcome,
        Err(_) => Err(Fault::DeadlineExceeded),
    }
}

/// Evenly spread over 0 to 1.
pub(super) fn random() -> f64 {
    let (_, low) = Uuid::new_v4().as_u64_pair();
    // The two highest bits say which kind of id it is.
    (low << 2) as f64 / u64::MAX as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_query_is_at_fault_for_is_recorded_at_once() {
        let pause = Duration::from_millis(70);
        assert_eq!(judge(&Fault::invalid("text", "TEXT_EMPTY", "empty")), Verdict::Record);
        assert_eq!(judge(&Fault::not_found("adapter", "x")), Verdict::Record);
        assert_eq!(judge(&Fault::failed_precondition("MODEL_MISMATCH", "other model")), Verdict::Record);
        let away = Fault::unavailable("NO_REPLICA", "none serves", pause);
        assert_eq!(judge(&away), Verdict::Again { asked: Some(pause) });
        assert_eq!(judge(&Fault::DeadlineExceeded), Verdict::Again { asked: None });
        assert_eq!(judge(&Fault::Internal { id: "1".into() }), Verdict::Broke);
    }

    #[test]
    fn chance_stays_within_its_bounds() {
        for _ in 0..1_000 {
            assert!((0.0..=1.0).contains(&random()));
        }
    }
}
