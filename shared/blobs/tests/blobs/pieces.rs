//! Objects that are larger than what is written at once.

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::TryStreamExt;
use thicket_blobs::{BlobError, PIECE_BYTES};

use crate::place::everywhere;

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

#[tokio::test]
async fn a_large_object_is_there_whole_once_it_is_finished() {
    everywhere(|blobs| async move {
        let chunk = Bytes::from((0..PIECE_BYTES / 3).map(|byte| byte as u8).collect::<Vec<_>>());
        let mut upload = blobs.upload("large", soon()).await.unwrap();
        for _ in 0..7 {
            upload.write(chunk.clone(), soon()).await.unwrap();
        }
        assert!(!blobs.exists("large", soon()).await.unwrap());
        upload.finish(soon()).await.unwrap();
        let pieces: Vec<Bytes> =
            blobs.read("large", Duration::from_secs(60)).await.unwrap().try_collect().await.unwrap();
        assert!(pieces.concat() == chunk.repeat(7));
    })
    .await;
}

#[tokio::test]
async fn an_upload_that_is_given_up_leaves_what_was_there() {
    everywhere(|blobs| async move {
        blobs.put("large", "small".into(), soon()).await.unwrap();
        let mut upload = blobs.upload("large", soon()).await.unwrap();
        upload.write("other".into(), soon()).await.unwrap();
        upload.abort(soon()).await.unwrap();
        assert_eq!(blobs.get("large", soon()).await.unwrap(), "small");
    })
    .await;
}

#[tokio::test]
async fn pieces_of_what_is_not_there_are_not_found() {
    everywhere(|blobs| async move {
        let read = blobs.read("large", Duration::from_secs(60)).await;
        assert!(matches!(read.map(drop), Err(BlobError::NotFound { .. })));
    })
    .await;
}
