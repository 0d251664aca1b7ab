use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use opentelemetry::KeyValue;
use thicket_index::FaissIndex;
use thicket_proto::v1;
use thicket_telemetry::{instruments, names};
use tokio::runtime::Runtime;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};

use crate::collection::{Change, Collection, describe_item};
use crate::error::GalleryError;
use crate::gallery::{Shared, load};
use crate::record::{ImageHash, Version};
use crate::store::{Applied, Store};
use crate::write::{Done, Write};

/// Pause after a compaction that failed, on a full disk for example.
const COMPACT_AGAIN_AFTER: Duration = Duration::from_secs(60);

/// Something that the writer is asked for.
#[derive(Debug)]
pub(crate) enum Job {
    /// A change of the store.
    Write(Box<WriteJob>),
    /// A compaction after all writes queued before it.
    Compact(ReplyTo),
    /// At most so many of the images about which answers are still to be forgotten.
    ToForget(usize, ReplyTo),
    /// All answers about these images are forgotten.
    Forgotten(Vec<ImageHash>, ReplyTo),
}

/// A queued write.
#[derive(Debug)]
pub(crate) struct WriteJob {
    pub(crate) write: Write,
    /// The image of a [`Write::Put`], where it has one.
    pub(crate) image: Option<(ImageHash, Bytes)>,
    pub(crate) reply: ReplyTo,
    /// Given back when the job is done.
    pub(crate) _reserved: Option<OwnedSemaphorePermit>,
}

/// What a write did, as callers see it. It is durable by then.
#[derive(Debug)]
pub(crate) enum Reply {
    /// The collection as created.
    Created(v1::Collection),
    /// What was deleted of the collection, or all of it.
    Dropped {
        /// What went.
        deleted: Deleted,
        /// True where the collection is still there.
        remains: bool,
    },
    /// The item as stored, and the image that it had before, where nothing uses that any more.
    Stored(v1::Item, Option<ImageHash>),
    /// Items deleted.
    Deleted(Deleted),
    /// Size of the store's file in bytes, before and after it was compacted.
    Compacted(u64, u64),
    /// Images about which answers are to be forgotten.
    ToForget(Vec<ImageHash>),
}

/// What a deletion took.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Deleted {
    /// Items that are gone.
    pub(crate) items: u64,
    /// Images that no item uses any more, sorted.
    pub(crate) unused: Vec<ImageHash>,
}

/// Where an answer goes.
pub(crate) type ReplyTo = oneshot::Sender<Result<Reply, GalleryError>>;

/// Owns the store; runs on one thread.
#[derive(Debug)]
pub(crate) struct Writer {
    shared: Arc<Shared>,
    store: Store,
    queue: mpsc::Receiver<Job>,
    batch_limit: usize,
    compact_after: Duration,
    /// When to compact the store; `None` where nothing was deleted or replaced since the last time.
    compact_at: Option<Instant>,
    /// Tells when that is, while the queue is empty.
    clock: Runtime,
    /// Version of the snapshot on disk, by collection number.
    saved: HashMap<u64, Version>,
    /// True when the collections in memory may lag behind the store.
    behind: bool,
    /// Images that were deleted since the store was last told.
    deleted: Vec<ImageHash>,
}

impl Writer {
    pub(crate) fn new(
        shared: Arc<Shared>,
        store: Store,
        queue: mpsc::Receiver<Job>,
        batch_limit: usize,
        compact_after: Duration,
    ) -> std::io::Result<Self> {
        let clock = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
        Ok(Self {
            shared,
            store,
            queue,
            batch_limit,
            compact_after,
            compact_at: None,
            clock,
            saved: HashMap::new(),
            behind: false,
            deleted: Vec::new(),
        })
    }

    /// Plans the compaction that an earlier process left to be done.
    pub(crate) fn plan_compaction(&mut self) -> Result<(), GalleryError> {
        if let Some(waiting) = self.store.uncompacted_for()? {
            self.compact_at = Instant::now().checked_add(self.compact_after.saturating_sub(waiting));
        }
        Ok(())
    }

