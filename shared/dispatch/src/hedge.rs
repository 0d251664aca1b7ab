use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::times::{ServiceTimes, scaled};
use crate::{HedgeAfter, Kind, Ticket};

/// The questions of one kind that may become late.
#[derive(Debug, Clone, Default)]
struct Watched {
    times: ServiceTimes,
    /// When each was sent.
    sent: BTreeSet<(Duration, Ticket)>,
    /// After what time one is late; `None` while that is unknown.
    delay: Option<Duration>,
}

/// The questions in flight of which a second copy may be sent, and when.
#[derive(Debug, Clone)]
pub(crate) struct Stragglers {
    after: HedgeAfter,
    kinds: BTreeMap<Kind, Watched>,
}

impl Stragglers {
    pub(crate) fn new(after: HedgeAfter) -> Self {
        Self { after, kinds: BTreeMap::new() }
    }

    /// Begins to watch a question that was sent.
    pub(crate) fn watch(&mut self, kind: Kind, sent: Duration, ticket: Ticket) {
        if let Some(watched) = self.of(kind) {
            watched.sent.insert((sent, ticket));
        }
    }

    pub(crate) fn forget(&mut self, kind: Kind, sent: Duration, ticket: Ticket) {
        if let Some(watched) = self.kinds.get_mut(&kind) {
            watched.sent.remove(&(sent, ticket));
        }
    }

    /// Learns from an answer.
    pub(crate) fn record(&mut self, kind: Kind, took: Duration) {
        if let HedgeAfter::Quantile { percentile, percent } = self.after
            && let Some(watched) = self.of(kind)
        {
            watched.times.record(took);
            watched.delay = watched.times.quantile(percentile).map(|time| scaled(time, percent));
        }
    }

    /// Questions that are late, those of one kind in the order in which they were sent.
    pub(crate) fn late(&self, now: Duration) -> impl Iterator<Item = Ticket> {
        self.kinds.values().flat_map(move |watched| {
            let is_late =
                move |sent: Duration| watched.delay.is_some_and(|delay| now.saturating_sub(sent) >= delay);
            watched.sent.iter().take_while(move |(sent, _)| is_late(*sent)).map(|(_, ticket)| *ticket)
        })
    }

    /// The next moment after now at which a question becomes late.
    pub(crate) fn next_late(&self, now: Duration) -> Option<Duration> {
        let next = |watched: &Watched| {
            let delay = watched.delay?;
            let mut moments = watched.sent.iter().map(|(sent, _)| sent.saturating_add(delay));
            moments.find(|moment| *moment > now)
        };
        self.kinds.values().filter_map(next).min()
    }

    fn of(&mut self, kind: Kind) -> Option<&mut Watched> {
        let delay = match self.after {
            HedgeAfter::Never => return None,
            HedgeAfter::Fixed(delay) => Some(delay),
            HedgeAfter::Quantile { .. } => None,
        };
        Some(self.kinds.entry(kind).or_insert_with(|| Watched { delay, ..Watched::default() }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOCATE: Kind = Kind(0);

    fn millis(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    fn late(stragglers: &Stragglers, now: u64) -> Vec<u64> {
        stragglers.late(millis(now)).map(|ticket| ticket.0).collect()
    }

    #[test]
    fn nothing_is_late_before_enough_answers_are_known() {
        let mut stragglers = Stragglers::new(HedgeAfter::Quantile { percentile: 95, percent: 200 });
        stragglers.watch(LOCATE, millis(0), Ticket(1));
        for _ in 0..HedgeAfter::LEAST - 1 {
            stragglers.record(LOCATE, millis(10));
        }
        assert_eq!((late(&stragglers, 9_999), stragglers.next_late(millis(0))), (vec![], None));
        stragglers.record(LOCATE, millis(10));
        assert_eq!((late(&stragglers, 19), stragglers.next_late(millis(0))), (vec![], Some(millis(20))));
        assert_eq!((late(&stragglers, 20), stragglers.next_late(millis(20))), (vec![1], None));
    }

    #[test]
    fn kinds_are_judged_each_for_itself() {
        let mut stragglers = Stragglers::new(HedgeAfter::Quantile { percentile: 50, percent: 100 });
        for _ in 0..HedgeAfter::LEAST {
            stragglers.record(LOCATE, millis(10));
            stragglers.record(Kind(1), millis(1_000));
        }
        stragglers.watch(LOCATE, millis(5), Ticket(1));
        stragglers.watch(Kind(1), millis(0), Ticket(2));
        assert_eq!(late(&stragglers, 20), [1]);
        assert_eq!(stragglers.next_late(millis(20)), Some(millis(1_000)));
        stragglers.forget(LOCATE, millis(5), Ticket(1));
        assert_eq!(late(&stragglers, 1_000), [2]);
    }
}
