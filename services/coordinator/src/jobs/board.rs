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

/// How often the store is asked what other coordinators have changed.
const INTERVAL: Duration = Duration::from_secs(1);
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

    /// Looks again and again, and at once where this coordinator has changed something.
    pub(super) async fn keep(&self) {
        let mut stirred = self.store.stirred();
        let mut away = false;
        loop {
            stirred.mark_unchanged();
            let began = Instant::now();
            match self.store.jobs().await {
                Ok(jobs) => {
                    if std::mem::replace(&mut away, false) {
                        tracing::info!("jobs can be reached again");
                    }
                    count(&jobs);
                    self.snapshots.send_modify(|snapshot| {
                        snapshot.jobs = Arc::new(jobs);
                        snapshot.read_at = Some(began);
                    });
                }
                Err(error) => {
                    if !std::mem::replace(&mut away, true) {
                        tracing::warn!(%error, "jobs are not known to be up to date, going on with what is under way");
                    }
                }
            }
            sleep(GAP).await;
            tokio::select! {
                _ = stirred.changed() => {}
                () = sleep(INTERVAL) => {}
            }
        }
    }

    /// Tells everybody who follows that there is nothing more to see here.
    pub(super) fn close(&self) {
        self.snapshots.send_modify(|snapshot| snapshot.is_last = true);
    }
}

fn count(jobs: &[Stored]) {
    let now = now_unix_ms();
    let mut states: HashMap<State, u64> = HashMap::new();
    for stored in jobs {
        *states.entry(stored.job.state(now)).or_default() += 1;
    }
    for state in State::ALL {
        let count = states.get(&state).copied().unwrap_or_default();
        instruments().jobs.record(count, &[KeyValue::new(names::STATE, state.name())]);
    }
}
