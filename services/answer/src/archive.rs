use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use thicket_runtime::{
    Batches, Call, DEFAULT_STUCK_AFTER, Failure, Fault, Health, Work, Worker, WorkerOptions,
};

use crate::store::{Kept, Key, Store};

/// Calls that may wait for the store.
const QUEUE_LIMIT: usize = 4096;
/// Calls served together: what they keep is made durable at once.
const MAX_BATCH: usize = 256;

/// The answers that outlive the process, where the role has a folder for them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Archive {
    open: Option<Open>,
}

#[derive(Debug, Clone)]
struct Open {
    worker: Worker<Batches<Keeper>>,
    forgotten: Arc<AtomicU64>,
}

/// When a call began, in terms of what was forgotten: what it brings is not kept when an image was forgotten since.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Since(u64);

impl Archive {
    /// Opens the store in a folder on a thread of its own.
    ///
    /// # Errors
    /// [`Failure::BadInput`] where it cannot be used.
    pub(crate) async fn open(folder: &Path, limit: u64, health: &Health) -> Result<Self, Failure> {
        let owned = folder.to_owned();
        let store = tokio::task::spawn_blocking(move || Store::open(&owned, limit))
            .await
            .map_err(|cause| Failure::Failed(format!("the answer store cannot be opened: {cause}")))?
            .map_err(|error| Failure::BadInput(error.to_string()))?;
        let forgotten = Arc::new(AtomicU64::new(0));
        let keeper = Keeper { store, forgotten: forgotten.clone() };
        let options = WorkerOptions {
            name: "answer-store",
            queue_limit: QUEUE_LIMIT,
            max_batch: MAX_BATCH,
            max_delay: Duration::ZERO,
            stuck_after: DEFAULT_STUCK_AFTER,
        };
        let worker = Worker::spawn(options, health, || Ok::<_, String>(Batches::of(keeper)))
            .map_err(|cause| Failure::Failed(format!("a thread cannot start: {cause}")))?;
        Ok(Self { open: Some(Open { worker, forgotten }) })
    }

    /// To be called before the work on an answer begins.
    pub(crate) fn since(&self) -> Since {
        Since(self.open.as_ref().map_or(0, |open| open.forgotten.load(Ordering::Acquire)))
    }

    /// The answer under a key. A store that fails has none: the model is asked.
    pub(crate) async fn find(&self, key: Key, call: &Call) -> Option<Kept> {
        let open = self.open.as_ref()?;
        match open.worker.submit(Job::Find(key), call.deadline()).await {
            Ok(done) => match done.output {
                Reply::Found(found) => found,
                Reply::Done(_) => None,
            },
            Err(error) => {
                tracing::warn!(%error, "the answer store could not be asked");
                None
            }
        }
    }

    /// Keeps an answer; durable when it returns. A store that fails keeps nothing, and the caller still gets the answer.
    pub(crate) async fn keep(&self, key: Key, kept: Kept, since: Since, call: &Call) {
        let Some(open) = &self.open else { return };
        if let Err(error) = open.worker.submit(Job::Keep(key, kept, since), call.deadline()).await {
            tracing::warn!(%error, "an answer is not kept");
        }
    }

    /// Deletes every answer about images, from the file too. Returns how many there were.
    ///
    /// # Errors
    /// [`Fault`] where the store fails.
    pub(crate) async fn forget(&self, images: BTreeSet<[u8; 32]>, call: &Call) -> Result<u64, Fault> {
        let Some(open) = &self.open else { return Ok(0) };
        open.forgotten.fetch_add(1, Ordering::AcqRel);
        match open.worker.submit(Job::Forget(images), call.deadline()).await?.output {
            Reply::Done(count) => Ok(count),
            Reply::Found(_) => Err(Fault::internal("another reply than was asked for")),
        }
    }
}

#[derive(Debug)]
enum Job {
    Find(Key),
    Keep(Key, Kept, Since),
    Forget(BTreeSet<[u8; 32]>),
}

#[derive(Debug, Clone)]
enum Reply {
    Found(Option<Kept>),
    Done(u64),
}

/// The store, as the work of one thread.
#[derive(Debug)]
struct Keeper {
    store: Store,
    forgotten: Arc<AtomicU64>,
}

impl Keeper {
    fn find(&mut self, key: &Key) -> Result<Reply, Fault> {
        self.store.get(key).map(Reply::Found).map_err(Fault::internal)
    }
}

impl Work for Keeper {
    type Job = Job;
    type Output = Reply;

    /// Nothing is kept beside a deletion.
    fn joins(first: &Job, next: &Job) -> bool {
        !matches!(first, Job::Forget(_)) && !matches!(next, Job::Forget(_))
    }

    fn run(&mut self, jobs: Vec<Job>) -> Vec<Result<Reply, Fault>> {
        let now = self.forgotten.load(Ordering::Acquire);
        let mut answers = Vec::new();
        let mut replies = Vec::with_capacity(jobs.len());
        let mut keeping = Vec::new();
        for job in jobs {
            replies.push(match job {
                Job::Find(key) => self.find(&key),
                Job::Forget(images) => self.store.forget(&images).map(Reply::Done).map_err(Fault::internal),
                Job::Keep(key, kept, Since(since)) => {
                    if since == now {
                        keeping.push(replies.len());
                        answers.push((key, kept));
                    }
                    Ok(Reply::Done(0))
                }
            });
        }
        if !answers.is_empty()
            && let Err(cause) = self.store.put(&answers)
        {
            let fault = Fault::internal(cause);
            keeping.into_iter().for_each(|index| replies[index] = Err(fault.clone()));
        }
        replies
    }
}
