//! A repository on a local port: a folder's files, all in large-file storage, sent without a redirect.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::json;
use sha2::{Digest, Sha256};

pub(super) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
pub(super) const REPO: &str = "someone/tiny";

#[derive(Debug)]
pub(super) struct Hub {
    pub(super) endpoint: String,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    files: Vec<(String, Vec<u8>)>,
    /// Answers with content that stop half-way and then stay silent.
    stalls: AtomicUsize,
    /// Answers with content so far.
    contents: AtomicUsize,
    /// Status of every answer of the API, where it is not to work.
    status: Option<u16>,
}

impl Hub {
    pub(super) fn of(folder: &Path) -> Self {
        Self::with(folder, 0, None)
    }

    pub(super) fn stalling(folder: &Path) -> Self {
        Self::with(folder, 1, None)
    }

    pub(super) fn refusing(folder: &Path, status: u16) -> Self {
        Self::with(folder, 0, Some(status))
    }

    fn with(folder: &Path, stalls: usize, status: Option<u16>) -> Self {
        let files = std::fs::read_dir(folder).unwrap().map(|entry| {
            let path = entry.unwrap().path();
            (path.file_name().unwrap().to_str().unwrap().to_owned(), std::fs::read(&path).unwrap())
        });
        let shared = Arc::new(Shared {
            files: files.collect(),
            stalls: AtomicUsize::new(stalls),
            contents: AtomicUsize::new(0),
            status,
        });
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let served = Arc::clone(&shared);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let served = Arc::clone(&served);
                std::thread::spawn(move || _ = answer(stream.unwrap(), &served));
            }
        });
        Self { endpoint, shared }
    }

    /// How many answers had content of a file.
    pub(super) fn contents(&self) -> usize {
        self.shared.contents.load(Ordering::SeqCst)
    }
}

fn answer(mut stream: TcpStream, shared: &Shared) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let target = lines.next().unwrap()?.split(' ').nth(1).unwrap_or_default().to_owned();
    let mut from = 0;
    for line in lines {
        let line = line?.to_ascii_lowercase();
        if line.is_empty() {
            break;
        }
        if let Some(range) = line.strip_prefix("range: bytes=") {
            from = range.trim_end_matches('-').parse().unwrap();
        }
    }
    let mut send = |status: u16, headers: &str, body: &[u8], sent: usize| {
        let length = body.len();
        let head =
            format!("HTTP/1.1 {status} X\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n");
        stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body[..sent]))
    };
    if let Some(status) = shared.status {
        return send(status, "X-Error-Code: GatedRepo\r\n", b"", 0);
    }
    let content = target.strip_prefix(&format!("/{REPO}/resolve/{COMMIT}/"));
    if let Some((_, bytes)) = content.and_then(|name| shared.files.iter().find(|(known, _)| known == name)) {
        shared.contents.fetch_add(1, Ordering::SeqCst);
        let rest = &bytes[from..];
        let headers = match from {
            0 => String::new(),
            from => format!("Content-Range: bytes {from}-{}/{}\r\n", bytes.len() - 1, bytes.len()),
        };
        let status = if from == 0 { 200 } else { 206 };
        let stalls = |left: usize| (bytes.len() > 100_000).then(|| left.checked_sub(1)).flatten();
        if shared.stalls.fetch_update(Ordering::SeqCst, Ordering::SeqCst, stalls).is_ok() {
            send(status, &headers, rest, rest.len() / 2)?;
            std::thread::sleep(Duration::from_secs(60));
            return Ok(());
        }
        return send(status, &headers, rest, rest.len());
    }
    let body = if target == format!("/api/models/{REPO}/revision/main") {
        json!({ "sha": COMMIT })
    } else if target.starts_with(&format!("/api/models/{REPO}/tree/{COMMIT}")) {
        shared.files.iter().map(|(name, bytes)| entry(name, bytes)).collect()
    } else {
        return send(404, "X-Error-Code: RepoNotFound\r\n", b"", 0);
    };
    let body = body.to_string();
    send(200, "", body.as_bytes(), body.len())
}

fn entry(name: &str, bytes: &[u8]) -> serde_json::Value {
    let hash: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    let lfs = json!({"oid": hash, "size": bytes.len(), "pointerSize": 134});
    json!({"type": "file", "path": name, "size": bytes.len(), "oid": "0".repeat(40), "lfs": lfs})
}
