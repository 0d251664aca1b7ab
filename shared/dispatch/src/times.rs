use std::collections::VecDeque;
use std::time::Duration;

use crate::HedgeAfter;

/// The last service times of one kind of question, and their quantile.
#[derive(Debug, Clone, Default)]
pub(crate) struct ServiceTimes {
    window: VecDeque<Duration>,
}

impl ServiceTimes {
    pub(crate) fn record(&mut self, took: Duration) {
        if self.window.len() == HedgeAfter::WINDOW {
            self.window.pop_front();
        }
        self.window.push_back(took);
    }

    /// The smallest time that so many percent of the window do not exceed; `None` while it holds too few.
    pub(crate) fn quantile(&self, percentile: u32) -> Option<Duration> {
        if self.window.len() < HedgeAfter::LEAST {
            return None;
        }
        let rank = (self.window.len() * percentile as usize).div_ceil(100).max(1);
        let mut times: Vec<Duration> = self.window.iter().copied().collect();
        Some(*times.select_nth_unstable(rank - 1).1)
    }
}

/// A time times a percentage; above 0, so that nothing is late when it is sent.
pub(crate) fn scaled(time: Duration, percent: u32) -> Duration {
    let nanos = (time.as_nanos() * u128::from(percent)).div_ceil(100);
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX).max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_quantile_is_that_of_the_last_answers() {
        let millis = Duration::from_millis;
        let mut times = ServiceTimes::default();
        for took in 0..1_000 {
            times.record(millis(took));
        }
        // 744 to 999: the 244th of 256.
        assert_eq!(times.quantile(95), Some(millis(744 + 243)));
        assert_eq!((times.quantile(100), times.quantile(1)), (Some(millis(999)), Some(millis(746))));
    }
}
