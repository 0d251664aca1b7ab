//! Names that come from a command line or from the hub, checked once so that they can be put into paths and URLs.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::HubError;

/// Longest owner or repository name.
const MAX_NAME: usize = 96;
/// Longest revision.
const MAX_REVISION: usize = 255;
/// Longest path in a repository, in bytes.
const MAX_PATH: usize = 1024;
/// Longest part of a path, in bytes, with room for the endings of partial and lock files.
const MAX_PART: usize = 128;

/// A model repository, `owner/name`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct RepoId {
    owner: String,
    name: String,
}

impl RepoId {
    /// The folder that the cache keeps the repository in.
    pub(crate) fn cache_folder(&self) -> String {
        format!("models--{}--{}", self.owner, self.name)
    }
}

impl fmt::Display for RepoId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.owner, self.name)
    }
}

impl FromStr for RepoId {
    type Err = HubError;

    fn from_str(text: &str) -> Result<Self, HubError> {
        let refuse = |reason| HubError::Name { what: "repository", name: text.to_owned(), reason };
        let (owner, name) = text.split_once('/').ok_or_else(|| refuse("OWNER/NAME is expected"))?;
        for part in [owner, name] {
            if part.is_empty() || part.len() > MAX_NAME {
                return Err(refuse("owner and name have 1 to 96 characters"));
            }
            if !part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte)) {
                return Err(refuse(
                    "only letters, digits, `.`, `_` and `-` are allowed on either side of one `/`",
                ));
            }
            // `--` separates owner and name in the cache, so it cannot be in either.
            if part.starts_with(['.', '-'])
                || part.ends_with(['.', '-'])
                || part.contains("..")
                || part.contains("--")
            {
                return Err(refuse("`.` and `-` are allowed only singly and inside"));
            }
        }
        Ok(Self { owner: owner.to_owned(), name: name.to_owned() })
    }
}

/// A branch, a tag or a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revision(String);

impl Revision {
    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for Revision {
    fn default() -> Self {
        Self("main".to_owned())
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Revision {
    type Err = HubError;

    fn from_str(text: &str) -> Result<Self, HubError> {
        let refuse = |reason| HubError::Name { what: "revision", name: text.to_owned(), reason };
        if text.is_empty() || text.len() > MAX_REVISION {
            return Err(refuse("1 to 255 characters are expected"));
        }
        if text
            .chars()
            .any(|letter| letter.is_control() || letter.is_whitespace() || "\\~^:?*[".contains(letter))
        {
            return Err(refuse("no branch, tag or commit has such characters"));
        }
        // It names a file below the cache's `refs`.
        if text.split('/').any(|part| part.is_empty() || part.starts_with('.') || part.contains("..")) {
            return Err(refuse("parts between `/` are not empty and do not begin with a dot"));
        }
        Ok(Self(text.to_owned()))
    }
}

/// A commit, 40 lower-case hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Commit(String);

impl Commit {
    /// The digits.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Commit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Commit {
    type Err = HubError;

    fn from_str(text: &str) -> Result<Self, HubError> {
        if is_hex(text, 40) {
            return Ok(Self(text.to_owned()));
        }
        Err(HubError::Name {
            what: "commit",
            name: text.to_owned(),
            reason: "40 lower-case hexadecimal digits are expected",
        })
    }
}

/// Whether a text is `digits` lower-case hexadecimal digits.
pub(crate) fn is_hex(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

/// A file's path in a repository: relative, parts separated by `/`, none of which leads anywhere but down.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct RepoPath(String);

impl RepoPath {
    /// The path.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The last part.
    #[must_use]
    pub fn file_name(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or_default()
    }

    /// Everything before the last part, without the `/`; empty at the top.
    #[must_use]
    pub fn folder(&self) -> &str {
        self.0.rsplit_once('/').map_or("", |(folder, _)| folder)
    }

    /// The path below a folder.
    #[must_use]
    pub fn below(&self, folder: &Path) -> PathBuf {
        let mut path = folder.to_path_buf();
        path.extend(self.0.split('/'));
        path
    }
}

impl fmt::Display for RepoPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for RepoPath {
    type Err = HubError;

    fn from_str(text: &str) -> Result<Self, HubError> {
        let refuse = |reason| HubError::UnsafePath { path: text.to_owned(), reason };
        if text.len() > MAX_PATH {
            return Err(refuse("it is longer than 1024 bytes"));
        }
        if text.starts_with('/') {
            return Err(refuse("it is absolute"));
        }
        if text.chars().any(|letter| letter.is_control() || letter == '\\') {
            return Err(refuse("it has a backslash or a control character"));
        }
        for part in text.split('/') {
            if part.is_empty() {
                return Err(refuse("a part is empty"));
            }
            if part == "." || part == ".." {
                return Err(refuse("it leads out of the folder"));
            }
            if part.len() > MAX_PART {
                return Err(refuse("a part is longer than 128 bytes"));
            }
        }
        Ok(Self(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Component;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_repository_is_an_owner_and_a_name() {
        let repo: RepoId = "Qwen/Qwen2.5-VL-3B-Instruct".parse().unwrap();
        assert_eq!(repo.to_string(), "Qwen/Qwen2.5-VL-3B-Instruct");
        assert_eq!(repo.cache_folder(), "models--Qwen--Qwen2.5-VL-3B-Instruct");
        for name in [
            "", "gpt2", "a/b/c", "/b", "a/", "../x", "a/..", "a/b..c", "a/-b", "a/b.", "a--b/c", "a/b c",
            "a/b?",
        ] {
            assert!(name.parse::<RepoId>().is_err(), "{name}");
        }
    }

    #[test]
    fn a_revision_cannot_leave_the_folder_of_refs() {
        for name in ["main", "v1.0", "refs/pr/3", "feature/x"] {
            assert_eq!(name.parse::<Revision>().unwrap().as_str(), name);
        }
        for name in ["", "/etc", "..", "a/../b", "a//b", ".git", "a b", "a\nb", "a\\b", "main/"] {
            assert!(name.parse::<Revision>().is_err(), "{name}");
        }
    }

    #[test]
    fn a_path_that_leads_elsewhere_is_refused() {
        for path in ["/etc/passwd", "../x", "a/../../x", "a//b", "", "a/", "./a", "a\\..\\b", "a\0b", "a\nb"]
        {
            let error = path.parse::<RepoPath>().unwrap_err();
            assert!(matches!(error, HubError::UnsafePath { .. }), "{path}");
            assert_eq!(error.to_string().lines().count(), 1);
        }
    }

    proptest! {
        #[test]
        fn an_accepted_path_stays_below_its_folder(text in "(\\PC|[./\\\\]){0,24}") {
            if let Ok(path) = text.parse::<RepoPath>() {
                let full = path.below(Path::new("/folder"));
                prop_assert!(full.starts_with("/folder") && full != Path::new("/folder"));
                prop_assert!(full.components().skip(1).all(|part| matches!(part, Component::Normal(_))));
            }
        }

        #[test]
        fn an_accepted_revision_stays_below_its_folder(text in "(\\PC|[./]){0,24}") {
            if let Ok(revision) = text.parse::<Revision>() {
                let full = Path::new("/refs").join(revision.as_str());
                prop_assert!(full.starts_with("/refs"));
                prop_assert!(full.components().skip(1).all(|part| matches!(part, Component::Normal(_))));
            }
        }
    }
}
