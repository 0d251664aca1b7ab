use std::collections::BTreeMap;
use std::time::Duration;

/// What will happen, and the virtual clock. Events of one moment happen in the order in which they were planned.
#[derive(Debug)]
pub(crate) struct Timeline<E> {
    now: Duration,
    planned: BTreeMap<(Duration, u64), E>,
    next: u64,
}

impl<E> Timeline<E> {
    pub(crate) fn new() -> Self {
        Self { now: Duration::ZERO, planned: BTreeMap::new(), next: 0 }
    }

    pub(crate) fn now(&self) -> Duration {
        self.now
    }

    /// Plans an event; one in the past happens now.
    pub(crate) fn at(&mut self, moment: Duration, event: E) {
        self.planned.insert((moment.max(self.now), self.next), event);
        self.next += 1;
    }

    pub(crate) fn after(&mut self, delay: Duration, event: E) {
        self.at(self.now.saturating_add(delay), event);
    }

    /// Goes to the next event.
    pub(crate) fn pop(&mut self) -> Option<E> {
        let ((moment, _), event) = self.planned.pop_first()?;
        self.now = moment;
        Some(event)
    }
}
