//! The two-lane queue in which questions wait for an answer model.
//!
//! The high lane holds the one question of each high-similarity query, the low lane the questions of the others. The
//! high lane goes first, but after [`Limits::high_burst`] of its items in a row a waiting low-lane item gets its turn.
//! Within a lane interactive work goes before batch work, then the earliest deadline, then arrival.
//!
//! The queue knows no clock: the caller passes the time in, as any ordered type.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroUsize;

use crate::Class;

/// Where an item waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lane {
    /// First-round questions of high-similarity queries.
    High,
    /// Questions of low-similarity queries.
    Low,
}

impl From<Class> for Lane {
    fn from(class: Class) -> Self {
        match class {
            Class::High => Self::High,
            Class::Low => Self::Low,
        }
    }
}

/// Who waits for the item.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Urgency {
    /// A person.
    Interactive,
    /// A batch job.
    Batch,
}

/// Bounds of a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Most items waiting in both lanes together.
    pub capacity: NonZeroUsize,
    /// Most high-lane items handed out in a row while the low lane waits.
    pub high_burst: NonZeroUsize,
}

/// Names a waiting item, for [`Queue::cancel`]. Never used twice by one queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(u64);

/// The queue is full; the item comes back.
#[derive(Debug, thiserror::Error)]
#[error("the queue holds {limit} items and is full")]
pub struct Full<T> {
    /// [`Limits::capacity`].
    pub limit: usize,
    /// The refused item.
    pub item: T,
}

/// An item that left the queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Popped<T> {
    /// Its turn has come.
    Ready(T),
    /// Its deadline has passed; it must be failed, not run.
    Expired(T),
}

/// Order within a lane. `Option` puts "no deadline" first, hence the wrapper.
type Place<I> = (Urgency, Deadline<I>, Ticket);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Deadline<I> {
    At(I),
    Never,
}

/// Questions that wait, each with its lane, urgency and deadline. `I` is the caller's time.
#[derive(Debug)]
pub struct Queue<T, I> {
    limits: Limits,
    high: BTreeMap<Place<I>, T>,
    low: BTreeMap<Place<I>, T>,
    /// Where each ticket waits.
    places: BTreeMap<Ticket, (Lane, Place<I>)>,
    /// Every deadline, earliest first.
    deadlines: BTreeSet<(I, Ticket)>,
    next_ticket: u64,
    /// High-lane items handed out since the low lane had its last turn or was empty.
    burst: usize,
}

