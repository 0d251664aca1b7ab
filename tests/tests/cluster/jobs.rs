//! Jobs of real coordinators that are killed, stopped and told to leave in the middle of them. What is compared is the file
//! of all results; the undisturbed run says what is right.

use std::time::Duration;

use thicket_proto::v1::job_service_client::JobServiceClient;
use thicket_proto::v1::*;
use tonic::{Request, Status};

use crate::processes::{COLLECTION, TEXTS};
use crate::topology::{LIMIT, Layout, Processes};

/// Longest call about a job: a coordinator that hangs does not hold its caller for longer.
const CALL_LIMIT: Duration = Duration::from_secs(10);

/// What a job is asked.
pub(crate) struct Batch {
    pub(crate) texts: Vec<String>,
    pub(crate) part_size: u32,
    pub(crate) settings: InteractionSettings,
}

impl Batch {
    /// The texts again and again, each time a little different.
    fn small() -> Self {
        let text = |number: usize| format!("{} number {number}", TEXTS[number % TEXTS.len()]);
        let settings = InteractionSettings { rounds: Some(2), xi: Some(2.0), ..Default::default() };
        Self { texts: (0..24).map(text).collect(), part_size: 2, settings }
    }

    pub(crate) fn parts(&self) -> u32 {
        u32::try_from(self.texts.len()).unwrap().div_ceil(self.part_size)
    }

    fn ids(&self) -> impl Iterator<Item = String> {
        (0..self.texts.len()).map(|number| format!("query-{number}"))
    }

    fn queries(&self) -> Vec<JobQuery> {
        let pairs = self.ids().zip(self.texts.iter().cloned());
        pairs.map(|(id, text)| JobQuery { id, text, ..JobQuery::default() }).collect()
    }

    /// Panics where results are not those of each query once, in order.
    pub(crate) fn assert_complete(&self, results: &[FetchJobResultsResponse]) {
        let places: Vec<_> = results.iter().map(|result| (result.position, &*result.query_id)).collect();
        let ids: Vec<String> = self.ids().collect();
        let wanted: Vec<_> = (0..).zip(ids.iter().map(String::as_str)).collect();
        assert_eq!(places, wanted, "a query is lost or doubled");
    }
}

fn with_limit<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(CALL_LIMIT);
    request
}

impl Processes {
    pub(crate) async fn submit(&self, id: &str, batch: &Batch) {
        let spec = JobSpec {
            id: id.into(),
            collection: COLLECTION.into(),
            top: 5,
            settings: Some(batch.settings),
            part_size: batch.part_size,
            ..JobSpec::default()
        };
        let request = CreateJobRequest { spec: Some(spec), queries: batch.queries() };
        self.persistently(async |channel| {
            let mut jobs = JobServiceClient::new(channel);
            match jobs.create_job(with_limit(tokio_stream::iter([request.clone()]))).await {
                Ok(_) => Ok(()),
                // The answer to an earlier attempt was lost.
                Err(status) if status.code() == tonic::Code::AlreadyExists => Ok(()),
                Err(status) => Err(status),
            }
        })
        .await;
    }

    pub(crate) async fn job(&self, id: &str) -> Job {
        self.persistently(async |channel| {
            let found =
                JobServiceClient::new(channel).get_job(with_limit(GetJobRequest { id: id.into() })).await?;
            Ok(found.into_inner().job.unwrap_or_default())
        })
        .await
    }

