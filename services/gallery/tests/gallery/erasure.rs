//! What was deleted or replaced is in no file once the store is compacted, and callers learn which images went.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::common::*;
use thicket_gallery::Config;
use thicket_proto::v1;

const DIMENSION: u32 = 24;

/// A unit vector whose bytes no other vector has.
fn vector(seed: u32) -> v1::Vector {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(12_345);
    let mut values: Vec<f32> = (0..DIMENSION)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 24) as f32 - 0.5
        })
        .collect();
    let norm = values.iter().map(|value| value * value).sum::<f32>().sqrt();
    values.iter_mut().for_each(|value| *value /= norm);
    v1::Vector { values }
}

fn id(i: u32) -> String {
    format!("person-of-interest-{i:04}")
}

fn secret(i: u32) -> String {
    format!("seen with suspect {i:04}!")
}

fn picture(i: u32) -> bytes::Bytes {
    noise(i, 24, 48)
}

fn person(i: u32) -> v1::UpsertRequest {
    let mut request = with_image(item(&id(i), vector(i)), picture(i));
    request.metadata.insert("note".to_owned(), secret(i));
    request
}

fn hash(i: u32) -> blake3::Hash {
    blake3::hash(&picture(i))
}

/// Everything of an item that a file could hold, by name.
fn traces(i: u32) -> Vec<(&'static str, Vec<u8>)> {
    let values = vector(i).values.iter().flat_map(|value| value.to_le_bytes()).collect();
    vec![
        ("vector", values),
        ("image", picture(i).to_vec()),
        ("metadata", secret(i).into_bytes()),
        ("id", id(i).into_bytes()),
        ("hash in hex", hash(i).to_hex().to_string().into_bytes()),
        ("hash", hash(i).as_bytes().to_vec()),
    ]
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push(path);
        }
    }
    found
}

/// Which traces of which items are in any file of the folder, its name included.
fn found(folder: &Path, items: impl IntoIterator<Item = u32>) -> BTreeSet<(u32, &'static str)> {
    let contents: Vec<Vec<u8>> = files(folder)
        .iter()
        .map(|path| [path.to_string_lossy().as_bytes(), &std::fs::read(path).unwrap()[..]].concat())
        .collect();
    let mut all = BTreeSet::new();
    for i in items {
        for (name, bytes) in traces(i) {
            // The first byte is looked for first: a window at every place of every file would take long.
            let holds = |content: &Vec<u8>| {
                let places = content.iter().enumerate().filter(|(_, byte)| **byte == bytes[0]);
                places.into_iter().any(|(place, _)| content[place..].starts_with(&bytes))
            };
            if contents.iter().any(holds) {
                all.insert((i, name));
            }
        }
    }
    all
}

/// Every trace of these items.
fn every(items: impl IntoIterator<Item = u32>) -> BTreeSet<(u32, &'static str)> {
    items.into_iter().flat_map(|i| traces(i).into_iter().map(move |(name, _)| (i, name))).collect()
}

async fn compact(client: &mut Client) -> v1::CompactResponse {
    client.compact(v1::CompactRequest {}).await.unwrap().into_inner()
}

fn hashes(items: impl IntoIterator<Item = u32>) -> Vec<String> {
    let mut hashes: Vec<String> = items.into_iter().map(|i| hash(i).to_hex().to_string()).collect();
    hashes.sort();
    hashes
}

/// A folder with a hundred and twenty people in it, in the store and in a snapshot.
async fn crowded(folder: &Path) -> Running {
    let mut gallery = Running::on(folder).await;
    create(&mut gallery.client, "lobby", DIMENSION).await;
    fill(&mut gallery.client, (0..120).map(person).collect()).await;
    gallery.stop().await;
    assert_eq!(found(folder, [3, 77]), every([3, 77]), "or the search would prove nothing");
    assert_eq!(std::fs::read_dir(folder.join("snapshots")).unwrap().count(), 1);
    Running::on(folder).await
}

