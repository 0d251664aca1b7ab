//! The gallery on this machine: collections in memory over the store on disk.

use std::sync::Arc;

use thicket_proto::v1;
use thicket_runtime::Deadline;

use crate::backend::{Backend, Facts, Open, Picture, RANKINGS_BYTES};
use crate::collection::Collection;
use crate::error::GalleryError;
use crate::gallery::Gallery;
use crate::pool::Pool;
use crate::queue::WriteQueue;
use crate::request::{Named, Search};

/// A [`Gallery`] whose blocking reads run on threads of their own.
#[derive(Debug, Clone)]
pub(crate) struct Embedded {
    pub(crate) gallery: Arc<Gallery>,
    pub(crate) pool: Arc<Pool>,
}

#[tonic::async_trait]
impl Backend for Embedded {
    fn writes(&self) -> &WriteQueue {
        self.gallery.writes()
    }

    async fn list(&self, _until: Deadline) -> Result<Vec<v1::Collection>, GalleryError> {
        Ok(self.gallery.list())
    }

    async fn open(&self, name: &str, _until: Deadline) -> Result<Arc<dyn Open>, GalleryError> {
        let collection = self.gallery.collection(name)?;
        let facts = Facts {
            name: collection.name.clone(),
            number: collection.number,
            model_fingerprint: collection.model_fingerprint.clone(),
            dimension: collection.dimension,
        };
        Ok(Arc::new(Opened { facts, collection, embedded: self.clone() }))
    }

    fn names(&self) -> Vec<String> {
        self.gallery.list().into_iter().map(|collection| collection.name).collect()
    }

    async fn available(&self, _until: Deadline) -> Result<(), GalleryError> {
        Ok(())
    }

    async fn reached(&self, transaction: u64) -> Result<(), GalleryError> {
        self.gallery.reached(transaction).await
    }

    fn replication(&self) -> Option<v1::Replication> {
        let own = self.gallery.position().transaction;
        self.gallery.lag().map(|lag| lag.describe(own))
    }

    fn close(&self) {
        self.gallery.close();
    }
}

#[derive(Debug)]
struct Opened {
    facts: Facts,
    collection: Arc<Collection>,
    embedded: Embedded,
}

impl Opened {
    /// Runs a read on a thread of the pool: it may scan the collection, and a writer may hold that for as long as its
    /// index moves.
    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Facts, &Collection) -> Result<T, GalleryError> + Send + 'static,
    ) -> Result<T, GalleryError> {
        let (facts, collection) = (self.facts.clone(), self.collection.clone());
        self.embedded.pool.run(move || read(&facts, &collection)).await
    }
}

#[tonic::async_trait]
impl Open for Opened {
    fn facts(&self) -> &Facts {
        &self.facts
    }

    async fn search(
        &self,
        request: v1::SearchRequest,
        _until: Deadline,
    ) -> Result<Vec<v1::Ranking>, GalleryError> {
        self.read(move |facts, collection| {
            let search = Search::parse(facts, request)?;
            collection.search(&search.queries, search.top, search.filter.as_ref(), RANKINGS_BYTES)
        })
        .await
    }

    async fn score(&self, request: v1::ScoreRequest, _until: Deadline) -> Result<Vec<f32>, GalleryError> {
        self.read(move |facts, collection| {
            let named = Named::to_score(facts, request)?;
            collection.scores(&named.query, &named.ids)
        })
        .await
    }

    async fn rank_of(&self, request: v1::RankOfRequest, _until: Deadline) -> Result<Vec<u64>, GalleryError> {
        self.read(move |facts, collection| {
            let named = Named::to_rank(facts, request)?;
            collection.ranks(&named.query, &named.ids, named.filter.as_ref())
        })
        .await
    }

    async fn item(&self, id: String, _until: Deadline) -> Result<v1::Item, GalleryError> {
        self.read(move |_, collection| collection.item(&id)).await
    }

    async fn image(&self, which: Picture, _until: Deadline) -> Result<v1::GetImageResponse, GalleryError> {
        let gallery = self.embedded.gallery.clone();
        self.read(move |_, collection| {
            let found = match which {
                Picture::OfItem(id) => collection.image_of(&id)?,
                Picture::WithHash(hash) => collection.image(&hash)?,
            };
            Ok(v1::GetImageResponse {
                image: gallery.read_image(&found.hash)?,
                media_type: found.format.media_type().to_owned(),
                image_hash: found.hash.to_string(),
            })
        })
        .await
    }
}
