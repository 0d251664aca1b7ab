//! A hub and its content network on two local ports, with faults to order.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use sha1::Sha1;
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;
use thicket_hub::{Event, Hub, HubError, Place, Pulled, RemoteFile, Request, Retry, Settings, Token};

pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
pub(crate) const REPO: &str = "Owner/small-model";

/// One file of the repository.
#[derive(Debug, Clone)]
pub(crate) struct Content {
    pub(crate) bytes: Vec<u8>,
    /// In large-file storage, so that the hub redirects to its content network.
    pub(crate) large: bool,
}

impl Content {
    pub(crate) fn digest(&self) -> String {
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        if self.large {
            return hex(&Sha256::digest(&self.bytes));
        }
        let mut hasher = Sha1::new();
        hasher.update(format!("blob {}\0", self.bytes.len()));
        hasher.update(&self.bytes);
        hex(&hasher.finalize())
    }
}

/// What goes wrong with one answer to a request for a file's content.
#[derive(Debug, Clone)]
pub(crate) enum Fault {
    /// The connection is cut after so many bytes of the body.
    Cut(usize),
    /// The server answers with this status.
    Status(u16),
    /// The server answers a range with the whole file.
    Whole,
    /// The server's range begins elsewhere.
    OtherRange,
    /// The bytes are those of another content.
    Bytes(Vec<u8>),
    /// Another file is announced.
    Etag(String),
    /// The file is of another commit.
    Commit(String),
    /// The redirect leads to this address.
    Redirect(String),
    /// Nothing is said for a while, then the connection is closed.
    Silence(Duration),
}

/// A request as the server saw it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    /// `hub` or `cdn`.
    pub(crate) host: &'static str,
    pub(crate) target: String,
    pub(crate) authorization: Option<String>,
    pub(crate) range: Option<String>,
}

#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) files: BTreeMap<String, Content>,
    /// Faults of the hub's answers to requests for content, in order.
    pub(crate) hub_faults: VecDeque<Fault>,
    /// Faults of the content network's answers, in order.
    pub(crate) cdn_faults: VecDeque<Fault>,
    /// Answers of the API before it works: status and error code.
    pub(crate) api_refusals: VecDeque<(u16, &'static str)>,
    /// Entries in a page of the listing.
    pub(crate) page: usize,
    /// Listing that is sent instead of the true one.
    pub(crate) listing: Option<String>,
    pub(crate) seen: Vec<Seen>,
    cdn: String,
    hub: String,
}

/// The server; its threads end with the test's process.
#[derive(Debug)]
pub(crate) struct FakeHub {
    state: Arc<Mutex<State>>,
    pub(crate) folder: TempDir,
}

impl FakeHub {
    /// A repository with a small and a large file and one that nobody wants.
    pub(crate) fn new() -> Self {
        let hub = TcpListener::bind("127.0.0.1:0").unwrap();
        let cdn = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = |listener: &TcpListener| format!("http://{}", listener.local_addr().unwrap());
        let state = State { cdn: address(&cdn), hub: address(&hub), page: 100, ..State::default() };
        let state = Arc::new(Mutex::new(state));
        serve(hub, "hub", Arc::clone(&state));
        serve(cdn, "cdn", Arc::clone(&state));
        let fake = Self { state, folder: tempfile::tempdir().unwrap() };
        fake.put("config.json", b"{\"a\": 1}\n", false);
        fake.put("nested/model.safetensors", &noise(300_000), true);
        fake.put("README.md", b"# A model\n", false);
        fake
    }

