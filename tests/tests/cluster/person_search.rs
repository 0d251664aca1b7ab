//! Ingest and search through all four roles.

use std::collections::BTreeSet;
use std::io::Cursor;

use image::{ImageFormat, Rgb, RgbImage};
use thicket_proto::v1::coordinator_service_client::CoordinatorServiceClient;
use thicket_proto::v1::embedding_service_client::EmbeddingServiceClient;
use thicket_proto::v1::gallery_service_client::GalleryServiceClient;
use thicket_proto::v1::search_person_response::Event;
use thicket_proto::v1::{
    EmbedTextRequest, GetImageRequest, IngestRequest, InteractionSettings, Outcome, SearchPersonRequest,
    SearchRequest, get_image_request, ingest_response,
};
use thicket_runtime::Role;
use thicket_tests::{Cluster, ClusterOptions};
use tonic::transport::Channel;

const COLLECTION: &str = "lobby";
const TEXT: &str = "a person in a red coat";

/// A picture of two halves: a colour for what is worn above, one for below.
pub(crate) fn picture(index: u8) -> Vec<u8> {
    let image = RgbImage::from_fn(48, 96, |x, y| match y < 48 {
        true => Rgb([index.wrapping_mul(37), index.wrapping_mul(91), (x * 5) as u8]),
        false => Rgb([200, index.wrapping_mul(53), (y * 2) as u8]),
    });
    png(&image)
}

pub(crate) fn png(image: &RgbImage) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    image.write_to(&mut bytes, ImageFormat::Png).expect("a PNG");
    bytes.into_inner()
}

/// Ingests seven good pictures with a truncated one between them; returns the ids that were stored.
async fn ingest(coordinator: &mut CoordinatorServiceClient<Channel>) -> Vec<String> {
    let items: Vec<_> = (0..8)
        .map(|index| IngestRequest {
            collection: COLLECTION.into(),
            id: format!("item-{index}"),
            image: match index {
                3 => picture(index)[..60].to_vec().into(),
                _ => picture(index).into(),
            },
            ..Default::default()
        })
        .collect();
    let mut results = coordinator.ingest(tokio_stream::iter(items)).await.expect("a stream").into_inner();
    let mut stored = Vec::new();
    let mut position = 0;
    while let Some(result) = results.message().await.expect("the stream goes on") {
        assert_eq!(result.id, format!("item-{position}"));
        match result.result.expect("a result") {
            ingest_response::Result::Item(item) => {
                assert!(!item.image_hash.is_empty());
                stored.push(item.id);
            }
            ingest_response::Result::Error(error) => {
                assert_eq!((position, error.code), (3, tonic::Code::InvalidArgument as i32), "{error:?}");
            }
        }
        position += 1;
    }
    assert_eq!(position, 8);
    stored
}

async fn search(
    coordinator: &mut CoordinatorServiceClient<Channel>,
    settings: InteractionSettings,
) -> Vec<Event> {
    let request = SearchPersonRequest {
        collection: COLLECTION.into(),
        text: TEXT.into(),
        top: 5,
        settings: Some(settings),
        ..Default::default()
    };
    let mut stream = coordinator.search_person(request).await.expect("a stream").into_inner();
    let mut events = Vec::new();
    while let Some(response) = stream.message().await.expect("the search goes on") {
        events.push(response.event.expect("an event"));
    }
    events
}

