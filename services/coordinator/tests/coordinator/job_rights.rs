//! Who may see a job and change it, and who may have images forgotten.

use std::path::Path;

use sha2::{Digest, Sha256};
use thicket_coordinator::JobConfig;
use thicket_proto::v1::*;
use tokio::sync::mpsc;
use tonic::{Code, Request, Status};

use crate::fakes::{Bench, COLLECTION, Says, hash};
use crate::jobs::{LIMIT, queries, spec, world};

/// Reads the collection of the job.
const READER: &str = "reader";
/// Reads and writes it.
const WRITER: &str = "writer";
/// Reads and writes another.
const STRANGER: &str = "stranger";

/// Writes everywhere.
const GALLERY: &str = "gallery";

/// A coordinator that knows them.
async fn guarded(folder: &Path, says: Option<Says>) -> Bench {
    let entry = |token: &str, rights: &[&str], collection: &str| {
        let sha256: String = Sha256::digest(token).iter().map(|byte| format!("{byte:02x}")).collect();
        let rights = rights.iter().map(|right| format!("\"{right}\"")).collect::<Vec<_>>().join(",");
        let collections =
            if collection.is_empty() { String::new() } else { format!(r#","collections":["{collection}"]"#) };
        format!(r#"{{"name":"{token}","sha256":"{sha256}","rights":[{rights}]{collections}}}"#)
    };
    let entries = [
        entry(READER, &["read"], COLLECTION),
        entry(WRITER, &["read", "write"], COLLECTION),
        entry(STRANGER, &["read", "write"], "garage"),
        entry(GALLERY, &["write"], ""),
    ];
    let tokens = folder.join("tokens.json");
    std::fs::write(&tokens, format!("[{}]", entries.join(","))).unwrap();
    let mut world = world();
    world.collections.insert("garage".into(), Vec::new());
    let world = match says {
        Some(says) => world.saying("a", says),
        None => world,
    };
    Bench::start_with(world, |config| {
        config.jobs = Some(JobConfig::in_folder(folder));
        config.role.tokens_file = Some(tokens);
    })
    .await
}

/// A request with a token; without one for an empty one.
fn by<T>(token: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    if !token.is_empty() {
        request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    }
    request
}

impl Bench {
    async fn create_by(&self, token: &str, spec: JobSpec, queries: Vec<JobQuery>) -> Result<(), Status> {
        let message = CreateJobRequest { spec: Some(spec), queries };
        let made = self.jobs.clone().create_job(by(token, tokio_stream::iter([message]))).await;
        made.map(drop)
    }

    async fn state(&self, id: &str) -> JobState {
        let found = self.jobs.clone().get_job(by(WRITER, GetJobRequest { id: id.into() })).await.unwrap();
        found.into_inner().job.unwrap().state()
    }

    async fn reaches(&self, id: &str, wanted: JobState) {
        let waiting = async {
            while self.state(id).await != wanted {
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(LIMIT, waiting).await.expect("the job gets there");
    }

    /// What each call that only looks is answered with.
    async fn looks(&self, token: &str, id: &str) -> [Code; 4] {
        let mut jobs = self.jobs.clone();
        let id = || id.to_owned();
        let code = |status: Option<Status>| status.map_or(Code::Ok, |status| status.code());
        [
            code(jobs.get_job(by(token, GetJobRequest { id: id() })).await.err()),
            code(jobs.watch_job(by(token, WatchJobRequest { id: id() })).await.err()),
            code(
                jobs.fetch_job_results(by(token, FetchJobResultsRequest { id: id(), partial: true }))
                    .await
                    .err(),
            ),
            code(jobs.fetch_job_file(by(token, FetchJobFileRequest { id: id() })).await.err()),
        ]
    }

    /// What each call that changes a job is answered with.
    async fn changes(&self, token: &str, id: &str) -> [Code; 3] {
        let mut jobs = self.jobs.clone();
        let id = || id.to_owned();
        let code = |status: Option<Status>| status.map_or(Code::Ok, |status| status.code());
        let resume = ResumeJobRequest { id: id(), deadline_unix_ms: None };
        [
            code(jobs.cancel_job(by(token, CancelJobRequest { id: id() })).await.err()),
            code(jobs.resume_job(by(token, resume)).await.err()),
            code(jobs.delete_job(by(token, DeleteJobRequest { id: id() })).await.err()),
        ]
    }

    async fn listed(&self, token: &str) -> usize {
        let listed = self.jobs.clone().list_jobs(by(token, ListJobsRequest {})).await.unwrap();
        listed.into_inner().jobs.len()
    }
}

#[tokio::test]
async fn a_job_is_seen_by_those_who_may_read_its_collection() {
    let folder = tempfile::tempdir().unwrap();
    let bench = guarded(folder.path(), None).await;
    bench.create_by(WRITER, spec("a", 2), queries(3)).await.unwrap();
    bench.reaches("a", JobState::Done).await;
    for token in [READER, WRITER] {
        assert_eq!(bench.looks(token, "a").await, [Code::Ok; 4], "{token}");
        assert_eq!(bench.listed(token).await, 1, "{token}");
    }
    assert_eq!(bench.looks(STRANGER, "a").await, [Code::PermissionDenied; 4]);
    assert_eq!(bench.listed(STRANGER).await, 0);
    assert_eq!(bench.looks("", "a").await, [Code::Unauthenticated; 4]);
    let listed = bench.jobs.clone().list_jobs(ListJobsRequest {}).await.unwrap_err();
    assert_eq!(listed.code(), Code::Unauthenticated);
}

#[tokio::test]
async fn a_job_is_made_and_changed_by_those_who_may_write_its_collection() {
    let folder = tempfile::tempdir().unwrap();
    let (held, _released) = mpsc::channel(1);
    let bench = guarded(folder.path(), Some(Says::Hang(held))).await;
    for token in [READER, STRANGER, ""] {
        let refused = bench.create_by(token, spec("a", 1), queries(1)).await.unwrap_err();
        let wanted = if token.is_empty() { Code::Unauthenticated } else { Code::PermissionDenied };
        assert_eq!(refused.code(), wanted, "{token}: {refused}");
    }
    bench.create_by(WRITER, spec("a", 1), queries(1)).await.unwrap();
    bench.reaches("a", JobState::Running).await;
    for (token, wanted) in
        [(READER, Code::PermissionDenied), (STRANGER, Code::PermissionDenied), ("", Code::Unauthenticated)]
    {
        assert_eq!(bench.changes(token, "a").await, [wanted; 3], "{token}");
        assert_eq!(bench.state("a").await, JobState::Running, "{token} changed it");
    }
    assert_eq!(bench.changes(WRITER, "a").await, [Code::Ok; 3]);
    assert_eq!(bench.listed(WRITER).await, 0);
}

#[tokio::test]
async fn who_may_write_nowhere_is_not_told_which_jobs_there_are() {
    let folder = tempfile::tempdir().unwrap();
    let bench = guarded(folder.path(), None).await;
    assert_eq!(bench.changes(READER, "nothing").await, [Code::PermissionDenied; 3]);
    assert_eq!(bench.changes(WRITER, "nothing").await, [Code::NotFound; 3]);
}

#[tokio::test]
async fn images_are_forgotten_by_those_who_may_write_every_collection() {
    let folder = tempfile::tempdir().unwrap();
    let bench = guarded(folder.path(), None).await;
    bench.create_by(WRITER, spec("a", 2), queries(3)).await.unwrap();
    bench.reaches("a", JobState::Done).await;
    let forget = async |token: &str| {
        let request = ForgetJobImagesRequest { image_hashes: vec![hash(b"a")] };
        let forgotten = bench.jobs.clone().forget_job_images(by(token, request)).await;
        forgotten.map(|forgotten| forgotten.into_inner().results).map_err(|status| status.code())
    };
    assert_eq!(forget("").await, Err(Code::Unauthenticated));
    for token in [READER, STRANGER, WRITER] {
        assert_eq!(forget(token).await, Err(Code::PermissionDenied), "{token}");
    }
    assert_eq!(forget(GALLERY).await, Ok(3));
}
