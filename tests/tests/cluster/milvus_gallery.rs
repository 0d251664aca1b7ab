//! A gallery that keeps its items in Milvus, killed in the middle of its work.

use std::collections::BTreeSet;
use std::time::Duration;

use thicket_proto::v1::gallery_service_client::GalleryServiceClient;
use thicket_proto::v1::upsert_response::Result as Outcome;
use thicket_proto::v1::{
    CreateCollectionRequest, GetImageRequest, SearchRequest, Similarity, UpsertRequest, Vector,
    get_image_request,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

use crate::etcd;
use crate::milvus::Milvus;
use crate::person_search::picture;
use crate::process::{Process, program};
use crate::processes::COLLECTION;
use crate::support::eventually;
use crate::topology::says_that_it_serves;

const MODEL: &str = "model";
/// Items of a stream.
const ITEMS: usize = 400;
/// Between two items of a stream.
const PACE: Duration = Duration::from_millis(5);
/// Items that are acknowledged before the gallery is killed, each time.
const ACKNOWLEDGED: [usize; 3] = [5, 40, 90];

/// The picture of an item, which tells it from its neighbours.
fn picture_of(number: usize) -> Vec<u8> {
    picture((number % 200) as u8)
}

fn request(number: usize) -> UpsertRequest {
    let (sin, cos) = (number as f32).sin_cos();
    UpsertRequest {
        collection: COLLECTION.into(),
        id: format!("item-{number}"),
        vector: Some(Vector { values: vec![cos, sin] }),
        image: picture_of(number).into(),
        model_fingerprint: MODEL.into(),
        ..Default::default()
    }
}

/// Items one after another, so that they are not all written at once.
fn paced(items: impl Iterator<Item = UpsertRequest> + Send + 'static) -> ReceiverStream<UpsertRequest> {
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(async move {
        for item in items {
            if sender.send(item).await.is_err() {
                return;
            }
            tokio::time::sleep(PACE).await;
        }
    });
    ReceiverStream::new(receiver)
}

async fn connect(url: &str, gallery: &Process) -> GalleryServiceClient<Channel> {
    eventually("the gallery serves", async || says_that_it_serves(url).await, || gallery.said()).await;
    GalleryServiceClient::connect(url.to_owned()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_gallery_on_milvus_acknowledged_is_there_after_it_was_killed() {
    let Some(milvus) = tokio::task::spawn_blocking(Milvus::start).await.unwrap() else { return };
    let folder = tempfile::tempdir().unwrap();
    let images = format!("file://{}", folder.path().join("images").display());
    std::fs::create_dir(folder.path().join("images")).unwrap();
    let url = etcd::url("http");
    let flags = [
        ("--listen", url.trim_start_matches("http://")),
        ("--admin-listen", "127.0.0.1:0"),
        ("--backend", "milvus"),
        ("--milvus", &milvus.url()),
        ("--images", &images),
    ];
    let flags = flags.iter().flat_map(|(flag, value)| [(*flag).to_owned(), (*value).to_owned()]).collect();
    let mut gallery = Process::start(program("thicket-gallery"), flags, folder.path().join("log"));
    let mut client = connect(&url, &gallery).await;
    let collection = CreateCollectionRequest {
        name: COLLECTION.into(),
        model_fingerprint: MODEL.into(),
        dimension: 2,
        similarity: Similarity::Cosine.into(),
        index: None,
    };
    client.create_collection(collection).await.unwrap();

    let mut acknowledged = BTreeSet::new();
    for (round, enough) in ACKNOWLEDGED.into_iter().enumerate() {
        let items = paced((round * ITEMS..(round + 1) * ITEMS).map(request));
        let mut answers = client.upsert(items).await.unwrap().into_inner();
        let mut answered = 0;
        // What was on its way when it died counts, too.
        while let Ok(Some(answer)) = answers.message().await {
            assert!(matches!(answer.result, Some(Outcome::Item(_))), "{answer:?}");
            acknowledged.insert(answer.id);
            answered += 1;
            if answered == enough {
                gallery.kill();
            }
        }
        assert!(answered < ITEMS, "the stream ended before the gallery was killed");
        gallery.restart();
        client = connect(&url, &gallery).await;
    }

    let search = SearchRequest {
        collection: COLLECTION.into(),
        queries: vec![Vector { values: vec![1.0, 0.0] }],
        top: 10_000,
        model_fingerprint: MODEL.into(),
        ..Default::default()
    };
    let hits = client.search(search).await.unwrap().into_inner().rankings.remove(0).hits;
    let ids: Vec<String> = hits.into_iter().map(|hit| hit.item.unwrap_or_default().id).collect();
    let found: BTreeSet<String> = ids.iter().cloned().collect();
    assert_eq!(found.len(), ids.len(), "an item came twice");
    assert!(acknowledged.is_subset(&found), "lost: {:?}", acknowledged.difference(&found));
    // What was not acknowledged is there as a whole or not at all.
    for id in found {
        let number: usize = id.trim_start_matches("item-").parse().unwrap();
        let by = Some(get_image_request::By::Id(id.clone()));
        let image = GetImageRequest { collection: COLLECTION.into(), by, min_transaction: 0 };
        let image = client.get_image(image).await.unwrap().into_inner().image;
        assert!(image == picture_of(number), "{id} has another picture");
    }
}
