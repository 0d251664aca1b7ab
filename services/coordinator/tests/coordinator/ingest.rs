//! Images in, stored items out.

use std::collections::HashMap;
use std::time::Duration;

use thicket_proto::v1::ingest_response::Result as Outcome;
use thicket_proto::v1::vector_index::Kind;
use thicket_proto::v1::{IngestRequest, IngestResponse, IvfIndex, VectorIndex};
use thicket_runtime::Fault;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::fakes::{Bench, COLLECTION, World};

fn item(collection: &str, id: &str, image: &[u8]) -> IngestRequest {
    IngestRequest {
        collection: collection.into(),
        id: id.into(),
        image: image.to_vec().into(),
        metadata: HashMap::from([("camera".to_owned(), "3".to_owned())]),
        index: None,
    }
}

async fn ingest(bench: &Bench, items: Vec<IngestRequest>) -> Result<Vec<IngestResponse>, Status> {
    let mut stream = bench.client.clone().ingest(tokio_stream::iter(items)).await?.into_inner();
    let mut results = Vec::new();
    while let Some(result) = stream.message().await? {
        results.push(result);
    }
    Ok(results)
}

fn reason(response: &IngestResponse) -> &str {
    match response.result.as_ref().expect("a result") {
        Outcome::Item(_) => "stored",
        Outcome::Error(error) => &error.reason,
    }
}

#[tokio::test]
async fn a_bad_item_in_the_middle_fails_alone_and_results_keep_their_order() {
    let bench = Bench::start(World::of(&[])).await;
    let items = vec![
        item(COLLECTION, "1", b"good"),
        item("", "2", b"bad bytes"),
        item(COLLECTION, "3", b""),
        item("elsewhere", "4", b"good"),
        item("", "", b"good"),
        item("", "6", b"good"),
    ];
    let results = ingest(&bench, items).await.unwrap();
    let told: Vec<_> = results.iter().map(|result| (result.id.as_str(), reason(result))).collect();
    assert_eq!(
        told,
        [
            ("1", "stored"),
            ("2", "IMAGE_UNDECODABLE"),
            ("3", "IMAGE_MISSING"),
            ("4", "COLLECTION_CHANGED"),
            ("", "ITEM_ID_INVALID"),
            ("6", "stored"),
        ]
    );
    let Some(Outcome::Item(stored)) = &results[0].result else { panic!("{results:?}") };
    assert_eq!(stored.metadata["camera"], "3");
    assert_eq!(bench.world().collections[COLLECTION].len(), 2);
}

#[tokio::test]
async fn a_collection_that_does_not_exist_is_made_for_the_models_vectors() {
    let bench = Bench::start(World::of(&[])).await;
    let results = ingest(&bench, vec![item("station", "1", b"good")]).await.unwrap();
    assert_eq!(reason(&results[0]), "stored");
    assert_eq!(bench.world().count("create:station:2"), 1);
}

#[tokio::test]
async fn a_collection_is_made_with_the_index_asked_for() {
    let bench = Bench::start(World::of(&[])).await;
    let kind = Kind::Ivf(IvfIndex { lists: 64, probes: 8 });
    let first =
        IngestRequest { index: Some(VectorIndex { kind: Some(kind) }), ..item("station", "1", b"good") };
    let results = ingest(&bench, vec![first, item("", "2", b"good")]).await.unwrap();
    assert_eq!(reason(&results[1]), "stored");
    assert_eq!(bench.world().indexes["station"], Some(VectorIndex { kind: Some(kind) }));
}

#[tokio::test]
async fn an_existing_collection_of_another_index_is_refused() {
    let bench = Bench::start(World::of(&[(0.5, 0.5)])).await;
    let kind = Kind::Ivf(IvfIndex { lists: 64, probes: 8 });
    let first =
        IngestRequest { index: Some(VectorIndex { kind: Some(kind) }), ..item(COLLECTION, "1", b"good") };
    let refused = ingest(&bench, vec![first]).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert_eq!(refused.get_details_error_info().unwrap().reason, "INDEX_MISMATCH");
}

#[tokio::test]
async fn an_existing_collection_is_used_as_it_is() {
    let bench = Bench::start(World::of(&[(0.5, 0.5)])).await;
    ingest(&bench, vec![item(COLLECTION, "new", b"good")]).await.unwrap();
    let world = bench.world();
    assert_eq!((world.count("create"), world.collections[COLLECTION].len()), (0, 2));
}

