use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use opentelemetry::KeyValue;
use thicket_jobs::{JobId, State};
use thicket_jobstore::{JobStore, Stored};
use thicket_telemetry::{instruments, names};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use super::clock::now_unix_ms;

/// Pause before the store is asked again after it could not be.
const AGAIN: Duration = Duration::from_secs(1);
/// Shortest time between two looks, however much changes.
const GAP: Duration = Duration::from_millis(100);

/// All jobs as they were at one moment.
#[derive(Debug, Clone)]
pub(super) struct Snapshot {
    /// Oldest first.
    pub(super) jobs: Arc<Vec<Stored>>,
    /// Before it was read; `None` before the first was.
    pub(super) read_at: Option<Instant>,
    /// This coordinator is leaving: there will be no other.
    pub(super) is_last: bool,
}

impl Snapshot {
    pub(super) fn find(&self, id: &JobId) -> Option<&Stored> {
        self.jobs.iter().find(|stored| stored.id == *id)
    }
}

/// What this coordinator knows of all jobs: one look at the store for everybody who follows them.
#[derive(Debug)]
pub(super) struct Board {
    store: Arc<dyn JobStore>,
    snapshots: watch::Sender<Snapshot>,
}

impl Board {
    pub(super) fn new(store: Arc<dyn JobStore>) -> Self {
        let none = Snapshot { jobs: Arc::default(), read_at: None, is_last: false };
        Self { store, snapshots: watch::Sender::new(none) }
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<Snapshot> {
        self.snapshots.subscribe()
    }

    /// Looks whenever something has changed, when a job expires, and from time to time as the store wants it.
    pub(super) async fn keep(&self) {
        let mut stirred = self.store.stirred();
        let mut away = false;
        loop {
            stirred.mark_unchanged();
            let began = Instant::now();
            let pause = match self.store.jobs().await {
                Ok(jobs) => {
                    if std::mem::replace(&mut away, false) {
                        tracing::info!("jobs can be reached again");
                    }
                    let now = now_unix_ms();
                    count(&jobs, now);
                    let pause = until_one_expires(&jobs, now).min(self.store.interval());
                    self.snapshots.send_modify(|snapshot| {
                        snapshot.jobs = Arc::new(jobs);
                        snapshot.read_at = Some(began);
                    });
                    pause
                }
                Err(error) => {
                    if !std::mem::replace(&mut away, true) {
                        tracing::warn!(%error, "jobs are not known to be up to date, going on with what is under way");
                    }
                    AGAIN
                }
            };
            sleep(GAP).await;
            tokio::select! {
                _ = stirred.changed() => {}
                () = sleep(pause) => {}
            }
        }
    }

    /// Tells everybody who follows that there is nothing more to see here.
    pub(super) fn close(&self) {
        self.snapshots.send_modify(|snapshot| snapshot.is_last = true);
    }
}

/// How long it is until the deadline of a job passes: nobody changes anything then, and the job is another.
fn until_one_expires(jobs: &[Stored], now: i64) -> Duration {
    let deadlines = jobs.iter().filter(|stored| !stored.job.state(now).is_at_rest());
    let next = deadlines.filter_map(|stored| stored.job.deadline()).filter(|deadline| *deadline > now).min();
    // A moment later, so that the clock says so too.
    next.map_or(Duration::MAX, |next| Duration::from_millis(next.abs_diff(now).saturating_add(1)))
}

fn count(jobs: &[Stored], now: i64) {
    let mut states: HashMap<State, u64> = HashMap::new();
    for stored in jobs {
        *states.entry(stored.job.state(now)).or_default() += 1;
    }
    for state in State::ALL {
        let count = states.get(&state).copied().unwrap_or_default();
        instruments().jobs.record(count, &[KeyValue::new(names::STATE, state.name())]);
    }
}
