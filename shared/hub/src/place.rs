//! Where files end up: in the cache that Python's tools share, or in a plain folder.

use std::fs;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::transfer::digest_of_file;
use crate::{Commit, HubError, RemoteFile, RepoId, cache};

/// What a plain folder's records are kept in, in the form that Python's tools keep theirs.
const RECORDS: &str = ".cache/huggingface/download";

/// Where a pull puts its files.
#[derive(Debug, Clone)]
pub enum Place {
    /// The shared cache: content under its digest, a folder of links for every commit.
    Cache,
    /// A plain folder; a hidden folder in it records what came from where.
    Folder(PathBuf),
}

/// A place for the files of one commit.
#[derive(Debug, Clone)]
pub(crate) enum Target {
    Cache { root: PathBuf, repo: RepoId, commit: Commit },
    Folder { root: PathBuf, commit: Commit },
}

/// The paths of one file while it comes.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) lock: PathBuf,
    /// What has come so far.
    pub(crate) partial: PathBuf,
    /// The name that the whole and checked content gets.
    pub(crate) content: PathBuf,
}

impl Target {
    /// The folder that a loader reads.
    pub(crate) fn folder(&self) -> PathBuf {
        match self {
            Self::Cache { root, repo, commit } => cache::snapshot_folder(root, repo, commit),
            Self::Folder { root, .. } => root.clone(),
        }
    }

    pub(crate) fn slot(&self, file: &RemoteFile) -> Slot {
        let hex = file.digest.hex();
        match self {
            Self::Cache { root, repo, .. } => {
                let blobs = root.join(repo.cache_folder()).join("blobs");
                Slot {
                    lock: root.join(".locks").join(repo.cache_folder()).join(format!("{hex}.lock")),
                    partial: blobs.join(format!("{hex}.incomplete")),
                    content: blobs.join(hex),
                }
            }
            Self::Folder { root, .. } => {
                let records = file.path.below(&root.join(RECORDS));
                Slot {
                    lock: with_ending(&records, ".lock"),
                    // The digest in the name: what is left of another revision's file is not gone on with.
                    partial: with_ending(&records, &format!(".{hex}.incomplete")),
                    content: file.path.below(root),
                }
            }
        }
    }

    /// Whether the file is here already, whole. In the cache a file's name is its digest and it gets that name only
    /// when it is checked; in a plain folder the record says so, and a file without a good record is read through.
    pub(crate) fn has(&self, file: &RemoteFile) -> Result<bool, HubError> {
        let slot = self.slot(file);
        let metadata = match fs::metadata(&slot.content) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(HubError::file(&slot.content, &error)),
        };
        if !metadata.is_file() || metadata.len() != file.size {
            return Ok(false);
        }
        match self {
            Self::Cache { .. } => Ok(true),
            Self::Folder { root, .. } => {
                if is_recorded(&record(root, file), file, &metadata) {
                    return Ok(true);
                }
                Ok(digest_of_file(&slot.content, &file.digest, file.size)? == file.digest)
            }
        }
    }

    /// Makes a file that is here visible under its own name, and records where it came from.
    pub(crate) fn publish(&self, file: &RemoteFile) -> Result<(), HubError> {
        match self {
            Self::Cache { root, repo, commit } => cache::link(root, repo, commit, file),
            Self::Folder { root, commit } => {
                let path = record(root, file);
                let metadata = fs::metadata(file.path.below(root));
                if metadata.is_ok_and(|metadata| is_recorded(&path, file, &metadata))
                    && fs::read_to_string(&path).is_ok_and(|text| text.starts_with(commit.as_str()))
                {
                    return Ok(());
                }
                let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
                replace(&path, &format!("{commit}\n{}\n{now:.3}\n", file.digest.hex()))
            }
        }
    }

    /// Records the revision's commit, when all its files are here.
    pub(crate) fn finish(&self, revision: &str) -> Result<(), HubError> {
        match self {
            Self::Cache { root, repo, commit } => cache::record_revision(root, repo, revision, commit),
            Self::Folder { .. } => Ok(()),
        }
    }
}

fn record(root: &Path, file: &RemoteFile) -> PathBuf {
    with_ending(&file.path.below(&root.join(RECORDS)), ".metadata")
}

/// Whether the record is of this content and the file has not been changed since: commit, digest and the time in
/// seconds, a line each.
fn is_recorded(record: &Path, file: &RemoteFile, metadata: &fs::Metadata) -> bool {
    let Ok(text) = fs::read_to_string(record) else { return false };
    let mut lines = text.lines().skip(1);
    let digest = lines.next() == Some(file.digest.hex());
    let at: Option<f64> = lines.next().and_then(|line| line.trim().parse().ok());
    let changed = metadata.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    let unchanged = at.zip(changed).is_some_and(|(at, changed)| changed.as_secs_f64() <= at + 1.0);
    digest && unchanged
}

fn with_ending(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    PathBuf::from(name)
}

/// Writes a small file whole or not at all, whoever else writes it at the same time.
pub(crate) fn replace(path: &Path, text: &str) -> Result<(), HubError> {
    let failed = |error: std::io::Error| HubError::file(path, &error);
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder).map_err(failed)?;
    // A name of its own: process ids repeat in containers that share a volume, and threads share one.
    let mut fresh = tempfile::Builder::new()
        .suffix(".new")
        .permissions(fs::Permissions::from_mode(0o644))
        .tempfile_in(folder)
        .map_err(failed)?;
    fresh.write_all(text.as_bytes()).map_err(failed)?;
    fresh.persist(path).map(|_| ()).map_err(|error| failed(error.error))
}
