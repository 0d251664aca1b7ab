use std::any::Any;
use std::collections::HashMap;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use opentelemetry::KeyValue;
use parking_lot::{Condvar, Mutex};
use thicket_engine::Ticket;
use thicket_telemetry::{instruments, names};
use tokio::sync::{oneshot, watch};

use crate::Fault;
use crate::call::Deadline;
use crate::health::{Check, Health, Probe};
use crate::queue::{self, Queue};
use crate::watchdog::{Activity, Watchdog};

/// Requests that may wait where nothing else is said.
pub const DEFAULT_QUEUE_LIMIT: usize = 256;
/// How long the first request of a batch waits for others where nothing else is said.
pub const DEFAULT_MAX_DELAY: Duration = Duration::from_millis(2);
/// Bounds of the pause that a full queue asks for.
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));

/// Work that one thread does for many callers, step by step: it owns a model or an index.
///
/// Between two steps the thread takes up new jobs and gives up those that nobody waits for any more, so a step should be
/// short. [`Batches`](crate::Batches) makes one of work that is done a batch at a time.
pub trait Steps: Send + 'static {
    /// What a caller hands in.
    type Job: Send + 'static;
    /// What the caller gets back.
    type Output: Send + 'static;

    /// Whether jobs are taken up while others are in work; if not, a batch is taken when nothing is.
    const CONTINUOUS: bool;

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

    /// Takes up a job, which a later step answers under `ticket`.
    fn take(&mut self, ticket: Ticket, job: Self::Job, deadline: Deadline);

    /// Gives up a job that was taken up and is not answered.
    fn cancel(&mut self, ticket: Ticket);

    /// Works for one step. Called while a job is open.
    fn step(&mut self) -> Stepped<Self::Output>;

    /// Jobs taken up that no step has worked on: they count as waiting.
    fn waiting(&self) -> usize {
        0
    }
}

/// What a step did.
#[derive(Debug)]
pub struct Stepped<T> {
    /// Jobs that the step was the first to work on.
    pub started: Vec<Ticket>,
    /// Jobs that have ended.
    pub done: Vec<(Ticket, Result<T, Fault>)>,
}

/// How a [`Worker`] queues and batches.
#[derive(Debug, Clone)]
pub struct WorkerOptions {
    /// Name of the thread, the checks and the series (`model`).
    pub name: &'static str,
    /// Requests that may wait; one more is refused with RESOURCE_EXHAUSTED. Default: [`DEFAULT_QUEUE_LIMIT`].
    pub queue_limit: usize,
    /// Most weight of a batch; a heavier single job still runs, alone. Where jobs are taken up while others are in work,
    /// so much ends the delay below and nothing else.
    pub max_batch: usize,
    /// How long the first job of a batch, or the first after a rest, waits for others. Default: [`DEFAULT_MAX_DELAY`].
    pub max_delay: Duration,
    /// How long one step may take before the engine counts as stuck: it gets no more jobs and the role is not ready. Default:
    /// [`DEFAULT_STUCK_AFTER`](crate::DEFAULT_STUCK_AFTER).
    pub stuck_after: Duration,
}

/// A finished job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Done<T> {
    /// The result.
    pub output: T,
    /// Time until work on it began.
    pub queued: Duration,
    /// Time from then on.
    pub ran: Duration,
}

/// A handle on a thread that owns an engine. Cheap to clone; the thread ends with the last clone.
pub struct Worker<W: Steps> {
    owner: Arc<Owner<W>>,
}

impl<W: Steps> Clone for Worker<W> {
    fn clone(&self) -> Self {
        Self { owner: self.owner.clone() }
    }
}

impl<W: Steps> fmt::Debug for Worker<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker").field("options", &self.owner.0.options).finish_non_exhaustive()
    }
}

/// What the handles share and the thread does not: its drop is the thread's end.
struct Owner<W: Steps>(Arc<Shared<W>>);

impl<W: Steps> Drop for Owner<W> {
    fn drop(&mut self) {
        self.0.inner.lock().stage = Stage::Ended;
        self.0.wake.notify_all();
        self.0.ended.notify_all();
    }
}

struct Shared<W: Steps> {
    options: WorkerOptions,
    inner: Mutex<Inner<W>>,
    wake: Condvar,
    /// Wakes the watchdog at the end.
    ended: Condvar,
    loaded: watch::Sender<Option<Result<(), String>>>,
}

struct Inner<W: Steps> {
    queue: Queue<Entry<W>>,
    stage: Stage,
    /// Since when the engine is in a step.
    stepping: Option<Instant>,
    /// A step has taken too long and has not ended.
    stuck: bool,
    /// Jobs that wait inside the engine.
    held: usize,
    /// How long the job took that ended last, for the pause that a full queue asks for.
    last_run: Duration,
}

