//! The gallery on a Milvus cluster: this process keeps nothing, so there may be as many of it as one likes.
//!
//! Vectors and metadata are rows of Milvus, images are objects in the object store, one for every write of an item. What is
//! to become of objects is written to an outbox in the same store before rows change, so that whatever stops this process,
//! another one finishes it: see [`outbox`].

mod condition;
mod names;
mod outbox;
mod read;
mod rows;
mod settle;
mod writer;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use parking_lot::Mutex;
use thicket_blobs::{BlobError, Blobs};
use thicket_milvus::{Client, Expression, Index, MilvusError};
use thicket_proto::v1;
use thicket_runtime::Deadline;
use tokio::task::JoinHandle;

use crate::backend::{Backend, Facts, Open};
use crate::error::{GalleryError, OpenError};
use crate::milvus::names::Description;
use crate::milvus::read::Opened;
use crate::milvus::rows::{Object, VECTOR};
use crate::milvus::writer::Writer;
use crate::pool::Pool;
use crate::queue::WriteQueue;

/// Collections that are asked about at a time.
const COLLECTIONS_AT_ONCE: usize = 8;
/// How long the first answer of Milvus is waited for.
const START_LIMIT: Duration = Duration::from_secs(30);

/// What a gallery on Milvus needs.
#[derive(Debug, Clone)]
pub struct MilvusConfig {
    /// Where Milvus is.
    pub milvus: thicket_milvus::Settings,
    /// How the vectors of new collections are indexed; searches ask accordingly.
    pub index: Index,
    /// How old something unfinished must be before another process finishes it. Default:
    /// [`DEFAULT_GRACE`].
    pub grace: Duration,
}

/// How old something unfinished must be before it is finished by another process than the one that began it: far longer than
/// any write takes.
pub const DEFAULT_GRACE: Duration = Duration::from_secs(600);

/// What readers and the writer have in common.
#[derive(Debug)]
pub(crate) struct Shared {
    client: Client,
    blobs: Blobs,
    pool: Arc<Pool>,
    index: Index,
    /// True where answers about images are to be forgotten with their last item.
    forgets: bool,
    /// Numbers of collections that were seen to be in memory.
    served: Mutex<HashSet<u64>>,
    /// Names of the collections as last listed.
    names: Mutex<Vec<String>>,
}

/// The collections of a Milvus cluster.
#[derive(Debug)]
pub(crate) struct Milvus {
    shared: Arc<Shared>,
    writes: WriteQueue,
    /// `None` once it is closed.
    writer: Mutex<Option<JoinHandle<()>>>,
    runtime: tokio::runtime::Handle,
}

impl Milvus {
    /// Connects, and starts the writer on this runtime.
    pub(crate) async fn start(
        config: MilvusConfig,
        blobs: Blobs,
        pool: Arc<Pool>,
        options: WriteOptions,
    ) -> Result<Self, OpenError> {
        let client = Client::new(&config.milvus).map_err(|error| match error {
            MilvusError::Setting { setting, reason } => OpenError::Setting { setting, reason },
            error => OpenError::Backend { reason: error.to_string() },
        })?;
        let shared = Arc::new(Shared {
            client,
            blobs,
            pool,
            index: config.index,
            forgets: options.forgets,
            served: Mutex::default(),
            names: Mutex::default(),
        });
        let until = Deadline::after(START_LIMIT);
        let unusable = |error: GalleryError| OpenError::Backend { reason: error.to_string() };
        while let Err(error) = shared.refresh(until.instant()).await {
            if until.remaining().is_none() {
                return Err(unusable(error));
            }
            tracing::info!(%error, "waiting for milvus");
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        let (writes, queue) = WriteQueue::new(options.queue, options.bytes);
        let writer = Writer::new(shared.clone(), queue, options.batch, config.grace);
        Ok(Self {
            shared,
            writes,
            writer: Mutex::new(Some(tokio::spawn(writer.run()))),
            runtime: tokio::runtime::Handle::current(),
        })
    }
}

/// How writes are done.
#[derive(Debug, Clone, Copy)]
pub(crate) struct WriteOptions {
    /// Writes that may wait.
    pub(crate) queue: usize,
    /// Bytes of upserts held in memory.
    pub(crate) bytes: usize,
    /// Items written together.
    pub(crate) batch: usize,
    /// Whether answers about images are to be forgotten with their last item.
    pub(crate) forgets: bool,
}

#[tonic::async_trait]
impl Backend for Milvus {
    fn writes(&self) -> &WriteQueue {
        &self.writes
    }

    async fn list(&self, until: Deadline) -> Result<Vec<v1::Collection>, GalleryError> {
        let until = until.instant();
        let described = self.shared.collections(until).await?;
        let shared = &self.shared;
        let counted =
            described.into_iter().map(|(name, description)| count(shared, name, description, until).boxed());
        let counted = together(counted.collect(), COLLECTIONS_AT_ONCE).await;
        counted.into_iter().filter_map(Result::transpose).collect()
    }

    async fn open(&self, name: &str, until: Deadline) -> Result<Arc<dyn Open>, GalleryError> {
        let until = until.instant();
        let (there, description) = self.shared.description(name, until).await?;
        let facts = description.facts(name);
        self.shared.serve(&facts, &there, until).await?;
        Ok(Arc::new(Opened { facts, there, shared: self.shared.clone() }))
    }

    fn names(&self) -> Vec<String> {
        self.shared.names.lock().clone()
    }

