use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use crate::{Backoff, Ticket, rendezvous};

/// Names an answer replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReplicaId(pub(crate) u64);

impl ReplicaId {
    /// The replica of a name that no other replica has. Dispatchers that use the same names send an image to the same
    /// replica, and a replica that keeps its name over a restart keeps its images.
    #[must_use]
    pub fn of(name: &str) -> Self {
        Self(rendezvous::stable_hash(name.as_bytes()))
    }
}

impl fmt::Display for ReplicaId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:016x}", self.0)
    }
}

/// Whether a replica is sent questions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplicaState {
    /// Up to its capacity.
    Open,
    /// One at a time, until it answers: it failed.
    Trial,
    /// Not before this moment: it failed or is overloaded.
    BackedOff {
        /// The moment.
        until: Duration,
    },
    /// No more.
    Draining,
}

/// A replica as it is now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReplicaView {
    /// Its name.
    pub id: ReplicaId,
    /// Most questions it may have at a time.
    pub capacity: u32,
    /// Questions it has.
    pub in_flight: usize,
    /// Whether it is sent any.
    pub state: ReplicaState,
}

/// What one replica has, and whether it may be sent more.
#[derive(Debug, Clone)]
pub(crate) struct Replica {
    capacity: u32,
    draining: bool,
    in_flight: BTreeSet<Ticket>,
    /// In a row, those during one back-off counted once.
    failures: u32,
    backed_off_until: Duration,
    /// Copies that it left unanswered since it answered last.
    unanswered: u32,
}

impl Replica {
    pub(crate) fn new(capacity: u32) -> Self {
        Self {
            capacity,
            draining: false,
            in_flight: BTreeSet::new(),
            failures: 0,
            backed_off_until: Duration::ZERO,
            unanswered: 0,
        }
    }

    pub(crate) fn capacity(&self) -> u32 {
        self.capacity
    }

    /// Most questions that it may have now: one while it is on trial.
    pub(crate) fn limit(&self) -> u32 {
        if self.failures > 0 { 1 } else { self.capacity }
    }

    pub(crate) fn load(&self) -> usize {
        self.in_flight.len()
    }

    pub(crate) fn has_room(&self) -> bool {
        self.load() < self.limit() as usize
    }

    pub(crate) fn accepts(&self, now: Duration) -> bool {
        !self.draining && now >= self.backed_off_until
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining
    }

    /// When it accepts questions again; `None` where it will not or does.
    pub(crate) fn accepts_again(&self, now: Duration) -> Option<Duration> {
        (!self.draining && now < self.backed_off_until).then_some(self.backed_off_until)
    }

    pub(crate) fn state(&self, now: Duration) -> ReplicaState {
        match self.accepts_again(now) {
            _ if self.draining => ReplicaState::Draining,
            Some(until) => ReplicaState::BackedOff { until },
            None if self.failures > 0 => ReplicaState::Trial,
            None => ReplicaState::Open,
        }
    }

    pub(crate) fn drain(&mut self) {
        self.draining = true;
    }

    pub(crate) fn take(&mut self, ticket: Ticket) {
        self.in_flight.insert(ticket);
    }

    pub(crate) fn give_back(&mut self, ticket: Ticket) {
        self.in_flight.remove(&ticket);
    }

    pub(crate) fn in_flight(&self) -> &BTreeSet<Ticket> {
        &self.in_flight
    }

    pub(crate) fn into_in_flight(self) -> BTreeSet<Ticket> {
        self.in_flight
    }

    /// It works: a trial ends.
    pub(crate) fn responded(&mut self) {
        self.failures = 0;
        self.unanswered = 0;
    }

    /// It left a copy unanswered; how many that makes in a row.
    pub(crate) fn was_silent(&mut self) -> u32 {
        self.unanswered = self.unanswered.saturating_add(1);
        self.unanswered
    }

    /// It does not work. Of the questions that fail together with one crash, the first is counted.
    pub(crate) fn failed(&mut self, now: Duration, backoff: &Backoff) {
        if self.failures > 0 && now < self.backed_off_until {
            return;
        }
        self.failures = self.failures.saturating_add(1);
        self.back_off(now, backoff.after(self.failures));
    }

    pub(crate) fn overloaded(&mut self, now: Duration, retry_after: Duration, backoff: &Backoff) {
        self.back_off(now, backoff.asked(retry_after));
    }

    fn back_off(&mut self, now: Duration, delay: Duration) {
        self.backed_off_until = self.backed_off_until.max(now.saturating_add(delay));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BACKOFF: Backoff = Backoff { base: Duration::from_secs(1), cap: Duration::from_secs(60) };

    fn secs(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn questions_that_fail_together_count_as_one_failure() {
        let mut replica = Replica::new(8);
        for _ in 0..8 {
            replica.failed(secs(10), &BACKOFF);
        }
        assert_eq!(replica.state(secs(10)), ReplicaState::BackedOff { until: secs(11) });
        replica.failed(secs(11), &BACKOFF);
        assert_eq!(replica.state(secs(11)), ReplicaState::BackedOff { until: secs(13) });
    }

    #[test]
    fn a_replica_on_trial_has_one_question_until_it_responds() {
        let mut replica = Replica::new(8);
        replica.failed(secs(0), &BACKOFF);
        assert_eq!((replica.state(secs(1)), replica.has_room()), (ReplicaState::Trial, true));
        replica.take(Ticket(1));
        assert!(!replica.has_room());
        replica.responded();
        assert_eq!((replica.state(secs(1)), replica.has_room()), (ReplicaState::Open, true));
    }

    #[test]
    fn an_overloaded_replica_is_left_alone_as_long_as_it_asks_within_bounds() {
        for (asked, until) in [(0, 1), (5, 5), (3600, 60)] {
            let mut replica = Replica::new(8);
            replica.overloaded(secs(0), secs(asked), &BACKOFF);
            assert_eq!(replica.state(secs(0)), ReplicaState::BackedOff { until: secs(until) });
            assert_eq!(replica.state(secs(until)), ReplicaState::Open);
        }
    }
}