    /// Brings the collections in memory to what the store holds.
    pub(crate) fn load_all(&mut self) -> Result<(), GalleryError> {
        let records = self.store.collections()?;
        let names: HashSet<String> = records.iter().map(|(name, _)| name.clone()).collect();
        for (name, record) in records {
            let current = self.shared.collections.read().get(&name).cloned();
            if current.is_some_and(|view| view.number == record.number && view.version() == record.version) {
                continue;
            }
            let path = self.snapshot_path(record.number);
            let (view, from_snapshot) = load(&mut self.store, name.clone(), &record, &path)?;
            let items = view.len();
            if from_snapshot {
                self.saved.insert(record.number, record.version);
            } else if items > 0 {
                self.save_snapshot(&view);
            }
            tracing::info!(collection = name, items, from_snapshot, "collection loaded");
            report_size(&view);
            self.shared.collections.write().insert(name, Arc::new(view));
        }
        self.shared.collections.write().retain(|name, _| names.contains(name));
        self.behind = false;
        Ok(())
    }

    /// Removes snapshots of collections that are gone and files that a crash left half written.
    pub(crate) fn remove_stray_snapshots(&self) {
        let kept: HashSet<PathBuf> =
            self.shared.collections.read().values().map(|view| self.snapshot_path(view.number)).collect();
        let Ok(files) = std::fs::read_dir(&self.shared.snapshots) else {
            return;
        };
        for file in files.flatten().map(|file| file.path()).filter(|path| !kept.contains(path)) {
            if let Err(error) = std::fs::remove_file(&file) {
                tracing::warn!(file = %file.display(), %error, "a stray snapshot was not removed");
            }
        }
    }

    /// Works until every sender of the queue is gone, then saves snapshots.
    pub(crate) fn run(mut self) {
        loop {
            if self.compact_at.is_some_and(|at| at <= Instant::now()) {
                self.compact_when_due();
            }
            let first = match self.compact_at {
                None => self.queue.blocking_recv(),
                Some(at) => {
                    let queue = &mut self.queue;
                    let next = async { tokio::time::timeout_at(at.into(), queue.recv()).await };
                    let Ok(next) = self.clock.block_on(next) else { continue };
                    next
                }
            };
            let Some(first) = first else { break };
            let mut batch = vec![first];
            while batch.len() < self.batch_limit
                && let Ok(job) = self.queue.try_recv()
            {
                batch.push(job);
            }
            let waiting = self.queue.len() as u64;
            instruments().queue_depth.record(waiting, &[KeyValue::new(names::LANE, "write")]);
            // Nobody waits for a cancelled job, and it was not acknowledged.
            let (mut writes, mut compactions) = (Vec::new(), Vec::new());
            for job in batch {
                match job {
                    Job::Write(job) if !job.reply.is_closed() => writes.push(*job),
                    Job::Compact(reply) if !reply.is_closed() => compactions.push(reply),
                    Job::Write(_) | Job::Compact(_) => {}
                    Job::ToForget(most, reply) => {
                        answer(reply, self.store.to_forget(most).map(Reply::ToForget));
                    }
                    Job::Forgotten(images, reply) => {
                        answer(reply, self.store.forgotten(&images).map(|()| Reply::ToForget(Vec::new())));
                    }
                }
            }
            if !writes.is_empty() {
                instruments().batch_size.record(writes.len() as u64, &[KeyValue::new(names::STAGE, "write")]);
                self.commit(writes);
            }
            if !compactions.is_empty() {
                let compacted = self.compact();
                for reply in compactions {
                    answer(reply, compacted.clone().map(|(before, after)| Reply::Compacted(before, after)));
                }
            }
        }
        let views: Vec<Arc<Collection>> = self.shared.collections.read().values().cloned().collect();
        for view in views {
            if self.saved.get(&view.number) != Some(&view.version()) {
                self.save_snapshot(&view);
            }
        }
    }

    fn compact_when_due(&mut self) {
        if let Err(error) = self.compact() {
            tracing::warn!(%error, "bytes of what was deleted are still in the files, trying again");
            self.compact_at = Some(Instant::now() + COMPACT_AGAIN_AFTER);
        }
    }

    /// Takes what was deleted or replaced out of every file. Returns the size of the store's file, before and after.
    fn compact(&mut self) -> Result<(u64, u64), GalleryError> {
        let started = Instant::now();
        // What memory does not know to be deleted would keep its snapshot.
        if self.behind {
            self.load_all()?;
        }
        self.discard_stale_snapshots()
            .map_err(|cause| GalleryError::internal("removing a stale snapshot", cause))?;
        // Where the deletion of an image failed, it was not its caller's to know.
        let used = self.store.used_images()?;
        match self.shared.images.delete_unused(&used)? {
            (_, 0) => {}
            (_, left) => {
                let reason = format!("{left} files are left");
                return Err(GalleryError::internal("deleting unused images", reason));
            }
        }
        let doomed = self.store.doomed_images()?;
        self.store.forget_doomed(&doomed)?;
        self.deleted.clear();
        let (before, after) = self.store.compact()?;
        self.compact_at = None;
        let seconds = started.elapsed().as_secs_f64();
        tracing::info!(before, after, seconds, "took what was deleted out of the files");
        Ok((before, after))
    }

