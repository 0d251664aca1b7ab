//! The other roles, as the coordinator calls them.

use thicket_discovery::Directory;
use thicket_dispatch::{ImageKey, Kind, Lane, Urgency};
use thicket_proto::v1::answer_service_client::AnswerServiceClient;
use thicket_proto::v1::embedding_service_client::EmbeddingServiceClient;
use thicket_proto::v1::gallery_service_client::GalleryServiceClient;
use thicket_proto::v1::{
    AggregateRequest, AggregateResponse, Collection, CreateCollectionRequest, DescribeRequest,
    DescribeResponse, EmbedImageRequest, EmbedImageResponse, EmbedTextRequest, EmbeddingModel, Filter,
    GetImageRequest, GetModelRequest, Hit, ListCollectionsRequest, LocateRequest, LocateResponse,
    RankOfRequest, ScoreRequest, SearchRequest, UpsertRequest, UpsertResponse, Vector, get_image_request,
};
use thicket_runtime::{Deadline, Fault, MAX_MESSAGE_BYTES, Peer, Role, request_by};
use thicket_thi::Class;
use thicket_upstream::{Ask, Place, Settings, Turn, Upstream, UpstreamError, broken, fault_of};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

/// A text as a vector.
#[derive(Debug, Clone)]
pub(crate) struct Embedded {
    pub(crate) vector: Vec<f32>,
    /// Fingerprint of the model that made it.
    pub(crate) fingerprint: String,
}

/// The other roles' replicas, followed from start to end. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Clients {
    embedding: Upstream,
    gallery: Upstream,
    answer: Upstream,
}

impl Clients {
    /// Begins to follow the replicas of a directory. Must be called inside a tokio runtime.
    pub(crate) fn follow(directory: &Directory, settings: &Settings) -> Result<Self, UpstreamError> {
        let role = |role| Upstream::follow(role, directory.subscribe(), settings.clone());
        Ok(Self {
            embedding: role(Role::Embedding)?,
            gallery: role(Role::Gallery)?,
            answer: role(Role::Answer)?,
        })
    }

    /// The same replicas on behalf of a call: everything asked of them must be answered by its deadline.
    pub(crate) fn by(&self, deadline: Deadline, urgency: Urgency) -> CallClients {
        let (clients, place) = (self.clone(), Place::default());
        CallClients { clients, deadline, urgency, lane: Lane::High, place, adapter: String::new() }
    }
}

/// The replicas as one call asks them.
#[derive(Debug, Clone)]
pub(crate) struct CallClients {
    clients: Clients,
    deadline: Deadline,
    urgency: Urgency,
    lane: Lane,
    /// The gallery replica that answers all its reads, so that they see one state or a later one.
    place: Place,
    /// Adapter that answers; empty for the answer model as it was started.
    adapter: String,
}

/// Kinds of questions that take about the same time each.
const LOCATE: Kind = Kind(0);
const DESCRIBE: Kind = Kind(1);
const AGGREGATE: Kind = Kind(2);

fn embedding(peer: Peer) -> EmbeddingServiceClient<Peer> {
    EmbeddingServiceClient::new(peer)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES)
}

fn gallery(peer: Peer) -> GalleryServiceClient<Peer> {
    GalleryServiceClient::new(peer)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES)
}

fn answer(peer: Peer) -> AnswerServiceClient<Peer> {
    AnswerServiceClient::new(peer)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES)
}

impl CallClients {
    /// The same, questions going to an adapter.
    pub(crate) fn answered_by(self, adapter: String) -> Self {
        Self { adapter, ..self }
    }

    /// The same, questions waiting in the lane of a class of queries.
    pub(crate) fn of_class(&mut self, class: Class) {
        self.lane = match class {
            Class::High => Lane::High,
            Class::Low => Lane::Low,
        };
    }

    /// A question to the answer role, which should go where its image has been before.
    fn question(&self, kind: Kind, image: Option<ImageKey>) -> Ask {
        Ask { lane: self.lane, urgency: self.urgency, image, kind }
    }

    /// A call to another role than the answer's.
    fn ask(&self) -> Ask {
        Ask { urgency: self.urgency, ..Ask::default() }
    }

