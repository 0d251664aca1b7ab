//! Starts a Milvus for a test and ends exactly what it started, however the test ends.

use std::io::{BufRead, BufReader};
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};

use tempfile::TempDir;

/// How milvus-lite is started, or None on a machine that may do without: by the Python that `THICKET_TEST_MILVUS` names, or
/// as a program on the PATH.
fn command() -> Option<Command> {
    let setting = std::env::var_os("THICKET_TEST_MILVUS");
    let required = setting.as_ref().is_some_and(|value| value == "required");
    if let Some(python) = setting.filter(|_| !required) {
        let mut command = Command::new(python);
        command.args(["-m", "milvus_lite", "server"]);
        return Some(command);
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found: Option<PathBuf> =
        std::env::split_paths(&path).map(|folder| folder.join("milvus-lite")).find(|file| file.is_file());
    assert!(found.is_some() || !required, "milvus-lite is not on the PATH: pip install milvus-lite pymilvus");
    if found.is_none() {
        eprintln!("not checked: THICKET_TEST_MILVUS names no Python with milvus-lite");
    }
    let mut command = Command::new(found?);
    command.arg("server");
    Some(command)
}

/// A Milvus on loopback. It keeps its address and its data over restarts.
pub(crate) struct Milvus {
    folder: TempDir,
    ip: Ipv4Addr,
    port: u16,
    child: Option<Child>,
}

impl Milvus {
    pub(crate) fn start() -> Option<Self> {
        static NEXT: AtomicU16 = AtomicU16::new(21_000);
        command()?;
        // An address of loopback that no other test process uses: a process id has 22 bits at most.
        let [_, a, b, c] = (std::process::id() << 2 | 2).to_be_bytes();
        let mut milvus = Self {
            folder: tempfile::tempdir().unwrap(),
            ip: Ipv4Addr::new(127, a, b, c),
            port: NEXT.fetch_add(1, Ordering::Relaxed),
            child: None,
        };
        milvus.go_on();
        Some(milvus)
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}:{}", self.ip, self.port)
    }

    /// Starts it again.
    pub(crate) fn go_on(&mut self) {
        let mut child = command()
            .unwrap()
            .arg("--data-dir")
            .arg(self.folder.path())
            .args(["--host", &self.ip.to_string(), "--port", &self.port.to_string()])
            .env("PYTHONUNBUFFERED", "1")
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let listens = lines.by_ref().map_while(Result::ok).any(|line| line.contains("listening on"));
        self.child = Some(child);
        assert!(listens, "milvus-lite ended before it listened");
        // A pipe that nobody reads would stop it.
        std::thread::spawn(move || lines.for_each(drop));
    }

    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Drop for Milvus {
    fn drop(&mut self) {
        self.kill();
    }
}