async fn delete_people(client: &mut Client, people: impl IntoIterator<Item = u32>) -> v1::DeleteResponse {
    let request =
        v1::DeleteRequest { collection: "lobby".to_owned(), ids: people.into_iter().map(id).collect() };
    client.delete(request).await.unwrap().into_inner()
}

#[tokio::test]
async fn nothing_of_a_deleted_item_is_in_any_file_after_a_compaction() {
    let folder = tempfile::tempdir().unwrap();
    let mut gallery = crowded(folder.path()).await;
    let gone = || (0..120).filter(|i: &u32| i.is_multiple_of(3));
    let response = delete_people(&mut gallery.client, gone()).await;
    assert_eq!((response.deleted, response.unused_image_hashes), (40, hashes(gone())));
    let compacted = compact(&mut gallery.client).await;
    assert!(compacted.bytes_after > 0 && compacted.bytes_before > 0);
    assert_eq!(found(folder.path(), gone()), BTreeSet::new());
    let kept = || (0..120).filter(|i: &u32| !i.is_multiple_of(3));
    assert_eq!(found(folder.path(), kept().take(9)), every(kept().take(9)));
    // The gallery goes on with the new file.
    assert_eq!(ids(&search(&mut gallery.client, vector(4), 1).await), [id(4)]);
    fill(&mut gallery.client, vec![person(500)]).await;
    gallery.stop().await;
    assert_eq!(found(folder.path(), gone()), BTreeSet::new());
    let mut gallery = Running::on(folder.path()).await;
    assert_eq!(search(&mut gallery.client, vector(4), 1000).await.len(), 81);
    for i in kept().chain([500]) {
        assert_eq!(image_of(&mut gallery.client, &id(i)).await.unwrap().image, picture(i));
    }
    gallery.stop().await;
}

#[tokio::test]
async fn nothing_of_a_replaced_item_is_in_any_file_after_a_compaction() {
    let folder = tempfile::tempdir().unwrap();
    let mut gallery = crowded(folder.path()).await;
    let mut other = person(900);
    other.id = id(7);
    let answer =
        gallery.client.upsert(tokio_stream::iter([other])).await.unwrap().into_inner().message().await;
    assert_eq!(answer.unwrap().unwrap().unused_image_hash, hash(7).to_hex().to_string());
    compact(&mut gallery.client).await;
    assert_eq!(found(folder.path(), [7]), BTreeSet::from([(7, "id")]));
    gallery.stop().await;
}

#[tokio::test]
async fn nothing_of_a_deleted_collection_is_in_any_file_after_a_compaction() {
    let folder = tempfile::tempdir().unwrap();
    let mut gallery = crowded(folder.path()).await;
    create(&mut gallery.client, "attic", DIMENSION).await;
    let mut shared = person(5);
    shared.collection = "attic".to_owned();
    fill(&mut gallery.client, vec![shared]).await;
    let request = v1::DeleteCollectionRequest { name: "lobby".to_owned(), max_items: None };
    let response = gallery.client.delete_collection(request).await.unwrap().into_inner();
    let gone = || (0..120).filter(|i| *i != 5);
    assert_eq!(
        response,
        v1::DeleteCollectionResponse {
            deleted_items: 120,
            unused_image_hashes: hashes(gone()),
            unused_images: 119,
            remains: false,
            transaction: response.transaction,
        }
    );
    compact(&mut gallery.client).await;
    assert_eq!(found(folder.path(), gone()), BTreeSet::new());
    assert_eq!(found(folder.path(), [5]), every([5]));
    gallery.stop().await;
}

