//! Images that results must not name any more.

use std::collections::BTreeSet;

use thicket_rankings::Row;
use thicket_runtime::Fault;

/// Most images that are forgotten in one call.
const MAX_IMAGES: usize = 10_000;
const DIGEST: usize = blake3::OUT_LEN;

/// A set of images, by the hashes of their hashes: what is kept in order to forget an image must not name it either.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Forgotten(BTreeSet<[u8; DIGEST]>);

impl Forgotten {
    /// Reads hashes of images as a caller names them.
    pub(super) fn parse(hashes: &[String]) -> Result<Self, Fault> {
        if hashes.is_empty() || hashes.len() > MAX_IMAGES {
            let message = format!("1 to {MAX_IMAGES}, got {}", hashes.len());
            return Err(Fault::invalid("image_hashes", "IMAGE_COUNT_OUT_OF_RANGE", message));
        }
        let digests = hashes.iter().enumerate().map(|(place, hash)| match blake3::Hash::from_hex(hash) {
            // As the gallery writes it.
            Ok(hash) => Ok(digest(&hash.to_hex())),
            Err(_) => Err(Fault::invalid(
                format!("image_hashes[{place}]"),
                "IMAGE_HASH_MALFORMED",
                "64 hexadecimal digits are expected",
            )),
        });
        digests.collect::<Result<_, Fault>>().map(Self)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn has(&self, hash: &str) -> bool {
        self.0.contains(&digest(hash))
    }

    pub(super) fn extend(&mut self, other: &Self) {
        self.0.extend(&other.0);
    }

    /// Takes them out of rows; returns how many rows named one.
    pub(super) fn take_out_of(&self, rows: &mut [Row]) -> u64 {
        rows.iter_mut().map(|row| u64::from(row.forget(|image| self.has(image)))).sum()
    }

    /// Whether a row names one of them.
    pub(super) fn is_named_in(&self, rows: &[Row]) -> bool {
        rows.iter().filter_map(|row| row.result.as_ref().ok()).any(|ranking| {
            ranking.items.iter().any(|item| self.has(&item.image))
                || ranking.anchor.as_ref().is_some_and(|anchor| self.has(&anchor.image))
        })
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        self.0.iter().flatten().copied().collect()
    }

    /// Reads what [`Self::encode`] wrote; `None` for anything else.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let (digests, rest) = bytes.as_chunks::<DIGEST>();
        rest.is_empty().then(|| Self(digests.iter().copied().collect()))
    }
}

fn digest(hash: &str) -> [u8; DIGEST] {
    blake3::hash(hash.as_bytes()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(image: &str) -> String {
        blake3::hash(image.as_bytes()).to_hex().to_string()
    }

    #[test]
    fn what_is_kept_knows_the_images_and_does_not_name_them() {
        let forgotten = Forgotten::parse(&[hash("a"), hash("b").to_ascii_uppercase()]).unwrap();
        assert!(forgotten.has(&hash("a")) && forgotten.has(&hash("b")) && !forgotten.has(&hash("c")));
        let bytes = forgotten.encode();
        assert_eq!(Forgotten::decode(&bytes), Some(forgotten));
        let named = blake3::hash(b"a");
        assert!(!bytes.windows(DIGEST).any(|window| window == named.as_bytes()));
        assert_eq!(Forgotten::decode(&bytes[1..]), None);
    }

    #[test]
    fn what_is_no_hash_of_an_image_is_refused_by_its_place() {
        let refused = Forgotten::parse(&[hash("a"), "cafe".into()]).unwrap_err();
        assert!(refused.to_string().contains("image_hashes[1]"), "{refused}");
        assert!(Forgotten::parse(&[]).is_err());
    }
}