impl<T, I: Ord + Copy> Queue<T, I> {
    /// An empty queue.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            high: BTreeMap::new(),
            low: BTreeMap::new(),
            places: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            next_ticket: 0,
            burst: 0,
        }
    }

    /// Items waiting.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// True when nothing waits.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Items waiting in one lane.
    pub fn lane_len(&self, lane: Lane) -> usize {
        match lane {
            Lane::High => self.high.len(),
            Lane::Low => self.low.len(),
        }
    }

    /// The earliest deadline of all waiting items: when [`Queue::expire`] next has something to do.
    pub fn next_deadline(&self) -> Option<I> {
        self.deadlines.first().map(|(deadline, _)| *deadline)
    }

    /// Lets an item wait. Its slot is free again once it is popped, cancelled or expired.
    ///
    /// # Errors
    /// [`Full`] with the item where [`Limits::capacity`] items wait.
    pub fn push(
        &mut self,
        item: T,
        lane: Lane,
        urgency: Urgency,
        deadline: Option<I>,
    ) -> Result<Ticket, Full<T>> {
        let limit = self.limits.capacity.get();
        if self.len() >= limit {
            return Err(Full { limit, item });
        }
        let ticket = Ticket(self.next_ticket);
        self.next_ticket += 1;
        let place = (urgency, deadline.map_or(Deadline::Never, Deadline::At), ticket);
        self.lane_mut(lane).insert(place, item);
        self.places.insert(ticket, (lane, place));
        if let Some(deadline) = deadline {
            self.deadlines.insert((deadline, ticket));
        }
        Ok(ticket)
    }

    /// Takes the next item out: first those whose deadline is at or before `now`, which the caller fails, then the
    /// one whose turn it is. `None` when nothing waits.
    pub fn pop(&mut self, now: I) -> Option<(Ticket, Popped<T>)> {
        if let Some((ticket, item)) = self.pop_expired(now) {
            return Some((ticket, Popped::Expired(item)));
        }
        let lane = self.next_lane()?;
        let (place, _) = self.lane_mut(lane).first_key_value()?;
        let ticket = place.2;
        self.burst = match lane {
            Lane::High if !self.low.is_empty() => self.burst + 1,
            Lane::High | Lane::Low => 0,
        };
        self.cancel(ticket).map(|item| (ticket, Popped::Ready(item)))
    }

    /// Takes out every item whose deadline is at or before `now`, earliest deadline first.
    pub fn expire(&mut self, now: I) -> Vec<(Ticket, T)> {
        std::iter::from_fn(|| self.pop_expired(now)).collect()
    }

    /// Takes a waiting item out, for a caller who went away. `None` if it left the queue already.
    pub fn cancel(&mut self, ticket: Ticket) -> Option<T> {
        let (lane, place) = self.places.remove(&ticket)?;
        if let Deadline::At(deadline) = place.1 {
            self.deadlines.remove(&(deadline, ticket));
        }
        self.lane_mut(lane).remove(&place)
    }

    fn pop_expired(&mut self, now: I) -> Option<(Ticket, T)> {
        let &(deadline, ticket) = self.deadlines.first()?;
        if deadline > now {
            return None;
        }
        self.cancel(ticket).map(|item| (ticket, item))
    }

    fn next_lane(&self) -> Option<Lane> {
        match (self.high.is_empty(), self.low.is_empty()) {
            (true, true) => None,
            (true, false) => Some(Lane::Low),
            (false, true) => Some(Lane::High),
            (false, false) if self.burst >= self.limits.high_burst.get() => Some(Lane::Low),
            (false, false) => Some(Lane::High),
        }
    }

    fn lane_mut(&mut self, lane: Lane) -> &mut BTreeMap<Place<I>, T> {
        match lane {
            Lane::High => &mut self.high,
            Lane::Low => &mut self.low,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap as Map;

    use proptest::prelude::*;

    use super::*;

    fn queue(capacity: usize, high_burst: usize) -> Queue<u32, u64> {
        let positive = |value| NonZeroUsize::new(value).unwrap();
        Queue::new(Limits { capacity: positive(capacity), high_burst: positive(high_burst) })
    }

    fn drain(queue: &mut Queue<u32, u64>, now: u64) -> Vec<Popped<u32>> {
        std::iter::from_fn(|| queue.pop(now).map(|(_, popped)| popped)).collect()
    }

    #[test]
    fn the_high_lane_goes_first() {
        let mut queue = queue(9, 9);
        queue.push(1, Lane::Low, Urgency::Interactive, None).unwrap();
        queue.push(2, Lane::High, Urgency::Batch, None).unwrap();
        assert_eq!(drain(&mut queue, 0), [Popped::Ready(2), Popped::Ready(1)]);
    }

    #[test]
    fn within_a_lane_interactive_then_deadline_then_arrival() {
        let mut queue = queue(9, 9);
        queue.push(1, Lane::Low, Urgency::Batch, Some(5)).unwrap();
        queue.push(2, Lane::Low, Urgency::Interactive, None).unwrap();
        queue.push(3, Lane::Low, Urgency::Interactive, Some(9)).unwrap();
        queue.push(4, Lane::Low, Urgency::Interactive, Some(7)).unwrap();
        queue.push(5, Lane::Low, Urgency::Interactive, None).unwrap();
        assert_eq!(drain(&mut queue, 0), [4, 3, 2, 5, 1].map(Popped::Ready));
    }

    #[test]
    fn a_full_queue_gives_the_item_back() {
        let mut queue = queue(1, 1);
        let ticket = queue.push(1, Lane::High, Urgency::Batch, None).unwrap();
        let full = queue.push(2, Lane::Low, Urgency::Interactive, None).unwrap_err();
        assert_eq!((full.limit, full.item), (1, 2));
        assert_eq!(queue.cancel(ticket), Some(1));
        assert!(queue.push(2, Lane::Low, Urgency::Interactive, None).is_ok());
    }

    #[test]
    fn an_expired_item_is_handed_out_as_such_before_anything_else() {
        let mut queue = queue(9, 9);
        queue.push(1, Lane::High, Urgency::Interactive, None).unwrap();
        queue.push(2, Lane::Low, Urgency::Batch, Some(5)).unwrap();
        assert_eq!(queue.next_deadline(), Some(5));
        assert_eq!(drain(&mut queue, 5), [Popped::Expired(2), Popped::Ready(1)]);
    }

    #[test]
    fn a_cancelled_item_is_gone() {
        let mut queue = queue(9, 9);
        let ticket = queue.push(1, Lane::High, Urgency::Interactive, Some(3)).unwrap();
        assert_eq!(queue.cancel(ticket), Some(1));
        assert_eq!(queue.cancel(ticket), None);
        assert!(queue.expire(9).is_empty());
        assert_eq!(queue.pop(0), None);
    }

    #[derive(Debug, Clone)]
    enum Action {
        Push(Lane, Urgency, Option<u64>),
        Pop,
        Cancel(prop::sample::Index),
        Expire,
        Wait(u64),
    }

    fn action() -> impl Strategy<Value = Action> {
        let lane = prop_oneof![Just(Lane::High), Just(Lane::Low)];
        let urgency = prop_oneof![Just(Urgency::Interactive), Just(Urgency::Batch)];
        prop_oneof![
            4 => (lane, urgency, prop::option::of(0u64..40)).prop_map(|(l, u, d)| Action::Push(l, u, d)),
            3 => Just(Action::Pop),
            1 => any::<prop::sample::Index>().prop_map(Action::Cancel),
            1 => Just(Action::Expire),
            1 => (0u64..8).prop_map(Action::Wait),
        ]
    }

    /// A waiting item as the plain model sees it.
    #[derive(Debug, Clone, Copy)]
    struct Waiting {
        item: u32,
        lane: Lane,
        urgency: Urgency,
        deadline: Option<u64>,
    }

    proptest! {
        #[test]
        fn nothing_is_lost_doubled_starved_or_over_capacity(
            actions in proptest::collection::vec(action(), 0..200),
            capacity in 1usize..12,
            high_burst in 1usize..5,
        ) {
            let mut queue = queue(capacity, high_burst);
            let mut model: Map<Ticket, Waiting> = Map::new();
            let (mut now, mut next_item) = (0u64, 0u32);
            let mut highs_in_a_row = 0;
            for action in actions {
                match action {
                    Action::Push(lane, urgency, deadline) => {
                        let waiting = Waiting { item: next_item, lane, urgency, deadline };
                        match queue.push(next_item, lane, urgency, deadline) {
                            Ok(ticket) => prop_assert!(model.insert(ticket, waiting).is_none()),
                            Err(full) => {
                                prop_assert_eq!(full.item, next_item);
                                prop_assert_eq!(model.len(), capacity);
                            }
                        }
                        next_item += 1;
                    }
                    Action::Pop => match queue.pop(now) {
                        None => prop_assert!(model.is_empty()),
                        Some((ticket, Popped::Expired(item))) => {
                            let waiting = model.remove(&ticket).unwrap();
                            prop_assert_eq!(waiting.item, item);
                            prop_assert!(waiting.deadline.unwrap() <= now);
                        }
                        Some((ticket, Popped::Ready(item))) => {
                            let waiting = model.remove(&ticket).unwrap();
                            prop_assert_eq!(waiting.item, item);
                            prop_assert!(model.values().all(|other| other.deadline.is_none_or(|at| at > now)));
                            let rank = |w: &Waiting| (w.urgency, w.deadline.unwrap_or(u64::MAX), w.item);
                            prop_assert!(model
                                .values()
                                .filter(|other| other.lane == waiting.lane)
                                .all(|other| rank(&waiting) < rank(other)));
                            let low_waits = model.values().any(|other| other.lane == Lane::Low);
                            highs_in_a_row = match waiting.lane {
                                Lane::High if low_waits => highs_in_a_row + 1,
                                _ => 0,
                            };
                            prop_assert!(highs_in_a_row <= high_burst);
                        }
                    },
                    Action::Cancel(pick) => {
                        if !model.is_empty() {
                            let ticket = *model.keys().nth(pick.index(model.len())).unwrap();
                            let waiting = model.remove(&ticket).unwrap();
                            prop_assert_eq!(queue.cancel(ticket), Some(waiting.item));
                        }
                    }
                    Action::Expire => {
                        for (ticket, item) in queue.expire(now) {
                            prop_assert_eq!(model.remove(&ticket).unwrap().item, item);
                        }
                        prop_assert!(model.values().all(|waiting| waiting.deadline.is_none_or(|at| at > now)));
                    }
                    Action::Wait(ticks) => now += ticks,
                }
                prop_assert_eq!(queue.len(), model.len());
                prop_assert!(queue.len() <= capacity);
                for lane in [Lane::High, Lane::Low] {
                    let waiting = model.values().filter(|waiting| waiting.lane == lane).count();
                    prop_assert_eq!(queue.lane_len(lane), waiting);
                }
            }
        }
    }
}