#[tokio::test]
async fn a_collection_goes_in_parts_oldest_first() {
    let folder = tempfile::tempdir().unwrap();
    let mut gallery = crowded(folder.path()).await;
    let request = v1::DeleteCollectionRequest { name: "lobby".to_owned(), max_items: Some(50) };
    let mut parts = Vec::new();
    loop {
        let part = gallery.client.delete_collection(request.clone()).await.unwrap().into_inner();
        let first =
            parts.iter().map(|part: &v1::DeleteCollectionResponse| part.deleted_items as u32).sum::<u32>();
        assert_eq!(part.unused_image_hashes, hashes(first..first + part.deleted_items as u32));
        let remains = part.remains;
        parts.push(part);
        if !remains {
            break;
        }
        let left = search(&mut gallery.client, vector(100), 1000).await;
        assert_eq!(left.len() as u32, 120 - first - 50);
    }
    assert_eq!(parts.iter().map(|part| part.deleted_items).collect::<Vec<_>>(), [50, 50, 20]);
    let listed = gallery.client.list_collections(v1::ListCollectionsRequest {}).await.unwrap().into_inner();
    assert_eq!(listed.collections, []);
    for max_items in [0, 100_001] {
        let request = v1::DeleteCollectionRequest { max_items: Some(max_items), ..request.clone() };
        assert_eq!(refusal(gallery.client.delete_collection(request).await).1, "MAX_ITEMS_INVALID");
    }
    gallery.stop().await;
}

#[tokio::test]
async fn an_image_is_reported_with_its_last_item_alone() {
    let folder = tempfile::tempdir().unwrap();
    let mut gallery = Running::on(folder.path()).await;
    for name in ["lobby", "attic"] {
        create(&mut gallery.client, name, DIMENSION).await;
        for copy in ["a", "b"] {
            let mut request = with_image(item(copy, vector(1)), picture(1));
            request.collection = name.to_owned();
            fill(&mut gallery.client, vec![request]).await;
        }
    }
    for (collection, copy, expected) in [
        ("lobby", "a", vec![]),
        ("lobby", "b", vec![]),
        ("attic", "a", vec![]),
        ("attic", "ghost", vec![]),
        ("attic", "b", hashes([1])),
    ] {
        let request = v1::DeleteRequest { collection: collection.to_owned(), ids: vec![copy.to_owned()] };
        let response = gallery.client.delete(request).await.unwrap().into_inner();
        assert_eq!(response.unused_image_hashes, expected, "{collection} {copy}");
    }
    gallery.stop().await;
}

/// Waits until nothing of some items is in any file.
async fn gone_by_itself(folder: &Path, items: std::ops::Range<u32>) {
    // Files come and go meanwhile.
    let look = || std::panic::catch_unwind(|| found(folder, items.clone()).is_empty()).unwrap_or(false);
    while !look() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn the_store_is_compacted_by_itself_some_time_after_a_deletion() {
    let folder = tempfile::tempdir().unwrap();
    crowded(folder.path()).await.stop().await;
    let config = Config { compact_after: Duration::from_millis(50), ..Config::in_process(folder.path()) };
    let mut gallery = Running::start(config).await;
    delete_people(&mut gallery.client, 10..20).await;
    gone_by_itself(folder.path(), 10..20).await;
    // And again for the next deletion.
    delete_people(&mut gallery.client, 20..30).await;
    gone_by_itself(folder.path(), 20..30).await;
    assert_eq!(search(&mut gallery.client, vector(40), 1000).await.len(), 100);
    gallery.stop().await;
}

#[tokio::test]
async fn a_compaction_that_is_due_is_made_up_for_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let mut gallery = crowded(folder.path()).await;
    delete_people(&mut gallery.client, 10..20).await;
    gallery.stop().await;
    let config = Config { compact_after: Duration::ZERO, ..Config::in_process(folder.path()) };
    let gallery = Running::start(config).await;
    gone_by_itself(folder.path(), 10..20).await;
    gallery.stop().await;
}

#[tokio::test]
async fn what_a_crash_left_of_a_compaction_is_removed_at_the_next_start() {
    let folder = tempfile::tempdir().unwrap();
    crowded(folder.path()).await.stop().await;
    let half = folder.path().join("gallery.unfinished");
    std::fs::copy(folder.path().join("gallery.redb"), &half).unwrap();
    let gallery = Running::on(folder.path()).await;
    assert!(!half.exists());
    gallery.stop().await;
}