    pub(crate) async fn embed_text(&self, text: &str) -> Result<Embedded, Fault> {
        let request = EmbedTextRequest { texts: vec![text.to_owned()] };
        let response = self
            .clients
            .embedding
            .call(self.ask(), self.deadline, |peer| {
                let request = request_by(request.clone(), self.deadline);
                async move { embedding(peer).embed_text(request).await }
            })
            .await?;
        match <[Vector; 1]>::try_from(response.vectors) {
            Ok([Vector { values }]) if !values.is_empty() => {
                Ok(Embedded { vector: values, fingerprint: response.model_fingerprint })
            }
            _ => Err(broken(Role::Embedding, "one text did not give one vector")),
        }
    }

    pub(crate) async fn model(&self) -> Result<EmbeddingModel, Fault> {
        let response = self
            .clients
            .embedding
            .call(self.ask(), self.deadline, |peer| {
                let request = request_by(GetModelRequest {}, self.deadline);
                async move { embedding(peer).get_model(request).await }
            })
            .await?;
        response.model.ok_or_else(|| broken(Role::Embedding, "the model is not described"))
    }

    pub(crate) async fn embed_images(&self, request: EmbedImageRequest) -> Result<EmbedImageResponse, Fault> {
        let images = request.images.len();
        let response = self
            .clients
            .embedding
            .call(self.ask(), self.deadline, |peer| {
                let request = request_by(request.clone(), self.deadline);
                async move { embedding(peer).embed_image(request).await }
            })
            .await?;
        if response.results.len() != images {
            let what = format!("{images} images gave {} results", response.results.len());
            return Err(broken(Role::Embedding, what));
        }
        Ok(response)
    }

    /// The `top` best items for a query vector among those that the filter holds for, best first. Every hit has its item.
    pub(crate) async fn search(
        &self,
        collection: &str,
        query: Vec<f32>,
        top: usize,
        fingerprint: &str,
        filter: Option<&Filter>,
    ) -> Result<Vec<Hit>, Fault> {
        let request = SearchRequest {
            collection: collection.to_owned(),
            queries: vec![Vector { values: query }],
            top: u32::try_from(top).unwrap_or(u32::MAX),
            model_fingerprint: fingerprint.to_owned(),
            filter: filter.cloned(),
            min_transaction: 0,
        };
        let response = self
            .clients
            .gallery
            .call_at(&self.place, self.ask(), self.deadline, |peer| {
                let request = request_by(request.clone(), self.deadline);
                async move { gallery(peer).search(request).await }
            })
            .await?;
        match response.rankings.into_iter().next() {
            Some(ranking) if ranking.hits.iter().all(|hit| hit.item.is_some()) => Ok(ranking.hits),
            _ => Err(broken(Role::Gallery, "one query did not give one ranking of items")),
        }
    }

    /// The score of one item; `None` where the item is gone.
    pub(crate) async fn score(
        &self,
        collection: &str,
        query: Vec<f32>,
        id: &str,
    ) -> Result<Option<f32>, Fault> {
        let request = ScoreRequest {
            collection: collection.to_owned(),
            query: Some(Vector { values: query }),
            ids: vec![id.to_owned()],
            min_transaction: 0,
        };
        let answered = self
            .clients
            .gallery
            .call_at(&self.place, self.ask(), self.deadline, |peer| {
                let request = request_by(request.clone(), self.deadline);
                async move { gallery(peer).score(request).await }
            })
            .await;
        let scores = match answered {
            Ok(response) => response.scores,
            Err(fault) => return none_where_gone(fault),
        };
        match scores[..] {
            [score] if score.is_finite() => Ok(Some(score)),
            _ => Err(broken(Role::Gallery, "one id did not give one score")),
        }
    }

    /// The places of items in the order in which they were inserted; `None` where one is gone.
    ///
    /// To a query of zeros all items are equal, and equal items rank in insertion order.
    pub(crate) async fn insertion_places(
        &self,
        collection: &str,
        dimension: usize,
        ids: Vec<String>,
    ) -> Result<Option<Vec<u64>>, Fault> {
        let wanted = ids.len();
        let request = RankOfRequest {
            collection: collection.to_owned(),
            query: Some(Vector { values: vec![0.0; dimension] }),
            ids,
            // Only which comes first matters.
            filter: None,
            min_transaction: 0,
        };
        let answered = self
            .clients
            .gallery
            .call_at(&self.place, self.ask(), self.deadline, |peer| {
                let request = request_by(request.clone(), self.deadline);
                async move { gallery(peer).rank_of(request).await }
            })
            .await;
        let ranks = match answered {
            Ok(response) => response.ranks,
            Err(fault) => return none_where_gone(fault),
        };
        if ranks.len() != wanted {
            return Err(broken(Role::Gallery, format!("{wanted} ids gave {} ranks", ranks.len())));
        }
        Ok(Some(ranks))
    }

