use std::any::Any;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use opentelemetry::KeyValue;
use parking_lot::{Condvar, Mutex};
use thicket_telemetry::{instruments, names};
use tokio::sync::{oneshot, watch};

use crate::Fault;
use crate::call::Deadline;
use crate::health::{Check, Health, Probe};
use crate::queue::{self, Queue};

/// Requests that may wait where nothing else is said.
pub const DEFAULT_QUEUE_LIMIT: usize = 256;
/// How long the first request of a batch waits for others where nothing else is said.
pub const DEFAULT_MAX_DELAY: Duration = Duration::from_millis(2);
/// Bounds of the pause that a full queue asks for.
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));

/// Work that one thread does for many callers: it owns a model or an index.
pub trait Work: Send + 'static {
    /// What a caller hands in.
    type Job: Send + 'static;
    /// What the caller gets back.
    type Output: Send + 'static;

    /// How much of a batch's budget a job takes.
    fn weight(job: &Self::Job) -> usize {
        let _ = job;
        1
    }

    /// Whether a job can be in one batch with the batch's first.
    fn joins(first: &Self::Job, next: &Self::Job) -> bool {
        let _ = (first, next);
        true
    }

    /// Does the jobs of one batch. Returns one result a job, in order.
    fn run(&mut self, jobs: Vec<Self::Job>) -> Vec<Result<Self::Output, Fault>>;
}

/// How a [`Worker`] queues and batches.
#[derive(Debug, Clone)]
pub struct WorkerOptions {
    /// Name of the thread, the checks and the series (`model`).
    pub name: &'static str,
    /// Requests that may wait; one more is refused with RESOURCE_EXHAUSTED. Default: [`DEFAULT_QUEUE_LIMIT`].
    pub queue_limit: usize,
    /// Most weight of a batch; a heavier single job still runs, alone.
    pub max_batch: usize,
    /// How long the first job of a batch waits for others. Default: [`DEFAULT_MAX_DELAY`].
    pub max_delay: Duration,
}

/// A finished job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Done<T> {
    /// The result.
    pub output: T,
    /// Time in the queue.
    pub queued: Duration,
    /// Time its batch took.
    pub ran: Duration,
}

/// A handle on a thread that owns an engine. Cheap to clone; the thread ends with the last clone.
pub struct Worker<W: Work> {
    owner: Arc<Owner<W>>,
}

impl<W: Work> Clone for Worker<W> {
    fn clone(&self) -> Self {
        Self { owner: self.owner.clone() }
    }
}

impl<W: Work> fmt::Debug for Worker<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker").field("options", &self.owner.0.options).finish_non_exhaustive()
    }
}

/// What the handles share and the thread does not: its drop is the thread's end.
struct Owner<W: Work>(Arc<Shared<W>>);

impl<W: Work> Drop for Owner<W> {
    fn drop(&mut self) {
        self.0.inner.lock().stage = Stage::Ended;
        self.0.wake.notify_all();
    }
}

struct Shared<W: Work> {
    options: WorkerOptions,
    inner: Mutex<Inner<W>>,
    wake: Condvar,
    loaded: watch::Sender<Option<Result<(), String>>>,
}

struct Inner<W: Work> {
    queue: Queue<Entry<W>>,
    stage: Stage,
    /// How long the last batch took, for the pause that a full queue asks for.
    last_batch: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Working,
    /// The engine panicked.
    Dead,
    /// Nobody holds a handle.
    Ended,
}

struct Entry<W: Work> {
    job: W::Job,
    since: Instant,
    deadline: Deadline,
    reply: oneshot::Sender<Result<Done<W::Output>, Fault>>,
}

impl<W: Work> queue::Waiting for Entry<W> {
    fn wanted(&self) -> bool {
        !self.reply.is_closed() && self.deadline.remaining().is_some()
    }

    fn weight(&self) -> usize {
        W::weight(&self.job).max(1)
    }

