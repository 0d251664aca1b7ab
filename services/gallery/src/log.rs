//! What each transaction changed, by key: enough to bring a replica from one state to a later one, and nothing that would
//! have to be forgotten when an item is deleted.

use std::collections::BTreeSet;

use crate::record::Version;

/// Bytes of the log that are kept; a replica that lacks more is sent everything.
pub(crate) const LOG_BYTES: u64 = 16 << 20;
/// In the place of a sequence number: the collection's record was written.
pub(crate) const RECORD: u64 = u64::MAX;
/// In the place of a sequence number: the collection is gone.
pub(crate) const DROPPED: u64 = u64::MAX - 1;

/// (collection number, sequence number of an item, [`RECORD`] or [`DROPPED`]).
pub(crate) type Key = (u64, u64);

const KEY_BYTES: usize = 16;

/// An entry of the log: the transaction's name, then the keys; all numbers little-endian.
pub(crate) fn encode(version: &Version, keys: &BTreeSet<Key>) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(version.len() + keys.len() * KEY_BYTES);
    bytes.extend_from_slice(version);
    for (collection, sequence) in keys {
        bytes.extend_from_slice(&collection.to_le_bytes());
        bytes.extend_from_slice(&sequence.to_le_bytes());
    }
    bytes
}

/// Reads an entry; `None` where it is none.
pub(crate) fn decode(bytes: &[u8]) -> Option<(Version, Vec<Key>)> {
    let (version, keys) = bytes.split_first_chunk::<16>()?;
    let (keys, rest) = keys.as_chunks::<KEY_BYTES>();
    let half = |key: &[u8]| u64::from_le_bytes(key.try_into().unwrap_or_default());
    rest.is_empty().then(|| (*version, keys.iter().map(|key| (half(&key[..8]), half(&key[8..]))).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_survives_its_stored_form() {
        let keys = BTreeSet::from([(1, 2), (1, RECORD), (u64::MAX, 0)]);
        let entry = encode(&[7; 16], &keys);
        assert_eq!(decode(&entry), Some(([7; 16], keys.into_iter().collect())));
        assert_eq!(decode(&encode(&[0; 16], &BTreeSet::new())), Some(([0; 16], Vec::new())));
    }

    #[test]
    fn bytes_that_are_no_entry_are_refused() {
        assert_eq!(decode(&[1; 15]), None);
        assert_eq!(decode(&[1; 40]), None);
    }
}
