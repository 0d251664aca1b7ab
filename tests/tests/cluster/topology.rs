//! A cluster of real processes that find each other through etcd, and the ways between them.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use thicket_discovery::{Directory, InstanceId, Source};
use thicket_runtime::Role;
use thicket_tests::goldens;
use tonic::transport::Channel;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::etcd::{self, Etcd};
use crate::process::{Process, program};
use crate::proxy::Proxy;

/// Long enough for any machine; nothing waits for its end.
pub(crate) const LIMIT: Duration = Duration::from_secs(90);
/// A free port of this machine.
const ANY: &str = "127.0.0.1:0";

/// How much there is beside two coordinators, two embedding roles, three answer roles and a gallery.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Layout {
    etcd: usize,
    read_replicas: usize,
    /// Whether part of it is reached by ways that can be cut.
    ways: bool,
    /// The sample's trained models instead of tiny ones with random weights.
    sample: bool,
}

impl Layout {
    pub(crate) const SMALL: Self = Self { etcd: 1, read_replicas: 0, ways: false, sample: false };
    pub(crate) const GALLERIES: Self = Self { etcd: 1, read_replicas: 2, ways: false, sample: false };
    pub(crate) const WHOLE: Self = Self { etcd: 3, read_replicas: 2, ways: true, sample: true };
}

/// Ways that are cut and mended together.
#[derive(Default)]
pub(crate) struct Ways(Vec<Proxy>);

impl Ways {
    /// A way to `http://host:port`, in the same form.
    async fn lead_to(&mut self, url: &str) -> String {
        let way = Proxy::to(url).await;
        let address = way.address.to_string();
        self.0.push(way);
        address
    }

    /// Ways to each of several, separated by commas.
    async fn lead_to_all(&mut self, urls: &[String]) -> String {
        let mut addresses = Vec::with_capacity(urls.len());
        for url in urls {
            addresses.push(self.lead_to(url).await);
        }
        addresses.join(",")
    }

    pub(crate) fn fall_silent(&self) {
        self.0.iter().for_each(Proxy::fall_silent);
    }

    pub(crate) fn mend(&self) {
        self.0.iter().for_each(Proxy::mend);
    }
}

/// The processes. Each has an instance name of its role and its number.
pub(crate) struct Processes {
    pub(crate) etcd: Etcd,
    /// The one that takes writes.
    pub(crate) gallery: Process,
    /// Number 1 and on among the galleries.
    pub(crate) read_replicas: Vec<Process>,
    pub(crate) embedding: Vec<Process>,
    pub(crate) answer: Vec<Process>,
    pub(crate) coordinator: Vec<Process>,
    /// All ways between the far side and the rest, etcd included: the last read replica, embedding role and answer role.
    pub(crate) far_side: Ways,
    /// The ways from the last coordinator to etcd.
    pub(crate) last_coordinator: Ways,
    pub(crate) directory: Directory,
    _folder: TempDir,
}

/// Where a role is started: how it reaches etcd, and how others reach it.
struct Side<'a> {
    folder: &'a Path,
    etcd: String,
    /// `None` where others reach a role at the address that it listens on.
    ways: Option<&'a mut Ways>,
}

impl Side<'_> {
    async fn start(&mut self, role: Role, number: usize, own: &[&str]) -> Process {
        let listen = match self.ways {
            Some(_) => etcd::url("http"),
            None => format!("http://{ANY}"),
        };
        self.start_at(&listen, role, number, own).await
    }

    async fn start_at(&mut self, url: &str, role: Role, number: usize, own: &[&str]) -> Process {
        let name = format!("{role}-{number}");
        let mut flags = vec!["--listen", url.trim_start_matches("http://"), "--admin-listen", ANY];
        flags.extend(["--drain-delay", "0s", "--lease-ttl", "2s", "--etcd", &self.etcd, "--instance", &name]);
        let advertised = match &mut self.ways {
            Some(ways) => Some(ways.lead_to(url).await),
            None => None,
        };
        flags.extend(advertised.iter().flat_map(|address| ["--advertise", address]));
        flags.extend(own);
        let flags = flags.into_iter().map(str::to_owned).collect();
        Process::start(program(&role.service_name()), flags, self.folder.join(format!("{name}.log")))
    }
}

/// The folder of the models that come with the sources.
pub(crate) fn sample_models() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../models")
}

impl Processes {
    /// Starts everything and waits until it is there; `None` on a machine that may do without etcd.
    pub(crate) async fn start(layout: Layout) -> Option<Self> {
        let etcd = Etcd::cluster(layout.etcd).await?;
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).display().to_string();
        let urls: Vec<String> = etcd.nodes.iter().map(|node| node.url.clone()).collect();
        let (mut far_side, mut last_coordinator) = (Ways::default(), Ways::default());
        let (embedding_model, answer_model) = match layout.sample {
            true => (sample_models().join("sample-embedding"), sample_models().join("sample-answer")),
            false => (goldens().join("clip/trained"), goldens().join("qwen/tied")),
        };
        let (embedding_model, answer_model) =
            (embedding_model.display().to_string(), answer_model.display().to_string());
        let embedding_flags = ["--model", &embedding_model];
        let mut answer_flags = vec!["--model", &answer_model];
        if !layout.sample {
            // They never come to an end by themselves.
            answer_flags.extend(["--max-output-tokens", "24"]);
        }
        let objects = path("objects");
        std::fs::create_dir(&objects).unwrap();
        let objects = format!("file://{objects}");
        let coordinator_flags = ["--jobs-store", &objects, "--job-queries", "2"];

