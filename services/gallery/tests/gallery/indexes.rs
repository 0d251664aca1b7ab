//! Collections with an IVF or HNSW index.

use std::time::{Duration, Instant};

use crate::common::*;
use thicket_proto::v1;
use thicket_proto::v1::vector_index::Kind;

const DIMENSION: u32 = 8;
const ITEMS: usize = 1200;
const KINDS: [Kind; 2] = [
    Kind::Ivf(v1::IvfIndex { lists: 16, probes: 4 }),
    Kind::Hnsw(v1::HnswIndex { links: 8, ef_search: 64, ef_construction: 40 }),
];

/// A unit vector, the same for the same number.
fn vector(number: usize) -> v1::Vector {
    let mut state = (number as u32).wrapping_mul(2_654_435_761).wrapping_add(1);
    let values: Vec<f32> = (0..DIMENSION)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 24) as f32 - 0.5
        })
        .collect();
    let norm = values.iter().map(|value| value * value).sum::<f32>().sqrt();
    v1::Vector { values: values.iter().map(|value| value / norm).collect() }
}

fn numbered(number: usize) -> v1::UpsertRequest {
    let mut request = item(&format!("item-{number}"), vector(number));
    request.metadata.insert("camera".to_owned(), (number % 3).to_string());
    request
}

async fn described(client: &mut Client) -> v1::Collection {
    client.list_collections(v1::ListCollectionsRequest {}).await.unwrap().into_inner().collections.remove(0)
}

