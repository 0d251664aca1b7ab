//! The embedded gallery with its images in another place than its folder.

use std::path::Path;

use crate::common::*;
use thicket_gallery::{App, Config, ImagesConfig};
use thicket_proto::v1;
use thicket_runtime::Failure;

fn at_place(data: &Path, place: &Path) -> Config {
    let url = format!("file://{}", place.display());
    let images = ImagesConfig { url, settings: thicket_blobs::Settings::default() };
    Config { image_store: Some(images), ..Config::in_process(data) }
}

fn count(folder: &Path) -> usize {
    let entries = std::fs::read_dir(folder).into_iter().flatten().map(|entry| entry.unwrap().path());
    entries.map(|path| if path.is_dir() { count(&path) } else { 1 }).sum()
}

async fn fill_with_images(client: &mut Client) {
    create(client, "lobby", 2).await;
    let items = (0..20).map(|i| with_image(item(&format!("{i}"), at(i as f32)), png(i))).collect();
    fill(client, items).await;
}

async fn assert_images(client: &mut Client) {
    for i in 0..20 {
        assert_eq!(image_of(client, &i.to_string()).await.unwrap().image, png(i));
    }
}

#[tokio::test]
async fn images_move_with_the_setting_and_none_is_lost() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let places = [folder.path().join("one"), folder.path().join("two")];
    let mut gallery = Running::on(&data).await;
    fill_with_images(&mut gallery.client).await;
    gallery.stop().await;
    for place in [&places[0], &places[1], &places[1]] {
        let mut gallery = Running::start(at_place(&data, place)).await;
        assert_images(&mut gallery.client).await;
        gallery.stop().await;
        // Its images and the name of their owner.
        assert_eq!(count(place), 21);
        assert_eq!(count(&data.join("images")), 0);
    }
    assert_eq!(count(&places[0]), 1, "they were moved on");
    let mut gallery = Running::on(&data).await;
    assert_images(&mut gallery.client).await;
    assert_eq!((count(&data.join("images")), count(&places[1])), (20, 1));
    gallery.stop().await;
}

#[tokio::test]
async fn a_move_that_was_cut_off_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let (data, place) = (folder.path().join("data"), folder.path().join("place"));
    let mut gallery = Running::on(&data).await;
    fill_with_images(&mut gallery.client).await;
    gallery.stop().await;
    // As it is when some are copied and nothing is deleted yet.
    let level = std::fs::read_dir(data.join("images")).unwrap().next().unwrap().unwrap();
    std::fs::create_dir_all(place.join(level.file_name())).unwrap();
    for file in std::fs::read_dir(level.path()).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), place.join(level.file_name()).join(file.file_name())).unwrap();
    }
    let mut gallery = Running::start(at_place(&data, &place)).await;
    assert_images(&mut gallery.client).await;
    assert_eq!((count(&data.join("images")), count(&place)), (0, 21));
    gallery.stop().await;
}

#[tokio::test]
async fn the_own_folder_under_another_name_keeps_its_images() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let mut gallery = Running::on(&data).await;
    fill_with_images(&mut gallery.client).await;
    gallery.stop().await;
    for _ in 0..2 {
        let mut gallery = Running::start(at_place(&data, &data.join("images"))).await;
        assert_images(&mut gallery.client).await;
        gallery.stop().await;
    }
    let mut gallery = Running::on(&data).await;
    assert_images(&mut gallery.client).await;
    gallery.stop().await;
}

#[tokio::test]
async fn a_deleted_image_is_gone_from_the_place() {
    let folder = tempfile::tempdir().unwrap();
    let (data, place) = (folder.path().join("data"), folder.path().join("place"));
    let mut gallery = Running::start(at_place(&data, &place)).await;
    fill_with_images(&mut gallery.client).await;
    // Two items show the last one.
    fill(&mut gallery.client, vec![with_image(item("twin", at(0.0)), png(19))]).await;
    assert_eq!(count(&place), 21);
    assert_eq!(delete(&mut gallery.client, &["19"]).await, 1);
    assert_eq!(count(&place), 21);
    assert_eq!(delete(&mut gallery.client, &["twin", "3"]).await, 2);
    assert_eq!(count(&place), 19);
    let hash = blake3::hash(&png(5)).to_hex().to_string();
    // What nobody uses is found by a compaction.
    let stray = blake3::hash(b"stray").to_hex().to_string();
    std::fs::create_dir_all(place.join(&stray[..2])).unwrap();
    std::fs::write(place.join(&stray[..2]).join(&stray), b"stray").unwrap();
    gallery.client.compact(v1::CompactRequest {}).await.unwrap();
    assert!(!place.join(&stray[..2]).join(&stray).exists());
    assert!(place.join(&hash[..2]).join(&hash).exists());
    gallery.stop().await;
}

#[tokio::test]
async fn a_place_of_another_gallery_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("place");
    let mut gallery = Running::start(at_place(&folder.path().join("one"), &place)).await;
    fill_with_images(&mut gallery.client).await;
    let refused = App::build(at_place(&folder.path().join("two"), &place)).await;
    match refused {
        Err(Failure::BadInput(line)) => assert!(line.contains("belong to another gallery"), "{line}"),
        other => panic!("{other:?}"),
    }
    assert_images(&mut gallery.client).await;
    gallery.stop().await;
}

#[tokio::test]
async fn images_live_in_a_bucket_and_leave_it() {
    let Some(server) = crate::moto::Moto::start("people") else { return };
    let settings = thicket_blobs::Settings { aws: server.variables(), ..thicket_blobs::Settings::default() };
    let folder = tempfile::tempdir().unwrap();
    let in_bucket = || {
        let images = ImagesConfig { url: "s3://people/gallery".to_owned(), settings: settings.clone() };
        Config { image_store: Some(images), ..Config::in_process(folder.path()) }
    };
    let blobs = thicket_blobs::Blobs::open("s3://people/gallery", settings.clone()).unwrap();
    let held = async || {
        let until = std::time::Instant::now() + std::time::Duration::from_secs(30);
        futures::StreamExt::count(blobs.list("", until)).await
    };
    let mut gallery = Running::on(folder.path()).await;
    fill_with_images(&mut gallery.client).await;
    gallery.stop().await;
    let mut gallery = Running::start(in_bucket()).await;
    assert_images(&mut gallery.client).await;
    assert_eq!((held().await, count(&folder.path().join("images"))), (21, 0));
    assert_eq!(delete(&mut gallery.client, &["7", "8"]).await, 2);
    assert_eq!(held().await, 19);
    gallery.stop().await;
    let mut gallery = Running::start(in_bucket()).await;
    assert_eq!(image_of(&mut gallery.client, "9").await.unwrap().image, png(9));
    gallery.client.compact(v1::CompactRequest {}).await.unwrap();
    gallery.stop().await;
}
