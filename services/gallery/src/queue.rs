//! The queue of writes, which is the same whatever keeps the collections: bounded in number and in bytes.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use opentelemetry::KeyValue;
use parking_lot::Mutex;
use thicket_engine::Similarity;
use thicket_index::IndexKind;
use thicket_proto::v1;
use thicket_telemetry::{instruments, names};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use crate::error::GalleryError;
use crate::record::{CollectionRecord, ImageHash, Version};
use crate::takeover::Begin;
use crate::write::{Put, Write};
use crate::writer::{Deleted, Job, Reply, StepJob, StepPart, Stored, WriteJob};

/// The way in for writes. One writer takes them out, in their order.
#[derive(Debug)]
pub(crate) struct WriteQueue {
    /// `None` once the queue is closed.
    jobs: Mutex<Option<mpsc::Sender<Job>>>,
    limit: usize,
    /// Bounds the bytes of queued upserts, in KiB.
    bytes_in_flight: Arc<Semaphore>,
    budget_kib: u32,
    /// Address of who takes writes instead; `None` where they are taken here.
    writer: Option<String>,
}

impl WriteQueue {
    /// A queue of at most `limit` writes and about `upsert_bytes`, and the end that the writer holds.
    pub(crate) fn new(limit: usize, upsert_bytes: usize) -> (Self, mpsc::Receiver<Job>) {
        let budget_kib = u32::try_from(upsert_bytes.div_ceil(1024)).unwrap_or(u32::MAX).max(1);
        let (jobs, queue) = mpsc::channel(limit);
        let bytes_in_flight = Arc::new(Semaphore::new(budget_kib as usize));
        (Self { jobs: Mutex::new(Some(jobs)), limit, bytes_in_flight, budget_kib, writer: None }, queue)
    }

    /// The queue of a read replica: refuses writes and names who takes them.
    pub(crate) fn of_replica(self, writer: Option<String>) -> Self {
        Self { writer, ..self }
    }

    /// Refuses new writes; the writer ends after those that are queued.
    pub(crate) fn close(&self) {
        self.jobs.lock().take();
    }

    /// False once the writer is gone, in an orderly way or not.
    pub(crate) fn is_open(&self) -> bool {
        self.jobs.lock().as_ref().is_some_and(|jobs| !jobs.is_closed())
    }

