//! A pull, from a name to a folder that a loader can read.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use ureq::http::{HeaderMap, StatusCode, header};

use crate::client::Client;
use crate::place::Target;
use crate::transfer::Transfer;
use crate::url::{Address, encoded};
use crate::{Commit, Digest, HubError, Place, RemoteFile, RepoId, RepoPath, Revision, Settings, space};
use crate::{commit_of, next_page, snapshot, tree_page};

/// Most pages of a listing, of up to 1000 files each.
const MAX_PAGES: usize = 100;

/// What a pull is about.
#[derive(Debug, Clone)]
pub struct Request {
    /// The repository.
    pub repo: RepoId,
    /// Branch, tag or commit.
    pub revision: Revision,
    /// Where the files go.
    pub place: Place,
}

/// What happens during a pull, for whoever shows it.
#[derive(Debug, Clone, Copy)]
pub enum Event<'a> {
    /// The files are known.
    Planned {
        /// How many.
        files: usize,
        /// Bytes of all of them.
        bytes: u64,
    },
    /// Bytes that were here already.
    Had {
        /// How many.
        bytes: u64,
    },
    /// Bytes came.
    Received {
        /// How many.
        bytes: u64,
    },
    /// The server cannot go on in the middle of a file: what had come of it counts no more.
    Lost {
        /// How many bytes.
        bytes: u64,
    },
    /// Another process is bringing the file.
    Waiting {
        /// The file.
        path: &'a str,
    },
    /// A transfer was cut and goes on after a pause.
    Retrying {
        /// The file.
        path: &'a str,
        /// What happened.
        reason: &'a str,
        /// Until the next attempt.
        pause: Duration,
    },
}

/// A file after a pull.
#[derive(Debug, Clone)]
pub struct PulledFile {
    /// Its path in the repository, and below the folder.
    pub path: RepoPath,
    /// Bytes.
    pub size: u64,
    /// What its content hashes to.
    pub digest: Digest,
    /// False where it was here already.
    pub received: bool,
}

/// What a pull brought.
#[derive(Debug, Clone)]
pub struct Pulled {
    /// What the revision was at the time.
    pub commit: Commit,
    /// The folder with the files.
    pub folder: PathBuf,
    /// The files; empty where the network is switched off and the cache was believed.
    pub files: Vec<PulledFile>,
    /// Whether the hub was asked.
    pub online: bool,
}

/// The hub, or a mirror of it.
#[derive(Debug)]
pub struct Hub {
    client: Client,
}

impl Hub {
    /// A client; nothing is sent yet.
    ///
    /// # Errors
    /// [`HubError::Setting`].
    pub fn new(settings: Settings) -> Result<Self, HubError> {
        Ok(Self { client: Client::new(settings)? })
    }

