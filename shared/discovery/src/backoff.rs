use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

/// Waits between attempts: doubling up to a bound, each between half of itself and the whole, so that many processes do
/// not come back at the same moment.
#[derive(Debug)]
pub(crate) struct Backoff {
    first: Duration,
    longest: Duration,
    failures: u32,
    random: SmallRng,
}

impl Backoff {
    pub(crate) fn new(first: Duration, longest: Duration) -> Self {
        let seed = uuid::Uuid::new_v4().as_u64_pair().1;
        Self { first, longest, failures: 0, random: SmallRng::seed_from_u64(seed) }
    }

    /// How long to wait after one more failure; what went well for `lasted` before it counts as a new beginning where that
    /// is longer than the longest wait.
    pub(crate) fn after(&mut self, lasted: Duration) -> Duration {
        if lasted > self.longest {
            self.failures = 0;
        }
        let whole = self.first.saturating_mul(1 << self.failures.min(20)).min(self.longest);
        self.failures = self.failures.saturating_add(1);
        whole.mul_f64(self.random.random_range(0.5..=1.0))
    }

    /// A random index below `count`, which is at least 1.
    pub(crate) fn pick(&mut self, count: usize) -> usize {
        self.random.random_range(0..count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: Duration = Duration::from_millis(100);
    const LONGEST: Duration = Duration::from_secs(5);

    #[test]
    fn waits_double_up_to_the_bound() {
        let mut backoff = Backoff::new(FIRST, LONGEST);
        for failure in 0..100 {
            let whole = (FIRST * (1 << failure.min(10))).min(LONGEST);
            let wait = backoff.after(Duration::ZERO);
            assert!(wait >= whole / 2 && wait <= whole, "{failure}: {wait:?} of {whole:?}");
        }
    }

    #[test]
    fn only_what_lasted_long_is_a_new_beginning() {
        let mut backoff = Backoff::new(FIRST, LONGEST);
        for _ in 0..10 {
            backoff.after(Duration::ZERO);
        }
        assert!(backoff.after(LONGEST) >= LONGEST / 2);
        assert!(backoff.after(LONGEST * 2) <= FIRST);
    }

    #[test]
    fn two_processes_wait_differently() {
        let waits = || {
            let mut backoff = Backoff::new(FIRST, LONGEST);
            (0..8).map(|_| backoff.after(Duration::ZERO)).collect::<Vec<_>>()
        };
        assert_ne!(waits(), waits());
    }
}
