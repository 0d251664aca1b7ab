//! Real processes that find each other through etcd, and what they answer while they are killed, stopped and cut off.
//!
//! What is compared is everything a search ends with. The undisturbed run says what is right.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use thicket_proto::v1::coordinator_service_client::CoordinatorServiceClient;
use thicket_proto::v1::search_person_response::Event;
use thicket_proto::v1::{
    IngestRequest, InteractionSettings, SearchFinished, SearchPersonRequest, ingest_response,
};
use thicket_runtime::Role;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use crate::person_search::picture;
use crate::process::program;
use crate::topology::{LIMIT, Layout, Processes};

pub(crate) const COLLECTION: &str = "lobby";
pub(crate) const ITEMS: u8 = 10;
pub(crate) const TEXTS: [&str; 6] = [
    "a person in a red coat",
    "a woman with a black bag",
    "a man in blue trousers and white shoes",
    "somebody with a green hat",
    "a child in a yellow jacket",
    "a person with grey hair",
];

/// A picture as it is ingested.
pub(crate) fn item(number: usize, image: Vec<u8>) -> IngestRequest {
    IngestRequest {
        collection: COLLECTION.into(),
        id: format!("item-{number}"),
        image: image.into(),
        ..Default::default()
    }
}

impl Processes {
    /// Runs a call on one coordinator after another until one answers, as a client of several would.
    pub(crate) async fn persistently<T>(&self, call: impl AsyncFn(Channel) -> Result<T, Status>) -> T {
        let began = Instant::now();
        let mut last = None;
        for attempt in 0.. {
            assert!(began.elapsed() < LIMIT, "no coordinator answers: {last:?}\n{}", self.said());
            let members = self.directory.members();
            let coordinators = members.of(Role::Coordinator);
            let Some(one) = coordinators.get(attempt % coordinators.len().max(1)) else {
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            };
            let endpoint = Channel::from_shared(one.address.to_string()).unwrap();
            let Ok(channel) = endpoint.connect().await else {
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            };
            match call(channel).await {
                Ok(answer) => return answer,
                // Gone, cut off in the middle of the answer, or hanging.
                Err(status)
                    if matches!(
                        status.code(),
                        Code::Unavailable | Code::Unknown | Code::Cancelled | Code::DeadlineExceeded
                    ) =>
                {
                    last = Some(status);
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                Err(status) => panic!("{status}\n{}", self.said()),
            }
        }
        unreachable!("there is always another attempt")
    }

    pub(crate) async fn ingest(&self) {
        self.ingest_all((0..ITEMS).map(picture)).await;
    }

    /// Stores pictures as `item-0` and so on.
    pub(crate) async fn ingest_all(&self, pictures: impl Iterator<Item = Vec<u8>>) {
        let items: Vec<_> = pictures.enumerate().map(|(number, image)| item(number, image)).collect();
        let count = items.len();
        let stored = self
            .persistently(async |channel| {
                let mut client = CoordinatorServiceClient::new(channel);
                let mut results = client.ingest(tokio_stream::iter(items.clone())).await?.into_inner();
                let mut stored = 0;
                while let Some(result) = results.message().await? {
                    stored += usize::from(matches!(result.result, Some(ingest_response::Result::Item(_))));
                }
                Ok(stored)
            })
            .await;
        assert_eq!(stored, count);
    }

    /// What a search ends with. The odd ones are searched for with a xi that lets round 1 alone refine.
    async fn search(&self, number: usize) -> SearchFinished {
        let settings = InteractionSettings {
            rounds: Some(4),
            xi: Some(if number.is_multiple_of(2) { 2.0 } else { -2.0 }),
            yes_threshold: Some(0.5),
            ..Default::default()
        };
        let request = SearchPersonRequest {
            collection: COLLECTION.into(),
            text: TEXTS[number % TEXTS.len()].into(),
            top: 5,
            settings: Some(settings),
            ..Default::default()
        };
        self.persistently(async |channel| {
            let mut request = Request::new(request.clone());
            request.set_timeout(LIMIT);
            let mut stream =
                CoordinatorServiceClient::new(channel).search_person(request).await?.into_inner();
            let mut last = None;
            while let Some(response) = stream.message().await? {
                last = response.event;
            }
            match last {
                Some(Event::Finished(finished)) => Ok(finished),
                other => Err(Status::unknown(format!("the stream ended with {other:?}"))),
            }
        })
        .await
    }

    pub(crate) async fn searches(&self, count: usize) -> Vec<SearchFinished> {
        let mut found = Vec::with_capacity(count);
        for number in 0..count {
            found.push(self.search(number).await);
        }
        found
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn searches_end_alike_whatever_is_killed_stopped_or_away() {
    let Some(mut processes) = Processes::start(Layout::SMALL).await else { return };
    processes.ingest().await;
    let undisturbed = processes.searches(TEXTS.len()).await;
    let asked: u32 = undisturbed.iter().map(|end| end.questions.unwrap_or_default().locate).sum();
    assert!(asked > 6, "the searches ask too little to be disturbed: {undisturbed:?}");

    processes.answer[0].kill();
    assert_eq!(processes.searches(TEXTS.len()).await, undisturbed, "an answer role was killed");
    processes.answer[0].restart();

    processes.embedding[1].kill();
    assert_eq!(processes.searches(TEXTS.len()).await, undisturbed, "an embedding role was killed");
    processes.embedding[1].restart();

    processes.coordinator[0].kill();
    assert_eq!(processes.searches(TEXTS.len()).await, undisturbed, "a coordinator was killed");
    processes.coordinator[0].restart();
    processes.all_there().await;

    processes.gallery.restart();
    assert_eq!(processes.searches(TEXTS.len()).await, undisturbed, "the gallery was killed and came back");

    processes.answer[1].signal("-STOP");
    assert_eq!(processes.searches(TEXTS.len()).await, undisturbed, "an answer role hangs");
    processes.answer[1].signal("-CONT");

    processes.etcd.nodes[0].kill();
    assert_eq!(processes.searches(TEXTS.len()).await, undisturbed, "etcd is away");
    processes.answer[2].kill();
    assert_eq!(
        processes.searches(TEXTS.len()).await,
        undisturbed,
        "an answer role was killed while etcd was away"
    );
    processes.etcd.nodes[0].restart();
    processes.answer[2].restart();
    processes.all_there().await;
    assert_eq!(processes.searches(TEXTS.len()).await, undisturbed, "everything is back");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_that_drains_leaves_the_members_and_ends_with_0() {
    let Some(mut processes) = Processes::start(Layout::SMALL).await else { return };
    processes.ingest().await;
    let before = processes.search(0).await;
    processes.answer[0].signal("-TERM");
    assert_eq!(processes.search(0).await, before);
    let status = processes.answer[0].ends().await;
    assert_eq!(status, Some(0), "{}", processes.answer[0].said());
    let began = Instant::now();
    while processes.directory.members().of(Role::Answer).len() != 2 {
        assert!(began.elapsed() < LIMIT);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[test]
fn a_role_whose_address_nobody_can_call_says_so() {
    let flags = ["--listen", "0.0.0.0:0", "--etcd", "http://127.0.0.1:1", "--tokens-file"];
    let folder = tempfile::tempdir().unwrap();
    let tokens = folder.path().join("tokens.json");
    std::fs::write(
        &tokens,
        format!(r#"[{{"name": "a", "sha256": "{}", "rights": ["read"]}}]"#, "0".repeat(64)),
    )
    .unwrap();
    let output = Command::new(program("thicket-coordinator"))
        .args(flags)
        .arg(Path::new(&tokens))
        .args(["--admin-listen", "127.0.0.1:0"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("--advertise is missing"), "{said}");
}
