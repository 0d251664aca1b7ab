use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use opentelemetry::KeyValue;
use thicket_index::CollectionIndex;
use thicket_proto::v1;
use thicket_telemetry::{instruments, names};
use tokio::runtime::Runtime;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};

use crate::collection::{Change, Collection, Snapshotted, describe_item};
use crate::crash;
use crate::error::{GalleryError, count_storage_fault};
use crate::gallery::{Shared, load};
use crate::record::ImageHash;
use crate::source::Position;
use crate::store::{Applied, Store};
use crate::takeover::{Begin, Changed, broken};
use crate::write::{Done, Put, Write};

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
    /// A step of the writer's, for a replica.
    Step(Box<StepJob>, ReplyTo),
}

/// A step that comes in.
#[derive(Debug)]
pub(crate) struct StepJob {
    pub(crate) begin: Begin,
    /// Its parts; it is cut off where they end without [`StepPart::End`].
    pub(crate) parts: mpsc::Receiver<StepPart>,
}

/// Part of a step.
#[derive(Debug)]
pub(crate) enum StepPart {
    /// An image of an item that comes later.
    Image(ImageHash, Bytes),
    /// Items.
    Items(Vec<v1::StoredItem>),
    /// The step is complete.
    End,
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
    /// The collection as created, and the transaction.
    Created(v1::Collection, u64),
    /// What was deleted of the collection, or all of it.
    Dropped {
        /// What went.
        deleted: Deleted,
        /// True where the collection is still there.
        remains: bool,
    },
    /// An item that was stored.
    Stored(Box<Stored>),
    /// Items deleted.
    Deleted(Deleted),
    /// Size of the store's file in bytes, before and after it was compacted.
    Compacted(u64, u64),
    /// Images about which answers are to be forgotten.
    ToForget(Vec<ImageHash>),
    /// A step was taken over.
    TakenOver,
}

/// An item that is durable.
#[derive(Debug)]
pub(crate) struct Stored {
    pub(crate) item: v1::Item,
    /// The image that it had before, where nothing uses that any more.
    pub(crate) unused: Option<ImageHash>,
    /// The transaction that stored it.
    pub(crate) transaction: u64,
}

