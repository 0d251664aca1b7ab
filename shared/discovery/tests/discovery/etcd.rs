//! Starts etcd for a test and ends exactly what it started, however the test ends.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use etcd_client::Client;
use tempfile::TempDir;
use thicket_discovery::{Address, EtcdConfig, Timing};

use crate::support::{DEADLINE, eventually};

/// The program, or None on a machine that may do without.
pub(crate) fn program() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|folder| folder.join("etcd")).find(|file| file.is_file());
    if found.is_none() {
        let required = std::env::var_os("THICKET_TEST_ETCD").is_some_and(|value| value == "required");
        assert!(!required, "etcd is not on the PATH: install etcd-server");
        eprintln!("not checked: etcd is not on the PATH");
    }
    found
}

/// A cluster of etcd on loopback.
pub(crate) struct Etcd {
    pub(crate) nodes: Vec<Node>,
}

/// One process of etcd. It keeps its addresses and its data over restarts.
pub(crate) struct Node {
    program: PathBuf,
    folder: TempDir,
    arguments: Vec<String>,
    pub(crate) url: String,
    child: Option<Child>,
}

/// An address of loopback that no other test process uses at the same time.
pub(crate) fn ip() -> Ipv4Addr {
    // A process id has 22 bits at most, and 127.0.0.0/8 leaves 24.
    let [_, a, b, c] = (std::process::id() << 2 | 2).to_be_bytes();
    Ipv4Addr::new(127, a, b, c)
}

/// A port of [`ip`] that no other test of this process uses.
fn port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(20_000);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

impl Etcd {
    /// One node without TLS.
    pub(crate) async fn start() -> Option<Self> {
        Self::cluster(1).await
    }

    /// Several nodes without TLS.
    pub(crate) async fn cluster(count: usize) -> Option<Self> {
        let program = program()?;
        let urls: Vec<_> = (0..count).map(|_| [url("http"), url("http")]).collect();
        let cluster: Vec<_> =
            urls.iter().enumerate().map(|(index, [_, peer])| format!("node{index}={peer}")).collect();
        let nodes = urls.iter().enumerate().map(|(index, [client, peer])| {
            let name = format!("node{index}");
            Node::start(&program, &name, client, peer, &cluster.join(","), &[])
        });
        let etcd = Self { nodes: nodes.collect() };
        for node in &etcd.nodes {
            node.answers().await;
        }
        Some(etcd)
    }

    /// One node with TLS, and more flags.
    pub(crate) fn secured(flags: &[String]) -> Option<Self> {
        let (client, peer) = (url("https"), url("http"));
        let node = Node::start(&program()?, "node0", &client, &peer, &format!("node0={peer}"), flags);
        Some(Self { nodes: vec![node] })
    }

    /// Settings with short times, so that nothing takes long to be noticed.
    pub(crate) fn config(&self) -> EtcdConfig {
        let endpoints = self.nodes.iter().map(|node| Address::parse(&node.url).unwrap()).collect();
        EtcdConfig {
            lease_ttl: Duration::from_secs(2),
            timing: Timing {
                request: Duration::from_secs(1),
                silence: Duration::from_millis(500),
                first_wait: Duration::from_millis(50),
                longest_wait: Duration::from_millis(500),
                goodbye: DEADLINE,
            },
            ..EtcdConfig::new(endpoints)
        }
    }

    pub(crate) async fn client(&self) -> Client {
        Client::connect([&self.nodes[0].url], None).await.unwrap()
    }

    /// The node at an address.
    pub(crate) fn node(&mut self, url: &str) -> &mut Node {
        self.nodes.iter_mut().find(|node| node.url == url).unwrap()
    }
}

/// An address of this process's own where nobody listens yet.
pub(crate) fn url(scheme: &str) -> String {
    format!("{scheme}://{}:{}", ip(), port())
}

impl Node {
    fn start(program: &Path, name: &str, client: &str, peer: &str, cluster: &str, flags: &[String]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data").display().to_string();
        let flag = |name: &str, value: &str| format!("--{name}={value}");
        let mut arguments = vec![
            flag("name", name),
            flag("data-dir", &data),
            flag("listen-client-urls", client),
            flag("advertise-client-urls", client),
            flag("listen-peer-urls", peer),
            flag("initial-advertise-peer-urls", peer),
            flag("initial-cluster", cluster),
            flag("logger", "zap"),
            flag("log-level", "error"),
        ];
        arguments.extend_from_slice(flags);
        let mut node =
            Self { program: program.to_owned(), folder, arguments, url: client.to_owned(), child: None };
        node.restart();
        node
    }

    /// Starts the process again after [`Node::kill`].
    pub(crate) fn restart(&mut self) {
        assert!(self.child.is_none(), "{} runs", self.url);
        let log = std::fs::File::create(self.log()).unwrap();
        let child = Command::new(&self.program)
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.child = Some(child);
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Stops the process without ending it: connections stay open and nothing answers.
    pub(crate) fn pause(&self) {
        self.signal("-STOP");
    }

    pub(crate) fn resume(&self) {
        self.signal("-CONT");
    }

    fn signal(&self, signal: &str) {
        let pid = self.child.as_ref().expect("it runs").id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    }

    /// Waits until the node serves.
    pub(crate) async fn answers(&self) {
        let serves = async || {
            let Ok(mut client) = Client::connect([&self.url], None).await else { return false };
            let answer = tokio::time::timeout(Duration::from_secs(1), client.get("ready", None)).await;
            matches!(answer, Ok(Ok(_)))
        };
        eventually(&format!("etcd at {} serves", self.url), serves, || self.said()).await;
    }

    /// What it wrote to its log since it was started last.
    pub(crate) fn said(&self) -> String {
        std::fs::read_to_string(self.log()).unwrap_or_default()
    }

    fn log(&self) -> PathBuf {
        self.folder.path().join("log")
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
