//! Real processes that find each other through etcd, and what they answer while they are killed, stopped and cut off.
//!
//! What is compared is everything a search ends with. The undisturbed run says what is right.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use thicket_discovery::{Address, Directory, EtcdConfig, Source};
use thicket_proto::v1::coordinator_service_client::CoordinatorServiceClient;
use thicket_proto::v1::search_person_response::Event;
use thicket_proto::v1::{
    IngestRequest, InteractionSettings, SearchFinished, SearchPersonRequest, ingest_response,
};
use thicket_runtime::Role;
use thicket_tests::goldens;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use crate::person_search::picture;

pub(crate) const COLLECTION: &str = "lobby";
const ITEMS: u8 = 10;
/// Long enough for any machine; nothing waits for its end.
pub(crate) const LIMIT: Duration = Duration::from_secs(90);
pub(crate) const TEXTS: [&str; 6] = [
    "a person in a red coat",
    "a woman with a black bag",
    "a man in blue trousers and white shoes",
    "somebody with a green hat",
    "a child in a yellow jacket",
    "a person with grey hair",
];

/// A program that is killed with the test.
pub(crate) struct Process {
    program: PathBuf,
    flags: Vec<String>,
    log: PathBuf,
    child: Option<Child>,
}

impl Process {
    fn start(program: PathBuf, flags: Vec<String>, log: PathBuf) -> Self {
        let mut process = Self { program, flags, log, child: None };
        process.restart();
        process
    }

    pub(crate) fn restart(&mut self) {
        self.kill();
        let log = std::fs::File::options().append(true).create(true).open(&self.log).unwrap();
        let child = Command::new(&self.program)
            .args(&self.flags)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}", self.program.display()));
        self.child = Some(child);
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    pub(crate) fn signal(&self, signal: &str) {
        let pid = self.child.as_ref().expect("it runs").id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    }

    /// The status that it ends with.
    pub(crate) async fn ends(&mut self) -> Option<i32> {
        let mut child = self.child.take().expect("it runs");
        tokio::task::spawn_blocking(move || child.wait()).await.unwrap().unwrap().code()
    }

    pub(crate) fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Two coordinators, two embedding roles, three answer roles and a gallery, by etcd.
pub(crate) struct Processes {
    pub(crate) etcd: Process,
    gallery: Process,
    embedding: [Process; 2],
    pub(crate) answer: [Process; 3],
    pub(crate) coordinator: [Process; 2],
    directory: Directory,
    _folder: tempfile::TempDir,
}

/// None on a machine that may do without etcd.
fn etcd_program() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|folder| folder.join("etcd")).find(|file| file.is_file());
    if found.is_none() {
        let required = std::env::var_os("THICKET_TEST_ETCD").is_some_and(|value| value == "required");
        assert!(!required, "etcd is not on the PATH: install etcd-server");
        eprintln!("not checked: etcd is not on the PATH");
    }
    found
}

/// A program of this workspace, which was built with this test.
fn program(name: &str) -> PathBuf {
    let folder = std::env::current_exe().unwrap().ancestors().nth(2).unwrap().to_owned();
    let program = folder.join(name);
    assert!(program.is_file(), "{} is not built: run the tests of the whole workspace", program.display());
    program
}

/// Addresses that were free a moment ago.
fn free_urls() -> [String; 2] {
    let listeners = [(), ()].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    listeners.map(|listener| format!("http://{}", listener.local_addr().unwrap()))
}