/// Ids and scores of the first ranking.
fn candidates(events: &[Event]) -> Vec<(String, f32)> {
    let Some(Event::CandidatesFound(found)) = events.first() else { panic!("{events:?}") };
    found.hits.iter().map(|hit| (hit.item.clone().unwrap_or_default().id, hit.score)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_is_ingested_and_searched_for_through_all_four_roles() {
    let data = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(ClusterOptions::tiny(data.path())).await.unwrap();
    let mut coordinator = CoordinatorServiceClient::new(cluster.connect(Role::Coordinator).await.unwrap());
    let stored = ingest(&mut coordinator).await;
    assert_eq!(stored.len(), 7);

    // Every similarity is above this xi: round 1 alone may refine, and any probability of Yes is a Yes.
    let settings = InteractionSettings {
        rounds: Some(3),
        xi: Some(-2.0),
        yes_threshold: Some(0.0),
        ..Default::default()
    };
    let events = search(&mut coordinator, settings).await;
    let first = candidates(&events);
    assert_eq!(first.len(), 5);
    assert!(first.is_sorted_by(|left, right| left.1 >= right.1), "{first:?}");
    let Event::QuestionAsked(asked) = &events[1] else { panic!("{events:?}") };
    assert_eq!((asked.round, &asked.candidate.clone().unwrap().item.unwrap().id), (1, &first[0].0));
    let Event::QuestionAnswered(answered) = &events[2] else { panic!("{events:?}") };
    assert!((0.0..=1.0).contains(&answered.p_yes));
    let Some(Event::Finished(finished)) = events.last() else { panic!("{events:?}") };
    let questions = finished.questions.unwrap();
    assert_eq!(questions.locate, 1);
    match finished.outcome() {
        Outcome::Refined => {
            assert_eq!(finished.anchor_id, first[0].0);
            assert!(!finished.refined_text.is_empty());
        }
        Outcome::RefinementUnusable => assert_eq!(questions.describe, 1),
        outcome => assert_eq!((outcome, questions.describe), (Outcome::HighRejected, 0)),
    }
    let found: BTreeSet<_> = finished.hits.iter().map(|hit| hit.item.clone().unwrap().id).collect();
    assert_eq!(found.len(), 5);
    assert!(found.iter().all(|id| stored.contains(id)));
    cluster.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_ranking_is_what_the_gallery_gives_for_the_texts_vector() {
    let data = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(ClusterOptions::tiny(data.path())).await.unwrap();
    let mut coordinator = CoordinatorServiceClient::new(cluster.connect(Role::Coordinator).await.unwrap());
    ingest(&mut coordinator).await;
    let disabled = InteractionSettings { disabled: true, ..Default::default() };
    let through_the_coordinator = candidates(&search(&mut coordinator, disabled).await);

    let mut embedding = EmbeddingServiceClient::new(cluster.connect(Role::Embedding).await.unwrap());
    let text = EmbedTextRequest { texts: vec![TEXT.into()] };
    let embedded = embedding.embed_text(text).await.unwrap().into_inner();
    let mut gallery = GalleryServiceClient::new(cluster.connect(Role::Gallery).await.unwrap());
    let request = SearchRequest {
        collection: COLLECTION.into(),
        queries: embedded.vectors,
        top: 5,
        model_fingerprint: embedded.model_fingerprint,
        filter: None,
        ..Default::default()
    };
    let ranking = gallery.search(request).await.unwrap().into_inner().rankings.remove(0);
    let by_hand: Vec<_> =
        ranking.hits.into_iter().map(|hit| (hit.item.unwrap_or_default().id, hit.score)).collect();
    assert_eq!(through_the_coordinator, by_hand);
    cluster.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_ingested_is_there_after_a_restart() {
    let data = tempfile::tempdir().unwrap();
    let disabled = InteractionSettings { disabled: true, ..Default::default() };
    let cluster = Cluster::start(ClusterOptions::tiny(data.path())).await.unwrap();
    let mut coordinator = CoordinatorServiceClient::new(cluster.connect(Role::Coordinator).await.unwrap());
    ingest(&mut coordinator).await;
    let before = candidates(&search(&mut coordinator, disabled).await);
    drop(coordinator);
    cluster.stop().await.unwrap();

    let cluster = Cluster::start(ClusterOptions::tiny(data.path())).await.unwrap();
    let mut coordinator = CoordinatorServiceClient::new(cluster.connect(Role::Coordinator).await.unwrap());
    assert_eq!(candidates(&search(&mut coordinator, disabled).await), before);
    let mut gallery = GalleryServiceClient::new(cluster.connect(Role::Gallery).await.unwrap());
    let request = GetImageRequest {
        collection: COLLECTION.into(),
        by: Some(get_image_request::By::Id("item-5".into())),
        ..Default::default()
    };
    let image = gallery.get_image(request).await.unwrap().into_inner();
    assert_eq!((image.image.as_ref(), image.media_type.as_str()), (picture(5).as_slice(), "image/png"));
    cluster.stop().await.unwrap();
}
