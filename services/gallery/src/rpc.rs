use std::sync::Arc;
use std::time::Instant;

use opentelemetry::KeyValue;
use thicket_proto::v1;
use thicket_proto::v1::gallery_service_server::GalleryService;
use thicket_runtime::{Call, Fault, MAX_MESSAGE_BYTES, Right};
use thicket_telemetry::{instruments, names};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::check;
use crate::collection::Collection;
use crate::error::GalleryError;
use crate::filter;
use crate::gallery::Gallery;
use crate::pool::Pool;
use crate::record::ImageHash;
use crate::upsert;
use crate::writer::Deleted;

/// Room in a message for what is around the rankings.
const MESSAGE_MARGIN: usize = 4096;

/// The gallery as a gRPC service.
#[derive(Debug, Clone)]
pub(crate) struct Service {
    pub(crate) gallery: Arc<Gallery>,
    pub(crate) pool: Arc<Pool>,
    pub(crate) images: thicket_imaging::Limits,
}

type Answer<T> = Result<Response<T>, Status>;

impl Service {
    /// Finds the collection of a read and checks that the caller may read it.
    fn readable(&self, call: &Call, name: &str) -> Result<Arc<Collection>, Fault> {
        call.require(Right::Read, Some(name))?;
        check::collection_name("collection", name)?;
        Ok(self.gallery.collection(name)?)
    }
}

fn answer<T>(result: Result<T, Fault>) -> Answer<T> {
    result.map(Response::new).map_err(Status::from)
}

#[tonic::async_trait]
impl GalleryService for Service {
    async fn create_collection(
        &self,
        request: Request<v1::CreateCollectionRequest>,
    ) -> Answer<v1::CreateCollectionResponse> {
        let call = Call::of(&request);
        let request = request.into_inner();
        call.require(Right::Admin, Some(&request.name))?;
        let created = async {
            check::new_collection_name("name", &request.name)?;
            check::fingerprint(&request.model_fingerprint)?;
            let dimension = check::dimension(request.dimension)?;
            let similarity = check::similarity(request.similarity)?;
            self.gallery.create(request.name, request.model_fingerprint, dimension, similarity).await
        };
        let collection = created.await.map_err(Fault::from)?;
        Ok(Response::new(v1::CreateCollectionResponse { collection: Some(collection) }))
    }

    async fn list_collections(
        &self,
        request: Request<v1::ListCollectionsRequest>,
    ) -> Answer<v1::ListCollectionsResponse> {
        let call = Call::of(&request);
        call.require(Right::Read, None)?;
        let mut collections = self.gallery.list();
        collections.retain(|collection| call.caller().may(Right::Read, Some(&collection.name)));
        Ok(Response::new(v1::ListCollectionsResponse { collections }))
    }

    async fn delete_collection(
        &self,
        request: Request<v1::DeleteCollectionRequest>,
    ) -> Answer<v1::DeleteCollectionResponse> {
        let call = Call::of(&request);
        let v1::DeleteCollectionRequest { name, max_items } = request.into_inner();
        call.require(Right::Admin, Some(&name))?;
        let deleted = async {
            check::collection_name("name", &name)?;
            let most = check::max_items(max_items)?;
            self.gallery.drop_collection(name.clone(), most).await
        };
        let (Deleted { items, unused }, remains) = deleted.await.map_err(Fault::from)?;
        let caller = &call.caller().name;
        tracing::info!(collection = name, deleted_items = items, remains, caller, "collection deleted");
        Ok(Response::new(v1::DeleteCollectionResponse {
            deleted_items: items,
            unused_images: unused.len() as u64,
            unused_image_hashes: hashes(unused.into_iter().take(check::DELETED_AT_A_TIME)),
            remains,
        }))
    }

    type UpsertStream = ReceiverStream<Result<v1::UpsertResponse, Status>>;

