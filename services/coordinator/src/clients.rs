//! The other roles, as the coordinator calls them.

use std::fmt::Display;
use std::time::Duration;

use thicket_proto::v1::answer_service_client::AnswerServiceClient;
use thicket_proto::v1::embedding_service_client::EmbeddingServiceClient;
use thicket_proto::v1::gallery_service_client::GalleryServiceClient;
use thicket_proto::v1::{
    AggregateRequest, AggregateResponse, Collection, CreateCollectionRequest, DescribeRequest,
    DescribeResponse, EmbedImageRequest, EmbedImageResponse, EmbedTextRequest, EmbeddingModel, Filter,
    GetImageRequest, GetModelRequest, Hit, ListCollectionsRequest, LocateRequest, LocateResponse,
    RankOfRequest, ScoreRequest, SearchRequest, UpsertRequest, UpsertResponse, Vector, get_image_request,
};
use thicket_runtime::{Deadline, Fault, MAX_MESSAGE_BYTES, Peer, PeerError, Role, request_by};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use crate::Peers;

/// A text as a vector.
#[derive(Debug, Clone)]
pub(crate) struct Embedded {
    pub(crate) vector: Vec<f32>,
    /// Fingerprint of the model that made it.
    pub(crate) fingerprint: String,
}

/// Clients of the other roles, made once. Cheap to clone; connected when first used.
#[derive(Debug, Clone)]
pub(crate) struct Clients {
    embedding: EmbeddingServiceClient<Peer>,
    gallery: GalleryServiceClient<Peer>,
    answer: AnswerServiceClient<Peer>,
}

impl Clients {
    pub(crate) fn lazy(peers: &Peers) -> Result<Self, PeerError> {
        let token = peers.token.as_deref();
        let peer = |target: &str| Peer::lazy(target, token);
        Ok(Self {
            embedding: EmbeddingServiceClient::new(peer(&peers.embedding)?)
                .max_decoding_message_size(MAX_MESSAGE_BYTES)
                .max_encoding_message_size(MAX_MESSAGE_BYTES),
            gallery: GalleryServiceClient::new(peer(&peers.gallery)?)
                .max_decoding_message_size(MAX_MESSAGE_BYTES)
                .max_encoding_message_size(MAX_MESSAGE_BYTES),
            answer: AnswerServiceClient::new(peer(&peers.answer)?)
                .max_decoding_message_size(MAX_MESSAGE_BYTES)
                .max_encoding_message_size(MAX_MESSAGE_BYTES),
        })
    }

    /// The same clients on behalf of a call: everything asked of them must be answered by its deadline.
    pub(crate) fn by(&self, deadline: Deadline) -> CallClients {
        CallClients { clients: self.clone(), deadline, adapter: String::new() }
    }
}

/// The clients of one call.
#[derive(Debug, Clone)]
pub(crate) struct CallClients {
    clients: Clients,
    deadline: Deadline,
    /// Adapter that answers; empty for the answer model as it was started.
    adapter: String,
}

impl CallClients {
    /// The same, questions going to an adapter.
    pub(crate) fn answered_by(self, adapter: String) -> Self {
        Self { adapter, ..self }
    }

    pub(crate) async fn embed_text(&self, text: &str) -> Result<Embedded, Fault> {
        let request = request_by(EmbedTextRequest { texts: vec![text.to_owned()] }, self.deadline);
        let mut client = self.clients.embedding.clone();
        let response = client.embed_text(request).await.map_err(from(Role::Embedding))?.into_inner();
        match <[Vector; 1]>::try_from(response.vectors) {
            Ok([Vector { values }]) if !values.is_empty() => {
                Ok(Embedded { vector: values, fingerprint: response.model_fingerprint })
            }
            _ => Err(broken(Role::Embedding, "one text did not give one vector")),
        }
    }

    pub(crate) async fn model(&self) -> Result<EmbeddingModel, Fault> {
        let mut client = self.clients.embedding.clone();
        let request = request_by(GetModelRequest {}, self.deadline);
        let response = client.get_model(request).await.map_err(from(Role::Embedding))?;
        response.into_inner().model.ok_or_else(|| broken(Role::Embedding, "the model is not described"))
    }

