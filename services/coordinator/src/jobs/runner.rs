use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use opentelemetry::KeyValue;
use thicket_jobs::{Finish, JobId, Pauses, Place, Unit};
use thicket_jobstore::{Lease, StoreError, Stored};
use thicket_runtime::{Fault, Stop};
use thicket_telemetry::{instruments, names};
use tokio::sync::{Notify, Semaphore, mpsc, watch};
use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, interval};
use tracing::{Instrument, info_span};

use super::board::Snapshot;
use super::clock::now_unix_ms;
use super::query::random;
use super::record::Body;
use super::unit::{Outcome, Work};
use super::{Jobs, Share, sweep};
use crate::spans::number;

/// Units held at a time, however small they are.
const MAX_UNITS: usize = 64;
/// Units that others took first, before the next look.
const MISSES: usize = 8;
/// Pauses before a unit is tried again that could not be done.
const PAUSES: Pauses = Pauses { first: Duration::from_millis(500), longest: Duration::from_secs(30) };
/// Longest wait for what is under way to be given back.
const DRAIN_LIMIT: Duration = Duration::from_secs(5);

type Key = (JobId, Unit);

/// Takes units of jobs and does them, for as long as the coordinator serves.
#[derive(Debug)]
pub(crate) struct Runner {
    jobs: Arc<Jobs>,
    share: Share,
    places: Arc<Semaphore>,
    progress: Arc<Notify>,
    leftovers: mpsc::Receiver<String>,
    running: HashMap<Key, Running>,
    /// What each task does.
    keys: HashMap<Id, Key>,
    tasks: JoinSet<Outcome>,
    clearing: JoinSet<()>,
    /// Units that could not be done: how often, and when they are tried again.
    failed: HashMap<Key, (u32, Instant)>,
    /// Units that another coordinator was seen to work on.
    others: HashSet<Key>,
    /// Units done since the last look, which does not know it.
    done: HashMap<Key, Instant>,
    /// The look that was acted on last.
    seen: Option<Instant>,
}

/// A unit under way.
#[derive(Debug)]
struct Running {
    lease: watch::Sender<Lease>,
    taken_at: Instant,
    stop: watch::Sender<bool>,
    /// Somebody else has it.
    lost: bool,
    left: Arc<AtomicUsize>,
}

impl Runner {
    pub(super) fn new(jobs: Arc<Jobs>, share: Share, leftovers: mpsc::Receiver<String>) -> Self {
        Self {
            jobs,
            share,
            places: Arc::new(Semaphore::new(share.queries)),
            progress: Arc::default(),
            leftovers,
            running: HashMap::new(),
            keys: HashMap::new(),
            tasks: JoinSet::new(),
            clearing: JoinSet::new(),
            failed: HashMap::new(),
            others: HashSet::new(),
            done: HashMap::new(),
            seen: None,
        }
    }