/// What a deletion took.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Deleted {
    /// Items that are gone.
    pub(crate) items: u64,
    /// Images that no item uses any more, sorted.
    pub(crate) unused: Vec<ImageHash>,
    /// The transaction that took it.
    pub(crate) transaction: u64,
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
    /// The last step of the writer's that was given up met a full disk.
    met_full_disk: bool,
    /// Images that came with steps that were given up. The next attempt may need them or not.
    stranded: Vec<ImageHash>,
    /// Tells when that is, while the queue is empty.
    clock: Runtime,
    /// What the snapshot on disk is of, by collection number.
    saved: HashMap<u64, Snapshotted>,
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
            met_full_disk: false,
            stranded: Vec::new(),
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
                self.saved.insert(record.number, view.snapshotted());
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
            let (mut writes, mut compactions, mut steps) = (Vec::new(), Vec::new(), Vec::new());
            for job in batch {
                match job {
                    Job::Write(job) if !job.reply.is_closed() => writes.push(*job),
                    Job::Compact(reply) if !reply.is_closed() => compactions.push(reply),
                    Job::Step(step, reply) if !reply.is_closed() => steps.push((step, reply)),
                    Job::Write(_) | Job::Compact(_) | Job::Step(..) => {}
                    Job::ToForget(most, reply) => {
                        answer(reply, self.store.pending_forgets(most).map(Reply::ToForget));
                    }
                    Job::Forgotten(images, reply) => {
                        answer(reply, self.store.forgotten(&images).map(|()| Reply::ToForget(Vec::new())));
                        let due = Instant::now().checked_add(self.compact_after);
                        self.compact_at = self.compact_at.or(due);
                    }
                }
            }
            if !writes.is_empty() {
                instruments().batch_size.record(writes.len() as u64, &[KeyValue::new(names::STAGE, "write")]);
                self.commit(writes);
            }
            for (step, reply) in steps {
                let taken = self.follow(*step);
                answer(reply, taken.map(|()| Reply::TakenOver));
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
            if self.saved.get(&view.number) != Some(&view.snapshotted()) {
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
        crash::at("compact.snapshots");
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
        crash::at("compact.files");
        let (before, after) = self.store.compact()?;
        self.compact_at = None;
        self.shared.indexing.measure();
        let seconds = started.elapsed().as_secs_f64();
        tracing::info!(before, after, seconds, "took what was deleted out of the files");
        Ok((before, after))
    }

    /// Removes every file beside the snapshots of collections as they are now: the others may hold deleted vectors, and
    /// no start would use them.
    fn discard_stale_snapshots(&mut self) -> std::io::Result<()> {
        let views = self.shared.collections.read().clone();
        self.saved.retain(|number, saved| {
            views.values().any(|view| view.number == *number && view.version() == saved.version)
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
        crash::at("batch.taken");
        let written = self.store_images(&batch);
        crash::at("batch.images");
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
                count_storage_fault(cause.storage_reason());
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
        let stored = self.shared.images.put_all(images);
        for cause in stored.iter().filter_map(|stored| stored.as_ref().err()) {
            count_storage_fault(cause.storage_reason());
        }
        hashes.into_iter().zip(stored).collect()
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
                self.take_over_one(write, done, unused, applied.position, &mut changes)
            });
            answers.push((reply, result));
        }
        let views: Vec<Arc<Collection>> = self.shared.collections.read().values().cloned().collect();
        for view in views {
            if let Some(changes) = changes.remove(&view.number) {
                if let Err(error) = view.take_over(changes, applied.position.version) {
                    tracing::error!(collection = view.name, %error, "the index did not follow, rebuilding it");
                    self.behind = true;
                }
                report_size(&view);
            }
        }
        if self.behind {
            self.catch_up();
        }
        self.shared.source.announce(applied.position);
        self.shared.indexing.wake();
        crash::at("batch.in_memory");
        let left = self.shared.images.delete_all(&applied.unused);
        self.deleted.extend(applied.unused.into_iter().filter(|hash| !left.contains(hash)));
        crash::at("batch.images_deleted");
        for (reply, result) in answers {
            answer(reply, result);
            crash::at("batch.answered");
        }
    }

    fn take_over_one(
        &mut self,
        write: Write,
        done: Done,
        unused: Vec<ImageHash>,
        Position { transaction, version }: Position,
        changes: &mut HashMap<u64, Vec<Change>>,
    ) -> Result<Reply, GalleryError> {
        match (write, done) {
            (Write::Create { name, .. }, Done::Created { mut record }) => {
                record.version = version;
                let index = CollectionIndex::new(record.dimension, record.index.into())
                    .map_err(|cause| GalleryError::internal("creating the index", cause))
                    .inspect_err(|_| self.behind = true)?;
                let view = Arc::new(Collection::new(name.clone(), &record, Vec::new(), index));
                self.shared.collections.write().insert(name, view.clone());
                report_size(&view);
                Ok(Reply::Created(view.describe(), transaction))
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
                Ok(Reply::Dropped { deleted: Deleted { items, unused, transaction }, remains: false })
            }
            (Write::Put(put), Done::Stored { sequence }) => {
                let item = describe_item(&put.item);
                changes.entry(put.number).or_default().push(Change::Stored { sequence, put: Box::new(put) });
                let unused = unused.first().copied();
                Ok(Reply::Stored(Box::new(Stored { item, unused, transaction })))
            }
            (write @ (Write::Delete { .. } | Write::Drop { .. }), Done::Deleted { number, sequences }) => {
                let deleted = Deleted { items: sequences.len() as u64, unused, transaction };
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

    /// Takes a step of the writer's over: its images, then its items in one transaction, then what is in memory.
    fn follow(&mut self, StepJob { begin, mut parts }: StepJob) -> Result<(), GalleryError> {
        let images = &self.shared.images;
        let mut first = parts.blocking_recv();
        // Deletions must get through a full disk. A step with images would only fill what was set aside for them.
        if self.met_full_disk && matches!(first, Some(StepPart::Items(_) | StepPart::End)) {
            self.store.give_reserve_up();
        }
        let stranded = &mut self.stranded;
        let taken = self.store.take_over(&begin, || {
            loop {
                match first.take().or_else(|| parts.blocking_recv()) {
                    Some(StepPart::Image(hash, bytes)) => {
                        if ImageHash::of(&bytes) != hash {
                            return Err(broken(format_args!("image {hash} has other bytes")));
                        }
                        let stored =
                            images.put_all(vec![(hash, bytes)]).into_iter().collect::<Result<(), _>>();
                        stored.inspect_err(|cause| count_storage_fault(cause.storage_reason()))?;
                        stranded.push(hash);
                    }
                    Some(StepPart::Items(items)) => return Ok(Some(items)),
                    Some(StepPart::End) => return Ok(None),
                    None => return Err(broken("it was cut off")),
                }
            }
        });
        let taken = match taken {
            Ok(taken) => taken,
            Err(cause) => {
                self.met_full_disk |= matches!(cause, GalleryError::DiskFull { .. });
                self.store.set_reserve_aside();
                return Err(cause);
            }
        };
        if taken.freed && self.compact_at.is_none() {
            self.compact_at = Instant::now().checked_add(self.compact_after);
        }
        if let Some(changed) = taken.changed {
            self.follow_in_memory(&begin, changed);
        }
        // Collections that are new or gone, or that changed too much.
        self.load_all().inspect_err(|_| self.behind = true)?;
        self.remove_stray_snapshots();
        if begin.whole {
            // What an earlier life of this replica left is nobody's either.
            self.shared.images.delete_unused(&self.store.used_images()?)?;
        } else {
            self.shared.images.delete_all(&taken.unused);
        }
        let unused = self.store.unused_of(std::mem::take(&mut self.stranded))?;
        self.shared.images.delete_all(&unused);
        let doomed = self.store.doomed_images()?;
        let gone: Vec<ImageHash> =
            doomed.into_iter().filter(|hash| !self.shared.images.exists(hash)).collect();
        self.store.forget_doomed(&gone)?;
        if std::mem::take(&mut self.met_full_disk) {
            self.store.set_reserve_aside();
        }
        self.shared.source.announce(begin.to);
        self.shared.indexing.wake();
        Ok(())
    }

    fn follow_in_memory(&mut self, begin: &Begin, changed: Vec<Changed>) {
        let mut changes: HashMap<u64, Vec<Change>> = HashMap::new();
        for change in changed {
            let (number, change) = match change {
                Changed::Gone { number, sequence } => (number, Change::Deleted { sequence }),
                Changed::Stored { number, sequence, item, vector } => {
                    let put = Box::new(Put { collection: String::new(), number, vector, item });
                    (number, Change::Stored { sequence, put })
                }
            };
            changes.entry(number).or_default().push(change);
        }
        for (name, record) in &begin.collections {
            let view = self.shared.collections.read().get(name).cloned();
            let Some(view) = view.filter(|view| view.number == record.number) else { continue };
            if let Err(error) =
                view.take_over(changes.remove(&record.number).unwrap_or_default(), record.version)
            {
                tracing::error!(collection = name, %error, "the index did not follow, rebuilding it");
                self.shared.collections.write().remove(name);
            }
            report_size(&view);
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
        crash::at("snapshot.begin");
        match view.save_snapshot(&self.snapshot_path(view.number)) {
            Ok(saved) => {
                crash::at("snapshot.saved");
                self.saved.insert(view.number, saved);
            }
            // A snapshot only saves time at the next start.
            Err(error) => {
                count_storage_fault("snapshot_not_written");
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
