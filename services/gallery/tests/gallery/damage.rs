//! Files that something else than the gallery has changed: each is repaired or refused in one line, and counted.

use std::path::Path;

use crate::common::*;
use redb::{Database, TableDefinition};
use thicket_gallery::{App, Config};
use thicket_proto::v1;
use thicket_runtime::{Failure, Stop};
use thicket_telemetry::prometheus_text;

/// How often a fault was counted in this process, by any test.
pub(crate) fn counted(reason: &str) -> u64 {
    let text = prometheus_text();
    let label = format!("reason=\"{reason}\"");
    let line = text
        .lines()
        .find(|line| line.starts_with("thicket_gallery_storage_faults_total{") && line.contains(&label));
    line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or(0)
}

async fn filled(folder: &Path) -> Vec<v1::Hit> {
    let mut gallery = Running::on(folder).await;
    create(&mut gallery.client, "lobby", 2).await;
    let items = (0..60).map(|i| with_image(item(&format!("item-{i}"), at(i as f32 * 5.0)), png(i)));
    fill(&mut gallery.client, items.collect()).await;
    let ranking = search(&mut gallery.client, at(12.0), 100).await;
    gallery.stop().await;
    ranking
}

/// Starts on a folder: `None` where it is refused, in one line, as a failure of the work.
async fn found(folder: &Path) -> Option<Vec<v1::Hit>> {
    match App::build(Config::in_process(folder)).await {
        Ok(app) => {
            let mut client = client(app.grpc_addr());
            let (handle, stop) = Stop::by_hand();
            let served = tokio::spawn(app.run(stop));
            let ranking = search(&mut client, at(12.0), 100).await;
            handle.stop();
            served.await.unwrap().unwrap();
            Some(ranking)
        }
        Err(Failure::Failed(line)) => {
            assert!(line.contains("cannot open data folder") && line.lines().count() == 1, "{line}");
            None
        }
        Err(other) => panic!("refused as if it were a setting: {other:?}"),
    }
}

#[tokio::test]
async fn a_store_of_a_newer_format_is_refused_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    filled(folder.path()).await;
    let store = folder.path().join("gallery.redb");
    let database = Database::open(&store).unwrap();
    let transaction = database.begin_write().unwrap();
    transaction.open_table(TableDefinition::<&str, u64>::new("meta")).unwrap().insert("format", 2).unwrap();
    transaction.commit().unwrap();
    drop(database);
    let before = counted("store_format");
    match App::build(Config::in_process(folder.path())).await {
        Err(Failure::BadInput(line)) => {
            assert!(line.contains("has format 2, this version reads format 1"), "{line}");
        }
        other => panic!("expected a refusal, got {other:?}"),
    }
    assert!(counted("store_format") > before);
    assert_eq!(image_files(folder.path()).len(), 60, "no image was taken for one that nothing uses");
}

#[tokio::test]
async fn a_changed_byte_in_the_store_is_found_at_start_or_harmless() {
    let folder = tempfile::tempdir().unwrap();
    let ranking = filled(folder.path()).await;
    let store = folder.path().join("gallery.redb");
    let sound = std::fs::read(&store).unwrap();
    let before = counted("store_unreadable");
    let mut refused = 0;
    // Where the file has something; most of it is free.
    let places: Vec<usize> = (0..sound.len()).step_by(509).filter(|place| sound[*place] != 0).collect();
    let step = (places.len() / 60).max(1);
    for place in [0, 3, 9, 12, 64, 70, 128, 200].into_iter().chain(places.into_iter().step_by(step)) {
        let mut bent = sound.clone();
        bent[place] ^= 0x20;
        std::fs::write(&store, &bent).unwrap();
        match found(folder.path()).await {
            None => refused += 1,
            Some(found) => assert_eq!(found, ranking, "byte {place}"),
        }
    }
    assert!(refused > 0, "not one of the changed bytes was found");
    assert!(counted("store_unreadable") >= before + refused);
    std::fs::write(&store, &sound).unwrap();
    assert_eq!(found(folder.path()).await, Some(ranking));
}

#[tokio::test]
async fn a_store_whose_end_is_missing_is_refused_or_repaired_and_loses_no_image() {
    let folder = tempfile::tempdir().unwrap();
    let ranking = filled(folder.path()).await;
    let store = folder.path().join("gallery.redb");
    let sound = std::fs::read(&store).unwrap();
    for length in [0, 1, 100, 4096, sound.len() / 2, sound.len() - 4096, sound.len() - 1] {
        std::fs::write(&store, &sound[..length]).unwrap();
        if let Some(found) = found(folder.path()).await {
            assert_eq!(found, ranking, "{length} bytes");
        }
        assert_eq!(image_files(folder.path()).len(), 60, "{length} bytes");
    }
    std::fs::write(&store, &sound).unwrap();
    assert_eq!(found(folder.path()).await, Some(ranking));
}

#[tokio::test]
async fn a_damaged_snapshot_is_counted() {
    let folder = tempfile::tempdir().unwrap();
    let ranking = filled(folder.path()).await;
    let file = std::fs::read_dir(folder.path().join("snapshots")).unwrap().next().unwrap().unwrap().path();
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[100] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    let before = counted("snapshot_damaged");
    assert_eq!(found(folder.path()).await, Some(ranking));
    assert!(counted("snapshot_damaged") > before);
}

#[tokio::test]
async fn an_image_that_is_lost_is_counted() {
    let folder = tempfile::tempdir().unwrap();
    filled(folder.path()).await;
    let mut gallery = Running::on(folder.path()).await;
    let hash = blake3::hash(&png(7)).to_hex().to_string();
    std::fs::write(folder.path().join("images").join(&hash[..2]).join(&hash), b"bent").unwrap();
    let before = counted("image_lost");
    assert_eq!(image_of(&mut gallery.client, "item-7").await.unwrap_err().code(), tonic::Code::DataLoss);
    assert!(counted("image_lost") > before);
    gallery.stop().await;
}

#[tokio::test]
async fn a_second_gallery_on_one_folder_is_counted() {
    let folder = tempfile::tempdir().unwrap();
    let gallery = Running::on(folder.path()).await;
    let before = counted("store_in_use");
    assert!(matches!(App::build(Config::in_process(folder.path())).await, Err(Failure::BadInput(_))));
    assert!(counted("store_in_use") > before);
    gallery.stop().await;
}
