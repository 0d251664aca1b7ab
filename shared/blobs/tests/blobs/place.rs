//! One behaviour a test, in a folder and, where there is a server, in a bucket.

use std::time::{Duration, Instant};

use futures::TryStreamExt;
use thicket_blobs::{BlobError, Blobs, Settings};

use crate::moto::Moto;

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(30)
}

/// Runs a test in every place that there is.
pub(crate) async fn everywhere<F: Future<Output = ()>>(test: impl Fn(Blobs) -> F) {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("file://{}/new", folder.path().display());
    test(Blobs::open(&url, Settings { max_bytes: 1000, ..Settings::default() }).unwrap()).await;
    if let Some(server) = Moto::start("people") {
        let settings = Settings { max_bytes: 1000, aws: server.variables() };
        test(Blobs::open("s3://people/some/prefix", settings).unwrap()).await;
    }
}

async fn names(blobs: &Blobs, prefix: &str) -> Vec<String> {
    let entries: Vec<_> = blobs.list(prefix, soon()).try_collect().await.unwrap();
    let mut names: Vec<String> = entries.into_iter().map(|entry| entry.key).collect();
    names.sort();
    names
}

#[tokio::test]
async fn what_is_written_is_read_replaced_and_deleted() {
    everywhere(|blobs| async move {
        blobs.put("a/one", "1".into(), soon()).await.unwrap();
        assert_eq!(blobs.get("a/one", soon()).await.unwrap(), "1");
        blobs.put("a/one", "other".into(), soon()).await.unwrap();
        assert_eq!(blobs.get("a/one", soon()).await.unwrap(), "other");
        assert!(blobs.exists("a/one", soon()).await.unwrap());
        blobs.delete("a/one", soon()).await.unwrap();
        assert!(!blobs.exists("a/one", soon()).await.unwrap());
        assert!(matches!(blobs.get("a/one", soon()).await, Err(BlobError::NotFound { .. })));
        blobs.delete("a/one", soon()).await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn of_several_that_write_if_absent_one_alone_does() {
    everywhere(|blobs| async move {
        let writers = (0..8).map(|i| {
            let blobs = blobs.clone();
            async move { blobs.put_if_absent("lease", format!("{i}").into(), soon()).await.unwrap() }
        });
        let won = futures::future::join_all(writers).await;
        assert_eq!(won.iter().filter(|won| **won).count(), 1);
        let winner = won.iter().position(|won| *won).unwrap();
        assert_eq!(blobs.get("lease", soon()).await.unwrap(), format!("{winner}"));
    })
    .await;
}

#[tokio::test]
async fn a_listing_names_what_is_under_a_prefix() {
    everywhere(|blobs| async move {
        for key in ["jobs/1/a", "jobs/1/b", "jobs/10/a", "other"] {
            blobs.put(key, "four".into(), soon()).await.unwrap();
        }
        assert_eq!(names(&blobs, "jobs/1").await, ["jobs/1/a", "jobs/1/b"]);
        assert_eq!(names(&blobs, "").await, ["jobs/1/a", "jobs/1/b", "jobs/10/a", "other"]);
        assert_eq!(names(&blobs, "nothing").await, Vec::<String>::new());
        let entry = blobs.list("jobs/10", soon()).try_collect::<Vec<_>>().await.unwrap().remove(0);
        assert_eq!(entry.bytes, 4);
    })
    .await;
}

#[tokio::test]
async fn an_object_beyond_the_limit_is_neither_written_nor_read() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("file://{}", folder.path().display());
    let open = |max_bytes| Blobs::open(&url, Settings { max_bytes, ..Settings::default() }).unwrap();
    open(11).put("big", vec![7; 11].into(), soon()).await.unwrap();
    let limited = open(10);
    let refused = limited.get("big", soon()).await;
    assert!(matches!(refused, Err(BlobError::TooLarge { bytes: 11, limit: 10, .. })), "{refused:?}");
    let refused = limited.put("other", vec![7; 11].into(), soon()).await;
    assert!(matches!(refused, Err(BlobError::TooLarge { .. })));
    assert!(!limited.exists("other", soon()).await.unwrap());
}

#[tokio::test]
async fn a_name_that_no_object_can_have_is_refused() {
    everywhere(|blobs| async move {
        for key in ["", "/a", "a//b", "a/../b", "a#1", &"x".repeat(901)] {
            let refused = blobs.put(key, "1".into(), soon()).await;
            assert!(matches!(refused, Err(BlobError::Key { .. })), "{key:?}: {refused:?}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_server_that_says_nothing_is_not_waited_for_beyond_the_limit() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", silent.local_addr().unwrap());
    let aws =
        [("AWS_ENDPOINT_URL", endpoint.as_str()), ("AWS_ACCESS_KEY_ID", "x"), ("AWS_SECRET_ACCESS_KEY", "x")];
    let aws = aws.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    let blobs = Blobs::open("s3://bucket", Settings { aws, ..Settings::default() }).unwrap();
    let until = Instant::now() + Duration::from_millis(50);
    assert!(matches!(blobs.get("a", until).await, Err(BlobError::TimedOut { .. })));
    assert!(matches!(blobs.put("a", "1".into(), until).await, Err(BlobError::TimedOut { .. })));
    let listed = blobs.list("", until).try_collect::<Vec<_>>().await;
    assert!(matches!(listed, Err(BlobError::TimedOut { .. })));
}