    fn joins(&self, first: &Self) -> bool {
        W::joins(&first.job, &self.job)
    }
}

impl<W: Work> Worker<W> {
    /// Starts the thread, which loads the engine with `load` and then works.
    ///
    /// Adds two checks of the worker's name to the role's health: a start-up check that passes when `load` is done, and
    /// a live check that fails when the engine panics. `load` should include a warm-up.
    ///
    /// # Errors
    /// Where the system gives no thread.
    pub fn spawn<E: fmt::Display>(
        options: WorkerOptions,
        health: &Health,
        load: impl FnOnce() -> Result<W, E> + Send + 'static,
    ) -> std::io::Result<Self> {
        let started = health.check(options.name, Probe::Startup);
        let live = health.check(options.name, Probe::Live);
        let shared = Arc::new(Shared {
            inner: Mutex::new(Inner {
                queue: Queue::new(options.queue_limit),
                stage: Stage::Working,
                last_batch: Duration::ZERO,
            }),
            wake: Condvar::new(),
            loaded: watch::Sender::new(None),
            options,
        });
        let thread_shared = shared.clone();
        std::thread::Builder::new().name(thread_shared.options.name.to_owned()).spawn(move || {
            match catch_unwind(AssertUnwindSafe(load)) {
                Ok(Ok(work)) => {
                    thread_shared.loaded.send_replace(Some(Ok(())));
                    started.pass();
                    thread_shared.work(work, &live);
                }
                Ok(Err(error)) => thread_shared.fail_loading(&started, error.to_string()),
                Err(panic) => thread_shared.fail_loading(&started, panic_text(&*panic)),
            }
        })?;
        Ok(Self { owner: Arc::new(Owner(shared)) })
    }

    /// Waits until the engine is loaded.
    ///
    /// # Errors
    /// Why it could not be loaded.
    pub async fn loaded(&self) -> Result<(), String> {
        let mut loaded = self.owner.0.loaded.subscribe();
        match loaded.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(result)) => result.clone(),
            _ => Err("the worker is gone".to_owned()),
        }
    }

    /// Whether the engine takes jobs: false from its panic on, and after a failed load.
    pub(crate) fn is_working(&self) -> bool {
        self.owner.0.inner.lock().stage == Stage::Working
    }

    /// Has a job done.
    ///
    /// # Errors
    /// [`Fault::Exhausted`] when the queue is full, [`Fault::DeadlineExceeded`], [`Fault::Unavailable`] when the engine
    /// is lost, [`Fault::Internal`] when it panics on this batch, or what the work itself answers.
    ///
    /// # Cancel safety
    /// Dropping the future takes the job out of the queue; a batch that already runs goes on without it.
    pub async fn submit(&self, job: W::Job, deadline: Deadline) -> Result<Done<W::Output>, Fault> {
        let (reply, answer) = oneshot::channel();
        self.owner.0.push(Entry { job, since: Instant::now(), deadline, reply })?;
        match tokio::time::timeout_at(deadline.instant().into(), answer).await {
            Ok(Ok(result)) => result,
            // The thread drops a job without an answer when its deadline passed first.
            Ok(Err(_)) if deadline.remaining().is_none() => Err(Fault::DeadlineExceeded),
            Ok(Err(_)) => Err(lost()),
            Err(_) => Err(Fault::DeadlineExceeded),
        }
    }
}

pub(crate) fn lost() -> Fault {
    Fault::unavailable("ENGINE_LOST", "the engine of this replica is lost", Duration::ZERO)
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned());
    format!("panicked: {}", text.unwrap_or_else(|| "no message".to_owned()))
}

