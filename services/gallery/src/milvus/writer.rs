//! The one task that writes to Milvus, so that two writes of this process never meet.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use futures::FutureExt;
use opentelemetry::KeyValue;
use thicket_milvus::{Expression, MilvusError, Page, Token};
use thicket_proto::v1;
use thicket_telemetry::{instruments, names as telemetry};
use tokio::sync::mpsc;

use crate::collection::describe_item;
use crate::error::GalleryError;
use crate::milvus::names::{self, Description, PROPERTY};
use crate::milvus::outbox::Note;
use crate::milvus::rows::{self, HELD_FIELDS, Held, KEY, NewRow, Object, SEQUENCE};
use crate::milvus::{Shared, together, unavailable};
use crate::record::{CollectionRecord, ImageHash, StoredIndex};
use crate::write::{Put, Write};
use crate::writer::{Deleted, Job, Reply, ReplyTo, Stored, WriteJob};

/// How long one batch of writes may take.
const WRITE_LIMIT: Duration = Duration::from_secs(60);
/// How long a compaction may take.
const COMPACTION_LIMIT: Duration = Duration::from_secs(3600);
/// How often the outbox is looked at.
const TIDY_INTERVAL: Duration = Duration::from_secs(60);
/// Images written at a time.
const IMAGES_AT_ONCE: usize = 16;
/// Keys of one deletion or query, and bytes of the vectors of one write.
const KEYS_AT_ONCE: usize = 1000;
const VECTOR_BYTES_AT_ONCE: usize = 16 << 20;
/// Bytes of the rest of a row at most, for a bound on a write.
const ROW_BYTES: usize = 96 << 10;

/// Takes writes out of the queue, in their order.
#[derive(Debug)]
pub(super) struct Writer {
    shared: Arc<Shared>,
    queue: mpsc::Receiver<Job>,
    batch_limit: usize,
    grace: Duration,
    /// Sequence number of the last new item.
    last_sequence: i64,
}

/// An upsert that waits for its answer.
struct Upsert {
    put: Put,
    key: Token,
    image: Option<(ImageHash, Bytes)>,
    reply: ReplyTo,
    _reserved: Option<tokio::sync::OwnedSemaphorePermit>,
}

impl Writer {
    pub(super) fn new(
        shared: Arc<Shared>,
        queue: mpsc::Receiver<Job>,
        batch_limit: usize,
        grace: Duration,
    ) -> Self {
        Self { shared, queue, batch_limit, grace, last_sequence: 0 }
    }

