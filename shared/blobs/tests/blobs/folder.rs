//! What a folder alone has to see to.

use std::time::{Duration, Instant};

use futures::TryStreamExt;
use thicket_blobs::{Blobs, Settings};

#[tokio::test]
async fn what_a_crash_left_half_written_is_not_listed_and_can_be_removed() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("file://{}", folder.path().display());
    let blobs = Blobs::open(&url, Settings::default()).unwrap();
    let until = Instant::now() + Duration::from_secs(30);
    blobs.put("ab/whole", "1".into(), until).await.unwrap();
    let half = folder.path().join("ab/half#1");
    std::fs::write(&half, "ha").unwrap();
    let listed: Vec<_> = blobs.list("", until).try_collect().await.unwrap();
    assert_eq!(listed.iter().map(|entry| entry.key.as_str()).collect::<Vec<_>>(), ["ab/whole"]);
    assert_eq!(blobs.remove_unfinished(Duration::from_secs(3600)).await.unwrap(), 0);
    assert!(half.exists(), "its writer may still be at it");
    assert_eq!(blobs.remove_unfinished(Duration::ZERO).await.unwrap(), 1);
    assert!(!half.exists() && folder.path().join("ab/whole").exists());
}

#[tokio::test]
async fn the_bytes_of_a_deleted_object_are_in_no_file() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("file://{}", folder.path().display());
    let blobs = Blobs::open(&url, Settings::default()).unwrap();
    let until = Instant::now() + Duration::from_secs(30);
    blobs.put("x/y/picture", "pixels".into(), until).await.unwrap();
    assert!(folder.path().join("x/y/picture").exists());
    blobs.delete("x/y/picture", until).await.unwrap();
    assert_eq!(std::fs::read_dir(folder.path().join("x/y")).unwrap().count(), 0);
}