    pub(crate) async fn embed_images(&self, request: EmbedImageRequest) -> Result<EmbedImageResponse, Fault> {
        let images = request.images.len();
        let mut client = self.clients.embedding.clone();
        let response = client
            .embed_image(request_by(request, self.deadline))
            .await
            .map_err(from(Role::Embedding))?
            .into_inner();
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
        };
        let mut client = self.clients.gallery.clone();
        let response = client
            .search(request_by(request, self.deadline))
            .await
            .map_err(from(Role::Gallery))?
            .into_inner();
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
        };
        let mut client = self.clients.gallery.clone();
        let scores = match client.score(request_by(request, self.deadline)).await {
            Ok(response) => response.into_inner().scores,
            Err(status) => return none_where_gone(from(Role::Gallery)(status)),
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
        };
        let mut client = self.clients.gallery.clone();
        let ranks = match client.rank_of(request_by(request, self.deadline)).await {
            Ok(response) => response.into_inner().ranks,
            Err(status) => return none_where_gone(from(Role::Gallery)(status)),
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
        };
        let mut client = self.clients.gallery.clone();
        match client.get_image(request_by(request, self.deadline)).await {
            Ok(response) => Ok(Some(response.into_inner().image).filter(|image| !image.is_empty())),
            Err(status) => none_where_gone(from(Role::Gallery)(status)),
        }
    }

    pub(crate) async fn collections(&self) -> Result<Vec<Collection>, Fault> {
        let mut client = self.clients.gallery.clone();
        let request = request_by(ListCollectionsRequest {}, self.deadline);
        let response = client.list_collections(request).await.map_err(from(Role::Gallery))?;
        Ok(response.into_inner().collections)
    }

    pub(crate) async fn create_collection(&self, request: CreateCollectionRequest) -> Result<(), Fault> {
        let mut client = self.clients.gallery.clone();
        client.create_collection(request_by(request, self.deadline)).await.map_err(from(Role::Gallery))?;
        Ok(())
    }

    pub(crate) async fn upsert(
        &self,
        items: ReceiverStream<UpsertRequest>,
    ) -> Result<Streaming<UpsertResponse>, Fault> {
        let mut client = self.clients.gallery.clone();
        let response = client.upsert(request_by(items, self.deadline)).await.map_err(from(Role::Gallery))?;
        Ok(response.into_inner())
    }

    pub(crate) async fn locate(&self, text: &str, image: Image) -> Result<LocateResponse, Fault> {
        let mut client = self.clients.answer.clone();
        let request = LocateRequest { text: text.to_owned(), image, adapter: self.adapter.clone() };
        Ok(client.locate(request_by(request, self.deadline)).await.map_err(from(Role::Answer))?.into_inner())
    }

    pub(crate) async fn describe(&self, image: Image) -> Result<DescribeResponse, Fault> {
        let mut client = self.clients.answer.clone();
        let request = DescribeRequest { image, adapter: self.adapter.clone() };
        Ok(client
            .describe(request_by(request, self.deadline))
            .await
            .map_err(from(Role::Answer))?
            .into_inner())
    }

    pub(crate) async fn aggregate(
        &self,
        text: &str,
        answers: Vec<String>,
    ) -> Result<AggregateResponse, Fault> {
        let mut client = self.clients.answer.clone();
        let request = AggregateRequest { text: text.to_owned(), answers, adapter: self.adapter.clone() };
        Ok(client
            .aggregate(request_by(request, self.deadline))
            .await
            .map_err(from(Role::Answer))?
            .into_inner())
    }
}

/// Encoded image.
pub(crate) type Image = bytes::Bytes;

/// Reads a peer's status as a fault of this call. What the peer holds against the coordinator is not the caller's fault.
pub(crate) fn from(role: Role) -> impl Fn(Status) -> Fault {
    move |status| match (status.code(), Fault::from_status(&status)) {
        (Code::Unauthenticated | Code::PermissionDenied, _) => {
            broken(role, format!("it refuses the coordinator: {}", status.message()))
        }
        // No role answers UNKNOWN or CANCELLED of itself: the connection broke in the middle of the call.
        (Code::Unknown | Code::Cancelled, _) => {
            Fault::unavailable("PEER_LOST", format!("the {role} role was lost in a call"), Duration::ZERO)
        }
        (_, fault) => fault,
    }
}

/// A peer that does not keep the contract.
pub(crate) fn broken(role: Role, what: impl Display) -> Fault {
    Fault::internal(format_args!("{role} role: {what}"))
}

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
    fn a_refused_token_of_ours_is_not_the_callers_fault() {
        let status = Fault::Unauthenticated { message: "no bearer token".into() }.into_status();
        assert_eq!(from(Role::Gallery)(status).code(), Code::Internal);
    }

    #[test]
    fn a_connection_that_breaks_is_unavailable() {
        assert_eq!(from(Role::Answer)(Status::unknown("h2 protocol error")).code(), Code::Unavailable);
    }

    #[test]
    fn a_missing_item_is_nothing_and_a_missing_collection_is_a_fault() {
        assert_eq!(none_where_gone::<()>(Fault::not_found("item", "7")), Ok(None));
        assert!(none_where_gone::<()>(Fault::not_found("collection", "lobby")).is_err());
    }
}
