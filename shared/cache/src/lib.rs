//! A cache that forgets what was used least recently as soon as it holds more than its budget.

use std::fmt;
use std::hash::Hash;

use lru::LruCache;

/// Values by key, each with a size; together they are never larger than the budget.
pub struct Cache<K: Hash + Eq, V> {
    entries: LruCache<K, (V, usize)>,
    size: usize,
    budget: usize,
}

impl<K: Hash + Eq, V> Cache<K, V> {
    /// An empty cache. Sizes and `budget` are in a unit of the caller's, bytes for instance; with a budget of 0 nothing
    /// but what has no size is kept.
    #[must_use]
    pub fn new(budget: usize) -> Self {
        Self { entries: LruCache::unbounded(), size: 0, budget }
    }

    /// The value of a key, which is the most recently used one now.
    pub fn get(&mut self, key: &K) -> Option<&V> {
        self.entries.get(key).map(|(value, _)| value)
    }

    /// Keeps a value in place of any other of its key, and forgets what no longer fits beside it. A value larger than the
    /// budget is not kept.
    pub fn insert(&mut self, key: K, value: V, size: usize) {
        self.remove(&key);
        if size > self.budget {
            return;
        }
        while self.size > self.budget - size {
            let Some((_, (_, freed))) = self.entries.pop_lru() else { break };
            self.size -= freed;
        }
        self.size += size;
        self.entries.put(key, (value, size));
    }

    /// Forgets a key. Returns its value.
    pub fn remove(&mut self, key: &K) -> Option<V> {
        let (value, size) = self.entries.pop(key)?;
        self.size -= size;
        Some(value)
    }

    /// Forgets every key that `keep` is false for.
    pub fn retain(&mut self, keep: impl Fn(&K) -> bool)
    where
        K: Clone,
    {
        let gone: Vec<K> =
            self.entries.iter().filter(|(key, _)| !keep(key)).map(|(key, _)| key.clone()).collect();
        for key in &gone {
            self.remove(key);
        }
    }

    /// What is held, in the unit of the budget.
    #[must_use]
    pub fn size(&self) -> usize {
        self.size
    }

    /// Number of values held.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// True when nothing is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

impl<K: Hash + Eq, V> fmt::Debug for Cache<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cache")
            .field("len", &self.len())
            .field("size", &self.size)
            .field("budget", &self.budget)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_least_recently_used_goes_first() {
        let mut cache = Cache::new(2);
        cache.insert('a', 1, 1);
        cache.insert('b', 2, 1);
        assert_eq!(cache.get(&'a'), Some(&1));
        cache.insert('c', 3, 1);
        assert_eq!((cache.get(&'a').copied(), cache.len()), (Some(1), 2));
        assert_eq!(cache.get(&'b'), None);
    }

    #[test]
    fn a_value_larger_than_the_budget_is_not_kept_and_leaves_the_others_alone() {
        let mut cache = Cache::new(2);
        cache.insert('a', 1, 1);
        cache.insert('b', 2, 3);
        assert_eq!((cache.get(&'a').copied(), cache.size()), (Some(1), 1));
        assert_eq!(cache.get(&'b'), None);
    }

    #[test]
    fn a_budget_of_nothing_keeps_nothing() {
        let mut cache = Cache::new(0);
        cache.insert('a', 1, 1);
        assert!(cache.is_empty());
    }

    #[test]
    fn what_is_not_retained_frees_its_size() {
        let mut cache = Cache::new(9);
        for (key, size) in [('a', 2), ('b', 3), ('c', 4)] {
            cache.insert(key, (), size);
        }
        cache.retain(|key| *key == 'b');
        assert_eq!((cache.size(), cache.len()), (3, 1));
    }

    proptest! {
        #[test]
        fn the_size_is_that_of_what_is_held_and_within_the_budget(
            inserts in prop::collection::vec((0..10_u8, 0..30_usize), 0..60),
            budget in 0..60_usize,
        ) {
            let mut cache = Cache::new(budget);
            let mut sizes = HashMap::new();
            for (key, size) in inserts {
                cache.insert(key, size, size);
                sizes.insert(key, size);
                let held: Vec<usize> = (0..10).filter_map(|key| cache.get(&key).copied()).collect();
                prop_assert_eq!(cache.size(), held.iter().sum::<usize>());
                prop_assert!(cache.size() <= budget);
                if size <= budget {
                    prop_assert_eq!(cache.get(&key), Some(&size));
                }
            }
        }
    }
}