    /// The bytes of an item's image; `None` where the item has none or is gone.
    pub(crate) async fn image(&self, collection: &str, id: &str) -> Result<Option<Image>, Fault> {
        let request = GetImageRequest {
            collection: collection.to_owned(),
            by: Some(get_image_request::By::Id(id.to_owned())),
            min_transaction: 0,
        };
        let answered = self
            .clients
            .gallery
            .call_at(&self.place, self.ask(), self.deadline, |peer| {
                let request = request_by(request.clone(), self.deadline);
                async move { gallery(peer).get_image(request).await }
            })
            .await;
        match answered {
            Ok(response) => Ok(Some(response.image).filter(|image| !image.is_empty())),
            Err(fault) => none_where_gone(fault),
        }
    }

    /// The collections as the gallery that takes writes has them.
    pub(crate) async fn collections(&self) -> Result<Vec<Collection>, Fault> {
        let request = request_by(ListCollectionsRequest {}, self.deadline);
        let listed = gallery(self.clients.gallery.one(self.deadline).await?).list_collections(request).await;
        let listed = listed.map_err(|status| fault_of(Role::Gallery, status))?;
        Ok(listed.into_inner().collections)
    }

    pub(crate) async fn create_collection(&self, request: CreateCollectionRequest) -> Result<(), Fault> {
        let request = request_by(request, self.deadline);
        let created =
            gallery(self.clients.gallery.one(self.deadline).await?).create_collection(request).await;
        created.map(drop).map_err(|status| fault_of(Role::Gallery, status))
    }

    pub(crate) async fn upsert(
        &self,
        items: ReceiverStream<UpsertRequest>,
    ) -> Result<Streaming<UpsertResponse>, Fault> {
        let request = request_by(items, self.deadline);
        let answered = gallery(self.clients.gallery.one(self.deadline).await?).upsert(request).await;
        answered.map(tonic::Response::into_inner).map_err(|status| fault_of(Role::Gallery, status))
    }

    /// Answer replicas that have nothing to do.
    pub(crate) fn idle_answerers(&self) -> usize {
        self.clients.answer.idle()
    }

    /// `key` names the image. Until its `turn` has come, it is asked by idle replicas alone.
    pub(crate) async fn locate(
        &self,
        text: &str,
        image: Image,
        key: ImageKey,
        turn: &Turn,
    ) -> Result<LocateResponse, Fault> {
        let ask = self.question(LOCATE, Some(key));
        let request = LocateRequest { text: text.to_owned(), image, adapter: self.adapter.clone() };
        let send = |peer| {
            let request = request_by(request.clone(), self.deadline);
            async move { answer(peer).locate(request).await }
        };
        self.clients.answer.call_ahead(ask, turn, self.deadline, send).await
    }

    /// `key` names the image.
    pub(crate) async fn describe(&self, image: Image, key: ImageKey) -> Result<DescribeResponse, Fault> {
        let ask = self.question(DESCRIBE, Some(key));
        let request = DescribeRequest { image, adapter: self.adapter.clone() };
        let send = |peer| {
            let request = request_by(request.clone(), self.deadline);
            async move { answer(peer).describe(request).await }
        };
        self.clients.answer.call(ask, self.deadline, send).await
    }

    pub(crate) async fn aggregate(
        &self,
        text: &str,
        answers: Vec<String>,
    ) -> Result<AggregateResponse, Fault> {
        let request = AggregateRequest { text: text.to_owned(), answers, adapter: self.adapter.clone() };
        let send = |peer| {
            let request = request_by(request.clone(), self.deadline);
            async move { answer(peer).aggregate(request).await }
        };
        self.clients.answer.call(self.question(AGGREGATE, None), self.deadline, send).await
    }
}

/// Encoded image.
pub(crate) type Image = bytes::Bytes;

/// Turns a missing item into nothing; a missing collection stays a fault.
fn none_where_gone<T>(fault: Fault) -> Result<Option<T>, Fault> {
    match fault {
        Fault::NotFound { ref kind, .. } if kind != "collection" => Ok(None),
        fault => Err(fault),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_item_is_nothing_and_a_missing_collection_is_a_fault() {
        assert_eq!(none_where_gone::<()>(Fault::not_found("item", "7")), Ok(None));
        assert!(none_where_gone::<()>(Fault::not_found("collection", "lobby")).is_err());
    }
}