    pub(crate) fn put(&self, path: &str, bytes: &[u8], large: bool) {
        self.state().files.insert(path.to_owned(), Content { bytes: bytes.to_vec(), large });
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub(crate) fn content(&self, path: &str) -> Content {
        self.state().files[path].clone()
    }

    pub(crate) fn cache(&self) -> PathBuf {
        self.folder.path().join("hub")
    }

    pub(crate) fn repository(&self) -> PathBuf {
        self.cache().join("models--Owner--small-model")
    }

    pub(crate) fn settings(&self) -> Settings {
        let pause = Duration::from_millis(1);
        Settings {
            endpoint: self.state().hub.clone(),
            token: Token::new("hf_secret"),
            cache: self.cache(),
            offline: false,
            idle: Duration::from_secs(5),
            retry: Retry { attempts: 3, first_pause: pause, longest_pause: pause },
        }
    }

    pub(crate) fn pull_to(&self, place: Place, revision: &str) -> Result<Pulled, HubError> {
        pull_with(self.settings(), place, revision, &mut |_| {})
    }

    pub(crate) fn pull(&self) -> Result<Pulled, HubError> {
        self.pull_to(Place::Cache, "main")
    }

    /// The requests for content that the content network saw.
    pub(crate) fn cdn_requests(&self) -> Vec<Seen> {
        self.state().seen.iter().filter(|seen| seen.host == "cdn").cloned().collect()
    }

    pub(crate) fn partials(&self) -> Vec<PathBuf> {
        walk(self.folder.path())
            .into_iter()
            .filter(|path| path.to_string_lossy().ends_with(".incomplete"))
            .collect()
    }
}

pub(crate) fn pull_with(
    settings: Settings,
    place: Place,
    revision: &str,
    tell: &mut dyn FnMut(Event<'_>),
) -> Result<Pulled, HubError> {
    let request = Request { repo: REPO.parse().unwrap(), revision: revision.parse()?, place };
    Hub::new(settings)?.pull(&request, wanted, tell)
}

fn wanted(files: Vec<RemoteFile>) -> Result<Vec<RemoteFile>, String> {
    let wanted: Vec<_> = files.into_iter().filter(|file| !file.path.as_str().ends_with(".md")).collect();
    if wanted.is_empty() { Err("no weights".to_owned()) } else { Ok(wanted) }
}

/// All files below a folder.
pub(crate) fn walk(folder: &std::path::Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.is_symlink() { found.extend(walk(&path)) } else { found.push(path) }
    }
    found
}

/// Bytes that do not repeat.
pub(crate) fn noise(count: usize) -> Vec<u8> {
    let mut state = 7u64;
    (0..count)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        })
        .collect()
}

fn serve(listener: TcpListener, host: &'static str, state: Arc<Mutex<State>>) {
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let state = Arc::clone(&state);
            std::thread::spawn(move || {
                let _ = answer(stream.unwrap(), host, &state);
            });
        }
    });
}

struct Reply {
    status: u16,
    headers: String,
    body: Vec<u8>,
    cut: Option<usize>,
}

impl Reply {
    fn new(status: u16, headers: String, body: Vec<u8>) -> Self {
        Self { status, headers, body, cut: None }
    }
}