        let mut near = Side { folder: folder.path(), etcd: urls.join(","), ways: None };
        // The replicas are told where it is, so it comes back to where it was.
        let writer = etcd::url("http");
        let gallery = near.start_at(&writer, Role::Gallery, 0, &["--data", &path("gallery-0")]).await;
        let (mut read_replicas, mut embedding, mut answer, mut coordinator) =
            (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        // The last of each kind stands elsewhere.
        let last = usize::from(layout.ways);
        for number in 1..=layout.read_replicas - last {
            let data = path(&format!("gallery-{number}"));
            let flags = ["--data", &data, "--follow", &writer];
            read_replicas.push(near.start(Role::Gallery, number, &flags).await);
        }
        for number in 0..2 - last {
            embedding.push(near.start(Role::Embedding, number, &embedding_flags).await);
        }
        for number in 0..3 - last {
            answer.push(near.start(Role::Answer, number, &answer_flags).await);
        }
        for number in 0..2 - last {
            coordinator.push(near.start(Role::Coordinator, number, &coordinator_flags).await);
        }
        if layout.ways {
            let etcd = last_coordinator.lead_to_all(&urls).await;
            let mut lonely = Side { folder: folder.path(), etcd, ways: None };
            coordinator.push(lonely.start(Role::Coordinator, 1, &coordinator_flags).await);

            let (etcd, writer) = (far_side.lead_to_all(&urls).await, far_side.lead_to(&writer).await);
            let mut far = Side { folder: folder.path(), etcd, ways: Some(&mut far_side) };
            let data = path(&format!("gallery-{}", layout.read_replicas));
            let flags = ["--data", &data, "--follow", &writer];
            read_replicas.push(far.start(Role::Gallery, layout.read_replicas, &flags).await);
            embedding.push(far.start(Role::Embedding, 1, &embedding_flags).await);
            answer.push(far.start(Role::Answer, 2, &answer_flags).await);
        }
        let directory = Directory::start(Source::Etcd(Box::new(etcd.config()))).unwrap();
        let processes = Self {
            etcd,
            gallery,
            read_replicas,
            embedding,
            answer,
            coordinator,
            far_side,
            last_coordinator,
            directory,
            _folder: folder,
        };
        processes.all_serve().await;
        Some(processes)
    }

    /// Waits until every role has registered.
    pub(crate) async fn all_there(&self) {
        let wanted = self.wanted();
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

    fn wanted(&self) -> [(Role, usize); 4] {
        [
            (Role::Gallery, 1 + self.read_replicas.len()),
            (Role::Embedding, self.embedding.len()),
            (Role::Answer, self.answer.len()),
            (Role::Coordinator, self.coordinator.len()),
        ]
    }

    /// Waits until every role has registered and says that it serves.
    pub(crate) async fn all_serve(&self) {
        self.all_there().await;
        for (role, count) in self.wanted() {
            for number in 0..count {
                self.serves(role, number).await;
            }
        }
    }

    /// Waits until a role is found and says that it serves.
    pub(crate) async fn serves(&self, role: Role, number: usize) {
        let instance = InstanceId::new(&format!("{role}-{number}")).unwrap();
        let waiting = async {
            loop {
                let member = self.directory.members().get(role, &instance).cloned();
                if let Some(member) = member
                    && says_that_it_serves(&member.address.to_string()).await
                {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let waited = tokio::time::timeout(LIMIT, waiting).await;
        assert!(waited.is_ok(), "{instance} does not serve\n{}", self.said());
    }

    /// The node of etcd that leads the others.
    pub(crate) async fn etcd_leader(&self) -> usize {
        let began = Instant::now();
        loop {
            for (number, node) in self.etcd.nodes.iter().enumerate() {
                let Ok(mut client) = etcd_client::Client::connect([&node.url], None).await else { continue };
                let Ok(status) = client.status().await else { continue };
                if status.header().is_some_and(|header| header.member_id() == status.leader()) {
                    return number;
                }
            }
            assert!(began.elapsed() < LIMIT, "etcd has no leader\n{}", self.said());
        }
    }

    pub(crate) fn process(&mut self, role: Role, number: usize) -> &mut Process {
        match (role, number) {
            (Role::Gallery, 0) => &mut self.gallery,
            (Role::Gallery, _) => &mut self.read_replicas[number - 1],
            (Role::Embedding, _) => &mut self.embedding[number],
            (Role::Answer, _) => &mut self.answer[number],
            (Role::Coordinator, _) => &mut self.coordinator[number],
        }
    }

    pub(crate) fn said(&self) -> String {
        let etcd = self.etcd.nodes.iter().map(|node| format!("etcd at {}:\n{}", node.url, node.said()));
        let roles = std::iter::once(&self.gallery).chain(&self.read_replicas).chain(&self.embedding);
        let roles = roles.chain(&self.answer).chain(&self.coordinator);
        etcd.chain(roles.map(|process| format!("{}:\n{}", process.log.display(), process.said()))).collect()
    }
}

pub(crate) async fn says_that_it_serves(address: &str) -> bool {
    let check = async {
        let channel = Channel::from_shared(address.to_owned()).unwrap().connect().await.ok()?;
        let status = HealthClient::new(channel).check(HealthCheckRequest::default()).await.ok()?;
        Some(status.into_inner().status() == ServingStatus::Serving)
    };
    let checked = tokio::time::timeout(Duration::from_secs(1), check).await;
    matches!(checked, Ok(Some(true)))
}
