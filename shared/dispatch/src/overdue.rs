use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::times::{ServiceTimes, scaled};
use crate::{Kind, ReplicaId, Silence, Ticket};

/// Of a hundred answers, so many come in the usual time.
const USUAL: u32 = 95;

/// The copies in flight of one kind of question.
#[derive(Debug, Clone, Default)]
struct Watched {
    times: ServiceTimes,
    /// When each was sent.
    sent: BTreeSet<(Duration, Ticket, ReplicaId)>,
    usual: Option<Duration>,
}

impl Watched {
    fn delay(&self, silence: &Silence) -> Duration {
        self.usual.map_or(silence.unknown, |usual| scaled(usual, silence.percent)).max(silence.least)
    }
}

/// Every copy in flight, and when it counts as lost.
#[derive(Debug, Clone)]
pub(crate) struct Overdue {
    silence: Option<Silence>,
    kinds: BTreeMap<Kind, Watched>,
}

impl Overdue {
    pub(crate) fn new(silence: Option<Silence>) -> Self {
        Self { silence, kinds: BTreeMap::new() }
    }

    pub(crate) fn watch(&mut self, kind: Kind, sent: Duration, ticket: Ticket, replica: ReplicaId) {
        if self.silence.is_some() {
            self.kinds.entry(kind).or_default().sent.insert((sent, ticket, replica));
        }
    }

    pub(crate) fn forget(&mut self, kind: Kind, sent: Duration, ticket: Ticket, replica: ReplicaId) {
        if let Some(watched) = self.kinds.get_mut(&kind) {
            watched.sent.remove(&(sent, ticket, replica));
        }
    }

    /// Learns from an answer.
    pub(crate) fn record(&mut self, kind: Kind, took: Duration) {
        if self.silence.is_some() {
            let watched = self.kinds.entry(kind).or_default();
            watched.times.record(took);
            watched.usual = watched.times.quantile(USUAL);
        }
    }

    /// Whether a copy that was given up after so long should have been answered by then: it took twice as long as usual, or
    /// as long as makes it lost.
    pub(crate) fn is_long(&self, kind: Kind, took: Duration) -> bool {
        let Some(silence) = self.silence else { return false };
        let usual = self.kinds.get(&kind).and_then(|watched| watched.usual);
        usual.map_or(silence.unknown, |usual| scaled(usual, 200)).min(silence.least) <= took
    }

    /// A copy that counts as lost.
    pub(crate) fn first(&self, now: Duration) -> Option<(Ticket, ReplicaId)> {
        let silence = self.silence?;
        self.kinds.values().find_map(|watched| {
            let (sent, ticket, replica) = watched.sent.first()?;
            (now.saturating_sub(*sent) >= watched.delay(&silence)).then_some((*ticket, *replica))
        })
    }

    /// The next moment at which one does.
    pub(crate) fn next(&self) -> Option<Duration> {
        let silence = self.silence?;
        let next = |watched: &Watched| Some(watched.sent.first()?.0.saturating_add(watched.delay(&silence)));
        self.kinds.values().filter_map(next).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::HedgeAfter;

    const LOCATE: Kind = Kind(0);
    const REPLICA: ReplicaId = ReplicaId(7);
    const SILENCE: Silence = Silence {
        least: Duration::from_millis(50),
        percent: 1_000,
        unknown: Duration::from_millis(400),
        eject_after: 3,
    };

    fn millis(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn a_copy_is_lost_after_a_multiple_of_the_usual_time_and_not_before_the_least() {
        let mut overdue = Overdue::new(Some(SILENCE));
        overdue.watch(LOCATE, millis(0), Ticket(1), REPLICA);
        assert_eq!((overdue.first(millis(399)), overdue.next()), (None, Some(millis(400))));
        assert_eq!(overdue.first(millis(400)), Some((Ticket(1), REPLICA)));
        for _ in 0..HedgeAfter::LEAST {
            overdue.record(LOCATE, millis(8));
        }
        assert_eq!((overdue.first(millis(79)), overdue.next()), (None, Some(millis(80))));
        for _ in 0..HedgeAfter::WINDOW {
            overdue.record(LOCATE, millis(1));
        }
        assert_eq!(overdue.next(), Some(millis(50)));
        overdue.forget(LOCATE, millis(0), Ticket(1), REPLICA);
        assert_eq!((overdue.first(millis(9_999)), overdue.next()), (None, None));
    }

    #[test]
    fn what_was_given_up_early_says_nothing_of_its_replica() {
        let mut overdue = Overdue::new(Some(SILENCE));
        assert!(!overdue.is_long(LOCATE, millis(49)) && overdue.is_long(LOCATE, millis(50)));
        for _ in 0..HedgeAfter::LEAST {
            overdue.record(LOCATE, millis(10));
        }
        assert!(!overdue.is_long(LOCATE, millis(19)) && overdue.is_long(LOCATE, millis(20)));
    }

    #[test]
    fn without_a_limit_nothing_is_ever_lost() {
        let mut overdue = Overdue::new(None);
        overdue.watch(LOCATE, millis(0), Ticket(1), REPLICA);
        assert_eq!((overdue.first(Duration::MAX), overdue.next()), (None, None));
        assert!(!overdue.is_long(LOCATE, Duration::MAX));
    }
}