    /// Works until told to stop, then gives back what is under way.
    pub(crate) async fn run(mut self, stop: Stop) {
        let jobs = self.jobs.clone();
        let mut snapshots = jobs.board.subscribe();
        let keeping = jobs.board.keep();
        tokio::pin!(keeping);
        let stopped = stop.requested();
        tokio::pin!(stopped);
        let progress = self.progress.clone();
        let mut sweeps = interval(sweep::EVERY);
        sweeps.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let snapshot = snapshots.borrow_and_update().clone();
            let step = async {
                let is_new = self.seen != snapshot.read_at;
                if is_new {
                    self.settle(&snapshot).await;
                }
                // Between two looks only hunger is new: whole jobs are not gone through after every query.
                if is_new || self.is_hungry() {
                    self.fill(&snapshot).await;
                }
                self.seen = snapshot.read_at;
            };
            tokio::select! {
                () = step => {}
                () = &mut stopped => break,
            }
            let again = self.next_try();
            tokio::select! {
                () = &mut stopped => break,
                () = &mut keeping => {}
                _ = snapshots.changed() => {}
                () = progress.notified() => {}
                () = tokio::time::sleep_until(again), if !self.failed.is_empty() => {}
                Some(ended) = self.tasks.join_next_with_id() => self.ended(ended),
                Some(_) = self.clearing.join_next() => {}
                Some(folder) = self.leftovers.recv() => self.clear(folder),
                _ = sweeps.tick() => self.sweep(),
            }
        }
        self.drain().await;
    }

    /// Stops what nobody wants any more, and takes again what was lost to nobody.
    async fn settle(&mut self, snapshot: &Snapshot) {
        let now = now_unix_ms();
        for (key, running) in &mut self.running {
            // What was taken after the look is not in it.
            if snapshot.read_at.is_none_or(|read_at| read_at <= running.taken_at) {
                continue;
            }
            let (id, unit) = key;
            let Some(stored) = snapshot.find(id).filter(|stored| stored.job.wants(*unit, now)) else {
                running.stop.send_replace(true);
                continue;
            };
            let token = running.lease.borrow().token;
            match stored.job.place(*unit) {
                Place::Leased(holder) if holder == token => {}
                // By this coordinator, which is about to hear of it, or by another.
                Place::Done(_) if running.left.load(Ordering::Relaxed) == 0 => {}
                Place::Done(_) | Place::Leased(_) => {
                    tracing::info!(job = %id, ?unit, "another coordinator has taken over");
                    running.lost = true;
                    running.stop.send_replace(true);
                }
                Place::Pending => {
                    if let Ok(lease) = self.jobs.store.take(stored, *unit).await {
                        tracing::info!(job = %id, ?unit, "the lease of work under way is taken again");
                        running.lease.send_replace(lease);
                        running.taken_at = Instant::now();
                    }
                }
            }
        }
        self.others.retain(|(id, unit)| {
            let place = snapshot.find(id).map(|stored| stored.job.place(*unit));
            matches!(place, Some(Place::Pending | Place::Leased(_)))
        });
        for stored in snapshot.jobs.iter() {
            let keys = stored.job.leases().map(|(unit, _)| (stored.id.clone(), unit));
            self.others.extend(keys.filter(|key| !self.running.contains_key(key)));
        }
        self.failed.retain(|(id, _), _| snapshot.find(id).is_some());
        self.done.retain(|_, done_at| snapshot.read_at.is_none_or(|read_at| read_at <= *done_at));
    }

    /// Takes units while fewer queries are in hand than can be searched for.
    async fn fill(&mut self, snapshot: &Snapshot) {
        let now = now_unix_ms();
        let mut missed: HashSet<Key> = HashSet::new();
        while self.running.len() < MAX_UNITS && missed.len() < MISSES {
            let hungry = self.is_hungry();
            let jobs = snapshot.jobs.iter().map(|stored| (stored, &stored.job));
            let found = thicket_jobs::next(jobs, now, |stored: &Stored, unit| {
                if !hungry && matches!(unit, Unit::Part(_)) {
                    return false;
                }
                let key = (stored.id.clone(), unit);
                !self.running.contains_key(&key)
                    && !self.done.contains_key(&key)
                    && !missed.contains(&key)
                    && self.failed.get(&key).is_none_or(|(_, again)| *again <= Instant::now())
            });
            let Some((stored, unit)) = found else { return };
            match self.jobs.store.take(stored, unit).await {
                Ok(lease) => self.start(stored, lease),
                Err(StoreError::Unavailable { reason }) => {
                    tracing::debug!(reason, "no work can be taken");
                    return;
                }
                Err(_) => {
                    missed.insert((stored.id.clone(), unit));
                }
            }
        }
    }

    /// Whether fewer queries are in hand than can be searched for.
    fn is_hungry(&self) -> bool {
        let in_hand: usize = self.running.values().map(|running| running.left.load(Ordering::Relaxed)).sum();
        in_hand < self.share.queries
    }

    fn start(&mut self, stored: &Stored, lease: Lease) {
        let key = (stored.id.clone(), lease.unit);
        if self.others.remove(&key) {
            instruments().job_takeovers.add(1, &[]);
            tracing::info!(job = %key.0, unit = ?key.1, "taken over");
        }
        let body = match Body::of(stored) {
            Ok(body) => body,
            Err(fault) => {
                // The lease is held until the process ends: nobody else could do better.
                tracing::error!(%fault, "a job cannot be worked on");
                self.failed.insert(key, (1, Instant::now() + PAUSES.longest));
                return;
            }
        };
        let plan = stored.job.plan();
        let (queries, span) = match lease.unit {
            Unit::Part(part) => {
                let range = plan.range(part);
                let queries = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
                (
                    queries,
                    info_span!("job_part", job = %key.0, part = number(part), queries = number(queries)),
                )
            }
            Unit::File => (0, info_span!("job_file", job = %key.0)),
            Unit::Removal => (0, info_span!("job_removal", job = %key.0)),
        };
        let left = Arc::new(AtomicUsize::new(queries));
        let (lease, lease_receiver) = watch::channel(lease);
        let (stop, stop_receiver) = watch::channel(false);
        let work = Work {
            jobs: self.jobs.clone(),
            spec: body.spec(),
            folder: body.folder,
            plan,
            lease: lease_receiver,
            stop: stop_receiver,
            left: left.clone(),
            progress: self.progress.clone(),
            places: self.places.clone(),
            attempt: self.share.attempt,
        };
        let task = self.tasks.spawn(work.run().instrument(span));
        self.keys.insert(task.id(), key.clone());
        self.running.insert(key, Running { lease, taken_at: Instant::now(), stop, lost: false, left });
    }

    fn ended(&mut self, ended: Result<(Id, Outcome), JoinError>) {
        let (task, outcome) = match ended {
            Ok(ended) => ended,
            Err(panic) => (panic.id(), Outcome::Failed(Fault::internal(&panic))),
        };
        let Some(key) = self.keys.remove(&task) else { return };
        let lost = self.running.remove(&key).is_some_and(|running| running.lost);
        let parts = |outcome: &'static str| {
            if matches!(key.1, Unit::Part(_)) {
                instruments().job_parts.add(1, &[KeyValue::new(names::OUTCOME, outcome)]);
            }
        };
        match outcome {
            Outcome::Done { counts, finish } => {
                self.failed.remove(&key);
                self.done.insert(key.clone(), Instant::now());
                if finish == Finish::Now {
                    parts("done");
                    for (count, outcome) in [(counts.succeeded, "succeeded"), (counts.failed, "failed")] {
                        instruments().job_queries.add(count, &[KeyValue::new(names::OUTCOME, outcome)]);
                    }
                } else {
                    parts("lost");
                }
            }
            Outcome::Stopped => parts(if lost { "lost" } else { "given_back" }),
            Outcome::Failed(fault) => {
                parts("given_back");
                let failures = self.failed.get(&key).map_or(0, |(failures, _)| *failures).saturating_add(1);
                let pause = PAUSES.after(failures, None, random());
                if failures == 1 {
                    tracing::warn!(job = %key.0, unit = ?key.1, %fault, "work on a job failed, it is tried again");
                }
                self.failed.insert(key, (failures, Instant::now() + pause));
            }
        }
    }

    /// When the next unit that failed may be tried again.
    fn next_try(&self) -> Instant {
        let now = Instant::now();
        let next = self.failed.values().map(|(_, again)| *again).filter(|again| *again > now).min();
        next.unwrap_or(now + PAUSES.longest)
    }

    /// Deletes objects that no job refers to.
    fn clear(&mut self, folder: String) {
        let jobs = self.jobs.clone();
        self.clearing.spawn(async move {
            if let Err(fault) = jobs.objects.remove(&folder).await {
                tracing::warn!(folder, %fault, "objects of a job that did not come about are left");
            }
        });
    }

    /// Deletes what others have left.
    fn sweep(&mut self) {
        let jobs = self.jobs.clone();
        self.clearing.spawn(async move { jobs.sweep().await });
    }

    async fn drain(mut self) {
        self.jobs.board.close();
        for running in self.running.values() {
            running.stop.send_replace(true);
        }
        let given_back = self.running.len();
        let ended = async {
            while let Some(ended) = self.tasks.join_next_with_id().await {
                self.ended(ended);
            }
            while self.clearing.join_next().await.is_some() {}
        };
        if tokio::time::timeout(DRAIN_LIMIT, ended).await.is_err() {
            tracing::warn!("work on jobs did not end in time; its leases run out");
        }
        self.jobs.store.close().await;
        tracing::info!(given_back, "no more work on jobs");
    }
}