fn answer(mut stream: TcpStream, host: &'static str, state: &Mutex<State>) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let request = lines.next().transpose()?.unwrap_or_default();
    let target = request.split(' ').nth(1).unwrap_or_default().to_owned();
    let mut seen = Seen { host, target, authorization: None, range: None };
    for line in lines {
        let line = line?;
        let Some((name, value)) = line.split_once(": ") else { break };
        match name.to_ascii_lowercase().as_str() {
            "authorization" => seen.authorization = Some(value.to_owned()),
            "range" => seen.range = Some(value.to_owned()),
            _ => {}
        }
    }
    let fault = {
        let mut state = state.lock().unwrap();
        state.seen.push(seen.clone());
        if host == "cdn" {
            state.cdn_faults.pop_front()
        } else if seen.target.contains("/resolve/") {
            state.hub_faults.pop_front()
        } else {
            None
        }
    };
    if let Some(Fault::Silence(time)) = fault {
        std::thread::sleep(time);
        return Ok(());
    }
    let reply = {
        let mut state = state.lock().unwrap();
        if host == "cdn" || seen.target.contains("/resolve/") {
            content(&state, &seen, fault)
        } else {
            api(&mut state, &seen)
        }
    };
    let head = format!(
        "HTTP/1.1 {} X\r\nConnection: close\r\nContent-Length: {}\r\n{}\r\n",
        reply.status,
        reply.body.len(),
        reply.headers
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(&reply.body[..reply.cut.unwrap_or(reply.body.len()).min(reply.body.len())])
}

fn api(state: &mut State, seen: &Seen) -> Reply {
    if let Some((status, code)) = state.api_refusals.pop_front() {
        let code = if code.is_empty() { String::new() } else { format!("X-Error-Code: {code}\r\n") };
        return Reply::new(status, code, b"{\"error\":\"no\"}".to_vec());
    }
    let path = seen.target.split('?').next().unwrap_or_default();
    let Some(rest) = path.strip_prefix(&format!("/api/models/{REPO}/")) else {
        return Reply::new(404, "X-Error-Code: RepoNotFound\r\n".to_owned(), Vec::new());
    };
    if let Some(revision) = rest.strip_prefix("revision/") {
        if !["main", "refs%2Fpr%2F1", COMMIT].contains(&revision) {
            return Reply::new(404, "X-Error-Code: RevisionNotFound\r\n".to_owned(), Vec::new());
        }
        return Reply::new(
            200,
            String::new(),
            format!("{{\"id\":\"{REPO}\",\"sha\":\"{COMMIT}\"}}").into_bytes(),
        );
    }
    if let Some(listing) = &state.listing {
        return Reply::new(200, String::new(), listing.clone().into_bytes());
    }
    let skip: usize = seen.target.split("cursor=").nth(1).and_then(|value| value.parse().ok()).unwrap_or(0);
    let page: Vec<serde_json::Value> =
        state.files.iter().skip(skip).take(state.page).map(|(path, content)| entry(path, content)).collect();
    let next = skip + page.len();
    let link = if next < state.files.len() {
        format!("Link: <{}{path}?recursive=true&cursor={next}>; rel=\"next\"\r\n", state.hub)
    } else {
        String::new()
    };
    Reply::new(200, link, serde_json::to_vec(&page).unwrap())
}

fn entry(path: &str, content: &Content) -> serde_json::Value {
    let size = content.bytes.len();
    let mut entry = serde_json::json!({"type": "file", "path": path, "size": size, "oid": content.digest()});
    if content.large {
        entry["oid"] = "f".repeat(40).into();
        entry["lfs"] = serde_json::json!({"oid": content.digest(), "size": size, "pointerSize": 134});
    }
    entry
}

fn content(state: &State, seen: &Seen, fault: Option<Fault>) -> Reply {
    let path = match seen.host {
        "cdn" => seen.target.trim_start_matches('/').split('?').next().unwrap_or_default().to_owned(),
        _ => seen.target.trim_start_matches(&format!("/{REPO}/resolve/{COMMIT}/")).to_owned(),
    };
    let Some(file) = state.files.get(&path) else {
        return Reply::new(404, "X-Error-Code: EntryNotFound\r\n".to_owned(), Vec::new());
    };
    let mut headers = String::new();
    let mut etag = file.digest();
    let mut commit = COMMIT.to_owned();
    match &fault {
        Some(Fault::Status(status)) => {
            return Reply::new(*status, "X-Error-Code: GatedRepo\r\n".to_owned(), Vec::new());
        }
        Some(Fault::Etag(other)) => etag.clone_from(other),
        Some(Fault::Commit(other)) => commit.clone_from(other),
        _ => {}
    }
    if seen.host == "hub" {
        let _ = write!(headers, "X-Repo-Commit: {commit}\r\nETag: \"{etag}\"\r\n");
        if file.large {
            let size = file.bytes.len();
            let location = match fault {
                Some(Fault::Redirect(location)) => location,
                _ => format!("{}/{path}?Signature=signed", state.cdn),
            };
            let _ = write!(
                headers,
                "X-Linked-Etag: \"{etag}\"\r\nX-Linked-Size: {size}\r\nLocation: {location}\r\n"
            );
            return Reply::new(302, headers, Vec::new());
        }
    }
    let bytes = match &fault {
        Some(Fault::Bytes(other)) => other,
        _ => &file.bytes,
    };
    let from =
        seen.range.as_ref().and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
    let mut reply = match (from, &fault) {
        (None, _) | (_, Some(Fault::Whole)) => Reply::new(200, headers, bytes.clone()),
        (Some(from), _) if from >= bytes.len() => Reply::new(416, headers, Vec::new()),
        (Some(from), _) => {
            let first = if matches!(fault, Some(Fault::OtherRange)) { from - 1 } else { from };
            let _ = write!(headers, "Content-Range: bytes {first}-{}/{}\r\n", bytes.len() - 1, bytes.len());
            Reply::new(206, headers, bytes[first..].to_vec())
        }
    };
    if let Some(Fault::Cut(after)) = fault {
        reply.cut = Some(after);
    }
    reply
}