/// Waits until the index is built and measured.
async fn built(client: &mut Client) -> v1::Collection {
    let patience = Instant::now() + Duration::from_secs(60);
    loop {
        let collection = described(client).await;
        if collection.approximate && collection.recall.is_some() {
            return collection;
        }
        assert!(Instant::now() < patience, "never built: {collection:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The ranking of all items, which is exact, cut.
async fn exact(client: &mut Client, query: &v1::Vector, top: usize) -> Vec<v1::Hit> {
    let mut all = search(client, query.clone(), 100_000).await;
    all.truncate(top);
    all
}

async fn started(folder: &std::path::Path, kind: Kind) -> Running {
    let mut gallery = Running::on(folder).await;
    create_indexed(&mut gallery.client, "lobby", DIMENSION, Some(kind)).await;
    fill(&mut gallery.client, (0..ITEMS).map(numbered).collect()).await;
    gallery
}

#[tokio::test]
async fn an_approximate_index_is_built_measured_and_listed() {
    for kind in KINDS {
        let folder = tempfile::tempdir().unwrap();
        let mut gallery = started(folder.path(), kind).await;
        let collection = built(&mut gallery.client).await;
        assert_eq!(collection.index, Some(v1::VectorIndex { kind: Some(kind) }));
        let recall = collection.recall.unwrap();
        assert!(recall.at_10 > 0.5 && recall.at_10 <= 1.0, "{recall:?}");
        assert!(recall.at_100 > 0.5 && recall.at_100 <= 1.0, "{recall:?}");
        assert_eq!(recall.queries, 64);
        assert!(recall.measured_unix_ms >= collection.created_unix_ms);
        gallery.stop().await;
    }
}

#[tokio::test]
async fn an_exact_collection_says_so_and_has_no_recall() {
    let folder = tempfile::tempdir().unwrap();
    let mut gallery = Running::on(folder.path()).await;
    create(&mut gallery.client, "lobby", DIMENSION).await;
    let collection = described(&mut gallery.client).await;
    assert_eq!(collection.index, Some(v1::VectorIndex { kind: Some(Kind::Exact(v1::ExactIndex {})) }));
    assert!(!collection.approximate && collection.recall.is_none());
    gallery.stop().await;
}

#[tokio::test]
async fn scores_ranks_and_filtered_searches_are_exact_on_every_kind() {
    for kind in KINDS {
        let folder = tempfile::tempdir().unwrap();
        let mut gallery = started(folder.path(), kind).await;
        let client = &mut gallery.client;
        built(client).await;
        let query = vector(70_000);
        let all = exact(client, &query, ITEMS).await;
        assert_eq!(all.len(), ITEMS);
        let hits = search(client, query.clone(), 20).await;
        for hit in &hits {
            let place = all.iter().position(|other| other == hit).expect("the score is the exact one");
            let ids = vec![hit.item.as_ref().unwrap().id.clone()];
            let request = v1::RankOfRequest {
                collection: "lobby".to_owned(),
                query: Some(query.clone()),
                ids,
                filter: None,
                ..Default::default()
            };
            let ranks = client.rank_of(request).await.unwrap().into_inner().ranks;
            assert_eq!(ranks, [place as u64 + 1]);
        }
        let filter = v1::Filter { cameras: vec!["1".to_owned()], ..Default::default() };
        let request = v1::SearchRequest { filter: Some(filter), ..search_request(query.clone(), 30) };
        let found = client.search(request).await.unwrap().into_inner().rankings.remove(0).hits;
        let of_camera = |hit: &&v1::Hit| hit.item.as_ref().unwrap().metadata["camera"] == "1";
        let expected: Vec<v1::Hit> = all.iter().filter(of_camera).take(30).cloned().collect();
        assert_eq!(found, expected);
        gallery.stop().await;
    }
}

#[tokio::test]
async fn items_count_and_deleted_ones_do_not_as_soon_as_they_are_acknowledged() {
    for kind in KINDS {
        let folder = tempfile::tempdir().unwrap();
        let mut gallery = started(folder.path(), kind).await;
        let client = &mut gallery.client;
        built(client).await;
        let query = vector(80_000);
        fill(client, vec![item("new", query.clone()), item("item-5", query.clone())]).await;
        assert_eq!(ids(&search(client, query.clone(), 2).await), ["item-5", "new"], "in insertion order");
        delete(client, &["new", "item-5"]).await;
        let found = ids(&search(client, query.clone(), 50).await);
        assert_eq!(found.len(), 50);
        assert!(!found.iter().any(|id| id == "new" || id == "item-5"));
        gallery.stop().await;
    }
}

#[tokio::test]
async fn the_structure_outlives_a_restart_and_a_damaged_snapshot_is_built_again() {
    for kind in KINDS {
        let folder = tempfile::tempdir().unwrap();
        let mut gallery = started(folder.path(), kind).await;
        built(&mut gallery.client).await;
        let query = vector(90_000);
        let (ranking, all) = (
            search(&mut gallery.client, query.clone(), 10).await,
            exact(&mut gallery.client, &query, ITEMS).await,
        );
        gallery.stop().await;

        let mut gallery = Running::on(folder.path()).await;
        assert!(described(&mut gallery.client).await.approximate, "read from the snapshot");
        assert_eq!(search(&mut gallery.client, query.clone(), 10).await, ranking);
        gallery.stop().await;

        let mut files = std::fs::read_dir(folder.path().join("snapshots")).unwrap();
        let file = files.next().unwrap().unwrap().path();
        assert!(files.next().is_none());
        let mut bytes = std::fs::read(&file).unwrap();
        let place = bytes.len() - 1000;
        bytes[place] ^= 1;
        std::fs::write(&file, bytes).unwrap();
        let mut gallery = Running::on(folder.path()).await;
        assert_eq!(exact(&mut gallery.client, &query, ITEMS).await, all);
        built(&mut gallery.client).await;
        gallery.stop().await;
    }
}

#[tokio::test]
async fn a_deleted_vector_leaves_the_snapshot_of_every_kind() {
    for kind in KINDS {
        let folder = tempfile::tempdir().unwrap();
        let mut gallery = started(folder.path(), kind).await;
        built(&mut gallery.client).await;
        gallery.stop().await;
        let needle: Vec<u8> = vector(7).values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let holding = || {
            let folders = [folder.path().join("snapshots"), folder.path().to_owned()];
            let files = folders.iter().flat_map(|folder| std::fs::read_dir(folder).unwrap());
            let paths = files.map(|file| file.unwrap().path()).filter(|path| path.is_file());
            paths
                .filter(|path| {
                    std::fs::read(path).unwrap().windows(needle.len()).any(|bytes| bytes == needle)
                })
                .count()
        };
        assert_eq!(holding(), 2, "the store and the snapshot");
        let mut gallery = Running::on(folder.path()).await;
        delete(&mut gallery.client, &["item-7"]).await;
        gallery.client.compact(v1::CompactRequest {}).await.unwrap();
        assert_eq!(holding(), 0);
        gallery.stop().await;
        assert_eq!(holding(), 0, "nor does it come back when the gallery stops");
    }
}