impl<W: Steps> Inner<W> {
    /// Hands everything to the engine, where it waits until the engine says otherwise.
    fn take_all(&mut self) -> Vec<Entry<W>> {
        let taken = self.queue.take_all();
        self.held += taken.len();
        taken
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Working,
    /// The engine panicked.
    Dead,
    /// Nobody holds a handle.
    Ended,
}

struct Entry<W: Steps> {
    job: W::Job,
    since: Instant,
    deadline: Deadline,
    reply: oneshot::Sender<Result<Done<W::Output>, Fault>>,
}

/// A job that the engine has taken up.
struct Open<T> {
    since: Instant,
    /// Since when it is being worked on.
    started: Option<Instant>,
    deadline: Deadline,
    reply: oneshot::Sender<Result<Done<T>, Fault>>,
}

impl<T> Open<T> {
    fn answer(self, result: Result<T, Fault>) -> Duration {
        let now = Instant::now();
        let started = self.started.unwrap_or(now);
        let (queued, ran) = (started - self.since, now - started);
        let _ = self.reply.send(result.map(|output| Done { output, queued, ran }));
        ran
    }
}

/// Whether anybody still waits for an answer.
fn wanted<T>(reply: &oneshot::Sender<T>, deadline: Deadline) -> bool {
    !reply.is_closed() && deadline.remaining().is_some()
}

impl<W: Steps> queue::Waiting for Entry<W> {
    fn wanted(&self) -> bool {
        wanted(&self.reply, self.deadline)
    }

    fn weight(&self) -> usize {
        W::weight(&self.job).max(1)
    }

