//! Random streams: one for each thing that is drawn, so that nothing depends on the order of work.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

/// What a random stream is for. The numbers are part of the output's identity: never reuse one.
#[derive(Debug, Clone, Copy)]
#[repr(u8)]
pub(crate) enum Purpose {
    Family = 1,
    Scene = 2,
    Caption = 3,
    Pixels = 4,
}

/// The stream for `purpose` of item (`split`, `family`, `identity`, `view`); `extra` tells captions of a view
/// apart. The key is the tuple itself, so that two different tuples never share a stream.
pub(crate) fn stream(seed: u64, split: u8, purpose: Purpose, item: [u32; 4]) -> ChaCha8Rng {
    let mut key = [0u8; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8] = split;
    key[9] = purpose as u8;
    for (i, part) in item.iter().enumerate() {
        key[12 + 4 * i..16 + 4 * i].copy_from_slice(&part.to_le_bytes());
    }
    ChaCha8Rng::from_seed(key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::Rng;
    use std::collections::BTreeSet;

    #[test]
    fn different_items_get_different_streams() {
        let mut seen = BTreeSet::new();
        for split in 0..3 {
            for purpose in [Purpose::Family, Purpose::Scene, Purpose::Caption, Purpose::Pixels] {
                for item in [[0, 0, 0, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]] {
                    seen.insert(stream(7, split, purpose, item).random::<u64>());
                }
            }
        }
        assert_eq!(seen.len(), 3 * 4 * 5);
    }
}
