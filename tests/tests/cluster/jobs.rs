//! Jobs of real coordinators that are killed, stopped and told to leave in the middle of them. What is compared is the file
//! of all results; the undisturbed run says what is right.

use std::time::Duration;

use thicket_proto::v1::job_service_client::JobServiceClient;
use thicket_proto::v1::*;
use tonic::{Request, Status};

use crate::processes::{COLLECTION, LIMIT, Processes, TEXTS};

/// Longest call about a job: a coordinator that hangs does not hold its caller for longer.
const CALL_LIMIT: Duration = Duration::from_secs(10);

const QUERIES: usize = 24;
const PART_SIZE: u32 = 2;

/// The texts again and again, each time a little different.
fn queries() -> Vec<JobQuery> {
    (0..QUERIES)
        .map(|number| JobQuery {
            id: format!("query-{number}"),
            text: format!("{} number {number}", TEXTS[number % TEXTS.len()]),
            ..JobQuery::default()
        })
        .collect()
}

fn with_limit<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(CALL_LIMIT);
    request
}

impl Processes {
    async fn submit(&self, id: &str) {
        let settings = InteractionSettings { rounds: Some(2), xi: Some(2.0), ..Default::default() };
        let spec = JobSpec {
            id: id.into(),
            collection: COLLECTION.into(),
            top: 5,
            settings: Some(settings),
            part_size: PART_SIZE,
            ..JobSpec::default()
        };
        let request = CreateJobRequest { spec: Some(spec), queries: queries() };
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

    async fn job(&self, id: &str) -> Job {
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
    async fn file(&self, id: &str) -> Vec<u8> {
        let waiting = async {
            while self.job(id).await.state() != JobState::Done {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let waited = tokio::time::timeout(2 * LIMIT, waiting).await;
        let job = self.job(id).await;
        assert!(waited.is_ok(), "{job:?}\n{}", self.said());
        assert_eq!(
            job.queries,
            Some(QueryProgress { total: QUERIES as u64, succeeded: QUERIES as u64, failed: 0 })
        );
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

    async fn results(&self, id: &str) -> Vec<FetchJobResultsResponse> {
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
    let Some(mut processes) = Processes::start().await else { return };
    processes.ingest().await;
    processes.submit("calm").await;
    let calm = processes.file("calm").await;
    let results = processes.results("calm").await;
    let places: Vec<_> = results.iter().map(|result| (result.position, result.query_id.clone())).collect();
    let wanted: Vec<_> = (0..QUERIES).map(|number| (number as u64, format!("query-{number}"))).collect();
    assert_eq!(places, wanted, "a query is lost or doubled");

    processes.submit("killed").await;
    processes.done("killed", 2).await;
    processes.coordinator[0].kill();
    processes.done("killed", 6).await;
    processes.coordinator[0].restart();
    processes.all_there().await;
    processes.coordinator[1].kill();
    assert_eq!(processes.file("killed").await, calm, "each coordinator was killed in turn");
    let takeovers =
        processes.coordinator.iter().filter(|process| process.said().contains("taken over")).count();
    assert!(takeovers > 0, "nothing was taken over\n{}", processes.said());
    processes.coordinator[1].restart();
    processes.all_there().await;

    processes.submit("stopped").await;
    processes.done("stopped", 2).await;
    processes.coordinator[0].signal("-STOP");
    let other = processes.file("stopped").await;
    assert_eq!(other, calm, "a coordinator hangs");
    processes.coordinator[0].signal("-CONT");
    processes.all_there().await;

    processes.submit("left").await;
    processes.done("left", 2).await;
    processes.coordinator[1].signal("-TERM");
    assert_eq!(processes.file("left").await, calm, "a coordinator left");
    let exit = processes.coordinator[1].ends().await;
    assert_eq!(exit, Some(0), "{}", processes.coordinator[1].said());

    // The one that hung is long awake, and has changed nothing.
    assert_eq!(processes.file("stopped").await, calm, "a coordinator came back late");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_waits_for_roles_and_etcd_that_are_away() {
    let Some(mut processes) = Processes::start().await else { return };
    processes.ingest().await;
    processes.submit("calm").await;
    let calm = processes.file("calm").await;

    processes.submit("away").await;
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
    processes.etcd.kill();
    // Longer than the leases live.
    tokio::time::sleep(Duration::from_secs(3)).await;
    processes.etcd.restart();
    processes.all_there().await;
    assert_eq!(processes.file("away").await, calm);
}