    /// Removes every file beside the snapshots of collections as they are now: the others may hold deleted vectors, and
    /// no start would use them.
    fn discard_stale_snapshots(&mut self) -> std::io::Result<()> {
        let views = self.shared.collections.read().clone();
        self.saved.retain(|number, version| {
            views.values().any(|view| view.number == *number && view.version() == *version)
        });
        let kept: HashSet<PathBuf> = self.saved.keys().map(|number| self.snapshot_path(*number)).collect();
        for file in std::fs::read_dir(&self.shared.snapshots)? {
            let path = file?.path();
            if !kept.contains(&path) {
                std::fs::remove_file(&path)?;
            }
        }
        Ok(())
    }

    fn commit(&mut self, batch: Vec<WriteJob>) {
        if self.behind
            && let Err(cause) = self.load_all()
        {
            for job in batch {
                answer(job.reply, Err(cause.clone()));
            }
            return;
        }
        let written = self.store_images(&batch);
        let touched: Vec<ImageHash> =
            written.iter().filter(|(_, result)| result.is_ok()).map(|(hash, _)| *hash).collect();
        let (mut writes, mut replies) = (Vec::new(), Vec::new());
        let mut reserved = Vec::new();
        for job in batch {
            match job.image.and_then(|(hash, _)| written.get(&hash)) {
                Some(Err(cause)) => answer(job.reply, Err(cause.clone())),
                _ => {
                    writes.push(job.write);
                    replies.push(job.reply);
                    reserved.push(job._reserved);
                }
            }
        }
        match self.store.apply(&writes, &touched, &self.deleted) {
            Ok(applied) => {
                self.deleted.clear();
                self.take_over(writes, replies, applied);
            }
            Err(cause) => {
                // Images that were written for nothing must not keep a full disk full.
                match self.store.unused_of(touched) {
                    Ok(unused) => _ = self.shared.images.delete_all(&unused),
                    Err(error) => {
                        tracing::warn!(%error, "images of a failed write are left to the next start")
                    }
                }
                self.catch_up();
                let (mut deletions, mut waiting) = (Vec::new(), Vec::new());
                for (write, reply) in writes.into_iter().zip(replies) {
                    if write.frees() && matches!(cause, GalleryError::DiskFull { .. }) {
                        deletions.push(write);
                        waiting.push(reply);
                    } else {
                        answer(reply, Err(cause.clone()));
                    }
                }
                if !deletions.is_empty() && !self.behind {
                    self.make_room(deletions, waiting);
                } else {
                    waiting.into_iter().for_each(|reply| answer(reply, Err(cause.clone())));
                }
            }
        }
    }

    /// Deletes on a full disk, with the space that was set aside for it.
    fn make_room(&mut self, deletions: Vec<Write>, replies: Vec<ReplyTo>) {
        self.store.give_reserve_up();
        match self.store.apply(&deletions, &[], &[]) {
            Ok(applied) => self.take_over(deletions, replies, applied),
            Err(cause) => {
                self.catch_up();
                replies.into_iter().for_each(|reply| answer(reply, Err(cause.clone())));
            }
        }
        self.store.set_reserve_aside();
    }

    /// Stores the images of a batch, each hash once; images that an item uses already are durable.
    fn store_images(&self, batch: &[WriteJob]) -> HashMap<ImageHash, Result<(), GalleryError>> {
        let collections = self.shared.collections.read().clone();
        let mut seen = HashSet::new();
        let mut images = Vec::new();
        for (hash, bytes) in batch.iter().filter_map(|job| job.image.as_ref()) {
            let stored =
                || collections.values().any(|view| view.uses_image(hash)) && self.shared.images.exists(hash);
            if seen.insert(*hash) && !stored() {
                images.push((*hash, bytes.clone()));
            }
        }
        let hashes: Vec<ImageHash> = images.iter().map(|(hash, _)| *hash).collect();
        hashes.into_iter().zip(self.shared.images.put_all(images)).collect()
    }

