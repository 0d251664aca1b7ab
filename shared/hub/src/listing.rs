//! The hub's JSON: what a revision is and what files it has. Written by others, so every field is checked.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::{Commit, Digest, HubError, RepoPath};

/// A file of a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteFile {
    /// Where it is in the repository.
    pub path: RepoPath,
    /// Bytes.
    pub size: u64,
    /// What its content must hash to.
    pub digest: Digest,
}

#[derive(Deserialize)]
struct RevisionInfo {
    sha: String,
}

#[derive(Deserialize)]
struct Entry {
    #[serde(rename = "type")]
    kind: String,
    path: String,
    #[serde(default)]
    oid: String,
    #[serde(default)]
    size: u64,
    lfs: Option<LargeFile>,
}

#[derive(Deserialize)]
struct LargeFile {
    oid: String,
    size: u64,
}

/// The commit that a revision is, from the hub's description of it (`/api/models/REPO/revision/REVISION`).
///
/// # Errors
/// What is wrong with the answer.
pub fn commit_of(json: &[u8]) -> Result<Commit, String> {
    let info: RevisionInfo = serde_json::from_slice(json).map_err(|cause| cause.to_string())?;
    info.sha.parse().map_err(|error: HubError| error.to_string())
}

/// Adds the files of one page of the hub's listing (`/api/models/REPO/tree/COMMIT`) to `files`, by path.
///
/// # Errors
/// What is wrong with the answer; [`HubError::UnsafePath`] for a name that would lead out of a folder, whether or not
/// the file is wanted. `url` is what was asked for.
pub fn tree_page(url: &str, json: &[u8], files: &mut BTreeMap<RepoPath, RemoteFile>) -> Result<(), HubError> {
    let malformed = |reason: String| HubError::Answer { url: url.to_owned(), reason };
    let entries: Vec<Entry> = serde_json::from_slice(json).map_err(|cause| malformed(cause.to_string()))?;
    for entry in entries {
        let path: RepoPath = entry.path.parse()?;
        if entry.kind != "file" {
            continue;
        }
        let (digest, size) = match &entry.lfs {
            Some(large) => (Digest::sha256(&large.oid), large.size),
            None => (Digest::git_blob(&entry.oid), entry.size),
        };
        let Some(digest) = digest else {
            return Err(malformed(format!("{path} has no digest of a known kind")));
        };
        if files.insert(path.clone(), RemoteFile { path: path.clone(), size, digest }).is_some() {
            return Err(malformed(format!("{path} is listed twice")));
        }
    }
    Ok(())
}

/// The address of the next page in a `Link` header; `None` on the last page.
#[must_use]
pub fn next_page(header: &str) -> Option<&str> {
    header.split(',').find_map(|link| {
        let (address, parameters) = link.trim().strip_prefix('<')?.split_once('>')?;
        let is_next = parameters.split(';').any(|parameter| {
            let (name, value) = parameter.trim().split_once('=').unwrap_or_default();
            name.eq_ignore_ascii_case("rel") && value.trim_matches('"').eq_ignore_ascii_case("next")
        });
        is_next.then_some(address)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BLOB: &str = "ce013625030ba8dba906f756967f9e9ca394464a";
    const SHA256: &str = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03";

    fn page(json: &str) -> Result<BTreeMap<RepoPath, RemoteFile>, HubError> {
        let mut files = BTreeMap::new();
        tree_page("url", json.as_bytes(), &mut files).map(|()| files)
    }

    #[test]
    fn small_and_large_files_are_read_and_folders_left_out() {
        let files = page(&format!(
            r#"[{{"type":"directory","oid":"{BLOB}","size":0,"path":"onnx"}},
                {{"type":"file","oid":"{BLOB}","size":6,"path":"config.json"}},
                {{"type":"file","oid":"{BLOB}","size":77,"path":"a/model.safetensors",
                  "lfs":{{"oid":"{SHA256}","size":77,"pointerSize":134}},"xetHash":"x"}}]"#
        ))
        .unwrap();
        let files: Vec<_> = files.into_values().collect();
        assert_eq!(files.len(), 2);
        assert_eq!((files[0].path.as_str(), files[0].size), ("a/model.safetensors", 77));
        assert_eq!(files[0].digest, Digest::Sha256(SHA256.to_owned()));
        assert_eq!(files[1].digest, Digest::GitBlob(BLOB.to_owned()));
    }

    #[test]
    fn an_answer_that_breaks_the_format_is_refused() {
        let file =
            |path: &str, oid: &str| format!(r#"{{"type":"file","oid":"{oid}","size":1,"path":"{path}"}}"#);
        assert!(page("{}").is_err());
        assert!(page("[").is_err());
        assert!(page(r#"[{"type":"file","oid":"x","size":-1,"path":"a"}]"#).is_err());
        assert!(page(&format!("[{}]", file("a", "abc"))).unwrap_err().to_string().contains("digest"));
        let twice = format!("[{},{}]", file("a", BLOB), file("a", BLOB));
        assert!(page(&twice).unwrap_err().to_string().contains("twice"));
    }

    #[test]
    fn a_name_that_leads_out_is_refused_even_of_a_folder() {
        for kind in ["file", "directory"] {
            let json = format!(r#"[{{"type":"{kind}","oid":"{BLOB}","size":1,"path":"../x"}}]"#);
            assert!(matches!(page(&json).unwrap_err(), HubError::UnsafePath { .. }), "{kind}");
        }
    }

    #[test]
    fn a_revision_is_a_commit() {
        assert_eq!(commit_of(format!(r#"{{"sha":"{BLOB}"}}"#).as_bytes()).unwrap().as_str(), BLOB);
        for json in ["{}", r#"{"sha":"main"}"#, r#"{"sha":"../../x"}"#, r#"{"sha":5}"#, "[]", ""] {
            assert!(commit_of(json.as_bytes()).is_err(), "{json}");
        }
    }

    #[test]
    fn the_next_page_is_found_among_links() {
        assert_eq!(next_page(r#"<http://a/b?c=1>; rel="next""#), Some("http://a/b?c=1"));
        assert_eq!(next_page(r#"<x>; rel="prev", <y>; title=z; rel=next"#), Some("y"));
        for header in ["", "<x", "<x>", "<x>; rel=\"prev\"", "x; rel=next"] {
            assert_eq!(next_page(header), None, "{header}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = commit_of(&bytes);
            let _ = tree_page("url", &bytes, &mut BTreeMap::new());
        }

        #[test]
        fn any_link_is_read_without_panic(header in "[<>;,= \"a-z]{0,60}|\\PC{0,40}") {
            let _ = next_page(&header);
        }

        #[test]
        fn an_entry_of_any_path_and_digest_is_a_good_file_or_refused(
            path in "[a-z./\\\\]{0,12}", oid in "[0-9a-f]{40}|[0-9a-f]{64}|[/.A-Z]{0,70}", large in any::<bool>(),
        ) {
            let lfs = if large { serde_json::json!({"oid": oid, "size": 3}) } else { serde_json::Value::Null };
            let entry = serde_json::json!([{"type": "file", "path": path, "oid": oid, "size": 3, "lfs": lfs}]);
            if let Ok(files) = page(&entry.to_string()) {
                for file in files.values() {
                    prop_assert!(!file.digest.hex().contains(['/', '.']));
                    prop_assert!(!file.path.as_str().split('/').any(|part| part == ".."));
                }
            }
        }
    }
}
