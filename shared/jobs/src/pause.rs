use std::time::Duration;

/// How long to wait before something is tried again: doubling up to a bound, each between half of itself and the whole, so
/// that many do not come back at the same moment.
#[derive(Debug, Clone, Copy)]
pub struct Pauses {
    /// The first whole pause.
    pub first: Duration,
    /// The longest.
    pub longest: Duration,
}

impl Pauses {
    /// The pause after so many failures in a row, from 1; `random` is evenly spread over 0 to 1. Never less than what who
    /// failed asked for, nor more than the longest.
    pub fn after(&self, failures: u32, asked: Option<Duration>, random: f64) -> Duration {
        let doublings = failures.saturating_sub(1).min(20);
        let whole = self.first.saturating_mul(1 << doublings).min(self.longest);
        let share = 0.5 + random.clamp(0.0, 1.0) / 2.0;
        whole.mul_f64(share).max(asked.unwrap_or_default()).min(self.longest)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PAUSES: Pauses = Pauses { first: Duration::from_millis(100), longest: Duration::from_secs(5) };

    #[test]
    fn pauses_double_up_to_the_longest() {
        assert_eq!(PAUSES.after(1, None, 1.0), Duration::from_millis(100));
        assert_eq!(PAUSES.after(3, None, 0.0), Duration::from_millis(200));
        assert_eq!(PAUSES.after(u32::MAX, None, 1.0), Duration::from_secs(5));
    }

    proptest! {
        #[test]
        fn no_pause_is_longer_than_the_longest_or_shorter_than_asked(
            failures: u32, asked_ms in 0_u64..10_000, random in -1.0..2.0_f64,
        ) {
            let asked = Duration::from_millis(asked_ms);
            let pause = PAUSES.after(failures, Some(asked), random);
            prop_assert!(pause <= PAUSES.longest);
            prop_assert!(pause >= asked.min(PAUSES.longest));
            prop_assert!(pause >= PAUSES.first / 2);
        }
    }
}
