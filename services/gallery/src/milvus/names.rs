//! How the gallery's names are spelt in Milvus.

use serde::{Deserialize, Serialize};
use thicket_engine::Similarity;
use thicket_milvus::{Collection, Token};
use thicket_proto::v1;

use crate::backend::Facts;
use crate::record::StoredSimilarity;

/// What every collection of ours starts with in Milvus.
const PREFIX: &str = "thicket_";
/// Property that says what a collection is.
pub(super) const PROPERTY: &str = "thicket";
/// Version of the fields and of the property.
const FORMAT: u32 = 1;
/// Characters of a key.
pub(super) const KEY_CHARS: usize = 32;

/// The name of a collection in Milvus, which knows neither dashes nor digits at the start. Two names never meet.
pub(super) fn in_milvus(name: &str) -> String {
    let escaped = name.chars().map(|c| match c {
        '_' => "_u".to_owned(),
        '-' => "_d".to_owned(),
        c => c.to_string(),
    });
    format!("{PREFIX}{}", escaped.collect::<String>())
}

/// The reverse of [`in_milvus`]; `None` for a collection that is none of ours.
pub(super) fn of_ours(name: &str) -> Option<String> {
    let mut ours = String::new();
    let mut rest = name.strip_prefix(PREFIX)?.chars();
    while let Some(c) = rest.next() {
        ours.push(match c {
            '_' => match rest.next()? {
                'u' => '_',
                'd' => '-',
                _ => return None,
            },
            c => c,
        });
    }
    Some(ours)
}

/// What stands in Milvus for a text that may hold anything: no expression can be made to say something else, whatever
/// callers choose as ids, cameras and tags.
fn token(kind: &str, text: &str) -> Token {
    let mut hasher = blake3::Hasher::new_derive_key("thicket gallery 2026 keys in milvus");
    hasher.update(kind.as_bytes()).update(b"\0").update(text.as_bytes());
    let hex = hasher.finalize().to_hex();
    let word = &hex.as_str()[..KEY_CHARS];
    match Token::new(word) {
        Some(token) => token,
        None => unreachable!("{word} is hexadecimal"),
    }
}

/// The key of an item's row.
pub(super) fn key(id: &str) -> Token {
    token("id", id)
}

/// A camera.
pub(super) fn camera(name: &str) -> Token {
    token("camera", name)
}

/// A tag.
pub(super) fn tag(name: &str) -> Token {
    token("tag", name)
}

/// What a collection is, as its property says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Description {
    format: u32,
    pub(super) model_fingerprint: String,
    pub(super) dimension: usize,
    pub(super) similarity: StoredSimilarity,
    pub(super) created_unix_ms: i64,
    /// Random: a later collection of the same name has another.
    pub(super) number: u64,
}

impl Description {
    pub(super) fn new(
        model_fingerprint: String,
        dimension: usize,
        similarity: StoredSimilarity,
        created_unix_ms: i64,
    ) -> Self {
        let number = uuid::Uuid::new_v4().as_u64_pair().0;
        Self { format: FORMAT, model_fingerprint, dimension, similarity, created_unix_ms, number }
    }

    /// Reads the description that a collection carries.
    pub(super) fn of(collection: &Collection) -> Result<Self, String> {
        let property = collection.properties.iter().find(|(key, _)| key == PROPERTY);
        let text = property.map_or(collection.description.as_str(), |(_, value)| value);
        let found: Self =
            serde_json::from_str(text).map_err(|cause| format!("its property {PROPERTY}: {cause}"))?;
        if found.format != FORMAT {
            return Err(format!("it has format {}, this version reads {FORMAT}", found.format));
        }
        Ok(found)
    }

    pub(super) fn text(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    pub(super) fn facts(&self, name: &str) -> Facts {
        Facts {
            name: name.to_owned(),
            number: self.number,
            model_fingerprint: self.model_fingerprint.clone(),
            dimension: self.dimension,
        }
    }

    pub(super) fn collection(&self, name: &str, items: u64) -> v1::Collection {
        v1::Collection {
            name: name.to_owned(),
            model_fingerprint: self.model_fingerprint.clone(),
            dimension: self.dimension as u32,
            similarity: match Similarity::from(self.similarity) {
                Similarity::Cosine => v1::Similarity::Cosine,
                Similarity::MeanOfTwoCosines => v1::Similarity::MeanOfTwoCosines,
            } as i32,
            items,
            created_unix_ms: self.created_unix_ms,
            ..Default::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_name_comes_back_and_is_one_that_milvus_takes(name in "[a-z0-9][a-z0-9_-]{0,63}") {
            let there = in_milvus(&name);
            prop_assert!(there.len() <= 255);
            prop_assert!(there.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_'));
            prop_assert_eq!(of_ours(&there), Some(name));
        }
    }

    #[test]
    fn a_collection_of_others_is_left_alone() {
        for name in ["documents", "thicket", "thicket_a_x", "thicket_a_"] {
            assert_eq!(of_ours(name), None, "{name}");
        }
    }

    #[test]
    fn a_description_survives_its_stored_form() {
        let description = Description::new("m \"1\"".to_owned(), 512, StoredSimilarity::Cosine, 7);
        let stored = |properties: Vec<(String, String)>, description: String| {
            Description::of(&Collection { number: 1, properties, description })
        };
        let property = (PROPERTY.to_owned(), description.text());
        assert_eq!(stored(vec![property], String::new()).unwrap(), description);
        assert_eq!(stored(Vec::new(), description.text()).unwrap(), description);
        stored(Vec::new(), "people of the lobby".to_owned()).unwrap_err();
    }
}