    fn joins(&self, first: &Self) -> bool {
        W::joins(&first.job, &self.job)
    }
}

impl<W: Steps> Worker<W> {
    /// Starts the thread, which loads the engine with `load` and then works.
    ///
    /// Adds three checks of the worker's name to the role's health: a start-up check that passes when `load` is done, a
    /// ready check that fails while a step takes longer than [`WorkerOptions::stuck_after`], and a live check that fails
    /// when the engine panics or has been stuck for five times as long. `load` should include a warm-up.
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
        let (ready, limit) = (health.check(options.name, Probe::Ready), options.stuck_after);
        let shared = Arc::new(Shared {
            inner: Mutex::new(Inner {
                queue: Queue::new(options.queue_limit),
                stage: Stage::Working,
                stepping: None,
                stuck: false,
                held: 0,
                last_run: Duration::ZERO,
            }),
            wake: Condvar::new(),
            ended: Condvar::new(),
            loaded: watch::Sender::new(None),
            options,
        });
        let thread_shared = shared.clone();
        std::thread::Builder::new().name(thread_shared.options.name.to_owned()).spawn(move || {
            match catch_unwind(AssertUnwindSafe(load)) {
                Ok(Ok(work)) => {
                    thread_shared.loaded.send_replace(Some(Ok(())));
                    started.pass();
                    ready.pass();
                    if let Err(cause) =
                        watch_over(&thread_shared, Watchdog { limit, ready, live: live.clone() })
                    {
                        tracing::warn!(%cause, "no thread to see whether the engine is stuck");
                    }
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

    /// Whether the engine takes jobs: false from its panic on, after a failed load, and while it is stuck.
    pub(crate) fn is_working(&self) -> bool {
        let inner = self.owner.0.inner.lock();
        inner.stage == Stage::Working && !inner.stuck
    }

    /// Has a job done.
    ///
    /// # Errors
    /// [`Fault::Exhausted`] when the queue is full, [`Fault::DeadlineExceeded`], [`Fault::Unavailable`] when the engine
    /// is lost, [`Fault::Internal`] when it panics on this batch, or what the work itself answers.
    ///
    /// # Cancel safety
    /// Dropping the future takes the job out of the queue, or out of the engine before its next step; a batch that already
    /// runs goes on without it.
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

/// Starts the thread that sees whether the engine is stuck; it ends with the engine.
fn watch_over<W: Steps>(shared: &Arc<Shared<W>>, watchdog: Watchdog) -> std::io::Result<()> {
    let shared = shared.clone();
    let name = format!("{}-watchdog", shared.options.name);
    std::thread::Builder::new().name(name).spawn(move || {
        watchdog.run(|wait| shared.activity(wait), |stuck| shared.inner.lock().stuck = stuck);
    })?;
    Ok(())
}

pub(crate) fn lost() -> Fault {
    Fault::unavailable("ENGINE_LOST", "the engine of this replica is lost", Duration::ZERO)
}

/// Gives up, takes up, and works where anything is left to do.
fn step<W: Steps>(
    engine: &mut W,
    jobs: Vec<(Ticket, W::Job, Deadline)>,
    given_up: &[Ticket],
    idle: bool,
) -> Stepped<W::Output> {
    for (ticket, job, deadline) in jobs {
        engine.take(ticket, job, deadline);
    }
    given_up.iter().for_each(|ticket| engine.cancel(*ticket));
    if idle { Stepped { started: Vec::new(), done: Vec::new() } } else { engine.step() }
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned());
    format!("panicked: {}", text.unwrap_or_else(|| "no message".to_owned()))
}

impl<W: Steps> Shared<W> {
    fn push(&self, entry: Entry<W>) -> Result<(), Fault> {
        let mut inner = self.inner.lock();
        if inner.stage != Stage::Working {
            return Err(lost());
        }
        if inner.stuck {
            return Err(Fault::unavailable("ENGINE_STUCK", "the engine of this replica is stuck", PAUSE.1));
        }
        let held = inner.held;
        let outcome = inner.queue.push(entry, held);
        let (depth, pause) = (inner.queue.len() + held, self.pause(&inner));
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
        let batches = (inner.queue.len() + inner.held).div_ceil(self.options.max_batch.max(1));
        let estimate = inner.last_run.saturating_mul(u32::try_from(batches).unwrap_or(u32::MAX));
        Duration::from_millis(estimate.clamp(PAUSE.0, PAUSE.1).as_millis() as u64)
    }

    fn work(&self, mut engine: W, live: &Check) {
        let mut open: HashMap<Ticket, Open<W::Output>> = HashMap::new();
        let mut tickets = 0;
        while let Some(entries) = self.take_up(open.is_empty()) {
            if !entries.is_empty() {
                instruments().batch_size.record(entries.len() as u64, &[self.label(names::STAGE)]);
            }
            let mut jobs = Vec::with_capacity(entries.len());
            for Entry { job, since, deadline, reply } in entries {
                jobs.push((Ticket(tickets), job, deadline));
                open.insert(Ticket(tickets), Open { since, started: None, deadline, reply });
                tickets += 1;
            }
            let given_up: Vec<Ticket> = open
                .extract_if(|_, open| !wanted(&open.reply, open.deadline))
                .map(|(ticket, _)| ticket)
                .collect();
            let began = Instant::now();
            self.inner.lock().stepping = Some(began);
            let outcome =
                catch_unwind(AssertUnwindSafe(|| step(&mut engine, jobs, &given_up, open.is_empty())));
            match outcome {
                Ok(stepped) => self.settle(stepped, began, &mut open, engine.waiting()),
                Err(panic) => {
                    let reason = panic_text(&*panic);
                    // An engine that panicked may be in any state: it is not used again.
                    live.fail(reason.clone());
                    // Before anybody hears of it, so that whoever does finds the engine lost.
                    self.end(Stage::Dead);
                    let fault = Fault::internal(format_args!("engine {}: {reason}", self.options.name));
                    open.into_values().for_each(|open| _ = open.answer(Err(fault.clone())));
                    return;
                }
            }
        }
    }

    /// Hands out what a step has brought.
    fn settle(
        &self,
        stepped: Stepped<W::Output>,
        began: Instant,
        open: &mut HashMap<Ticket, Open<W::Output>>,
        held: usize,
    ) {
        for ticket in stepped.started {
            if let Some(open) = open.get_mut(&ticket) {
                open.started = Some(began);
                let queued = (began - open.since).as_secs_f64();
                instruments().queue_wait.record(queued, &[self.label(names::LANE)]);
            }
        }
        let mut last_run = None;
        for (ticket, result) in stepped.done {
            last_run = open.remove(&ticket).map(|open| open.answer(result)).or(last_run);
        }
        let mut inner = self.inner.lock();
        inner.held = held;
        inner.stepping = None;
        inner.last_run = last_run.unwrap_or(inner.last_run);
        let depth = inner.queue.len() + held;
        drop(inner);
        self.record_depth(depth);
    }

    /// Takes jobs out of the queue, waiting for one where the engine is `idle`; `None` at the end.
    fn take_up(&self, idle: bool) -> Option<Vec<Entry<W>>> {
        let mut inner = self.inner.lock();
        loop {
            if inner.stage != Stage::Working {
                return None;
            }
            if !idle {
                return Some(if W::CONTINUOUS { inner.take_all() } else { Vec::new() });
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
            let taken = match W::CONTINUOUS {
                true => inner.take_all(),
                false => inner.queue.next_batch(self.options.max_batch),
            };
            self.record_depth(inner.queue.len());
            if !taken.is_empty() {
                return Some(taken);
            }
        }
    }

    /// What the engine does after a time, or at once when it has ended.
    fn activity(&self, wait: Duration) -> Activity {
        let mut inner = self.inner.lock();
        if inner.stage == Stage::Working {
            self.ended.wait_for(&mut inner, wait);
        }
        match (inner.stage, inner.stepping) {
            (Stage::Working, Some(began)) => Activity::Works(began.elapsed()),
            (Stage::Working, None) => Activity::Rests,
            (Stage::Dead | Stage::Ended, _) => Activity::Ended,
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
        self.ended.notify_all();
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
