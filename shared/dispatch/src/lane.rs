use std::collections::BTreeSet;
use std::time::Duration;

use crate::{Question, Ticket, Urgency};

/// A question's place in its lane: interactive before batch, then the earliest deadline, then arrival. A question that
/// comes back has the place it had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    pub(crate) urgency: Urgency,
    deadline: Duration,
    pub(crate) ticket: Ticket,
}

impl Place {
    pub(crate) fn new(question: &Question, ticket: Ticket) -> Self {
        let Question { urgency, deadline, .. } = *question;
        Self { urgency, deadline: deadline.unwrap_or(Duration::MAX), ticket }
    }
}

/// The questions that wait in one lane, in order.
#[derive(Debug, Clone, Default)]
pub(crate) struct LaneQueue {
    places: BTreeSet<Place>,
}

impl LaneQueue {
    pub(crate) fn len(&self) -> usize {
        self.places.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    pub(crate) fn in_order(&self) -> impl Iterator<Item = Place> {
        self.places.iter().copied()
    }

    pub(crate) fn insert(&mut self, place: Place) {
        self.places.insert(place);
    }

    pub(crate) fn remove(&mut self, place: &Place) -> bool {
        self.places.remove(place)
    }
}
