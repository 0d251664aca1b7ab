//! Jobs of a coordinator that keeps its records in a file and its objects in a folder.

use std::path::{Path, PathBuf};
use std::time::Duration;

use thicket_coordinator::{JobConfig, JobObjects};
use thicket_proto::v1::fetch_job_results_response::Result as Fetched;
use thicket_proto::v1::*;
use thicket_runtime::Fault;
use tokio::sync::mpsc;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::fakes::{Bench, COLLECTION, Says, TEXT, World, ids, request};

/// Long enough for any machine; nothing waits for its end.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// A gallery of three, and texts `t0`, `t1`, ... of which every other is most like another item.
pub(crate) fn world() -> World {
    let mut world = World::of(&[(0.4, 0.1), (0.3, 0.2), (0.2, 0.3)]);
    for number in 0..40_u8 {
        let share = f32::from(number) / 64.0;
        world.texts.insert(format!("t{number}"), vec![1.0 - share, share]);
    }
    world
}

pub(crate) async fn bench(world: World, folder: &Path) -> Bench {
    let jobs = JobConfig::in_folder(folder);
    Bench::start_with(world, |config| config.jobs = Some(jobs)).await
}

pub(crate) fn queries(count: u8) -> Vec<JobQuery> {
    (0..count)
        .map(|number| JobQuery {
            id: format!("q{number}"),
            text: format!("t{number}"),
            ..JobQuery::default()
        })
        .collect()
}

pub(crate) fn spec(id: &str, part_size: u32) -> JobSpec {
    JobSpec { id: id.into(), collection: COLLECTION.into(), part_size, ..JobSpec::default() }
}

impl Bench {
    pub(crate) async fn create(&self, spec: JobSpec, queries: Vec<JobQuery>) -> Result<Job, Status> {
        // In several messages, as a large job comes.
        let mut messages = vec![CreateJobRequest { spec: Some(spec), queries: Vec::new() }];
        messages
            .extend(queries.chunks(3).map(|some| CreateJobRequest { spec: None, queries: some.to_vec() }));
        let made = self.jobs.clone().create_job(tokio_stream::iter(messages)).await?;
        Ok(made.into_inner().job.unwrap())
    }

    pub(crate) async fn job(&self, id: &str) -> Result<Job, Status> {
        let found = self.jobs.clone().get_job(GetJobRequest { id: id.into() }).await?;
        Ok(found.into_inner().job.unwrap())
    }

    /// Follows a job to its end.
    pub(crate) async fn end_of(&self, id: &str) -> Job {
        let following = async {
            let mut changes =
                self.jobs.clone().watch_job(WatchJobRequest { id: id.into() }).await.unwrap().into_inner();
            let mut last = None;
            while let Some(change) = changes.message().await.unwrap() {
                last = change.job;
            }
            last.expect("a job is sent at once")
        };
        tokio::time::timeout(LIMIT, following).await.expect("the job ends")
    }

    /// Waits until a job is as wanted.
    pub(crate) async fn until(&self, id: &str, wanted: impl Fn(&Job) -> bool) {
        let waiting = async {
            while !wanted(&self.job(id).await.unwrap()) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(LIMIT, waiting).await.expect("the job becomes as wanted");
    }

    pub(crate) async fn results(
        &self,
        id: &str,
        partial: bool,
    ) -> Result<Vec<FetchJobResultsResponse>, Status> {
        let request = FetchJobResultsRequest { id: id.into(), partial };
        let mut fetched = self.jobs.clone().fetch_job_results(request).await?.into_inner();
        let mut results = Vec::new();
        while let Some(result) = fetched.message().await? {
            results.push(result);
        }
        Ok(results)
    }

    pub(crate) async fn file(&self, id: &str) -> Result<Vec<u8>, Status> {
        let request = FetchJobFileRequest { id: id.into() };
        let mut pieces = self.jobs.clone().fetch_job_file(request).await?.into_inner();
        let mut file = Vec::new();
        while let Some(piece) = pieces.message().await? {
            file.extend_from_slice(&piece.data);
        }
        Ok(file)
    }

    pub(crate) async fn delete(&self, id: &str) -> Result<(), Status> {
        self.jobs.clone().delete_job(DeleteJobRequest { id: id.into() }).await.map(drop)
    }
}

pub(crate) fn reason(status: &Status) -> String {
    status.get_details_error_info().map(|info| info.reason).unwrap_or_default()
}

pub(crate) fn files_below(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => files.append(&mut files_below(&path)),
            false => files.push(path),
        }
    }
    files
}