    async fn upsert(&self, request: Request<Streaming<v1::UpsertRequest>>) -> Answer<Self::UpsertStream> {
        let call = Call::of(&request);
        let (answers, stream) = mpsc::channel(upsert::WINDOW);
        // The head goes out at once: a client may wait for it before it sends its first item.
        tokio::spawn(upsert::run(self.clone(), call, request.into_inner(), answers));
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn delete(&self, request: Request<v1::DeleteRequest>) -> Answer<v1::DeleteResponse> {
        let call = Call::of(&request);
        let v1::DeleteRequest { collection, ids } = request.into_inner();
        call.require(Right::Write, Some(&collection))?;
        let deleted = async {
            check::collection_name("collection", &collection)?;
            check::item_ids(&ids)?;
            self.gallery.delete(collection.clone(), ids).await
        };
        let Deleted { items: deleted, unused } = deleted.await.map_err(Fault::from)?;
        tracing::info!(collection, deleted, caller = call.caller().name, "items deleted");
        Ok(Response::new(v1::DeleteResponse { deleted, unused_image_hashes: hashes(unused) }))
    }

    async fn search(&self, request: Request<v1::SearchRequest>) -> Answer<v1::SearchResponse> {
        let started = Instant::now();
        let call = Call::of(&request);
        let request = request.into_inner();
        let collection = self.readable(&call, &request.collection)?;
        let ranked = self.pool.run(move || {
            let expected = &collection.model_fingerprint;
            if !request.model_fingerprint.is_empty() && request.model_fingerprint != *expected {
                return Err(mismatch(&collection, request.model_fingerprint));
            }
            let top = check::top(request.top)?;
            let queries = check::queries(request.queries, collection.dimension)?;
            let filter = filter::parse(request.filter)?;
            collection.search(&queries, top, filter.as_ref(), MAX_MESSAGE_BYTES - MESSAGE_MARGIN)
        });
        let ranked = ranked.await;
        if ranked.is_ok() {
            let attributes =
                [KeyValue::new(names::OPERATION, "retrieval"), KeyValue::new(names::PROVIDER, "thicket")];
            instruments().request_duration.record(started.elapsed().as_secs_f64(), &attributes);
        }
        answer(ranked.map(|rankings| v1::SearchResponse { rankings }).map_err(Fault::from))
    }

    async fn score(&self, request: Request<v1::ScoreRequest>) -> Answer<v1::ScoreResponse> {
        let call = Call::of(&request);
        let request = request.into_inner();
        let collection = self.readable(&call, &request.collection)?;
        let scored = self.pool.run(move || {
            check::item_ids(&request.ids)?;
            let query = check::query("query", request.query, collection.dimension)?;
            collection.scores(&query, &request.ids)
        });
        answer(scored.await.map(|scores| v1::ScoreResponse { scores }).map_err(Fault::from))
    }

    async fn rank_of(&self, request: Request<v1::RankOfRequest>) -> Answer<v1::RankOfResponse> {
        let call = Call::of(&request);
        let request = request.into_inner();
        let collection = self.readable(&call, &request.collection)?;
        let ranked = self.pool.run(move || {
            check::item_ids(&request.ids)?;
            let query = check::query("query", request.query, collection.dimension)?;
            let filter = filter::parse(request.filter)?;
            collection.ranks(&query, &request.ids, filter.as_ref())
        });
        answer(ranked.await.map(|ranks| v1::RankOfResponse { ranks }).map_err(Fault::from))
    }

    async fn get_item(&self, request: Request<v1::GetItemRequest>) -> Answer<v1::GetItemResponse> {
        let call = Call::of(&request);
        let request = request.into_inner();
        let collection = self.readable(&call, &request.collection)?;
        // A writer may hold the collection for as long as its index moves: not a wait for an async thread.
        let found = self.pool.run(move || {
            check::item_id("id", &request.id)?;
            collection.item(&request.id)
        });
        answer(found.await.map(|item| v1::GetItemResponse { item: Some(item) }).map_err(Fault::from))
    }

    async fn get_image(&self, request: Request<v1::GetImageRequest>) -> Answer<v1::GetImageResponse> {
        let call = Call::of(&request);
        let request = request.into_inner();
        let collection = self.readable(&call, &request.collection)?;
        let gallery = self.gallery.clone();
        let read = self.pool.run(move || {
            let found = match request.by {
                Some(v1::get_image_request::By::Id(id)) => {
                    check::item_id("id", &id)?;
                    collection.image_of(&id)?
                }
                Some(v1::get_image_request::By::ImageHash(hex)) => {
                    let hash = ImageHash::from_hex(&hex).ok_or_else(|| {
                        let message = format!("64 hex digits, got {} bytes", hex.len());
                        GalleryError::invalid("image_hash", "IMAGE_HASH_INVALID", message)
                    })?;
                    collection.image(&hash)?
                }
                None => {
                    let message = "name an item or an image hash";
                    return Err(GalleryError::invalid("by", "IMAGE_NOT_NAMED", message));
                }
            };
            Ok(v1::GetImageResponse {
                image: gallery.read_image(&found.hash)?,
                media_type: found.format.media_type().to_owned(),
                image_hash: found.hash.to_string(),
            })
        });
        answer(read.await.map_err(Fault::from))
    }

    async fn compact(&self, request: Request<v1::CompactRequest>) -> Answer<v1::CompactResponse> {
        let call = Call::of(&request);
        call.require(Right::Admin, None)?;
        let compacted = self.gallery.compact().await;
        answer(
            compacted
                .map(|(bytes_before, bytes_after)| v1::CompactResponse { bytes_before, bytes_after })
                .map_err(Fault::from),
        )
    }
}

fn hashes(images: impl IntoIterator<Item = ImageHash>) -> Vec<String> {
    images.into_iter().map(|hash| hash.to_string()).collect()
}

pub(crate) fn mismatch(collection: &Collection, actual: String) -> GalleryError {
    GalleryError::ModelMismatch {
        collection: collection.name.clone(),
        expected: collection.model_fingerprint.clone(),
        actual,
    }
}