    /// Creates a collection.
    pub(crate) async fn create(
        &self,
        name: String,
        model_fingerprint: String,
        dimension: usize,
        similarity: Similarity,
        index: IndexKind,
    ) -> Result<(v1::Collection, u64), GalleryError> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let record = CollectionRecord {
            number: 0,
            model_fingerprint,
            dimension,
            similarity: similarity.into(),
            index: index.into(),
            created_unix_ms: now.as_millis() as i64,
            next_sequence: 0,
            items: 0,
            version: Version::default(),
        };
        match self.submit(Write::Create { name, record })?.answer().await? {
            Reply::Created(collection, transaction) => Ok((collection, transaction)),
            other => Err(wrong_reply(&other)),
        }
    }

    /// Deletes a collection, or where `most` is given that many of its items at most, oldest first, and the collection when
    /// none is left. Returns what went, and whether there is still a collection.
    pub(crate) async fn drop_collection(
        &self,
        name: String,
        most: Option<usize>,
    ) -> Result<(Deleted, bool), GalleryError> {
        match self.submit(Write::Drop { name, most })?.answer().await? {
            Reply::Dropped { deleted, remains } => Ok((deleted, remains)),
            other => Err(wrong_reply(&other)),
        }
    }

    /// Deletes items.
    pub(crate) async fn delete(&self, collection: String, ids: Vec<String>) -> Result<Deleted, GalleryError> {
        match self.submit(Write::Delete { collection, ids })?.answer().await? {
            Reply::Deleted(deleted) => Ok(deleted),
            other => Err(wrong_reply(&other)),
        }
    }

    /// Takes what was deleted or replaced out of every file. Returns the size of the store's file in bytes, before and
    /// after.
    pub(crate) async fn compact(&self) -> Result<(u64, u64), GalleryError> {
        let (reply, answer) = oneshot::channel();
        match self.submit_job(Job::Compact(reply), Ticket(answer))?.answer().await? {
            Reply::Compacted(before, after) => Ok((before, after)),
            other => Err(wrong_reply(&other)),
        }
    }

    /// Some of the images about which answers are still to be forgotten.
    pub(crate) async fn pending_forgets(&self, most: usize) -> Result<Vec<ImageHash>, GalleryError> {
        let (reply, answer) = oneshot::channel();
        match self.submit_job(Job::ToForget(most, reply), Ticket(answer))?.answer().await? {
            Reply::ToForget(images) => Ok(images),
            other => Err(wrong_reply(&other)),
        }
    }

    /// Notes that all answers about some images are forgotten.
    pub(crate) async fn forgotten(&self, images: Vec<ImageHash>) -> Result<(), GalleryError> {
        let (reply, answer) = oneshot::channel();
        match self.submit_job(Job::Forgotten(images, reply), Ticket(answer))?.answer().await? {
            Reply::ToForget(_) => Ok(()),
            other => Err(wrong_reply(&other)),
        }
    }

    /// Waits until an upsert of about `bytes` may be held in memory.
    pub(crate) async fn reserve(&self, bytes: usize) -> Result<OwnedSemaphorePermit, GalleryError> {
        // One that is larger than the whole budget waits for all of it.
        let kib = u32::try_from(bytes.div_ceil(1024)).unwrap_or(u32::MAX).clamp(1, self.budget_kib);
        self.bytes_in_flight.clone().acquire_many_owned(kib).await.map_err(|_| GalleryError::Stopping)
    }

    /// Queues an upsert, waiting for a place in the queue; the order of calls is the order of the writes.
    pub(crate) async fn put(
        &self,
        put: Put,
        image: Option<(ImageHash, Bytes)>,
        reserved: OwnedSemaphorePermit,
    ) -> Result<Ticket, GalleryError> {
        self.may_write()?;
        let jobs = self.jobs.lock().clone().ok_or(GalleryError::Stopping)?;
        let (job, ticket) = job(Write::Put(put), image, Some(reserved));
        jobs.send(job).await.map_err(|_| GalleryError::Stopping)?;
        Ok(ticket)
    }

    /// Has a step of the writer's taken over while its parts come in. The second wait is for its end.
    pub(crate) async fn take_over(
        &self,
        begin: Begin,
        parts: mpsc::Receiver<StepPart>,
    ) -> Result<impl Future<Output = Result<(), GalleryError>> + use<>, GalleryError> {
        let jobs = self.jobs.lock().clone().ok_or(GalleryError::Stopping)?;
        let (reply, answer) = oneshot::channel();
        let step = Box::new(StepJob { begin, parts });
        jobs.send(Job::Step(step, reply)).await.map_err(|_| GalleryError::Stopping)?;
        Ok(async move {
            match Ticket(answer).answer().await? {
                Reply::TakenOver => Ok(()),
                other => Err(wrong_reply(&other)),
            }
        })
    }

    fn may_write(&self) -> Result<(), GalleryError> {
        match &self.writer {
            None => Ok(()),
            Some(writer) => Err(GalleryError::ReadReplica { writer: writer.clone() }),
        }
    }

    fn submit(&self, write: Write) -> Result<Ticket, GalleryError> {
        self.may_write()?;
        let (job, ticket) = job(write, None, None);
        self.submit_job(job, ticket)
    }

    fn submit_job(&self, job: Job, ticket: Ticket) -> Result<Ticket, GalleryError> {
        match self.jobs.lock().as_ref().ok_or(GalleryError::Stopping)?.try_send(job) {
            Ok(()) => Ok(ticket),
            Err(TrySendError::Full(_)) => {
                instruments().admission_rejected.add(1, &[KeyValue::new(names::REASON, "QUEUE_FULL")]);
                Err(GalleryError::QueueFull { queue: "write", limit: self.limit })
            }
            Err(TrySendError::Closed(_)) => Err(GalleryError::Stopping),
        }
    }
}

/// A queued write.
#[derive(Debug)]
pub(crate) struct Ticket(oneshot::Receiver<Result<Reply, GalleryError>>);

impl Ticket {
    async fn answer(self) -> Result<Reply, GalleryError> {
        self.0.await.unwrap_or(Err(GalleryError::Stopping))
    }

    /// The item as stored; it is durable then.
    pub(crate) async fn stored(self) -> Result<Stored, GalleryError> {
        match self.answer().await? {
            Reply::Stored(stored) => Ok(*stored),
            other => Err(wrong_reply(&other)),
        }
    }
}

fn job(
    write: Write,
    image: Option<(ImageHash, Bytes)>,
    reserved: Option<OwnedSemaphorePermit>,
) -> (Job, Ticket) {
    let (reply, answer) = oneshot::channel();
    (Job::Write(Box::new(WriteJob { write, image, reply, _reserved: reserved })), Ticket(answer))
}

fn wrong_reply(reply: &Reply) -> GalleryError {
    GalleryError::internal("writing", format!("a reply of another kind: {reply:?}"))
}
