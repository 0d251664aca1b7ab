//! A coordinator and several real galleries: one takes writes, two follow it.

use std::time::Duration;

use thicket_proto::v1::coordinator_service_client::CoordinatorServiceClient;
use thicket_proto::v1::embedding_service_client::EmbeddingServiceClient;
use thicket_proto::v1::gallery_service_client::GalleryServiceClient;
use thicket_proto::v1::search_person_response::Event;
use thicket_proto::v1::{
    DeleteRequest, EmbedTextRequest, Hit, InteractionSettings, ListCollectionsRequest, SearchPersonRequest,
    SearchRequest,
};
use thicket_runtime::Role;
use tonic::Code;
use tonic::transport::Channel;

use crate::person_search::picture;
use crate::processes::{COLLECTION, ITEMS, TEXTS, item};
use crate::topology::{LIMIT, Layout, Processes};

impl Processes {
    async fn connect(&self, role: Role, number: usize) -> Channel {
        let instance = format!("{role}-{number}").parse().unwrap();
        let members = self.directory.members();
        let member = members.get(role, &instance).expect("it is a member");
        Channel::from_shared(member.address.to_string()).unwrap().connect().await.unwrap()
    }

    /// Everything that a gallery finds for a text, in its order, once it knows of a transaction.
    async fn everything(&self, gallery: usize, text: &str, transaction: u64) -> Vec<Hit> {
        let mut embedding = EmbeddingServiceClient::new(self.connect(Role::Embedding, 0).await);
        let embedded = embedding.embed_text(EmbedTextRequest { texts: vec![text.into()] }).await.unwrap();
        let embedded = embedded.into_inner();
        let request = SearchRequest {
            collection: COLLECTION.into(),
            queries: embedded.vectors,
            top: 1_000,
            model_fingerprint: embedded.model_fingerprint,
            min_transaction: transaction,
            ..Default::default()
        };
        let mut client = GalleryServiceClient::new(self.connect(Role::Gallery, gallery).await);
        client.search(request).await.unwrap().into_inner().rankings.remove(0).hits
    }

    /// Waits until every gallery has so many items. A read replica is behind for a moment after a write.
    pub(crate) async fn galleries_have(&self, items: usize) {
        for number in 0..=self.read_replicas.len() {
            let mut client = GalleryServiceClient::new(self.connect(Role::Gallery, number).await);
            let waiting = async {
                loop {
                    let held = client.list_collections(ListCollectionsRequest {}).await.unwrap().into_inner();
                    if held
                        .collections
                        .iter()
                        .any(|held| held.name == COLLECTION && held.items == items as u64)
                    {
                        return;
                    }
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            };
            let waited = tokio::time::timeout(LIMIT, waiting).await;
            assert!(waited.is_ok(), "gallery {number} does not catch up\n{}", self.said());
        }
    }

    /// Deletes an item at the gallery that takes writes; returns the last transaction.
    async fn forget_one(&self, id: &str) -> u64 {
        let mut client = GalleryServiceClient::new(self.connect(Role::Gallery, 0).await);
        let request = DeleteRequest { collection: COLLECTION.into(), ids: vec![id.into()] };
        client.delete(request).await.unwrap().into_inner().transaction
    }

    /// Ids that a coordinator's search finds, in order. It reads from the galleries in turn.
    async fn found(&self, text: &str) -> Vec<String> {
        let settings = InteractionSettings { disabled: true, ..Default::default() };
        let request = SearchPersonRequest {
            collection: COLLECTION.into(),
            text: text.into(),
            top: 1_000,
            settings: Some(settings),
            ..Default::default()
        };
        self.persistently(async |channel| {
            let mut client = CoordinatorServiceClient::new(channel);
            let mut events = client.search_person(request.clone()).await?.into_inner();
            let mut hits = Vec::new();
            while let Some(response) = events.message().await? {
                if let Some(Event::Finished(finished)) = response.event {
                    hits = finished.hits;
                }
            }
            Ok(hits)
        })
        .await
        .into_iter()
        .map(|hit| hit.item.unwrap_or_default().id)
        .collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn searches_go_on_and_end_alike_while_the_gallery_that_takes_writes_is_away() {
    let Some(mut processes) = Processes::start(Layout::GALLERIES).await else { return };
    processes.ingest().await;
    let transaction = processes.forget_one("item-9").await;
    for text in TEXTS {
        let [writer, one, other] = [
            processes.everything(0, text, transaction).await,
            processes.everything(1, text, transaction).await,
            processes.everything(2, text, transaction).await,
        ];
        assert_eq!(writer.len(), usize::from(ITEMS) - 1);
        assert_eq!([&one, &other], [&writer; 2], "{text}");
    }
    let before = processes.searches(TEXTS.len()).await;

    processes.gallery.kill();
    assert_eq!(processes.searches(TEXTS.len()).await, before);
    let coordinator = processes.connect(Role::Coordinator, 0).await;
    let refused = CoordinatorServiceClient::new(coordinator)
        .ingest(tokio_stream::iter([item(usize::from(ITEMS), picture(ITEMS))]))
        .await;
    let refused = match refused {
        Ok(answers) => answers.into_inner().message().await.expect_err("nobody takes writes"),
        Err(status) => status,
    };
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");

    processes.gallery.restart();
    processes.serves(Role::Gallery, 0).await;
    assert_eq!(processes.searches(TEXTS.len()).await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_gallery_finds_what_was_ingested_and_forgets_what_was_deleted_once_it_knows_of_it() {
    let Some(processes) = Processes::start(Layout::GALLERIES).await else { return };
    processes.ingest().await;
    processes.forget_one("item-3").await;
    // Under its old name and another picture, so that it is known as the last of all.
    processes.ingest_all([picture(ITEMS)].into_iter()).await;
    let transaction = processes.forget_one("item-7").await;
    let wanted = processes.everything(0, TEXTS[0], transaction).await;
    let ids: Vec<_> = wanted.iter().map(|hit| hit.item.clone().unwrap_or_default().id).collect();
    assert_eq!(ids.len(), usize::from(ITEMS) - 2);
    assert!(!ids.iter().any(|id| id == "item-3" || id == "item-7"), "{ids:?}");
    for gallery in [1, 2] {
        assert_eq!(processes.everything(gallery, TEXTS[0], transaction).await, wanted);
    }
    for _ in 0..6 {
        assert_eq!(processes.found(TEXTS[0]).await, ids);
    }
}
