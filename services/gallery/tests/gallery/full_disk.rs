//! A full disk refuses items, one by one, and leaves a store that works.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::*;
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
