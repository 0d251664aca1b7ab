use std::collections::VecDeque;

/// Something in a [`Queue`].
pub(crate) trait Waiting {
    /// Whether anybody still wants the answer; what nobody wants is dropped.
    fn wanted(&self) -> bool;
    /// How much of a batch's budget it takes; at least 1.
    fn weight(&self) -> usize;
    /// Whether it can be worked on together with the first of a batch.
    fn joins(&self, first: &Self) -> bool;
}

/// A bounded first-in first-out queue that hands out batches.
#[derive(Debug)]
pub(crate) struct Queue<T> {
    waiting: VecDeque<T>,
    limit: usize,
}

impl<T: Waiting> Queue<T> {
    pub(crate) fn new(limit: usize) -> Self {
        Self { waiting: VecDeque::new(), limit }
    }

    pub(crate) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Appends, or gives back what does not fit beside what waits here and the number that waits `elsewhere`. What nobody
    /// wants any more takes no place.
    pub(crate) fn push(&mut self, item: T, elsewhere: usize) -> Result<(), T> {
        if self.waiting.len() + elsewhere >= self.limit {
            self.waiting.retain(Waiting::wanted);
        }
        if self.waiting.len() + elsewhere >= self.limit {
            return Err(item);
        }
        self.waiting.push_back(item);
        Ok(())
    }

    pub(crate) fn front(&self) -> Option<&T> {
        self.waiting.front()
    }

    /// Whether what joins the first fills a batch of `budget`, so that waiting for more is in vain.
    pub(crate) fn fills(&self, budget: usize) -> bool {
        let Some(first) = self.waiting.front() else { return false };
        let joined = self.waiting.iter().filter(|item| item.joins(first));
        joined.map(Waiting::weight).fold(0, usize::saturating_add) >= budget
    }

    /// Takes the oldest wanted item and, in order, everything that joins it within the budget. The oldest always goes,
    /// however heavy; the others keep their places. So younger items may leave before an older one that does not join or
    /// fit, but an item waits for no more batches than there were items before it.
    pub(crate) fn next_batch(&mut self, budget: usize) -> Vec<T> {
        self.waiting.retain(Waiting::wanted);
        let Some(first) = self.waiting.pop_front() else { return Vec::new() };
        let mut left = budget.saturating_sub(first.weight());
        let mut batch = vec![first];
        let mut index = 0;
        while index < self.waiting.len() && left > 0 {
            let item = &self.waiting[index];
            if item.joins(&batch[0]) && item.weight() <= left {
                left -= item.weight();
                batch.extend(self.waiting.remove(index));
            } else {
                index += 1;
            }
        }
        batch
    }

    /// Takes every wanted item, the oldest first.
    pub(crate) fn take_all(&mut self) -> Vec<T> {
        self.waiting.retain(Waiting::wanted);
        self.drain()
    }

    pub(crate) fn drain(&mut self) -> Vec<T> {
        self.waiting.drain(..).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone, PartialEq, Eq)]
    struct Item {
        id: usize,
        kind: u8,
        weight: usize,
        wanted: bool,
    }

    impl Waiting for Item {
        fn wanted(&self) -> bool {
            self.wanted
        }

        fn weight(&self) -> usize {
            self.weight
        }

        fn joins(&self, first: &Self) -> bool {
            self.kind == first.kind
        }
    }

    fn items() -> impl Strategy<Value = Vec<Item>> {
        let item = (0..3_u8, 1..6_usize, prop::bool::weighted(0.8));
        prop::collection::vec(item, 0..40).prop_map(|parts| {
            parts
                .into_iter()
                .enumerate()
                .map(|(id, (kind, weight, wanted))| Item { id, kind, weight, wanted })
                .collect()
        })
    }

    proptest! {
        #[test]
        fn every_wanted_item_leaves_once_in_batches_of_one_kind_within_the_budget(
            items in items(),
            budget in 1..10_usize,
        ) {
            let mut queue = Queue::new(items.len().max(1));
            for item in &items {
                prop_assert!(queue.push(item.clone(), 0).is_ok());
            }
            let mut left: Vec<Item> = items.into_iter().filter(|item| item.wanted).collect();
            loop {
                let batch = queue.next_batch(budget);
                if batch.is_empty() {
                    break;
                }
                prop_assert_eq!(&batch[0], &left[0], "the oldest is never passed over");
                prop_assert!(batch.iter().all(|item| item.kind == batch[0].kind));
                prop_assert!(batch.windows(2).all(|pair| pair[0].id < pair[1].id));
                let weight: usize = batch.iter().map(|item| item.weight).sum();
                prop_assert!(batch.len() == 1 || weight <= budget);
                left.retain(|item| !batch.contains(item));
            }
            prop_assert!(left.is_empty());
        }

        #[test]
        fn an_item_waits_for_no_more_batches_than_items_stood_before_it(
            items in items(),
            budget in 1..10_usize,
        ) {
            let mut queue = Queue::new(items.len().max(1));
            let mut order = Vec::new();
            for item in items {
                if item.wanted {
                    order.push(item.id);
                }
                prop_assert!(queue.push(item, 0).is_ok());
            }
            for batches in 0.. {
                let batch = queue.next_batch(budget);
                if batch.is_empty() {
                    break;
                }
                for item in batch {
                    let before = order.iter().position(|&id| id == item.id);
                    prop_assert!(before.is_some_and(|before| batches <= before));
                }
            }
        }
    }

    #[test]
    fn a_full_queue_takes_no_more_until_somebody_gives_up() {
        let item = |id, wanted| Item { id, kind: 0, weight: 1, wanted };
        let mut full = Queue::new(2);
        assert!(full.push(item(0, true), 0).is_ok());
        assert!(full.push(item(1, true), 0).is_ok());
        assert_eq!(full.push(item(2, true), 0), Err(item(2, true)));

        let mut abandoned = Queue::new(2);
        assert!(abandoned.push(item(0, false), 0).is_ok());
        assert!(abandoned.push(item(1, true), 0).is_ok());
        assert!(abandoned.push(item(2, true), 0).is_ok());
        assert_eq!(abandoned.len(), 2);

        let mut elsewhere = Queue::new(2);
        assert!(elsewhere.push(item(0, true), 1).is_ok());
        assert!(elsewhere.push(item(1, true), 1).is_err(), "what waits in the engine takes a place");
    }
}