#[tokio::test]
async fn the_results_are_those_of_the_searches_in_the_order_of_the_queries() {
    let folder = tempfile::tempdir().unwrap();
    let bench = bench(world().saying("b", Says::PYes(0.9)), folder.path()).await;
    let made = bench.create(spec("a", 2), queries(7)).await.unwrap();
    assert_eq!(made.queries.unwrap().total, 7);
    assert_eq!(made.spec.unwrap().settings.unwrap().rounds, Some(5));
    let done = bench.end_of("a").await;
    assert_eq!(done.state(), JobState::Done);
    assert_eq!(done.queries, Some(QueryProgress { total: 7, succeeded: 7, failed: 0 }));
    assert_eq!(done.parts, Some(PartCount { pending: 0, leased: 0, done: 4 }));

    let results = bench.results("a", false).await.unwrap();
    assert_eq!(results.len(), 7);
    for (number, result) in results.into_iter().enumerate() {
        let search = SearchPersonRequest { text: format!("t{number}"), ..request() };
        let alone = bench.finish(search).await;
        assert_eq!((result.position, result.query_id), (number as u64, format!("q{number}")));
        let Some(Fetched::Ranking(ranking)) = result.result else { panic!("{:?}", result.result) };
        let found: Vec<_> = ranking.items.iter().map(|item| item.id.clone()).collect();
        assert_eq!(found, ids(&alone.hits));
        let scores: Vec<_> = ranking.items.iter().map(|item| item.score).collect();
        assert_eq!(scores, alone.hits.iter().map(|hit| hit.score).collect::<Vec<_>>());
        assert_eq!((ranking.outcome, ranking.anchor_id), (alone.outcome, alone.anchor_id));
        assert_eq!((ranking.refined_text, ranking.questions), (alone.refined_text, alone.questions));
    }
}

#[tokio::test]
async fn a_query_that_cannot_be_searched_for_fails_alone() {
    let folder = tempfile::tempdir().unwrap();
    let bench = bench(world(), folder.path()).await;
    let mut mixed = queries(4);
    mixed[1].text = "  ".into();
    mixed[2].text = "x".repeat(30_000);
    mixed[3].text = "nobody knows this".into();
    bench.create(spec("a", 4), mixed).await.unwrap();
    let done = bench.end_of("a").await;
    assert_eq!((done.state(), done.queries.unwrap().failed), (JobState::Done, 3));
    let errors: Vec<_> = bench
        .results("a", false)
        .await
        .unwrap()
        .into_iter()
        .filter_map(|result| match result.result {
            Some(Fetched::Error(error)) => Some((result.query_id, error.code, error.reason)),
            _ => None,
        })
        .collect();
    assert_eq!(errors.iter().map(|error| error.0.as_str()).collect::<Vec<_>>(), ["q1", "q2", "q3"]);
    assert_eq!(errors[2].2, "TEXT_UNKNOWN");
    assert_eq!(errors[2].1, Code::InvalidArgument as i32);
    assert!(errors.iter().all(|error| !error.2.is_empty()), "{errors:?}");
}

