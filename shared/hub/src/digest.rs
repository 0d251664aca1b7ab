use std::fmt;

use sha1::Sha1;
use sha2::{Digest as _, Sha256};

use crate::names::is_hex;

/// How the hub identifies a file's content, and what its ETag is: git's blob id for a small file, the SHA-256 for one in
/// large-file storage. Lower-case hexadecimal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Digest {
    /// SHA-1 over git's header and the content, 40 digits.
    GitBlob(String),
    /// SHA-256 of the content, 64 digits.
    Sha256(String),
}

impl Digest {
    /// The digits, which are the name of the file's blob in the cache.
    #[must_use]
    pub fn hex(&self) -> &str {
        match self {
            Self::GitBlob(hex) | Self::Sha256(hex) => hex,
        }
    }

    /// A git blob id; `None` where it is not 40 lower-case digits.
    #[must_use]
    pub fn git_blob(hex: &str) -> Option<Self> {
        is_hex(hex, 40).then(|| Self::GitBlob(hex.to_owned()))
    }

    /// A SHA-256; `None` where it is not 64 lower-case digits.
    #[must_use]
    pub fn sha256(hex: &str) -> Option<Self> {
        is_hex(hex, 64).then(|| Self::Sha256(hex.to_owned()))
    }

    /// Reads an `ETag` or `X-Linked-Etag` header: quoted or not, weak or not. `None` where it is no digest, which an
    /// ETag need not be.
    #[must_use]
    pub fn from_etag(header: &str) -> Option<Self> {
        let tag = header.trim();
        let tag = tag.strip_prefix("W/").unwrap_or(tag);
        let tag = tag.strip_prefix('"').and_then(|tag| tag.strip_suffix('"')).unwrap_or(tag);
        Self::sha256(tag).or_else(|| Self::git_blob(tag))
    }

    /// A hasher of the same kind, for a content of `size` bytes.
    pub(crate) fn hasher(&self, size: u64) -> Hasher {
        match self {
            Self::Sha256(_) => Hasher::Sha256(Sha256::new()),
            Self::GitBlob(_) => {
                let mut hasher = Sha1::new();
                hasher.update(format!("blob {size}\0"));
                Hasher::GitBlob(hasher)
            }
        }
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::GitBlob(hex) => write!(f, "git blob {hex}"),
            Self::Sha256(hex) => write!(f, "sha256 {hex}"),
        }
    }
}

/// A digest in the making.
#[derive(Debug, Clone)]
pub(crate) enum Hasher {
    GitBlob(Sha1),
    Sha256(Sha256),
}

impl Hasher {
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::GitBlob(hasher) => hasher.update(bytes),
            Self::Sha256(hasher) => hasher.update(bytes),
        }
    }

    pub(crate) fn finish(self) -> Digest {
        match self {
            Self::GitBlob(hasher) => Digest::GitBlob(hex(&hasher.finalize())),
            Self::Sha256(hasher) => Digest::Sha256(hex(&hasher.finalize())),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn digest(kind: &Digest, content: &[u8]) -> String {
        let mut hasher = kind.hasher(content.len() as u64);
        content.chunks(3).for_each(|part| hasher.update(part));
        hasher.finish().hex().to_owned()
    }

    #[test]
    fn digests_are_those_of_git_and_of_large_file_storage() {
        let git = Digest::GitBlob(String::new());
        assert_eq!(digest(&git, b"hello\n"), "ce013625030ba8dba906f756967f9e9ca394464a");
        assert_eq!(digest(&git, b""), "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391");
        let large = Digest::Sha256(String::new());
        assert_eq!(
            digest(&large, b"hello\n"),
            "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03"
        );
    }

    #[test]
    fn an_etag_is_read_with_and_without_quotes_and_as_a_weak_one() {
        let blob = "ce013625030ba8dba906f756967f9e9ca394464a";
        for tag in [blob.to_owned(), format!("\"{blob}\""), format!("W/\"{blob}\""), format!(" \"{blob}\" ")]
        {
            assert_eq!(Digest::from_etag(&tag), Some(Digest::GitBlob(blob.to_owned())), "{tag}");
        }
        for tag in ["", "\"", "\"\"", "W/", "\"d41d8cd98f00b204e9800998ecf8427e-5\"", &blob.to_uppercase()] {
            assert_eq!(Digest::from_etag(tag), None, "{tag}");
        }
    }

    proptest! {
        #[test]
        fn any_header_is_read_without_panic_and_what_is_read_is_a_file_name(header in "\\PC{0,80}") {
            if let Some(digest) = Digest::from_etag(&header) {
                prop_assert!(digest.hex().bytes().all(|byte| byte.is_ascii_hexdigit()));
            }
        }

        #[test]
        fn every_digest_is_read_back_from_its_etag(bytes in proptest::collection::vec(any::<u8>(), 32)) {
            let digest = Digest::Sha256(hex(&bytes));
            let header = format!("W/\"{}\"", digest.hex());
            prop_assert_eq!(Digest::from_etag(&header), Some(digest));
        }
    }
}