    /// Brings a durable transaction into memory, then tells the callers.
    fn take_over(&mut self, writes: Vec<Write>, replies: Vec<ReplyTo>, applied: Applied) {
        if applied.freed && self.compact_at.is_none() {
            self.compact_at = Instant::now().checked_add(self.compact_after);
        }
        let mut changes: HashMap<u64, Vec<Change>> = HashMap::new();
        let mut answers = Vec::with_capacity(replies.len());
        for ((write, result), reply) in writes.into_iter().zip(applied.results).zip(replies) {
            let result = result.and_then(|(done, unused)| {
                self.take_over_one(write, done, unused, applied.version, &mut changes)
            });
            answers.push((reply, result));
        }
        let views: Vec<Arc<Collection>> = self.shared.collections.read().values().cloned().collect();
        for view in views {
            if let Some(changes) = changes.remove(&view.number) {
                if let Err(error) = view.take_over(changes, applied.version) {
                    tracing::error!(collection = view.name, %error, "the index did not follow, rebuilding it");
                    self.behind = true;
                }
                report_size(&view);
            }
        }
        if self.behind {
            self.catch_up();
        }
        let left = self.shared.images.delete_all(&applied.unused);
        self.deleted.extend(applied.unused.into_iter().filter(|hash| !left.contains(hash)));
        for (reply, result) in answers {
            answer(reply, result);
        }
    }

    fn take_over_one(
        &mut self,
        write: Write,
        done: Done,
        unused: Vec<ImageHash>,
        version: Version,
        changes: &mut HashMap<u64, Vec<Change>>,
    ) -> Result<Reply, GalleryError> {
        match (write, done) {
            (Write::Create { name, .. }, Done::Created { mut record }) => {
                record.version = version;
                let index = FaissIndex::new(record.dimension)
                    .map_err(|cause| GalleryError::internal("creating the index", cause))
                    .inspect_err(|_| self.behind = true)?;
                let view = Arc::new(Collection::new(name.clone(), &record, Vec::new(), index));
                self.shared.collections.write().insert(name, view.clone());
                report_size(&view);
                Ok(Reply::Created(view.describe()))
            }
            (Write::Drop { name, .. }, Done::Dropped { number, items }) => {
                self.shared.collections.write().remove(&name);
                changes.remove(&number);
                self.saved.remove(&number);
                let path = self.snapshot_path(number);
                match std::fs::remove_file(&path) {
                    Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                        tracing::warn!(file = %path.display(), %error, "a snapshot was not removed");
                    }
                    _ => {}
                }
                instruments().gallery_vectors.record(0, &[KeyValue::new(names::COLLECTION, name)]);
                Ok(Reply::Dropped { deleted: Deleted { items, unused }, remains: false })
            }
            (Write::Put(put), Done::Stored { sequence }) => {
                let item = describe_item(&put.item);
                changes.entry(put.number).or_default().push(Change::Stored { sequence, put: Box::new(put) });
                Ok(Reply::Stored(item, unused.first().copied()))
            }
            (write @ (Write::Delete { .. } | Write::Drop { .. }), Done::Deleted { number, sequences }) => {
                let deleted = Deleted { items: sequences.len() as u64, unused };
                let gone = sequences.into_iter().map(|sequence| Change::Deleted { sequence });
                // A deletion that met nothing leaves the collection's version as it is.
                if deleted.items > 0 {
                    changes.entry(number).or_default().extend(gone);
                }
                match write {
                    Write::Drop { .. } => Ok(Reply::Dropped { deleted, remains: true }),
                    _ => Ok(Reply::Deleted(deleted)),
                }
            }
            (write, done) => Err(GalleryError::internal("writing", format!("{write:?} ended as {done:?}"))),
        }
    }

    /// Tries to bring memory level with the store; the next batch tries again where that fails.
    fn catch_up(&mut self) {
        self.behind = true;
        if let Err(error) = self.load_all() {
            tracing::error!(%error, "the collections in memory lag behind the store");
        }
    }

    fn save_snapshot(&mut self, view: &Collection) {
        match view.save_snapshot(&self.snapshot_path(view.number)) {
            Ok(version) => {
                self.saved.insert(view.number, version);
            }
            // A snapshot only saves time at the next start.
            Err(error) => {
                tracing::warn!(collection = view.name, %error, "the next start will rebuild the index")
            }
        }
    }

    fn snapshot_path(&self, number: u64) -> PathBuf {
        self.shared.snapshots.join(format!("{number}.tidx"))
    }
}

fn answer(reply: ReplyTo, result: Result<Reply, GalleryError>) {
    // The caller may have gone away meanwhile.
    let _ = reply.send(result);
}

fn report_size(view: &Collection) {
    instruments()
        .gallery_vectors
        .record(view.len() as u64, &[KeyValue::new(names::COLLECTION, view.name.clone())]);
}