#[tokio::test]
async fn a_job_waits_for_a_role_that_is_away() {
    let folder = tempfile::tempdir().unwrap();
    let away = Fault::unavailable("DRAINING", "this replica is stopping", Duration::ZERO);
    let bench = bench(world().saying("a", Says::Fails(away)), folder.path()).await;
    bench.create(spec("a", 2), queries(4)).await.unwrap();
    let waiting = async {
        while bench.world().count("locate") < 8 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(LIMIT, waiting).await.expect("the questions are asked again");
    assert_eq!(bench.job("a").await.unwrap().state(), JobState::Running);
    bench.world().says.clear();
    let done = bench.end_of("a").await;
    assert_eq!((done.state(), done.queries.unwrap().succeeded), (JobState::Done, 4));
}

#[tokio::test]
async fn a_query_that_breaks_whoever_answers_it_does_not_hold_the_job_for_ever() {
    let folder = tempfile::tempdir().unwrap();
    let broken = Fault::Internal { id: "a bug".into() };
    let bench = bench(world().saying("a", Says::Fails(broken)), folder.path()).await;
    bench.create(spec("a", 1), queries(1)).await.unwrap();
    let done = bench.end_of("a").await;
    assert_eq!((done.state(), done.queries.unwrap().failed), (JobState::Done, 1));
}

#[tokio::test]
async fn a_cancelled_job_stops_and_a_resumed_one_does_what_is_left() {
    let folder = tempfile::tempdir().unwrap();
    let (held, mut released) = mpsc::channel(1);
    let mut slow = world();
    // The queries of the second part ask about an item that hangs.
    slow.texts.insert("t1".into(), vec![-1.0, 4.0]);
    let bench = bench(slow.saying("c", Says::Hang(held)), folder.path()).await;
    let settings = Some(InteractionSettings { rounds: Some(1), ..Default::default() });
    bench.create(JobSpec { settings, ..spec("a", 1) }, queries(2)).await.unwrap();
    bench.until("a", |job| job.parts.unwrap().done == 1).await;
    while bench.world().count("locate") < 2 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    bench.jobs.clone().cancel_job(CancelJobRequest { id: "a".into() }).await.unwrap();
    assert_eq!(bench.end_of("a").await.state(), JobState::Cancelled);
    // The question that was under way is dropped, and its part given back.
    bench.world().says.clear();
    assert!(tokio::time::timeout(LIMIT, released.recv()).await.unwrap().is_none());
    bench.until("a", |job| job.parts.unwrap().leased == 0).await;
    assert_eq!(reason(&bench.results("a", false).await.unwrap_err()), "JOB_UNFINISHED");
    assert_eq!(bench.results("a", true).await.unwrap().len(), 1);

    bench.jobs.clone().resume_job(ResumeJobRequest { id: "a".into(), deadline_unix_ms: None }).await.unwrap();
    assert_eq!(bench.end_of("a").await.state(), JobState::Done);
    assert_eq!(bench.world().count("embed:t0"), 1, "the part that was done was done again");
    assert_eq!(bench.results("a", false).await.unwrap().len(), 2);
}

#[tokio::test]
async fn a_job_goes_on_in_the_next_process_where_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let (held, _released) = mpsc::channel(1);
    let mut slow = world();
    slow.texts.insert("t1".into(), vec![-1.0, 4.0]);
    let mut first = bench(slow.saying("c", Says::Hang(held)), folder.path()).await;
    let settings = Some(InteractionSettings { rounds: Some(1), ..Default::default() });
    first.create(JobSpec { settings, ..spec("a", 1) }, queries(2)).await.unwrap();
    first.until("a", |job| job.parts.unwrap().done == 1).await;
    let watching = first.jobs.clone().watch_job(WatchJobRequest { id: "a".into() }).await.unwrap();
    first.stop_coordinator().await;
    // Who follows is told to ask another.
    let mut changes = watching.into_inner();
    let told = loop {
        match changes.message().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("the stream ended as if the job had"),
            Err(status) => break status,
        }
    };
    assert_eq!((told.code(), reason(&told).as_str()), (Code::Unavailable, "DRAINING"));

    let second = bench(world(), folder.path()).await;
    assert_eq!(second.end_of("a").await.state(), JobState::Done);
    let count = |line| second.world().count(line);
    assert_eq!((count("embed:t0"), count("embed:t1")), (0, 1));
    assert_eq!(second.results("a", false).await.unwrap().len(), 2);
}