    async fn available(&self, until: Deadline) -> Result<(), GalleryError> {
        self.shared.refresh(until.instant()).await
    }

    fn close(&self) {
        self.writes.close();
        if let Some(writer) = self.writer.lock().take()
            && let Err(error) = self.runtime.block_on(writer)
        {
            tracing::error!(%error, "the writer did not end in order");
        }
    }
}

/// A collection with the number of its items; `None` where it was deleted meanwhile.
async fn count(
    shared: &Shared,
    name: String,
    description: Description,
    until: Instant,
) -> Result<Option<v1::Collection>, GalleryError> {
    let there = names::in_milvus(&name);
    let facts = description.facts(&name);
    let counted = async {
        shared.serve(&facts, &there, until).await?;
        let count = shared.client.count(&there, &Expression::default(), until).await;
        count.map_err(|error| shared.failed(&facts, error))
    };
    match counted.await {
        Ok(items) => Ok(Some(description.collection(&name, items))),
        Err(GalleryError::UnknownCollection { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Does work, some of it at a time; results in order.
async fn together<T>(work: Vec<BoxFuture<'_, T>>, at_once: usize) -> Vec<T> {
    futures::stream::iter(work).buffered(at_once).collect().await
}

impl Shared {
    /// Our collections by name, with what they are. A collection that says nothing of itself is none of ours.
    async fn collections(&self, until: Instant) -> Result<Vec<(String, Description)>, GalleryError> {
        let there = self.client.collections(until).await.map_err(unavailable)?;
        let ours: Vec<String> = there.iter().filter_map(|name| names::of_ours(name)).collect();
        let described = ours.into_iter().map(|name| {
            async move {
                match self.description(&name, until).await {
                    Ok((_, description)) => Ok(Some((name, description))),
                    Err(GalleryError::UnknownCollection { .. }) => Ok(None),
                    Err(error) => Err(error),
                }
            }
            .boxed()
        });
        let described = together(described.collect(), COLLECTIONS_AT_ONCE).await;
        let mut found: Vec<(String, Description)> =
            described.into_iter().filter_map(Result::transpose).collect::<Result<_, GalleryError>>()?;
        found.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(found)
    }

    /// Looks which collections there are.
    async fn refresh(&self, until: Instant) -> Result<(), GalleryError> {
        let there = self.client.collections(until).await.map_err(unavailable)?;
        let mut names: Vec<String> = there.iter().filter_map(|name| names::of_ours(name)).collect();
        names.sort();
        *self.names.lock() = names;
        Ok(())
    }

    /// A collection's name in Milvus, and what it is.
    async fn description(&self, name: &str, until: Instant) -> Result<(String, Description), GalleryError> {
        let unknown = || GalleryError::UnknownCollection { name: name.to_owned() };
        // No collection can have any other name, and Milvus would refuse to look for one.
        crate::check::new_collection_name("collection", name).map_err(|_| unknown())?;
        let there = names::in_milvus(name);
        let found = self.client.describe(&there, until).await.map_err(unavailable)?.ok_or_else(unknown)?;
        let description = Description::of(&found)
            .map_err(|reason| GalleryError::internal("reading a collection", format!("{there}: {reason}")))?;
        Ok((there, description))
    }

    /// Sees to it that a collection can be read.
    async fn serve(&self, facts: &Facts, there: &str, until: Instant) -> Result<(), GalleryError> {
        if self.served.lock().contains(&facts.number) {
            return Ok(());
        }
        self.client
            .serve(there, VECTOR, self.index, until)
            .await
            .map_err(|error| self.failed(facts, error))?;
        self.served.lock().insert(facts.number);
        Ok(())
    }

    /// A failure of a call about a collection.
    fn failed(&self, facts: &Facts, error: MilvusError) -> GalleryError {
        match error {
            MilvusError::UnknownCollection { .. } => {
                self.served.lock().remove(&facts.number);
                GalleryError::UnknownCollection { name: facts.name.clone() }
            }
            // Somebody released it; the next call has it loaded.
            error @ MilvusError::NotLoaded { .. } => {
                self.served.lock().remove(&facts.number);
                GalleryError::Unavailable { reason: error.to_string() }
            }
            error => unavailable(error),
        }
    }

    /// The bytes of an object.
    async fn read_object(
        &self,
        collection: u64,
        object: &Object,
        until: Instant,
    ) -> Result<Bytes, GalleryError> {
        match self.blobs.get(&object.path(collection), until).await {
            Ok(bytes) => Ok(bytes),
            Err(BlobError::NotFound { .. }) => Err(GalleryError::DataLoss {
                image: object.hash.to_string(),
                reason: "the object is missing",
            }),
            Err(error) => Err(GalleryError::from_blob("reading the image", error)),
        }
    }
}

/// A failure of Milvus that has nothing to do with what was asked.
fn unavailable(error: MilvusError) -> GalleryError {
    match error {
        MilvusError::TimedOut { .. } => GalleryError::TimedOut,
        MilvusError::Busy { .. } => GalleryError::Busy { reason: error.to_string() },
        MilvusError::Unavailable { .. } | MilvusError::NotLoaded { .. } => {
            GalleryError::Unavailable { reason: error.to_string() }
        }
        MilvusError::Full { operation, .. } => {
            tracing::warn!(%error, "milvus is full");
            GalleryError::DiskFull { operation }
        }
        error => GalleryError::internal("asking milvus", error),
    }
}
