//! Rendezvous hashing, also called highest random weight: every replica gets a weight for a key, the heaviest has it.
//!
//! Thaler and Ravishankar (IEEE/ACM Transactions on Networking 6(1), 1998) give equal shares; the logarithm of
//! Schindelhauer and Schomaker (SPAA 2005) makes a replica's share that of its capacity. Nothing is stored, and a
//! replica that comes, goes or changes its capacity moves only keys to itself or from itself.

/// The weight of a replica for a key, above 0. Uniform hashes give a replica the heaviest weight for a share of the keys
/// in proportion to its capacity.
pub(crate) fn weight(key: u64, replica: u64, capacity: u32) -> f64 {
    let hash = mixed(mixed(key).wrapping_add(mixed(replica ^ REPLICA)));
    // 53 bits and a half: strictly between 0 and 1.
    let uniform = ((hash >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
    f64::from(capacity) / -uniform.ln()
}

/// Sets the numbers of replicas apart from those of keys.
const REPLICA: u64 = 0x9e37_79b9_7f4a_7c15;

/// A hash of bytes that every process agrees on, now and later: FNV-1a, mixed.
pub(crate) fn stable_hash(bytes: &[u8]) -> u64 {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    mixed(bytes.iter().fold(0xcbf2_9ce4_8422_2325, step))
}

/// The finaliser of SplitMix64: a bijection under which every input bit changes about half of the output bits.
fn mixed(mut bits: u64) -> u64 {
    bits = (bits ^ bits >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ bits >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ bits >> 31
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    /// The replica that has a key.
    fn owner(key: u64, capacities: &BTreeMap<u64, u32>) -> Option<u64> {
        let weigh = |(&replica, &capacity): (&u64, &u32)| (weight(key, replica, capacity), replica);
        capacities.iter().map(weigh).max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, replica)| replica)
    }

    #[test]
    fn the_hash_is_the_same_for_ever() {
        assert_eq!(stable_hash(b""), mixed(0xcbf2_9ce4_8422_2325));
        // Where an image's keys and values lie depends on it across versions.
        assert_eq!(stable_hash(b"thicket"), 0x37dd_235d_6334_facf);
    }

    #[test]
    fn shares_follow_capacity() {
        let capacities = BTreeMap::from([(1, 1), (2, 2), (3, 4), (4, 8)]);
        let mut keys = BTreeMap::new();
        for key in 0..30_000 {
            *keys.entry(owner(key, &capacities).unwrap()).or_insert(0) += 1;
        }
        for (replica, capacity) in &capacities {
            let (fair, actual) = (2_000 * capacity, keys[replica]);
            assert!(fair * 95 / 100 < actual && actual < fair * 105 / 100, "{replica}: {actual} of {fair}");
        }
    }

    #[test]
    fn weights_are_finite_and_above_zero() {
        for key in 0..10_000 {
            let weight = weight(key, key / 7, u32::MAX);
            assert!(weight.is_finite() && weight > 0.0);
        }
    }

    proptest! {
        #[test]
        fn a_replica_that_goes_moves_its_own_keys_alone(
            capacities in prop::collection::btree_map(any::<u64>(), 1u32..64, 2..10),
            gone in any::<prop::sample::Index>(),
            keys in prop::collection::vec(any::<u64>(), 1..50),
        ) {
            let gone = *gone.get(&capacities.keys().collect::<Vec<_>>());
            let mut rest = capacities.clone();
            rest.remove(gone);
            for key in keys {
                let before = owner(key, &capacities).unwrap();
                if before != *gone {
                    prop_assert_eq!(owner(key, &rest), Some(before));
                }
            }
        }

        #[test]
        fn a_replica_that_comes_moves_keys_to_itself_alone(
            capacities in prop::collection::btree_map(any::<u64>(), 1u32..64, 1..10),
            new in any::<u64>(),
            capacity in 1u32..64,
            keys in prop::collection::vec(any::<u64>(), 1..50),
        ) {
            prop_assume!(!capacities.contains_key(&new));
            let mut more = capacities.clone();
            more.insert(new, capacity);
            for key in keys {
                let after = owner(key, &more);
                if after != Some(new) {
                    prop_assert_eq!(after, owner(key, &capacities));
                }
            }
        }

        #[test]
        fn more_capacity_takes_keys_and_gives_none_away(
            capacities in prop::collection::btree_map(any::<u64>(), 1u32..64, 2..10),
            grown in any::<prop::sample::Index>(),
            keys in prop::collection::vec(any::<u64>(), 1..50),
        ) {
            let grown = **grown.get(&capacities.keys().collect::<Vec<_>>());
            let mut larger = capacities.clone();
            *larger.get_mut(&grown).unwrap() *= 2;
            for key in keys {
                let after = owner(key, &larger);
                if after != Some(grown) {
                    prop_assert_eq!(after, owner(key, &capacities));
                }
            }
        }
    }
}
