//! What jobs keep in the object store: what is forgotten leaves it, and so does what nobody refers to.

#[allow(dead_code)] // shared with the tests of the object store
#[path = "../../../../shared/blobs/tests/blobs/moto.rs"]
mod moto;

use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use thicket_blobs::{Blobs, Settings};
use thicket_coordinator::{JobConfig, JobObjects};
use thicket_proto::v1::fetch_job_results_response::Result as Fetched;
use thicket_proto::v1::*;
use thicket_rankings::Row;
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tonic::Code;

use self::moto::Moto;
use crate::fakes::{Bench, COLLECTION, Says, TEXT, hash};
use crate::jobs::{LIMIT, bench, files_below, queries, reason, spec, world};

impl Bench {
    async fn forget(&self, images: &[&str]) -> u64 {
        let image_hashes = images.iter().map(|image| hash(image.as_bytes())).collect();
        let request = ForgetJobImagesRequest { image_hashes };
        self.jobs.clone().forget_job_images(request).await.unwrap().into_inner().results
    }

    async fn rankings(&self, id: &str) -> Vec<JobRanking> {
        let results = self.results(id, false).await.unwrap();
        let rankings = results.into_iter().map(|result| match result.result {
            Some(Fetched::Ranking(ranking)) => ranking,
            other => panic!("{other:?}"),
        });
        rankings.collect()
    }

    async fn rows(&self, id: &str) -> Vec<Row> {
        thicket_rankings::read(self.file(id).await.unwrap().into()).unwrap()
    }
}

/// How many files below a folder have the hash of an image in them, as text or as bytes.
fn files_naming(folder: &Path, image: &str) -> usize {
    let bytes = *blake3::hash(image.as_bytes()).as_bytes();
    let text = hash(image.as_bytes());
    let names = |file: &[u8]| {
        file.windows(text.len()).any(|window| window == text.as_bytes())
            || file.windows(bytes.len()).any(|window| window == bytes)
    };
    files_below(folder).iter().filter(|path| names(&std::fs::read(path).unwrap())).count()
}

#[tokio::test]
async fn a_forgotten_image_is_in_no_result_and_in_no_file() {
    let folder = tempfile::tempdir().unwrap();
    let bench = bench(world().saying("a", Says::PYes(0.9)), folder.path()).await;
    // One query is refined from `a`: the first, which is surely of the person in it.
    let mut mixed = queries(5);
    mixed[0].text = TEXT.into();
    let settings = Some(InteractionSettings { xi: Some(0.35), ..InteractionSettings::default() });
    for id in ["one", "two"] {
        bench.create(JobSpec { settings, ..spec(id, 2) }, mixed.clone()).await.unwrap();
        bench.end_of(id).await;
    }
    let before = bench.rankings("one").await;
    assert_eq!((before[0].anchor_id.as_str(), before[0].refined_text.is_empty()), ("a", false));
    assert!(before.iter().all(|ranking| ranking.items.len() == 3));
    // In three parts and the file, of two jobs.
    assert_eq!(files_naming(folder.path(), "a"), 8);

    assert_eq!(bench.forget(&["a"]).await, 10);
    assert_eq!(files_naming(folder.path(), "a"), 0);
    assert_eq!(files_naming(folder.path(), "b"), 8);
    for id in ["one", "two"] {
        let after = bench.rankings(id).await;
        for (before, after) in before.iter().zip(&after) {
            let left: Vec<_> = before.items.iter().filter(|item| item.id != "a").cloned().collect();
            assert_eq!(after.items, left);
            assert_eq!((after.outcome, after.questions), (before.outcome, before.questions));
        }
        assert_eq!((after[0].anchor_id.as_str(), after[0].anchor_round), ("", 0));
        assert_eq!(after[0].refined_text, "");
        let ids: Vec<Vec<String>> = bench
            .rows(id)
            .await
            .into_iter()
            .map(|row| row.result.unwrap().items.into_iter().map(|item| item.id).collect())
            .collect();
        let fetched: Vec<Vec<String>> = after
            .into_iter()
            .map(|ranking| ranking.items.into_iter().map(|item| item.id).collect())
            .collect();
        assert_eq!(ids, fetched, "the file has other rows than the parts");
    }
    // Once more there is nothing left to do, and the two jobs are still alike.
    assert_eq!(bench.forget(&["a"]).await, 0);
    assert_eq!(bench.file("one").await.unwrap(), bench.file("two").await.unwrap());
}

#[tokio::test]
async fn what_was_found_before_an_image_was_forgotten_is_not_written_afterwards() {
    let folder = tempfile::tempdir().unwrap();
    let (held, mut released) = mpsc::channel(1);
    let bench = bench(world().saying("a", Says::HangFirst(held)), folder.path()).await;
    bench.create(spec("one", 4), queries(4)).await.unwrap();
    // Some of the part's queries have been searched for, and one hangs: nothing is written yet.
    bench.until("one", |job| job.parts.unwrap().leased == 1).await;
    while bench.world().count("locate") == 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(bench.forget(&["b"]).await, 0);
    // The gallery of this test still shows it, as a search did that began before the deletion.
    bench.world().says.clear();
    bench.jobs.clone().cancel_job(CancelJobRequest { id: "one".into() }).await.unwrap();
    assert!(tokio::time::timeout(LIMIT, released.recv()).await.unwrap().is_none());
    bench
        .jobs
        .clone()
        .resume_job(ResumeJobRequest { id: "one".into(), deadline_unix_ms: None })
        .await
        .unwrap();
    bench.end_of("one").await;
    assert_eq!(files_naming(folder.path(), "b"), 0);
    let rankings = bench.rankings("one").await;
    assert!(rankings.iter().all(|ranking| ranking.items.len() == 2), "{rankings:?}");
    assert!(rankings.iter().flat_map(|ranking| &ranking.items).all(|item| item.id != "b"));
}

