use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use thicket_engine::Similarity;
use thicket_index::IndexKind;

/// BLAKE3 hash of an image's bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct ImageHash([u8; 32]);

impl ImageHash {
    pub(crate) fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }

    /// Reads 64 hex digits, of either case.
    pub(crate) fn from_hex(text: &str) -> Option<Self> {
        blake3::Hash::from_hex(text).ok().map(|hash| Self(*hash.as_bytes()))
    }

    pub(crate) fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl From<[u8; 32]> for ImageHash {
    fn from(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl fmt::Display for ImageHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&blake3::Hash::from_bytes(self.0).to_hex())
    }
}

impl fmt::Debug for ImageHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<ImageHash> for String {
    fn from(hash: ImageHash) -> Self {
        hash.to_string()
    }
}

impl TryFrom<String> for ImageHash {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::from_hex(&text).ok_or("not 64 hex digits")
    }
}

/// What the store keeps of an item besides its vector.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ItemRecord {
    /// The caller's id.
    pub(crate) id: String,
    /// The item's image, where it has one.
    pub(crate) image: Option<ImageRef>,
    /// Free key-value pairs.
    pub(crate) metadata: BTreeMap<String, String>,
}

/// An image that an item points to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ImageRef {
    /// Hash of the bytes.
    pub(crate) hash: ImageHash,
    /// File format.
    pub(crate) format: ImageFormat,
}

/// File format of a stored image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ImageFormat {
    Jpeg,
    Png,
    Webp,
}

impl ImageFormat {
    /// Tells the format by the first bytes of an image that has been decoded before.
    pub(crate) fn of(bytes: &[u8]) -> Option<Self> {
        if bytes.starts_with(&[0xff, 0xd8, 0xff]) {
            Some(Self::Jpeg)
        } else if bytes.starts_with(b"\x89PNG\r\n\x1a\n") {
            Some(Self::Png)
        } else if bytes.starts_with(b"RIFF") && bytes.get(8..12) == Some(b"WEBP") {
            Some(Self::Webp)
        } else {
            None
        }
    }

    pub(crate) fn media_type(self) -> &'static str {
        match self {
            Self::Jpeg => "image/jpeg",
            Self::Png => "image/png",
            Self::Webp => "image/webp",
        }
    }
}

/// Names one transaction: random, so that no two histories of a store share one.
pub(crate) type Version = [u8; 16];

/// What the store keeps of a collection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CollectionRecord {
    /// Never used again, not even for a later collection of the same name.
    pub(crate) number: u64,
    /// Fingerprint of the embedding model.
    pub(crate) model_fingerprint: String,
    /// Values per vector.
    pub(crate) dimension: usize,
    /// What the inner product is.
    pub(crate) similarity: StoredSimilarity,
    /// How the vectors are searched; exactly in stores from before there was a choice.
    #[serde(default)]
    pub(crate) index: StoredIndex,
    /// Milliseconds since 1970-01-01 UTC.
    pub(crate) created_unix_ms: i64,
    /// Sequence number of the next new item.
    pub(crate) next_sequence: u64,
    /// Items held.
    pub(crate) items: u64,
    /// Names the last transaction that changed the collection; a snapshot with another one is stale.
    pub(crate) version: Version,
}

/// [`Similarity`] as it is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum StoredSimilarity {
    Cosine,
    MeanOfTwoCosines,
}

/// [`IndexKind`] as it is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum StoredIndex {
    #[default]
    Exact,
    Ivf {
        lists: u32,
        probes: u32,
    },
    Hnsw {
        links: u32,
        ef_search: u32,
        ef_construction: u32,
    },
}

impl From<IndexKind> for StoredIndex {
    fn from(kind: IndexKind) -> Self {
        match kind {
            IndexKind::Exact => Self::Exact,
            IndexKind::Ivf { lists, probes } => Self::Ivf { lists, probes },
            IndexKind::Hnsw { links, ef_search, ef_construction } => {
                Self::Hnsw { links, ef_search, ef_construction }
            }
        }
    }
}

impl From<StoredIndex> for IndexKind {
    fn from(kind: StoredIndex) -> Self {
        match kind {
            StoredIndex::Exact => Self::Exact,
            StoredIndex::Ivf { lists, probes } => Self::Ivf { lists, probes },
            StoredIndex::Hnsw { links, ef_search, ef_construction } => {
                Self::Hnsw { links, ef_search, ef_construction }
            }
        }
    }
}

impl From<Similarity> for StoredSimilarity {
    fn from(similarity: Similarity) -> Self {
        match similarity {
            Similarity::Cosine => Self::Cosine,
            Similarity::MeanOfTwoCosines => Self::MeanOfTwoCosines,
        }
    }
}

impl From<StoredSimilarity> for Similarity {
    fn from(similarity: StoredSimilarity) -> Self {
        match similarity {
            StoredSimilarity::Cosine => Self::Cosine,
            StoredSimilarity::MeanOfTwoCosines => Self::MeanOfTwoCosines,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_survives_its_hex_form() {
        let hash = ImageHash::of(b"abc");
        assert_eq!(ImageHash::from_hex(&hash.to_string()), Some(hash));
        assert_eq!(ImageHash::from_hex(&hash.to_string().to_uppercase()), Some(hash));
        assert_eq!(ImageHash::from_hex("abc"), None);
    }

    #[test]
    fn a_collection_of_an_older_store_is_searched_exactly() {
        let stored = r#"{"number":1,"model_fingerprint":"m","dimension":2,"similarity":"cosine","created_unix_ms":5,
            "next_sequence":0,"items":0,"version":[0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0]}"#;
        assert_eq!(serde_json::from_str::<CollectionRecord>(stored).unwrap().index, StoredIndex::Exact);
    }

    #[test]
    fn an_index_kind_survives_its_stored_form() {
        for kind in [IndexKind::Exact, IndexKind::IVF, IndexKind::HNSW] {
            let stored = serde_json::to_vec(&StoredIndex::from(kind)).unwrap();
            assert_eq!(IndexKind::from(serde_json::from_slice::<StoredIndex>(&stored).unwrap()), kind);
        }
    }

    #[test]
    fn an_item_record_survives_its_stored_form() {
        let record = ItemRecord {
            id: "a\u{1f600}".to_owned(),
            image: Some(ImageRef { hash: ImageHash::of(b"x"), format: ImageFormat::Webp }),
            metadata: BTreeMap::from([("camera".to_owned(), "3".to_owned())]),
        };
        let stored = serde_json::to_vec(&record).unwrap();
        assert_eq!(serde_json::from_slice::<ItemRecord>(&stored).unwrap(), record);
    }
}
