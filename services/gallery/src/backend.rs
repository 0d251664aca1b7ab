//! What keeps the collections, as the service sees it.

use std::fmt::Debug;
use std::sync::Arc;

use thicket_proto::v1;
use thicket_runtime::{Deadline, MAX_MESSAGE_BYTES};

use crate::error::GalleryError;
use crate::queue::WriteQueue;
use crate::record::ImageHash;

/// Most bytes of the rankings in an answer: a message, with room for what is around them.
pub(crate) const RANKINGS_BYTES: usize = MAX_MESSAGE_BYTES - 4096;

/// Keeps collections: this process on its own disk, or a cluster elsewhere.
///
/// Reads end by the deadline that they are given. Writes go through the queue, in order.
#[tonic::async_trait]
pub(crate) trait Backend: Debug + Send + Sync {
    /// The way in for writes.
    fn writes(&self) -> &WriteQueue;

    /// All collections, by name.
    async fn list(&self, until: Deadline) -> Result<Vec<v1::Collection>, GalleryError>;

    /// The collection of that name.
    async fn open(&self, name: &str, until: Deadline) -> Result<Arc<dyn Open>, GalleryError>;

    /// Names of the collections as last known, for announcing them; asks nobody.
    fn names(&self) -> Vec<String>;

    /// Checks that the collections can be read now.
    async fn available(&self, until: Deadline) -> Result<(), GalleryError>;

    /// Waits for a transaction, as a write's response named it, to be known to reads, for a while; 0 is known to all.
    /// Where writes name no transaction, whatever is done is known.
    async fn reached(&self, _transaction: u64) -> Result<(), GalleryError> {
        Ok(())
    }

    /// How far this gallery is behind the one that it follows; `None` where it follows none.
    fn replication(&self) -> Option<v1::Replication> {
        None
    }

    /// Refuses new writes, finishes the queued ones and lets go of everything. Blocks.
    fn close(&self);
}

/// What every check of a request needs to know of its collection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Facts {
    pub(crate) name: String,
    /// What the name stands for: another one after the collection was deleted and created anew.
    pub(crate) number: u64,
    pub(crate) model_fingerprint: String,
    pub(crate) dimension: usize,
}

impl Facts {
    /// Refuses vectors of another model.
    pub(crate) fn check_model(&self, fingerprint: String) -> Result<(), GalleryError> {
        if fingerprint == self.model_fingerprint {
            return Ok(());
        }
        Err(GalleryError::ModelMismatch {
            collection: self.name.clone(),
            expected: self.model_fingerprint.clone(),
            actual: fingerprint,
        })
    }
}

/// A collection that is there. Requests are checked by the collection, so that it decides on which thread.
#[tonic::async_trait]
pub(crate) trait Open: Debug + Send + Sync {
    /// What it is.
    fn facts(&self) -> &Facts;

    /// One ranking a query, of [`RANKINGS_BYTES`] together at most.
    async fn search(
        &self,
        request: v1::SearchRequest,
        until: Deadline,
    ) -> Result<Vec<v1::Ranking>, GalleryError>;

    /// Exact scores of named items.
    async fn score(&self, request: v1::ScoreRequest, until: Deadline) -> Result<Vec<f32>, GalleryError>;

    /// 1-based ranks of named items.
    async fn rank_of(&self, request: v1::RankOfRequest, until: Deadline) -> Result<Vec<u64>, GalleryError>;

    /// One item.
    async fn item(&self, id: String, until: Deadline) -> Result<v1::Item, GalleryError>;

    /// One image, checked to be what was stored.
    async fn image(&self, which: Picture, until: Deadline) -> Result<v1::GetImageResponse, GalleryError>;
}

/// Names an image.
#[derive(Debug, Clone)]
pub(crate) enum Picture {
    /// That of the item with this id.
    OfItem(String),
    /// The one with this hash, if an item of the collection has it.
    WithHash(ImageHash),
}