    /// Waits until so many parts of a job are done.
    async fn done(&self, id: &str, parts: u32) {
        let waiting = async {
            while self.job(id).await.parts.unwrap_or_default().done < parts {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let waited = tokio::time::timeout(LIMIT, waiting).await;
        assert!(waited.is_ok(), "{:?}\n{}", self.job(id).await, self.said());
    }

    /// The file of a job, once it is done.
    pub(crate) async fn file(&self, id: &str, batch: &Batch) -> Vec<u8> {
        let waiting = async {
            while self.job(id).await.state() != JobState::Done {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let limit = 2 * LIMIT + Duration::from_millis(500) * u32::try_from(batch.texts.len()).unwrap();
        let waited = tokio::time::timeout(limit, waiting).await;
        let job = self.job(id).await;
        assert!(waited.is_ok(), "{job:?}\n{}", self.said());
        let total = batch.texts.len() as u64;
        assert_eq!(job.queries, Some(QueryProgress { total, succeeded: total, failed: 0 }));
        self.persistently(async |channel| {
            let mut jobs = JobServiceClient::new(channel);
            let mut pieces =
                jobs.fetch_job_file(with_limit(FetchJobFileRequest { id: id.into() })).await?.into_inner();
            let mut file = Vec::new();
            while let Some(piece) = pieces.message().await? {
                file.extend_from_slice(&piece.data);
            }
            Ok(file)
        })
        .await
    }

    pub(crate) async fn results(&self, id: &str) -> Vec<FetchJobResultsResponse> {
        self.persistently(async |channel| {
            let mut jobs = JobServiceClient::new(channel);
            let request = FetchJobResultsRequest { id: id.into(), partial: false };
            let mut fetched = jobs.fetch_job_results(with_limit(request)).await?.into_inner();
            let mut results = Vec::new();
            while let Some(result) = fetched.message().await? {
                results.push(result);
            }
            Ok::<_, Status>(results)
        })
        .await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_ends_alike_whichever_coordinator_is_killed_stopped_or_told_to_leave() {
    let Some(mut processes) = Processes::start(Layout::SMALL).await else { return };
    processes.ingest().await;
    let batch = Batch::small();
    processes.submit("calm", &batch).await;
    let calm = processes.file("calm", &batch).await;
    batch.assert_complete(&processes.results("calm").await);

    processes.submit("killed", &batch).await;
    processes.done("killed", 2).await;
    processes.coordinator[0].kill();
    processes.done("killed", 6).await;
    processes.coordinator[0].restart();
    processes.all_there().await;
    processes.coordinator[1].kill();
    assert_eq!(processes.file("killed", &batch).await, calm, "each coordinator was killed in turn");
    let takeovers =
        processes.coordinator.iter().filter(|process| process.said().contains("taken over")).count();
    assert!(takeovers > 0, "nothing was taken over\n{}", processes.said());
    processes.coordinator[1].restart();
    processes.all_there().await;

    processes.submit("stopped", &batch).await;
    processes.done("stopped", 2).await;
    processes.coordinator[0].signal("-STOP");
    let other = processes.file("stopped", &batch).await;
    assert_eq!(other, calm, "a coordinator hangs");
    processes.coordinator[0].signal("-CONT");
    processes.all_there().await;

    processes.submit("left", &batch).await;
    processes.done("left", 2).await;
    processes.coordinator[1].signal("-TERM");
    assert_eq!(processes.file("left", &batch).await, calm, "a coordinator left");
    let exit = processes.coordinator[1].ends().await;
    assert_eq!(exit, Some(0), "{}", processes.coordinator[1].said());

    // The one that hung is long awake, and has changed nothing.
    assert_eq!(processes.file("stopped", &batch).await, calm, "a coordinator came back late");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_waits_for_roles_and_etcd_that_are_away() {
    let Some(mut processes) = Processes::start(Layout::SMALL).await else { return };
    processes.ingest().await;
    let batch = Batch::small();
    processes.submit("calm", &batch).await;
    let calm = processes.file("calm", &batch).await;

    processes.submit("away", &batch).await;
    processes.done("away", 1).await;
    for answer in &mut processes.answer {
        answer.kill();
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_ne!(processes.job("away").await.state(), JobState::Done);
    for answer in &mut processes.answer {
        answer.restart();
    }
    processes.done("away", 4).await;
    processes.etcd.nodes[0].kill();
    // Longer than the leases live.
    tokio::time::sleep(Duration::from_secs(3)).await;
    processes.etcd.nodes[0].restart();
    processes.all_there().await;
    assert_eq!(processes.file("away", &batch).await, calm);
}