    /// Works until every sender of the queue is gone.
    pub(super) async fn run(mut self) {
        let mut tidy = tokio::time::interval(TIDY_INTERVAL);
        tidy.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let first = tokio::select! {
                biased;
                first = self.queue.recv() => first,
                _ = tidy.tick() => {
                    self.tidy().await;
                    continue;
                }
            };
            let Some(first) = first else { return };
            let mut batch = vec![first];
            while batch.len() < self.batch_limit
                && let Ok(job) = self.queue.try_recv()
            {
                batch.push(job);
            }
            let waiting = self.queue.len() as u64;
            instruments().queue_depth.record(waiting, &[KeyValue::new(telemetry::LANE, "write")]);
            instruments().batch_size.record(batch.len() as u64, &[KeyValue::new(telemetry::STAGE, "write")]);
            self.work(batch).await;
        }
    }

    /// Does what other processes left half done.
    async fn tidy(&self) {
        let until = Instant::now() + WRITE_LIMIT;
        if let Err(error) = self.shared.settle_old(self.grace, until).await {
            tracing::warn!(%error, "the outbox is left for later");
        }
    }

    /// Does jobs in order; upserts of one collection that follow each other together.
    async fn work(&mut self, jobs: Vec<Job>) {
        let mut upserts: Vec<Upsert> = Vec::new();
        for job in jobs {
            match job {
                // Nobody waits for a cancelled job, and it was not acknowledged.
                Job::Write(job) if job.reply.is_closed() => {}
                Job::Compact(reply) if reply.is_closed() => {}
                Job::Write(job) => {
                    let WriteJob { write, image, reply, _reserved } = *job;
                    match write {
                        Write::Put(put) => {
                            let key = names::key(&put.item.id);
                            if !self.goes_with(&upserts, &put, &key) {
                                self.upsert(std::mem::take(&mut upserts)).await;
                            }
                            upserts.push(Upsert { put, key, image, reply, _reserved });
                        }
                        other => {
                            self.upsert(std::mem::take(&mut upserts)).await;
                            answer(reply, self.change(other).await);
                        }
                    }
                }
                Job::Compact(reply) => {
                    self.upsert(std::mem::take(&mut upserts)).await;
                    answer(reply, self.compact().await);
                }
                Job::Step(_, reply) => {
                    answer(
                        reply,
                        Err(GalleryError::internal("following a writer", "milvus has no replicas of ours")),
                    );
                }
                Job::ToForget(most, reply) => {
                    let until = Instant::now() + WRITE_LIMIT;
                    answer(reply, self.shared.pending_forgets(most, until).await.map(Reply::ToForget));
                }
                Job::Forgotten(images, reply) => {
                    let until = Instant::now() + WRITE_LIMIT;
                    let struck = self.shared.forgotten(&images, until).await;
                    answer(reply, struck.map(|()| Reply::ToForget(Vec::new())));
                }
            }
        }
        self.upsert(upserts).await;
    }

    /// True where an upsert can be written together with others: into the same collection, under another key, and within
    /// the size of a message.
    fn goes_with(&self, upserts: &[Upsert], put: &Put, key: &Token) -> bool {
        let bytes = (upserts.len() + 1) * (4 * put.vector.len() + ROW_BYTES);
        upserts.first().is_none_or(|first| {
            first.put.number == put.number
                && bytes <= VECTOR_BYTES_AT_ONCE.max(4 * put.vector.len() + ROW_BYTES)
                && upserts.iter().all(|upsert| upsert.key != *key)
        })
    }

    async fn change(&mut self, write: Write) -> Result<Reply, GalleryError> {
        match write {
            Write::Create { name, record } => self.create(name, record).await,
            Write::Drop { name, most: None } => self.drop_collection(name).await,
            Write::Drop { name, most: Some(most) } => self.drop_some(name, most).await,
            Write::Delete { collection, ids } => {
                let until = Instant::now() + WRITE_LIMIT;
                let (_, description) = self.shared.description(&collection, until).await?;
                let keys: BTreeSet<Token> = ids.iter().map(|id| names::key(id)).collect();
                let keys: Vec<Token> = keys.into_iter().collect();
                self.delete(&collection, description.number, &keys, until).await.map(Reply::Deleted)
            }
            Write::Put(_) => Err(GalleryError::internal("writing", "an upsert on its own")),
        }
    }

    async fn create(&self, name: String, record: CollectionRecord) -> Result<Reply, GalleryError> {
        let until = Instant::now() + WRITE_LIMIT;
        let exists = || GalleryError::CollectionExists { name: name.clone() };
        match self.shared.description(&name, until).await {
            Ok(_) => return Err(exists()),
            Err(GalleryError::UnknownCollection { .. }) => {}
            Err(error) => return Err(error),
        }
        let there = names::in_milvus(&name);
        let CollectionRecord { model_fingerprint, dimension, similarity, index, created_unix_ms, .. } =
            record;
        if index != StoredIndex::Exact {
            let rule = "with Milvus, --milvus-index of the gallery decides how vectors are searched";
            return Err(GalleryError::invalid("index", "INDEX_INVALID", rule));
        }
        let description = Description::new(model_fingerprint, dimension, similarity, created_unix_ms);
        let (fields, text) = (rows::fields(dimension), description.text());
        let created = self.shared.client.create(&there, &fields, (PROPERTY, &text), until).await;
        // Another process may have been faster, and what Milvus says then is not defined: look which of the two it is.
        match self.shared.description(&name, until).await {
            Ok((_, found)) if found.number == description.number => {}
            Ok(_) => return Err(exists()),
            Err(error) => return Err(created.err().map_or(error, |error| self.not_created(error))),
        }
        self.shared.serve(&description.facts(&name), &there, until).await?;
        self.look_again(until).await;
        Ok(Reply::Created(description.collection(&name, 0), 0))
    }

    /// Milvus refuses what it does not support, a vector of one value for example.
    fn not_created(&self, error: MilvusError) -> GalleryError {
        match error {
            MilvusError::Refused { reason, .. } => GalleryError::invalid(
                "dimension",
                "DIMENSION_INVALID",
                format!("milvus refuses it: {reason}"),
            ),
            error => unavailable(error),
        }
    }

    /// Writes upserts of one collection, all under different keys.
    async fn upsert(&mut self, upserts: Vec<Upsert>) {
        let Some(first) = upserts.first() else { return };
        let until = Instant::now() + WRITE_LIMIT;
        let (name, number) = (first.put.collection.clone(), first.put.number);
        let (there, description) = match self.shared.description(&name, until).await {
            // It was deleted, and created anew perhaps, since the vectors were checked against it.
            Ok((_, description)) if description.number != number => {
                return refuse(upserts, GalleryError::UnknownCollection { name });
            }
            Ok(found) => found,
            Err(error) => return refuse(upserts, error),
        };
        let facts = description.facts(&name);
        if let Err(error) = self.shared.serve(&facts, &there, until).await {
            return refuse(upserts, error);
        }
        // What Milvus cannot hold fails alone.
        let mut fitting = Vec::with_capacity(upserts.len());
        for upsert in upserts {
            match rows::metadata_text(&upsert.put.item.metadata) {
                Ok(_) => fitting.push(upsert),
                Err(error) => answer(upsert.reply, Err(error)),
            }
        }
        let keys: Vec<Token> = fitting.iter().map(|upsert| upsert.key.clone()).collect();
        let held = match self.held(&there, &keys, until).await {
            Ok(held) => held,
            Err(error) => return refuse(fitting, error),
        };
        let held: HashMap<String, Held> = held.into_iter().map(|row| (row.key.clone(), row)).collect();
        let (rows, images, replies) = self.prepare(fitting, &held);
        if rows.is_empty() {
            return;
        }
        let outcome = self.write(&name, &there, &description, rows, images, &held, until).await;
        match outcome {
            Ok(mut outcomes) => {
                for (key, item, reply) in replies {
                    let stored = outcomes.remove(key.as_str()).unwrap_or(Ok(None));
                    let stored = stored.map(|unused| Stored { item, unused, transaction: 0 });
                    answer(reply, stored.map(|stored| Reply::Stored(Box::new(stored))));
                }
            }
            Err(error) => replies.into_iter().for_each(|(_, _, reply)| answer(reply, Err(error.clone()))),
        }
    }

    /// Makes rows of upserts: an item that is replaced keeps its sequence number.
    #[allow(clippy::type_complexity)]
    fn prepare(
        &mut self,
        upserts: Vec<Upsert>,
        held: &HashMap<String, Held>,
    ) -> (Vec<NewRow>, Vec<(Object, Bytes)>, Vec<(Token, v1::Item, ReplyTo)>) {
        let (mut rows, mut images, mut replies) = (Vec::new(), Vec::new(), Vec::new());
        for Upsert { put, key, image, reply, _reserved } in upserts {
            let sequence = match held.get(key.as_str()) {
                Some(row) => row.sequence,
                None => self.next_sequence(),
            };
            let object = put.item.image.as_ref().map(Object::new);
            if let (Some(object), Some((_, bytes))) = (&object, image) {
                images.push((object.clone(), bytes));
            }
            replies.push((key.clone(), describe_item(&put.item), reply));
            rows.push(NewRow { put, key, sequence, object });
        }
        (rows, images, replies)
    }

    /// A number above all that this process gave before, and above those that others gave earlier by the clock.
    fn next_sequence(&mut self) -> i64 {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        self.last_sequence = i64::try_from(now).unwrap_or(i64::MAX - 1).max(self.last_sequence + 1);
        self.last_sequence
    }

    /// Writes rows with their images. For each key that something is to be said about: why its image could not be written,
    /// or the image that its item had before, where no item shows that any more.
    #[allow(clippy::too_many_arguments)]
    async fn write(
        &self,
        name: &str,
        there: &str,
        description: &Description,
        mut rows: Vec<NewRow>,
        images: Vec<(Object, Bytes)>,
        held: &HashMap<String, Held>,
        until: Instant,
    ) -> Result<HashMap<String, Result<Option<ImageHash>, GalleryError>>, GalleryError> {
        let number = description.number;
        let leaving: Vec<&Object> = held.values().filter_map(|row| row.object.as_ref()).collect();
        let note = Note {
            collection: name.to_owned(),
            number,
            dropped: false,
            objects: images
                .iter()
                .map(|(object, _)| object)
                .chain(leaving.iter().copied())
                .map(|object| object.path(number))
                .collect(),
            images: leaving.iter().map(|object| object.hash).collect::<BTreeSet<_>>().into_iter().collect(),
        };
        let began = Instant::now();
        let noted = match note.objects.is_empty() {
            true => None,
            false => Some(self.shared.note(&note, until).await?),
        };
        let mut outcomes = HashMap::new();
        let failed = self.write_images(number, images, until).await;
        rows.retain(|row| match row.object.as_ref().and_then(|object| failed.get(&object.name)) {
            Some(error) => {
                outcomes.insert(row.key.as_str().to_owned(), Err(error.clone()));
                false
            }
            None => true,
        });
        // By then another process takes the note for that of a process that is gone.
        if !self.grace.is_zero() && began.elapsed() > self.grace / 2 {
            return Err(GalleryError::TimedOut);
        }
        if !rows.is_empty() {
            let columns = rows::columns(&rows, description.dimension);
            let written = self.shared.client.upsert(there, rows.len(), columns, until).await;
            written.map_err(|error| self.shared.failed(&description.facts(name), error))?;
        }
        let Some(noted) = noted else { return Ok(outcomes) };
        if !leaving.is_empty() || !failed.is_empty() {
            let unused: HashSet<ImageHash> =
                self.shared.settle(&note, until).await?.unused.into_iter().collect();
            for row in &rows {
                let before = held.get(row.key.as_str()).and_then(|row| row.object.as_ref());
                if let Some(before) = before.filter(|object| unused.contains(&object.hash)) {
                    outcomes.insert(row.key.as_str().to_owned(), Ok(Some(before.hash)));
                }
            }
        }
        self.done_with(&noted, until).await;
        Ok(outcomes)
    }

    /// Writes images; returns those that could not be, by the names of their objects.
    async fn write_images(
        &self,
        number: u64,
        images: Vec<(Object, Bytes)>,
        until: Instant,
    ) -> HashMap<Token, GalleryError> {
        let writes = images.into_iter().map(|(object, bytes)| {
            async move {
                let written = self.shared.blobs.put(&object.path(number), bytes, until).await;
                written.err().map(|error| (object.name, GalleryError::from_blob("writing the image", error)))
            }
            .boxed()
        });
        together(writes.collect(), IMAGES_AT_ONCE).await.into_iter().flatten().collect()
    }

    /// The rows that are there under these keys.
    async fn held(&self, there: &str, keys: &[Token], until: Instant) -> Result<Vec<Held>, GalleryError> {
        let mut held = Vec::new();
        for keys in keys.chunks(KEYS_AT_ONCE) {
            let which = Expression::one_of(KEY, keys);
            let found = self.shared.client.query(there, &which, Page::All, HELD_FIELDS, until).await;
            held.extend(found.and_then(rows::held).map_err(unavailable)?);
        }
        Ok(held)
    }

    /// Deletes the rows under these keys, and their images.
    async fn delete(
        &self,
        name: &str,
        number: u64,
        keys: &[Token],
        until: Instant,
    ) -> Result<Deleted, GalleryError> {
        let there = names::in_milvus(name);
        let held = self.held(&there, keys, until).await?;
        if held.is_empty() {
            return Ok(Deleted { items: 0, unused: Vec::new(), transaction: 0 });
        }
        let objects: Vec<&Object> = held.iter().filter_map(|row| row.object.as_ref()).collect();
        let note = Note {
            collection: name.to_owned(),
            number,
            dropped: false,
            objects: objects.iter().map(|object| object.path(number)).collect(),
            images: objects.iter().map(|object| object.hash).collect::<BTreeSet<_>>().into_iter().collect(),
        };
        let noted = match note.objects.is_empty() {
            true => None,
            false => Some(self.shared.note(&note, until).await?),
        };
        let keys: Vec<Token> = held.iter().filter_map(|row| Token::new(row.key.clone())).collect();
        for keys in keys.chunks(KEYS_AT_ONCE) {
            let which = Expression::one_of(KEY, keys);
            self.shared.client.delete(&there, &which, until).await.map_err(unavailable)?;
        }
        let items = held.len() as u64;
        let Some(noted) = noted else { return Ok(Deleted { items, unused: Vec::new(), transaction: 0 }) };
        let unused = self.shared.settle(&note, until).await?.unused;
        self.done_with(&noted, until).await;
        Ok(Deleted { items, unused, transaction: 0 })
    }

    async fn drop_collection(&self, name: String) -> Result<Reply, GalleryError> {
        let until = Instant::now() + COMPACTION_LIMIT;
        let (there, description) = self.shared.description(&name, until).await?;
        let facts = description.facts(&name);
        self.shared.serve(&facts, &there, until).await?;
        let counted = self.shared.client.count(&there, &Expression::default(), until).await;
        let items = counted.map_err(|error| self.shared.failed(&facts, error))?;
        let note = Note {
            collection: name,
            number: description.number,
            dropped: true,
            objects: Vec::new(),
            images: Vec::new(),
        };
        let noted = self.shared.note(&note, until).await?;
        self.shared.client.drop_collection(&there, until).await.map_err(unavailable)?;
        self.shared.served.lock().remove(&description.number);
        let unused = self.shared.settle(&note, until).await?.unused;
        self.done_with(&noted, until).await;
        self.look_again(until).await;
        Ok(Reply::Dropped { deleted: Deleted { items, unused, transaction: 0 }, remains: false })
    }

    /// Deletes the oldest items of a collection, and the collection where there are no others.
    async fn drop_some(&self, name: String, most: usize) -> Result<Reply, GalleryError> {
        let until = Instant::now() + WRITE_LIMIT;
        let (there, description) = self.shared.description(&name, until).await?;
        let facts = description.facts(&name);
        self.shared.serve(&facts, &there, until).await?;
        let counted = self.shared.client.count(&there, &Expression::default(), until).await;
        if counted.map_err(|error| self.shared.failed(&facts, error))? <= most as u64 {
            return self.drop_collection(name).await;
        }
        let oldest = self.oldest(&there, most, until).await?;
        let deleted = self.delete(&name, description.number, &oldest, until).await?;
        Ok(Reply::Dropped { deleted, remains: true })
    }

    /// Keys of the items that were added first.
    async fn oldest(&self, there: &str, most: usize, until: Instant) -> Result<Vec<Token>, GalleryError> {
        /// Rows that are read at once.
        const ROWS: usize = 4096;
        let mut oldest: Vec<(i64, Token)> = Vec::new();
        let mut which = Expression::default();
        loop {
            let page =
                self.shared.client.query(there, &which, Page::First(ROWS), &[KEY, SEQUENCE], until).await;
            let mut page = page.map_err(unavailable)?;
            let keys = page.texts(KEY).map_err(unavailable)?;
            let sequences = page.numbers(SEQUENCE).map_err(unavailable)?;
            let read = keys.len();
            oldest.extend(sequences.into_iter().zip(keys.into_iter().filter_map(Token::new)));
            let last = oldest.last().map(|(_, key)| key.clone());
            if oldest.len() > most {
                oldest.select_nth_unstable(most);
                oldest.truncate(most);
            }
            match last {
                Some(last) if read >= ROWS => which = Expression::after(KEY, &last),
                _ => return Ok(oldest.into_iter().map(|(_, key)| key).collect()),
            }
        }
    }

    /// Has Milvus write its collections anew without what was deleted, and deletes images that no item shows. What Milvus
    /// keeps for its own recovery it deletes when it sees fit. The sizes of its files are not known here.
    async fn compact(&self) -> Result<Reply, GalleryError> {
        let until = Instant::now() + COMPACTION_LIMIT;
        self.shared.settle_old(self.grace, until).await?;
        self.shared.sweep(self.grace, until).await?;
        for (name, _) in self.shared.collections(until).await? {
            let there = names::in_milvus(&name);
            let client = &self.shared.client;
            client.flush(&there, until).await.map_err(unavailable)?;
            if let Some(found) = client.describe(&there, until).await.map_err(unavailable)? {
                client.compact(&there, found.number, until).await.map_err(unavailable)?;
            }
        }
        Ok(Reply::Compacted(0, 0))
    }

    /// The note says nothing new any more; where it stays, it is found to be done later.
    async fn done_with(&self, note: &str, until: Instant) {
        if let Err(error) = self.shared.discard(note, until).await {
            tracing::warn!(%error, "a note stays in the outbox");
        }
    }

    async fn look_again(&self, until: Instant) {
        if let Err(error) = self.shared.refresh(until).await {
            tracing::debug!(%error, "the list of collections is as it was");
        }
    }
}

fn refuse(upserts: Vec<Upsert>, error: GalleryError) {
    upserts.into_iter().for_each(|upsert| answer(upsert.reply, Err(error.clone())));
}

fn answer(reply: ReplyTo, result: Result<Reply, GalleryError>) {
    // The caller may have gone away meanwhile.
    let _ = reply.send(result);
}
