//! The cache that Python's tools share. Below its root, for every repository:
//!
//! - `models--OWNER--NAME/blobs/DIGEST`: contents, or `DIGEST.incomplete` while one comes;
//! - `models--OWNER--NAME/snapshots/COMMIT/PATH`: links to contents;
//! - `models--OWNER--NAME/refs/REVISION`: the commit that a branch or tag was when it was pulled;
//! - `.locks/models--OWNER--NAME/DIGEST.lock`.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::place::replace;
use crate::{Commit, HubError, RemoteFile, RepoId, Revision};

/// A commit's folder in the cache.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// The commit.
    pub commit: Commit,
    /// The folder that a loader reads.
    pub folder: PathBuf,
}

/// What the cache at `root` has of a revision; `None` where nothing of it is there. Whether every file is there only
/// the hub could tell; a pull records a branch or tag when it has them all.
#[must_use]
pub fn snapshot(root: &Path, repo: &RepoId, revision: &Revision) -> Option<Snapshot> {
    let commit = match revision.as_str().parse() {
        Ok(commit) => commit,
        Err(_) => fs::read_to_string(ref_path(root, repo, revision.as_str())).ok()?.trim().parse().ok()?,
    };
    let folder = snapshot_folder(root, repo, &commit);
    folder.is_dir().then_some(Snapshot { commit, folder })
}

pub(crate) fn snapshot_folder(root: &Path, repo: &RepoId, commit: &Commit) -> PathBuf {
    root.join(repo.cache_folder()).join("snapshots").join(commit.as_str())
}

fn ref_path(root: &Path, repo: &RepoId, revision: &str) -> PathBuf {
    root.join(repo.cache_folder()).join("refs").join(revision)
}

/// Links a file of the snapshot to its content.
pub(crate) fn link(root: &Path, repo: &RepoId, commit: &Commit, file: &RemoteFile) -> Result<(), HubError> {
    let path = file.path.below(&snapshot_folder(root, repo, commit));
    let depth = file.path.as_str().split('/').count();
    // Relative, so that the cache can be moved: from the snapshot's folder two levels up and into `blobs`.
    let target: PathBuf = std::iter::repeat_n("..", depth + 1).chain(["blobs", file.digest.hex()]).collect();
    if fs::read_link(&path).is_ok_and(|current| current == target) {
        return Ok(());
    }
    let failed = |error: std::io::Error| HubError::file(&path, &error);
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(failed)?;
    }
    match std::os::unix::fs::symlink(&target, &path) {
        // Another pull may have made it, or a tool that copies where it cannot link.
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        other => other.map_err(failed),
    }
}

/// Records what commit a branch or a tag is.
pub(crate) fn record_revision(
    root: &Path,
    repo: &RepoId,
    revision: &str,
    commit: &Commit,
) -> Result<(), HubError> {
    if revision == commit.as_str() {
        return Ok(());
    }
    let path = ref_path(root, repo, revision);
    if fs::read_to_string(&path).is_ok_and(|current| current.trim() == commit.as_str()) {
        return Ok(());
    }
    replace(&path, commit.as_str())
}