impl Processes {
    pub(crate) async fn start() -> Option<Self> {
        let etcd = etcd_program()?;
        let folder = tempfile::tempdir().unwrap();
        let [client, peer] = free_urls();
        let strings = |flags: &[&str]| flags.iter().map(|flag| (*flag).to_owned()).collect::<Vec<_>>();
        let etcd_data = folder.path().join("etcd").display().to_string();
        let cluster = format!("node={peer}");
        let etcd_flags = [
            ("--name", "node"),
            ("--data-dir", &etcd_data),
            ("--listen-client-urls", &client),
            ("--advertise-client-urls", &client),
            ("--listen-peer-urls", &peer),
            ("--initial-advertise-peer-urls", &peer),
            ("--initial-cluster", &cluster),
            ("--logger", "zap"),
            ("--log-level", "error"),
        ];
        let etcd_flags = etcd_flags.iter().flat_map(|(flag, value)| [*flag, value]).collect::<Vec<_>>();
        let etcd = Process::start(etcd, strings(&etcd_flags), folder.path().join("etcd.log"));
        let role = |role: Role, number: usize, flags: &[&str]| {
            let common = [
                "--listen",
                "127.0.0.1:0",
                "--admin-listen",
                "127.0.0.1:0",
                "--drain-delay",
                "0s",
                "--etcd",
                &client,
                "--lease-ttl",
                "2s",
            ];
            let log = folder.path().join(format!("{role}-{number}.log"));
            let name = format!("{role}-{number}");
            let own = ["--instance", &name];
            Process::start(program(&role.service_name()), strings(&[&common[..], &own, flags].concat()), log)
        };
        let model = |path: &str| goldens().join(path).display().to_string();
        let (clip, qwen) = (model("clip/trained"), model("qwen/tied"));
        let data = folder.path().join("gallery").display().to_string();
        let objects = folder.path().join("objects");
        std::fs::create_dir(&objects).unwrap();
        let objects = format!("file://{}", objects.display());
        let directory =
            Directory::start(Source::Etcd(Box::new(EtcdConfig::new(vec![Address::parse(&client).unwrap()]))))
                .unwrap();
        let processes = Self {
            gallery: role(Role::Gallery, 0, &["--data", &data]),
            embedding: [0, 1].map(|number| role(Role::Embedding, number, &["--model", &clip])),
            answer: [0, 1, 2]
                .map(|number| role(Role::Answer, number, &["--model", &qwen, "--max-output-tokens", "24"])),
            coordinator: [0, 1].map(|number| {
                role(Role::Coordinator, number, &["--jobs-store", &objects, "--job-queries", "2"])
            }),
            etcd,
            directory,
            _folder: folder,
        };
        processes.all_there().await;
        Some(processes)
    }

    /// Waits until every role has registered.
    pub(crate) async fn all_there(&self) {
        let wanted = [(Role::Gallery, 1), (Role::Embedding, 2), (Role::Answer, 3), (Role::Coordinator, 2)];
        let began = Instant::now();
        let mut members = self.directory.subscribe();
        loop {
            let now = members.borrow_and_update().clone();
            if wanted.iter().all(|(role, count)| now.of(*role).len() == *count) {
                return;
            }
            assert!(began.elapsed() < LIMIT, "{now:?}\n{}", self.said());
            // A timeout is looked at above.
            let _ = tokio::time::timeout(Duration::from_millis(200), members.changed()).await;
        }
    }

    pub(crate) fn said(&self) -> String {
        let all = [&self.etcd, &self.gallery].into_iter().chain(&self.embedding).chain(&self.answer);
        all.chain(&self.coordinator)
            .map(|process| format!("{}:\n{}", process.log.display(), process.said()))
            .collect()
    }

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
        let items: Vec<_> = (0..ITEMS)
            .map(|index| IngestRequest {
                collection: COLLECTION.into(),
                id: format!("item-{index}"),
                image: picture(index).into(),
                ..Default::default()
            })
            .collect();
        let stored = self
            .persistently(async |channel| {
                let mut client = CoordinatorServiceClient::new(channel);
                let mut results = client.ingest(tokio_stream::iter(items.clone())).await?.into_inner();
                let mut stored = 0;
                while let Some(result) = results.message().await? {
                    stored += u8::from(matches!(result.result, Some(ingest_response::Result::Item(_))));
                }
                Ok(stored)
            })
            .await;
        assert_eq!(stored, ITEMS);
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

    async fn searches(&self, count: usize) -> Vec<SearchFinished> {
        let mut found = Vec::with_capacity(count);
        for number in 0..count {
            found.push(self.search(number).await);
        }
        found
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn searches_end_alike_whatever_is_killed_stopped_or_away() {
    let Some(mut processes) = Processes::start().await else { return };
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

    processes.etcd.kill();
    assert_eq!(processes.searches(TEXTS.len()).await, undisturbed, "etcd is away");
    processes.answer[2].kill();
    assert_eq!(
        processes.searches(TEXTS.len()).await,
        undisturbed,
        "an answer role was killed while etcd was away"
    );
    processes.etcd.restart();
    processes.answer[2].restart();
    processes.all_there().await;
    assert_eq!(processes.searches(TEXTS.len()).await, undisturbed, "everything is back");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_that_drains_leaves_the_members_and_ends_with_0() {
    let Some(mut processes) = Processes::start().await else { return };
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