impl<W: Work> Shared<W> {
    fn push(&self, entry: Entry<W>) -> Result<(), Fault> {
        let mut inner = self.inner.lock();
        if inner.stage != Stage::Working {
            return Err(lost());
        }
        let outcome = inner.queue.push(entry);
        let (depth, pause) = (inner.queue.len(), self.pause(&inner));
        drop(inner);
        self.record_depth(depth);
        if outcome.is_err() {
            instruments().admission_rejected.add(1, &[KeyValue::new(names::REASON, "QUEUE_FULL")]);
            let limit = self.options.queue_limit;
            return Err(Fault::exhausted(
                "QUEUE_FULL",
                format!("{limit} requests are waiting already"),
                pause,
            ));
        }
        self.wake.notify_one();
        Ok(())
    }

    /// How long the queue will roughly take to empty.
    fn pause(&self, inner: &Inner<W>) -> Duration {
        let batches = inner.queue.len().div_ceil(self.options.max_batch.max(1));
        let estimate = inner.last_batch.saturating_mul(u32::try_from(batches).unwrap_or(u32::MAX));
        Duration::from_millis(estimate.clamp(PAUSE.0, PAUSE.1).as_millis() as u64)
    }

    fn work(&self, mut work: W, live: &Check) {
        while let Some(batch) = self.next_batch() {
            let picked = Instant::now();
            instruments().batch_size.record(batch.len() as u64, &[self.label(names::STAGE)]);
            let mut replies = Vec::with_capacity(batch.len());
            let mut jobs = Vec::with_capacity(batch.len());
            for entry in batch {
                let queued = picked - entry.since;
                instruments().queue_wait.record(queued.as_secs_f64(), &[self.label(names::LANE)]);
                replies.push((entry.reply, queued));
                jobs.push(entry.job);
            }
            let outcome = catch_unwind(AssertUnwindSafe(|| work.run(jobs)));
            let ran = picked.elapsed();
            self.inner.lock().last_batch = ran;
            let results = match outcome {
                Ok(results) => results,
                Err(panic) => {
                    let reason = panic_text(&*panic);
                    // An engine that panicked may be in any state: it is not used again.
                    live.fail(reason.clone());
                    // Before anybody hears of it, so that whoever does finds the engine lost.
                    self.end(Stage::Dead);
                    let fault = Fault::internal(format_args!("engine {}: {reason}", self.options.name));
                    for (reply, _) in replies {
                        let _ = reply.send(Err(fault.clone()));
                    }
                    return;
                }
            };
            let mut results = results.into_iter();
            for (reply, queued) in replies {
                let result =
                    results.next().unwrap_or_else(|| Err(Fault::internal("the engine left a job out")));
                let _ = reply.send(result.map(|output| Done { output, queued, ran }));
            }
        }
    }

    /// Waits for the next batch; `None` at the end.
    fn next_batch(&self) -> Option<Vec<Entry<W>>> {
        let mut inner = self.inner.lock();
        loop {
            if inner.stage != Stage::Working {
                return None;
            }
            let Some(first) = inner.queue.front() else {
                self.wake.wait(&mut inner);
                continue;
            };
            let until = first.since + self.options.max_delay;
            if !inner.queue.fills(self.options.max_batch) && Instant::now() < until {
                self.wake.wait_until(&mut inner, until);
                continue;
            }
            let batch = inner.queue.next_batch(self.options.max_batch);
            self.record_depth(inner.queue.len());
            if !batch.is_empty() {
                return Some(batch);
            }
        }
    }

    fn fail_loading(&self, started: &Check, reason: String) {
        started.fail(reason.clone());
        self.end(Stage::Dead);
        self.loaded.send_replace(Some(Err(reason)));
    }

    fn end(&self, stage: Stage) {
        let mut inner = self.inner.lock();
        inner.stage = stage;
        for entry in inner.queue.drain() {
            let _ = entry.reply.send(Err(lost()));
        }
    }

    fn record_depth(&self, depth: usize) {
        instruments().queue_depth.record(depth as u64, &[self.label(names::LANE)]);
    }

    fn label(&self, attribute: &'static str) -> KeyValue {
        KeyValue::new(attribute, self.options.name)
    }
}