#[tokio::test]
async fn a_job_past_its_deadline_expires_and_can_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let (held, _released) = mpsc::channel(1);
    let bench = bench(world().saying("a", Says::Hang(held)), folder.path()).await;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let deadline = Some(now.as_millis() as i64 + 1_500);
    bench.create(JobSpec { deadline_unix_ms: deadline, ..spec("a", 1) }, queries(1)).await.unwrap();
    assert_eq!(bench.end_of("a").await.state(), JobState::Expired);
    bench.world().says.clear();
    bench.jobs.clone().resume_job(ResumeJobRequest { id: "a".into(), deadline_unix_ms: None }).await.unwrap();
    assert_eq!(bench.end_of("a").await.state(), JobState::Done);
}

#[tokio::test]
async fn two_jobs_of_the_same_queries_have_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let bench = bench(world().saying("a", Says::PYes(0.9)), folder.path()).await;
    let mut mixed = queries(9);
    mixed[4].text.clear();
    for id in ["a", "b"] {
        bench.create(spec(id, 4), mixed.clone()).await.unwrap();
        bench.end_of(id).await;
    }
    let file = bench.file("a").await.unwrap();
    assert!(file.starts_with(b"PAR1") && file.ends_with(b"PAR1"));
    assert_eq!(file, bench.file("b").await.unwrap());
}

#[tokio::test]
async fn a_deleted_job_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let bench = bench(world(), folder.path()).await;
    bench.create(spec("a", 2), queries(5)).await.unwrap();
    bench.end_of("a").await;
    let objects = folder.path().join("objects");
    // Whose it is, three parts of queries, three of results, and the file.
    assert_eq!(files_below(&objects).len(), 8);
    bench.delete("a").await.unwrap();
    assert_eq!(files_below(&objects), Vec::<PathBuf>::new());
    assert_eq!(bench.job("a").await.unwrap_err().code(), Code::NotFound);
    let listed = bench.jobs.clone().list_jobs(ListJobsRequest {}).await.unwrap().into_inner();
    assert_eq!(listed.jobs, []);
}

#[tokio::test]
async fn what_cannot_be_a_job_is_refused_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let bench = bench(world(), folder.path()).await;
    bench.create(spec("taken", 1), queries(1)).await.unwrap();
    bench.end_of("taken").await;
    let before = files_below(&folder.path().join("objects")).len();
    let twice = [queries(3), queries(1)].concat();
    let elsewhere = JobSpec { collection: "garage".into(), ..spec("a", 1) };
    for (spec, queries, code, wanted) in [
        (spec("taken", 1), queries(1), Code::AlreadyExists, "JOB_EXISTS"),
        (spec("No Id", 1), queries(1), Code::InvalidArgument, "JOB_ID_MALFORMED"),
        (elsewhere, queries(1), Code::NotFound, "COLLECTION_NOT_FOUND"),
        (spec("a", 1), vec![], Code::OutOfRange, "QUERIES_OUT_OF_RANGE"),
        (spec("a", 2), twice, Code::InvalidArgument, "QUERY_ID_TWICE"),
        (spec("a", 2_000), queries(1), Code::OutOfRange, "PART_SIZE_OUT_OF_RANGE"),
    ] {
        let status = bench.create(spec, queries).await.unwrap_err();
        assert_eq!((status.code(), reason(&status).as_str()), (code, wanted), "{status}");
    }
    let empty = bench.jobs.clone().create_job(tokio_stream::iter([])).await.unwrap_err();
    assert_eq!(reason(&empty), "SPEC_MISSING");
    let unknown = bench.jobs.clone().cancel_job(CancelJobRequest { id: "a".into() }).await.unwrap_err();
    assert_eq!(reason(&unknown), "JOB_NOT_FOUND");
    let late = bench.jobs.clone().cancel_job(CancelJobRequest { id: "taken".into() }).await.unwrap_err();
    assert_eq!((late.code(), reason(&late).as_str()), (Code::FailedPrecondition, "JOB_FINISHED"));

    let cleared = async {
        while files_below(&folder.path().join("objects")).len() != before {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(LIMIT, cleared).await.expect("what was stored before the refusal is cleared");
}

#[tokio::test]
async fn a_coordinator_without_a_place_for_jobs_says_so() {
    let bench = Bench::start(world()).await;
    let status = bench.create(spec("a", 1), queries(1)).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::FailedPrecondition, "JOBS_OFF"));
    assert!(status.message().contains("--jobs-store"), "{status}");
}