    /// Brings the files that `choose` picks from those of a revision, and returns where they are.
    ///
    /// `choose` fails with what it missed. With the network switched off, what the cache has of the revision is
    /// returned unchecked.
    ///
    /// # Errors
    /// [`HubError`]; what has arrived stays, and the next pull goes on from there.
    pub fn pull(
        &self,
        request: &Request,
        choose: impl FnOnce(Vec<RemoteFile>) -> Result<Vec<RemoteFile>, String>,
        tell: &mut dyn FnMut(Event<'_>),
    ) -> Result<Pulled, HubError> {
        let Request { repo, revision, place } = request;
        if self.client.settings().offline {
            return self.cached(request);
        }
        let commit = self.resolve(repo, revision)?;
        let files = choose(self.files(repo, &commit)?).map_err(|reason| HubError::NothingToPull {
            repo: repo.to_string(),
            commit: commit.to_string(),
            reason,
        })?;
        tell(Event::Planned { files: files.len(), bytes: files.iter().map(|file| file.size).sum() });
        let target = match place {
            Place::Cache => Target::Cache {
                root: self.client.settings().cache.clone(),
                repo: repo.clone(),
                commit: commit.clone(),
            },
            Place::Folder(root) => Target::Folder { root: root.clone(), commit: commit.clone() },
        };
        let mut here = Vec::with_capacity(files.len());
        for file in &files {
            here.push(target.has(file)?);
        }
        check_space(&target, &files, &here)?;
        let transfer = Transfer { client: &self.client, repo, commit: &commit, target: &target };
        let mut pulled = Vec::with_capacity(files.len());
        for (file, here) in files.into_iter().zip(here) {
            let received = if here {
                tell(Event::Had { bytes: file.size });
                target.publish(&file)?;
                false
            } else {
                transfer.bring(&file, tell)?
            };
            pulled.push(PulledFile { path: file.path, size: file.size, digest: file.digest, received });
        }
        target.finish(revision.as_str())?;
        Ok(Pulled { commit, folder: target.folder(), files: pulled, online: true })
    }

    /// The commit that a revision is now.
    ///
    /// # Errors
    /// [`HubError`].
    pub fn resolve(&self, repo: &RepoId, revision: &Revision) -> Result<Commit, HubError> {
        let path = format!("/api/models/{repo}/revision/{}", encoded(revision.as_str(), false));
        let address = self.client.address(&path)?;
        let (_, json) = self.ask(repo, Some(revision), &address)?;
        let commit = commit_of(&json)
            .map_err(|reason| HubError::Answer { url: address.shown().to_owned(), reason })?;
        let asked: Result<Commit, _> = revision.as_str().parse();
        if asked.is_ok_and(|asked| asked != commit) {
            let reason = format!("commit {revision} was asked for, {commit} is answered");
            return Err(HubError::Answer { url: address.shown().to_owned(), reason });
        }
        Ok(commit)
    }

    /// All files of a commit, by path.
    ///
    /// # Errors
    /// [`HubError`]; [`HubError::UnsafePath`] where any of them has a name that leads out of the repository.
    pub fn files(&self, repo: &RepoId, commit: &Commit) -> Result<Vec<RemoteFile>, HubError> {
        let mut address = self.client.address(&format!("/api/models/{repo}/tree/{commit}?recursive=true"))?;
        let mut files = BTreeMap::new();
        for _ in 0..MAX_PAGES {
            let (headers, json) = self.ask(repo, None, &address)?;
            tree_page(address.shown(), &json, &mut files)?;
            let link = headers.get(header::LINK).and_then(|value| value.to_str().ok());
            let Some(next) = link.and_then(next_page) else {
                return Ok(files.into_values().collect());
            };
            address = address
                .follow(next)
                .map_err(|reason| HubError::Answer { url: address.shown().to_owned(), reason })?;
        }
        let reason = format!("the listing has more than {MAX_PAGES} pages");
        Err(HubError::Answer { url: address.shown().to_owned(), reason })
    }

    fn ask(
        &self,
        repo: &RepoId,
        revision: Option<&Revision>,
        address: &Address,
    ) -> Result<(HeaderMap, Vec<u8>), HubError> {
        let (status, headers, body) = self.client.ask(address)?;
        if status == StatusCode::OK {
            return Ok((headers, body));
        }
        Err(refusal(&self.client, repo, revision, address, status, &headers))
    }

    fn cached(&self, request: &Request) -> Result<Pulled, HubError> {
        let Request { repo, revision, place } = request;
        let cache = &self.client.settings().cache;
        let found = match place {
            Place::Cache => snapshot(cache, repo, revision),
            Place::Folder(_) => None,
        };
        match found {
            Some(found) => {
                Ok(Pulled { commit: found.commit, folder: found.folder, files: Vec::new(), online: false })
            }
            None => Err(HubError::Offline {
                repo: repo.to_string(),
                revision: revision.to_string(),
                cache: cache.clone(),
            }),
        }
    }
}

/// Refuses before the first byte what would not fit.
fn check_space(target: &Target, files: &[RemoteFile], here: &[bool]) -> Result<(), HubError> {
    let missing = files.iter().zip(here).filter(|(_, here)| !**here).map(|(file, _)| {
        let begun = std::fs::metadata(target.slot(file).partial).map_or(0, |metadata| metadata.len());
        file.size.saturating_sub(begun)
    });
    // Identical contents are counted as often as they are named, which errs on the safe side.
    let needed = missing.fold(0, u64::saturating_add);
    let root = match target {
        Target::Cache { root, .. } | Target::Folder { root, .. } => root,
    };
    if needed == 0 { Ok(()) } else { space::check(root, needed) }
}

/// What a status other than success means.
pub(crate) fn refusal(
    client: &Client,
    repo: &RepoId,
    revision: Option<&Revision>,
    address: &Address,
    status: StatusCode,
    headers: &HeaderMap,
) -> HubError {
    let code = headers.get("x-error-code").and_then(|value| value.to_str().ok()).unwrap_or_default();
    let has_token = client.settings().token.is_some();
    let repo = repo.to_string();
    match (status.as_u16(), code) {
        (status @ (401 | 403), "GatedRepo") => {
            let advice = if has_token {
                "the repository is gated, and the account of HF_TOKEN has not been granted access on its page"
            } else {
                "the repository is gated: ask for access on its page and set HF_TOKEN"
            };
            HubError::Refused { repo, status, advice }
        }
        (404, "RepoNotFound") => HubError::NoRepository { repo },
        (status @ (401 | 403), _) => {
            let advice = if has_token {
                "it does not exist, or HF_TOKEN is wrong or does not allow it"
            } else {
                "it does not exist, or is private or gated; for the latter set HF_TOKEN"
            };
            HubError::Refused { repo, status, advice }
        }
        (404, code) if code == "RevisionNotFound" || (code.is_empty() && revision.is_some()) => {
            match revision {
                Some(revision) => HubError::NoRevision { repo, revision: revision.to_string() },
                None => HubError::NoRepository { repo },
            }
        }
        (status, _) => HubError::Status { url: address.shown().to_owned(), status },
    }
}
