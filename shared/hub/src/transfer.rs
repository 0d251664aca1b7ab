//! One file from the hub to its place: what came before is gone on with, what came is hashed on the way.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::path::Path;

use ureq::http::{HeaderMap, StatusCode, header};

use crate::client::{Answer, Attempt, Client, cause, unreachable};
use crate::digest::Hasher;
use crate::lock::Lock;
use crate::place::{Slot, Target};
use crate::pull::{Event, refusal};
use crate::url::{Address, encoded};
use crate::{Commit, ContentRange, Digest, HubError, RemoteFile, RepoId};

/// Bytes read at once.
const BUFFER: usize = 256 << 10;

/// What is needed to bring the files of one commit.
#[derive(Debug)]
pub(crate) struct Transfer<'a> {
    pub(crate) client: &'a Client,
    pub(crate) repo: &'a RepoId,
    pub(crate) commit: &'a Commit,
    pub(crate) target: &'a Target,
}

impl Transfer<'_> {
    /// Brings one file to its place; returns whether anything had to be done.
    pub(crate) fn bring(&self, file: &RemoteFile, tell: &mut dyn FnMut(Event<'_>)) -> Result<bool, HubError> {
        let slot = self.target.slot(file);
        let path = file.path.as_str();
        let _lock = Lock::take(&slot.lock, || tell(Event::Waiting { path }))?;
        // Another pull may have brought it while this one waited.
        if self.target.has(file)? {
            tell(Event::Had { bytes: file.size });
            self.target.publish(file)?;
            return Ok(false);
        }
        let mut partial = Partial::open(&slot, file)?;
        tell(Event::Had { bytes: partial.length });
        self.receive_all(file, &mut partial, tell)?;
        partial.publish(&slot, file)?;
        self.target.publish(file)?;
        Ok(true)
    }

    fn receive_all(
        &self,
        file: &RemoteFile,
        partial: &mut Partial,
        tell: &mut dyn FnMut(Event<'_>),
    ) -> Result<(), HubError> {
        let repo = self.repo;
        let path = format!(
            "/{repo}/resolve/{commit}/{file}",
            commit = self.commit,
            file = encoded(file.path.as_str(), true)
        );
        let address = self.client.address(&path)?;
        let retry = self.client.settings().retry;
        let mut failures = 0;
        while partial.length < file.size {
            let before = partial.length;
            match self.receive(&address, file, partial, tell) {
                Ok(()) => {}
                Err(Attempt::Fatal(error)) => return Err(error),
                Err(Attempt::Retry { reason, after }) => {
                    failures = if partial.length > before { 1 } else { failures + 1 };
                    if failures >= retry.attempts {
                        return Err(unreachable(&address, reason, failures));
                    }
                    let pause = retry.pause(failures, after);
                    tell(Event::Retrying { path: file.path.as_str(), reason: &reason, pause });
                    std::thread::sleep(pause);
                }
            }
        }
        Ok(())
    }

    /// One request for what is missing.
    fn receive(
        &self,
        address: &Address,
        file: &RemoteFile,
        partial: &mut Partial,
        tell: &mut dyn FnMut(Event<'_>),
    ) -> Result<(), Attempt> {
        let from = (partial.length > 0).then_some(partial.length);
        let answer = self.client.get(address, from)?;
        self.check_headers(address, file, &answer.first)?;
        match answer.response.status() {
            StatusCode::OK => restart(partial, tell)?,
            StatusCode::PARTIAL_CONTENT => self.check_range(address, file, partial.length, &answer)?,
            StatusCode::RANGE_NOT_SATISFIABLE => {
                restart(partial, tell)?;
                return Err(Attempt::Retry { reason: "the range is refused".to_owned(), after: None });
            }
            status => {
                return Err(refusal(self.client, self.repo, None, address, status, &answer.first).into());
            }
        }
        let mut body = answer.response.into_body().into_reader();
        let mut buffer = vec![0; BUFFER];
        loop {
            let count = match body.read(&mut buffer) {
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(Attempt::Retry { reason: cause(&error), after: None }),
            };
            if count == 0 {
                break;
            }
            if partial.length + count as u64 > file.size {
                partial.remove();
                return Err(self
                    .disagreement(address, format!("more than the listed {} bytes came", file.size))
                    .into());
            }
            partial.append(&buffer[..count])?;
            tell(Event::Received { bytes: count as u64 });
        }
        if partial.length < file.size {
            let reason = format!("the connection ended at byte {} of {}", partial.length, file.size);
            return Err(Attempt::Retry { reason, after: None });
        }
        Ok(())
    }

    /// What the hub says of the file, before gigabytes of something else are received.
    fn check_headers(
        &self,
        address: &Address,
        file: &RemoteFile,
        headers: &HeaderMap,
    ) -> Result<(), HubError> {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        if let Some(commit) = text("x-repo-commit").filter(|commit| *commit != self.commit.as_str()) {
            return Err(self
                .disagreement(address, format!("the file is of commit {commit:?}, not of {}", self.commit)));
        }
        let tag = text("x-linked-etag").or_else(|| text("etag")).and_then(Digest::from_etag);
        // An ETag of another kind says nothing about the content.
        let same_kind = |tag: &Digest| tag.hex().len() == file.digest.hex().len();
        if let Some(tag) = tag.filter(same_kind).filter(|tag| *tag != file.digest) {
            return Err(self.disagreement(address, format!("the file is {tag}, listed as {}", file.digest)));
        }
        let size = text("x-linked-size").and_then(|size| size.parse::<u64>().ok());
        if let Some(size) = size.filter(|size| *size != file.size) {
            return Err(
                self.disagreement(address, format!("the file has {size} bytes, {} are listed", file.size))
            );
        }
        Ok(())
    }

    fn check_range(
        &self,
        address: &Address,
        file: &RemoteFile,
        from: u64,
        answer: &Answer,
    ) -> Result<(), HubError> {
        let header = answer.response.headers().get(header::CONTENT_RANGE);
        let header = header.and_then(|value| value.to_str().ok()).unwrap_or_default();
        let fits = ContentRange::parse(header)
            .is_some_and(|range| range.first == from && range.total.is_none_or(|total| total == file.size));
        if fits {
            return Ok(());
        }
        Err(self.disagreement(address, format!("asked for bytes from {from}, got Content-Range {header:?}")))
    }

    fn disagreement(&self, address: &Address, reason: String) -> HubError {
        HubError::Answer { url: address.shown().to_owned(), reason }
    }
}

fn restart(partial: &mut Partial, tell: &mut dyn FnMut(Event<'_>)) -> Result<(), HubError> {
    if partial.length > 0 {
        tell(Event::Lost { bytes: partial.length });
        partial.clear()?;
    }
    Ok(())
}

/// What has come of a file, and its digest so far.
#[derive(Debug)]
struct Partial {
    file: File,
    path: std::path::PathBuf,
    length: u64,
    hasher: Hasher,
    fresh: Hasher,
}

impl Partial {
    /// Goes on with what an earlier pull left; what is longer than the file is not its beginning.
    fn open(slot: &Slot, remote: &RemoteFile) -> Result<Self, HubError> {
        let path = slot.partial.clone();
        let failed = |error: std::io::Error| HubError::file(&slot.partial, &error);
        for folder in [&slot.partial, &slot.content].into_iter().filter_map(|path| path.parent()) {
            fs::create_dir_all(folder).map_err(|error| HubError::file(folder, &error))?;
        }
        let mut file = OpenOptions::new().create(true).read(true).append(true).open(&path).map_err(failed)?;
        let fresh = remote.digest.hasher(remote.size);
        let mut hasher = fresh.clone();
        let length = file.metadata().map_err(failed)?.len();
        let mut partial =
            Self { length, fresh, hasher: hasher.clone(), path, file: file.try_clone().map_err(failed)? };
        if length > remote.size {
            partial.clear()?;
            return Ok(partial);
        }
        hash(&mut file, &mut hasher).map_err(failed)?;
        partial.hasher = hasher;
        Ok(partial)
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), HubError> {
        self.file.write_all(bytes).map_err(|error| HubError::file(&self.path, &error))?;
        self.hasher.update(bytes);
        self.length += bytes.len() as u64;
        Ok(())
    }

    fn clear(&mut self) -> Result<(), HubError> {
        self.file.set_len(0).map_err(|error| HubError::file(&self.path, &error))?;
        self.hasher = self.fresh.clone();
        self.length = 0;
        Ok(())
    }

    fn remove(&self) {
        let _ = fs::remove_file(&self.path);
    }

    /// Gives the whole content its name, if it is what it must be.
    fn publish(self, slot: &Slot, remote: &RemoteFile) -> Result<(), HubError> {
        let actual = self.hasher.clone().finish();
        if actual != remote.digest {
            self.remove();
            return Err(HubError::Checksum {
                path: remote.path.to_string(),
                expected: remote.digest.to_string(),
                actual: actual.to_string(),
            });
        }
        self.file.sync_data().map_err(|error| HubError::file(&self.path, &error))?;
        fs::rename(&self.path, &slot.content).map_err(|error| HubError::file(&slot.content, &error))
    }
}

fn hash(file: &mut File, hasher: &mut Hasher) -> std::io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => hasher.update(&buffer[..count]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// The digest of a file on disk, of the kind that `like` is.
pub(crate) fn digest_of_file(path: &Path, like: &Digest, size: u64) -> Result<Digest, HubError> {
    let failed = |error: std::io::Error| HubError::file(path, &error);
    let mut hasher = like.hasher(size);
    hash(&mut File::open(path).map_err(failed)?, &mut hasher).map_err(failed)?;
    Ok(hasher.finish())
}