#[tokio::test]
async fn an_object_store_that_is_gone_is_named_and_a_job_outlives_it() {
    let folder = tempfile::tempdir().unwrap();
    let (objects, aside) = (folder.path().join("objects"), folder.path().join("aside"));
    let (held, _released) = mpsc::channel(1);
    let bench = bench(world().saying("a", Says::Hang(held)), folder.path()).await;
    bench.create(spec("a", 1), queries(1)).await.unwrap();
    bench.until("a", |job| job.parts.unwrap().leased == 1).await;
    std::fs::rename(&objects, &aside).unwrap();
    let status = bench.create(spec("b", 1), queries(1)).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::Unavailable, "JOB_STORE_UNAVAILABLE"));
    assert!(status.message().contains("objects"), "{status}");

    bench.world().says.clear();
    std::fs::rename(&aside, &objects).unwrap();
    // The call that hangs is given up with its part.
    bench.jobs.clone().cancel_job(CancelJobRequest { id: "a".into() }).await.unwrap();
    bench.until("a", |job| job.parts.unwrap().leased == 0).await;
    bench.jobs.clone().resume_job(ResumeJobRequest { id: "a".into(), deadline_unix_ms: None }).await.unwrap();
    assert_eq!(bench.end_of("a").await.state(), JobState::Done);
}

#[tokio::test]
async fn an_object_store_that_is_full_is_told_from_one_that_is_away() {
    let folder = tempfile::tempdir().unwrap();
    let objects = folder.path().join("objects");
    std::fs::create_dir(&objects).unwrap();
    let mounted = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"])
        .arg(&objects)
        .output();
    if !mounted.is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: this process may not mount a tmpfs");
        return;
    }
    let bench = bench(world(), folder.path()).await;
    let mut long = queries(40);
    for query in &mut long {
        query.text = "x".repeat(60_000);
    }
    let outcome = bench.create(spec("a", 10), long).await;
    drop(bench);
    std::process::Command::new("umount").arg("-l").arg(&objects).status().unwrap();
    let status = outcome.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::ResourceExhausted, "JOB_STORE_FULL"));
}

#[tokio::test]
async fn a_folder_that_is_not_there_is_no_object_store() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("missing");
    let mut config = thicket_coordinator::Config::in_process(thicket_coordinator::Peers::default());
    config.jobs = Some(JobConfig {
        objects: JobObjects::Url(format!("file://{}", missing.display())),
        ..JobConfig::in_folder(folder.path())
    });
    let failure = thicket_coordinator::App::build(config).await.unwrap_err();
    assert_eq!(failure.exit_status(), 2);
    assert!(failure.to_string().contains("missing"), "{failure}");
}

#[tokio::test]
async fn several_jobs_are_done_beside_each_other() {
    let folder = tempfile::tempdir().unwrap();
    let bench = bench(world(), folder.path()).await;
    for id in ["a", "b", "c"] {
        bench.create(spec(id, 3), queries(20)).await.unwrap();
    }
    for id in ["a", "b", "c"] {
        let done = bench.end_of(id).await;
        assert_eq!((done.state(), done.queries.unwrap().succeeded), (JobState::Done, 20));
    }
    let listed = bench.jobs.clone().list_jobs(ListJobsRequest {}).await.unwrap().into_inner();
    let names: Vec<_> = listed.jobs.into_iter().map(|job| job.spec.unwrap().id).collect();
    assert_eq!(names, ["a", "b", "c"]);
    assert_eq!(bench.world().count(&format!("embed:{TEXT}")), 0);
}