#[tokio::test]
async fn what_is_no_hash_of_an_image_is_not_forgotten() {
    let folder = tempfile::tempdir().unwrap();
    let bench = bench(world(), folder.path()).await;
    for (image_hashes, wanted) in [
        (vec![], "IMAGE_COUNT_OUT_OF_RANGE"),
        (vec![hash(b"a"); 10_001], "IMAGE_COUNT_OUT_OF_RANGE"),
        (vec!["cafe".to_owned()], "IMAGE_HASH_MALFORMED"),
    ] {
        let request = ForgetJobImagesRequest { image_hashes };
        let refused = bench.jobs.clone().forget_job_images(request).await.unwrap_err();
        assert_eq!((refused.code(), reason(&refused).as_str()), (Code::InvalidArgument, wanted));
    }
    let off = Bench::start(world()).await;
    let request = ForgetJobImagesRequest { image_hashes: vec![hash(b"a")] };
    let refused = off.jobs.clone().forget_job_images(request).await.unwrap_err();
    assert_eq!(reason(&refused), "JOBS_OFF");
}

/// Objects as a coordinator leaves them that is lost while it takes in the queries of a job.
fn leave(objects: &Path, folder: &str, owner: Option<&str>) {
    let folder = objects.join("jobs").join(folder);
    std::fs::create_dir_all(folder.join("queries")).unwrap();
    std::fs::write(folder.join("queries/00000"), b"queries").unwrap();
    if let Some(owner) = owner {
        std::fs::write(folder.join("job"), owner).unwrap();
    }
}

/// Makes everything below a folder three days old.
fn age(folder: &Path) {
    let then = SystemTime::now() - Duration::from_secs(3 * 24 * 3_600);
    for path in files_below(folder) {
        std::fs::File::options().write(true).open(path).unwrap().set_modified(then).unwrap();
    }
}

#[tokio::test]
async fn objects_of_a_job_that_did_not_come_about_are_swept_and_no_others() {
    let folder = tempfile::tempdir().unwrap();
    let objects = folder.path().join("objects");
    let mut first = bench(world(), folder.path()).await;
    first.create(spec("kept", 2), queries(3)).await.unwrap();
    first.end_of("kept").await;
    first.stop_coordinator().await;
    leave(&objects, "crashed", Some("lost"));
    leave(&objects, "earlier-attempt", Some("kept"));
    leave(&objects, "unknown", None);
    age(&objects);
    leave(&objects, "arriving", Some("new"));

    let second = bench(world(), folder.path()).await;
    let exists = |name: &str| objects.join("jobs").join(name).join("queries/00000").exists();
    let swept = async {
        while exists("crashed") || exists("earlier-attempt") {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(LIMIT, swept).await.expect("what nobody refers to is swept");
    assert!(exists("arriving"), "its queries may still be arriving");
    assert!(exists("unknown"), "nobody can tell whose it is");
    assert_eq!(second.results("kept", false).await.unwrap().len(), 3);
    let listed = second.jobs.clone().list_jobs(ListJobsRequest {}).await.unwrap().into_inner();
    assert_eq!(listed.jobs[0].spec.clone().unwrap().collection, COLLECTION);
}

#[tokio::test]
async fn jobs_in_a_bucket_are_done_forgotten_and_deleted_like_those_in_a_folder() {
    let Some(server) = Moto::start("people") else { return };
    let folder = tempfile::tempdir().unwrap();
    let url = "s3://people/jobs-of-a-test";
    let settings = Settings { aws: server.variables(), ..Settings::default() };
    let jobs = JobConfig {
        objects: JobObjects::Url(url.into()),
        settings: settings.clone(),
        ..JobConfig::in_folder(folder.path())
    };
    let bench = Bench::start_with(world(), |config| config.jobs = Some(jobs)).await;
    bench.create(spec("one", 2), queries(5)).await.unwrap();
    assert_eq!(bench.end_of("one").await.state(), JobState::Done);
    assert!(bench.rankings("one").await.iter().all(|ranking| ranking.items.len() == 3));
    assert_eq!(bench.forget(&["a"]).await, 5);
    let rankings = bench.rankings("one").await;
    assert!(rankings.iter().all(|ranking| ranking.items.len() == 2), "{rankings:?}");
    assert_eq!(bench.rows("one").await.len(), 5);

    let blobs = Blobs::open(url, settings).unwrap();
    let keys = async || {
        let mut listed = std::pin::pin!(blobs.list("", Instant::now() + LIMIT));
        let mut keys = Vec::new();
        while let Some(entry) = listed.next().await {
            keys.push(entry.unwrap().key);
        }
        keys
    };
    for key in keys().await {
        let bytes = blobs.get(&key, Instant::now() + LIMIT).await.unwrap();
        let hash = hash(b"a");
        assert!(!bytes.windows(hash.len()).any(|window| window == hash.as_bytes()), "{key} names the image");
    }
    bench.delete("one").await.unwrap();
    let left = keys().await;
    assert!(left.iter().all(|key| key.starts_with("forgotten/")), "{left:?}");
}
