use std::sync::Arc;
use std::time::{Duration, Instant};

use opentelemetry::KeyValue;
use thicket_proto::v1;
use thicket_proto::v1::gallery_service_server::GalleryService;
use thicket_runtime::{Call, Fault, Right};
use thicket_telemetry::{instruments, names};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::backend::{Backend, Open};
use crate::check;
use crate::error::GalleryError;
use crate::pool::Pool;
use crate::record::ImageHash;
use crate::request;
use crate::upsert;
use crate::writer::Deleted;

/// Longest wait of a compaction for answers to be forgotten: the hashes of their images are noted in the file until then.
const FORGETTING: Duration = Duration::from_secs(10);
/// How often it looks.
const FORGETTING_STEP: Duration = Duration::from_millis(100);

/// The gallery as a gRPC service.
#[derive(Debug, Clone)]
pub(crate) struct Service {
    pub(crate) backend: Arc<dyn Backend>,
    /// Decodes images.
    pub(crate) pool: Arc<Pool>,
    pub(crate) images: thicket_imaging::Limits,
}

type Answer<T> = Result<Response<T>, Status>;

impl Service {
    /// Finds the collection of a read and checks that the caller may read it, once a transaction is known here.
    async fn readable(&self, call: &Call, name: &str, transaction: u64) -> Result<Arc<dyn Open>, Fault> {
        call.require(Right::Read, Some(name))?;
        check::collection_name("collection", name)?;
        self.backend.reached(transaction).await?;
        Ok(self.backend.open(name, call.deadline()).await?)
    }
}

fn answer<T>(result: Result<T, GalleryError>) -> Answer<T> {
    result.map(Response::new).map_err(|error| Fault::from(error).into_status())
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
            let index = check::index(request.index)?;
            let writes = self.backend.writes();
            writes.create(request.name, request.model_fingerprint, dimension, similarity, index).await
        };
        let (collection, transaction) = created.await.map_err(Fault::from)?;
        Ok(Response::new(v1::CreateCollectionResponse { collection: Some(collection), transaction }))
    }

    async fn list_collections(
        &self,
        request: Request<v1::ListCollectionsRequest>,
    ) -> Answer<v1::ListCollectionsResponse> {
        let call = Call::of(&request);
        call.require(Right::Read, None)?;
        let mut collections = self.backend.list(call.deadline()).await.map_err(Fault::from)?;
        collections.retain(|collection| call.caller().may(Right::Read, Some(&collection.name)));
        let replication = self.backend.replication();
        Ok(Response::new(v1::ListCollectionsResponse { collections, replication }))
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
            self.backend.writes().drop_collection(name.clone(), most).await
        };
        let (Deleted { items, unused, transaction }, remains) = deleted.await.map_err(Fault::from)?;
        let caller = &call.caller().name;
        tracing::info!(collection = name, deleted_items = items, remains, caller, "collection deleted");
        Ok(Response::new(v1::DeleteCollectionResponse {
            deleted_items: items,
            unused_images: unused.len() as u64,
            unused_image_hashes: hashes(unused.into_iter().take(check::DELETED_AT_A_TIME)),
            remains,
            transaction,
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
            self.backend.writes().delete(collection.clone(), ids).await
        };
        let Deleted { items: deleted, unused, transaction } = deleted.await.map_err(Fault::from)?;
        tracing::info!(collection, deleted, caller = call.caller().name, "items deleted");
        Ok(Response::new(v1::DeleteResponse { deleted, unused_image_hashes: hashes(unused), transaction }))
    }

    async fn search(&self, request: Request<v1::SearchRequest>) -> Answer<v1::SearchResponse> {
        let started = Instant::now();
        let call = Call::of(&request);
        let request = request.into_inner();
        let collection = self.readable(&call, &request.collection, request.min_transaction).await?;
        let ranked = collection.search(request, call.deadline()).await;
        if ranked.is_ok() {
            let attributes =
                [KeyValue::new(names::OPERATION, "retrieval"), KeyValue::new(names::PROVIDER, "thicket")];
            instruments().request_duration.record(started.elapsed().as_secs_f64(), &attributes);
        }
        answer(ranked.map(|rankings| v1::SearchResponse { rankings }))
    }

    async fn score(&self, request: Request<v1::ScoreRequest>) -> Answer<v1::ScoreResponse> {
        let call = Call::of(&request);
        let request = request.into_inner();
        let collection = self.readable(&call, &request.collection, request.min_transaction).await?;
        let scored = collection.score(request, call.deadline()).await;
        answer(scored.map(|scores| v1::ScoreResponse { scores }))
    }

    async fn rank_of(&self, request: Request<v1::RankOfRequest>) -> Answer<v1::RankOfResponse> {
        let call = Call::of(&request);
        let request = request.into_inner();
        let collection = self.readable(&call, &request.collection, request.min_transaction).await?;
        let ranked = collection.rank_of(request, call.deadline()).await;
        answer(ranked.map(|ranks| v1::RankOfResponse { ranks }))
    }

    async fn get_item(&self, request: Request<v1::GetItemRequest>) -> Answer<v1::GetItemResponse> {
        let call = Call::of(&request);
        let v1::GetItemRequest { collection, id, min_transaction } = request.into_inner();
        let collection = self.readable(&call, &collection, min_transaction).await?;
        check::item_id("id", &id).map_err(Fault::from)?;
        let found = collection.item(id, call.deadline()).await;
        answer(found.map(|item| v1::GetItemResponse { item: Some(item) }))
    }

    async fn get_image(&self, request: Request<v1::GetImageRequest>) -> Answer<v1::GetImageResponse> {
        let call = Call::of(&request);
        let v1::GetImageRequest { collection, by, min_transaction } = request.into_inner();
        let collection = self.readable(&call, &collection, min_transaction).await?;
        let which = request::picture(by).map_err(Fault::from)?;
        answer(collection.image(which, call.deadline()).await)
    }

    async fn compact(&self, request: Request<v1::CompactRequest>) -> Answer<v1::CompactResponse> {
        let call = Call::of(&request);
        call.require(Right::Admin, None)?;
        let writes = self.backend.writes();
        let compacted = async {
            let until = Instant::now() + FORGETTING;
            while Instant::now() < until && !writes.pending_forgets(1).await?.is_empty() {
                tokio::time::sleep(FORGETTING_STEP).await;
            }
            writes.compact().await
        };
        answer(
            compacted
                .await
                .map(|(bytes_before, bytes_after)| v1::CompactResponse { bytes_before, bytes_after }),
        )
    }
}

fn hashes(images: impl IntoIterator<Item = ImageHash>) -> Vec<String> {
    images.into_iter().map(|hash| hash.to_string()).collect()
}
