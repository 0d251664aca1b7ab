//! A full disk refuses items, one by one, and leaves a store that works. A replica on one keeps what it has.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::common::*;
use crate::damage::counted;
use crate::replicas::{assert_same, following};
use thicket_proto::v1;

/// A small file system in memory, where this process may mount one.
struct SmallDisk {
    folder: tempfile::TempDir,
}

impl SmallDisk {
    fn mount(mib: usize) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let size = format!("size={mib}m");
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(folder.path()).output();
        if mounted.is_ok_and(|output| output.status.success()) {
            return Some(Self { folder });
        }
        eprintln!("skipped: this process may not mount a tmpfs");
        None
    }

    /// Takes what is left of it, to the last page.
    fn fill_up(&self) {
        let mut filler = std::fs::File::create(self.folder.path().join("filler")).unwrap();
        while filler.write_all(&[0; 512]).is_ok() {}
    }

    /// Makes it larger or smaller.
    fn resize(&self, mib: usize) {
        let size = format!("remount,size={mib}m");
        assert!(
            Command::new("mount").args(["-o", &size]).arg(self.folder.path()).status().unwrap().success()
        );
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.folder.path()).status();
    }
}

fn assert_disk_full(error: &v1::ItemError) {
    assert_eq!((error.code, error.reason.as_str()), (8, "DISK_FULL"), "{}", error.message);
}

/// Upserts one after the other until the disk is full; returns the ids that were acknowledged.
async fn fill_up(client: &mut Client, make: impl Fn(u32) -> v1::UpsertRequest) -> Vec<String> {
    let mut held = Vec::new();
    for i in 0..2000 {
        let request = make(i);
        let id = request.id.clone();
        match upsert(client, vec![request]).await.remove(0) {
            Ok(_) => held.push(id),
            Err(error) => {
                assert_disk_full(&error);
                return held;
            }
        }
    }
    panic!("the disk never became full");
}

async fn assert_works(gallery: Running, folder: &Path, held: &[String], query: v1::Vector) {
    let mut client = gallery.client.clone();
    let mut found = ids(&search(&mut client, query.clone(), 100_000).await);
    let (mut expected, gone) = (held.to_vec(), held.len() / 2);
    expected.sort();
    found.sort();
    assert_eq!(found, expected, "what was acknowledged is there, what was refused is not");
    // With room again, writes are taken again.
    let first: Vec<&str> = held[..gone].iter().map(String::as_str).collect();
    assert_eq!(delete(&mut client, &first).await, gone as u64);
    fill(&mut client, vec![item("small", query.clone())]).await;
    gallery.stop().await;
    let gallery = Running::on(folder).await;
    let mut client = gallery.client.clone();
    let mut found = ids(&search(&mut client, query, 100_000).await);
    let mut expected: Vec<String> = held[gone..].iter().cloned().chain(["small".to_owned()]).collect();
    expected.sort();
    found.sort();
    assert_eq!(found, expected);
    gallery.stop().await;
}

#[tokio::test]
async fn images_that_do_not_fit_are_refused_and_the_gallery_goes_on() {
    let Some(disk) = SmallDisk::mount(32) else { return };
    let mut gallery = Running::on(&disk.data()).await;
    create(&mut gallery.client, "lobby", 2).await;
    let make = |i| with_image(item(&format!("{i}"), at(i as f32)), noise(i, 300, 400));
    let held = fill_up(&mut gallery.client, make).await;
    assert!(held.len() > 5, "only {} items fitted", held.len());
    for id in &held {
        image_of(&mut gallery.client, id).await.unwrap();
    }
    assert_eq!(image_files(&disk.data()).len(), held.len(), "refused images are not left behind");
    assert_works(gallery, &disk.data(), &held, at(0.0)).await;
}

#[tokio::test]
async fn vectors_that_do_not_fit_are_refused_and_the_gallery_goes_on() {
    const DIMENSION: usize = 16_384;
    let Some(disk) = SmallDisk::mount(32) else { return };
    let mut gallery = Running::on(&disk.data()).await;
    create(&mut gallery.client, "lobby", DIMENSION as u32).await;
    let axis = |i: usize| {
        let mut values = vec![0.0; DIMENSION];
        values[i] = 1.0;
        v1::Vector { values }
    };
    let held = fill_up(&mut gallery.client, |i| item(&format!("{i}"), axis(i as usize))).await;
    assert!(held.len() > 5, "only {} items fitted", held.len());
    assert_works(gallery, &disk.data(), &held, axis(0)).await;
}

/// Items with images of about 360 kB.
fn heavy(numbers: std::ops::Range<u32>) -> Vec<v1::UpsertRequest> {
    numbers.map(|i| with_image(item(&format!("{i}"), at(i as f32)), noise(i, 300, 400))).collect()
}

/// A writer with room and a replica that has none left, the last state of which is part of what the writer has.
async fn replica_without_room(disk: &SmallDisk, folder: &Path, log: &Log) -> (Running, Running) {
    let mut writer = Running::on(folder).await;
    create(&mut writer.client, "lobby", 2).await;
    fill(&mut writer.client, heavy(0..10)).await;
    let mut replica = Running::start_logging(following(&disk.data(), writer.address), log).await;
    assert_same(&mut writer.client, &mut replica.client).await;
    fill(&mut writer.client, heavy(10..100)).await;
    let (patience, before) = (Instant::now() + Duration::from_secs(60), counted("disk_full"));
    while counted("disk_full") < before + 3 {
        assert!(Instant::now() < patience, "the disk never became full\n{}", log.text());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // Less than an image was left.
    disk.fill_up();
    (writer, replica)
}

#[tokio::test]
async fn a_replica_on_a_full_disk_says_so_once_serves_what_it_has_and_follows_when_there_is_room() {
    let Some(disk) = SmallDisk::mount(32) else { return };
    let (folder, log) = (tempfile::tempdir().unwrap(), Log::default());
    let (mut writer, mut replica) = replica_without_room(&disk, folder.path(), &log).await;
    let held = search(&mut replica.client, at(0.0), 100_000).await;
    assert!((10..100).contains(&held.len()), "{} items fitted", held.len());
    for id in ids(&held) {
        assert_eq!(
            image_of(&mut replica.client, &id).await.unwrap(),
            image_of(&mut writer.client, &id).await.unwrap()
        );
    }
    assert_eq!(log.count("the disk is full"), 1, "{}", log.text());
    disk.resize(128);
    assert_same(&mut writer.client, &mut replica.client).await;
    replica.stop().await;
    writer.stop().await;
}

#[tokio::test]
async fn deletions_reach_a_replica_on_a_full_disk_and_make_room() {
    let Some(disk) = SmallDisk::mount(32) else { return };
    let (folder, log) = (tempfile::tempdir().unwrap(), Log::default());
    let (mut writer, mut replica) = replica_without_room(&disk, folder.path(), &log).await;
    let gone: Vec<String> = (5..100).map(|i| i.to_string()).collect();
    delete(&mut writer.client, &gone.iter().map(String::as_str).collect::<Vec<_>>()).await;
    assert_same(&mut writer.client, &mut replica.client).await;
    assert_eq!(image_files(&disk.data()).len(), 5, "images of steps that were given up are left");
    fill(&mut writer.client, heavy(200..210)).await;
    assert_same(&mut writer.client, &mut replica.client).await;
    replica.stop().await;
    writer.stop().await;
}