#[tokio::test]
async fn a_collection_of_another_model_is_refused_before_anything_is_embedded() {
    let mut world = World::of(&[]);
    world.fingerprint_of_collection = "model-2".into();
    let bench = Bench::start(world).await;
    let status = ingest(&bench, vec![item(COLLECTION, "1", b"good")]).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert_eq!(bench.world().count("embed_images"), 0);
}

#[tokio::test]
async fn a_first_item_without_a_collection_or_with_a_bad_name_ends_the_stream() {
    let bench = Bench::start(World::of(&[])).await;
    for name in ["", "no spaces please"] {
        let status = ingest(&bench, vec![item(name, "1", b"good")]).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert_eq!(status.get_details_bad_request().unwrap().field_violations[0].field, "collection");
    }
}

#[tokio::test]
async fn an_empty_stream_gives_no_results() {
    let bench = Bench::start(World::of(&[])).await;
    assert!(ingest(&bench, Vec::new()).await.unwrap().is_empty());
    assert!(bench.world().log.is_empty());
}

#[tokio::test]
async fn many_items_are_embedded_in_batches_over_one_upload() {
    let bench = Bench::start(World::of(&[])).await;
    let items: Vec<_> = (0..200).map(|index| item(COLLECTION, &index.to_string(), b"good")).collect();
    let results = ingest(&bench, items).await.unwrap();
    let order: Vec<_> = results.iter().map(|result| result.id.parse::<usize>().unwrap()).collect();
    assert_eq!(order, (0..200).collect::<Vec<_>>());
    let world = bench.world();
    let sizes = world.log.iter().filter_map(|line| line.strip_prefix("embed_images:"));
    let sizes: Vec<usize> = sizes.map(|size| size.parse().unwrap()).collect();
    assert_eq!(sizes.iter().sum::<usize>(), 200);
    assert!(sizes.iter().all(|size| *size <= 32), "{sizes:?}");
    assert_eq!(world.count("upsert"), 1);
}

#[tokio::test]
async fn a_caller_may_wait_for_each_result_before_the_next_item() {
    let bench = Bench::start(World::of(&[])).await;
    let (items, queue) = mpsc::channel(1);
    items.send(item(COLLECTION, "1", b"good")).await.unwrap();
    let mut stream = bench.client.clone().ingest(ReceiverStream::new(queue)).await.unwrap().into_inner();
    for next in ["2", "3"] {
        assert_eq!(reason(&stream.message().await.unwrap().unwrap()), "stored");
        items.send(item("", next, b"good")).await.unwrap();
    }
    drop(items);
    assert_eq!(stream.message().await.unwrap().unwrap().id, "3");
    assert!(stream.message().await.unwrap().is_none());
}

#[tokio::test]
async fn an_embedding_role_that_fails_ends_the_stream_after_the_results_before_it() {
    let bench = Bench::start(World::of(&[])).await;
    let (items, queue) = mpsc::channel(1);
    items.send(item(COLLECTION, "1", b"good")).await.unwrap();
    let mut stream = bench.client.clone().ingest(ReceiverStream::new(queue)).await.unwrap().into_inner();
    assert_eq!(stream.message().await.unwrap().unwrap().id, "1");
    bench.world().embedding_fails = Some(Fault::unavailable("DRAINING", "stopping", Duration::ZERO));
    items.send(item("", "2", b"good")).await.unwrap();
    assert_eq!(stream.message().await.unwrap_err().code(), Code::Unavailable);
    assert_eq!(bench.world().collections[COLLECTION].len(), 1);
}

#[tokio::test]
async fn a_gallery_that_fails_ends_the_stream_even_while_the_caller_is_silent() {
    let bench = Bench::start(World::of(&[])).await;
    let (items, queue) = mpsc::channel(1);
    items.send(item(COLLECTION, "1", b"good")).await.unwrap();
    let mut stream = bench.client.clone().ingest(ReceiverStream::new(queue)).await.unwrap().into_inner();
    assert_eq!(stream.message().await.unwrap().unwrap().id, "1");
    bench.world().collections.clear();
    items.send(item("", "2", b"good")).await.unwrap();
    // The sender stays open: nothing more comes, and the stream still ends.
    assert_eq!(stream.message().await.unwrap_err().code(), Code::NotFound);
}
