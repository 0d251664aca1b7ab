use std::time::Duration;

use crate::Lane;

/// Most questions that wait, by lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueLimits {
    /// Of the high lane, at least 1.
    pub high: usize,
    /// Of the low lane, at least 1.
    pub low: usize,
    /// Of the ahead lane; 0 refuses questions asked ahead.
    pub ahead: usize,
}

impl QueueLimits {
    pub(crate) fn of(&self, lane: Lane) -> usize {
        match lane {
            Lane::High => self.high,
            Lane::Low => self.low,
            Lane::Ahead => self.ahead,
        }
    }
}

/// How long a replica that failed is left alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    /// After the first failure, above 0; doubled with each further one until the replica answers.
    pub base: Duration,
    /// At most, at least [`Self::base`].
    pub cap: Duration,
}

impl Backoff {
    /// The delay after so many failures in a row, at least 1.
    pub(crate) fn after(&self, failures: u32) -> Duration {
        let doubled = 1u32.checked_shl(failures - 1).unwrap_or(u32::MAX);
        self.base.saturating_mul(doubled).min(self.cap)
    }

    /// A delay that a replica asked for, within bounds.
    pub(crate) fn asked(&self, delay: Duration) -> Duration {
        delay.clamp(self.base, self.cap)
    }
}

/// A share of the questions sent for the first time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// Of a hundred such questions, 0 to 100.
    pub percent: u32,
    /// So many more at most, whenever they are saved up; at the start they are.
    pub burst: u32,
}

/// After what time a question in flight is sent a second time, to another replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HedgeAfter {
    /// Not at all.
    Never,
    /// A fixed time, above 0.
    Fixed(Duration),
    /// A multiple of a quantile of the last [`HedgeAfter::WINDOW`] service times of the same kind of question; not at
    /// all before there are [`HedgeAfter::LEAST`] of them.
    Quantile {
        /// The quantile, 1 to 100.
        percentile: u32,
        /// The multiple in percent, at least 1.
        percent: u32,
    },
}

impl HedgeAfter {
    /// Service times that a quantile is taken over.
    pub const WINDOW: usize = 256;
    /// Service times without which there is no quantile.
    pub const LEAST: usize = 32;
}

/// After what time without an answer a copy counts as lost, and a replica as hung.
///
/// A copy that is lost goes to another replica like one that failed. A replica that leaves several in a row unanswered is
/// ejected: what else it has goes elsewhere without being charged to the retry budget, and it is left alone and then tried
/// with one question, as after a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Silence {
    /// Never before this, above 0.
    pub least: Duration,
    /// A multiple, in percent and at least 100, of the time within which 95 of a hundred of the last
    /// [`HedgeAfter::WINDOW`] answers of the same kind came.
    pub percent: u32,
    /// After this while fewer than [`HedgeAfter::LEAST`] answers of the kind are known.
    pub unknown: Duration,
    /// Copies in a row that a replica leaves unanswered before it is ejected, at least 1. One that its caller's deadline
    /// ends counts if it took twice as long as usual, or [`Self::least`].
    pub eject_after: u32,
}

/// How a dispatcher works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// Most questions that wait.
    pub queue: QueueLimits,
    /// Most questions of the high lane that start in a row while the low lane waits, at least 1.
    pub high_burst: u32,
    /// How many questions behind it in its lane may start before a question, because the replica of their image has
    /// room and that of its own has none; 0 keeps the order strict. Under a load that fills every replica, a replica
    /// that has room again takes whatever is first, and images are seen again and again; with some tens at least,
    /// questions find their replica under that load too.
    pub pass_over: u32,
    /// How much of its fair share a replica may have in flight, in percent: at least 100.
    pub load_percent: u32,
    /// How often a question is sent, hedges among them: at least 1.
    pub attempts: u32,
    /// How long a replica that failed is left alone.
    pub backoff: Backoff,
    /// Questions sent again after a failure.
    pub retries: Share,
    /// When a question is sent a second time because the first copy takes long.
    pub hedge_after: HedgeAfter,
    /// Questions sent so.
    pub hedges: Share,
    /// When a copy counts as lost; `None` for never.
    pub silence: Option<Silence>,
}

/// Settings that no dispatcher can work with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    /// Too small a number.
    #[error("{field}: at least {least}, got {actual}")]
    TooSmall {
        /// The setting.
        field: &'static str,
        /// The smallest allowed.
        least: u128,
        /// What was given; nanoseconds where it is a time.
        actual: u128,
    },
    /// Too large a number.
    #[error("{field}: at most {limit}, got {actual}")]
    TooLarge {
        /// The setting.
        field: &'static str,
        /// The largest allowed.
        limit: u32,
        /// What was given.
        actual: u32,
    },
}

impl Settings {
    /// Checks that a dispatcher can work with them.
    ///
    /// # Errors
    /// [`SettingsError`] for the first value outside its range.
    pub fn check(&self) -> Result<(), SettingsError> {
        at_least("queue.high", 1, self.queue.high as u128)?;
        at_least("queue.low", 1, self.queue.low as u128)?;
        at_least("high_burst", 1, self.high_burst.into())?;
        at_least("load_percent", 100, self.load_percent.into())?;
        at_least("attempts", 1, self.attempts.into())?;
        at_least("backoff.base", 1, self.backoff.base.as_nanos())?;
        at_least("backoff.cap", self.backoff.base.as_nanos(), self.backoff.cap.as_nanos())?;
        at_most("retries.percent", 100, self.retries.percent)?;
        at_most("hedges.percent", 100, self.hedges.percent)?;
        if let Some(silence) = &self.silence {
            at_least("silence.least", 1, silence.least.as_nanos())?;
            at_least("silence.percent", 100, silence.percent.into())?;
            at_least("silence.eject_after", 1, silence.eject_after.into())?;
        }
        match self.hedge_after {
            HedgeAfter::Never => Ok(()),
            HedgeAfter::Fixed(delay) => at_least("hedge_after", 1, delay.as_nanos()),
            HedgeAfter::Quantile { percentile, percent } => {
                at_least("hedge_after.percentile", 1, percentile.into())?;
                at_most("hedge_after.percentile", 100, percentile)?;
                at_least("hedge_after.percent", 1, percent.into())
            }
        }
    }
}

impl Default for Settings {
    /// Queues of 1,024, 4,096 and 256; four of the high lane to one of the low; strict order; loads of at most 1.25 times
    /// the fair share; three attempts; back-off from 100 ms to 10 s; a tenth of the calls retried; no hedging; a copy lost
    /// after ten times the usual time, at least 10 s, 2 minutes while that is unknown; a replica ejected after three.
    fn default() -> Self {
        Self {
            queue: QueueLimits { high: 1024, low: 4096, ahead: 256 },
            high_burst: 4,
            pass_over: 0,
            load_percent: 125,
            attempts: 3,
            backoff: Backoff { base: Duration::from_millis(100), cap: Duration::from_secs(10) },
            retries: Share { percent: 10, burst: 10 },
            hedge_after: HedgeAfter::Never,
            hedges: Share { percent: 5, burst: 5 },
            silence: Some(Silence {
                least: Duration::from_secs(10),
                percent: 1_000,
                unknown: Duration::from_secs(120),
                eject_after: 3,
            }),
        }
    }
}

fn at_least(field: &'static str, least: u128, actual: u128) -> Result<(), SettingsError> {
    if actual < least { Err(SettingsError::TooSmall { field, least, actual }) } else { Ok(()) }
}

fn at_most(field: &'static str, limit: u32, actual: u32) -> Result<(), SettingsError> {
    if actual > limit { Err(SettingsError::TooLarge { field, limit, actual }) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid() {
        assert_eq!(Settings::default().check(), Ok(()));
    }

    #[test]
    fn a_value_outside_its_range_names_its_field_and_the_limit() {
        let small = Settings { load_percent: 99, ..Settings::default() };
        assert_eq!(small.check().unwrap_err().to_string(), "load_percent: at least 100, got 99");
        let large = Settings { retries: Share { percent: 101, burst: 0 }, ..Settings::default() };
        assert_eq!(large.check().unwrap_err().to_string(), "retries.percent: at most 100, got 101");
        let silence = Settings::default().silence.map(|silence| Silence { eject_after: 0, ..silence });
        let never = Settings { silence, ..Settings::default() };
        assert_eq!(never.check().unwrap_err().to_string(), "silence.eject_after: at least 1, got 0");
        let second = Duration::from_secs(1);
        let crossed = Settings { backoff: Backoff { base: second, cap: second / 2 }, ..Settings::default() };
        assert!(crossed.check().unwrap_err().to_string().starts_with("backoff.cap: at least"));
    }

    #[test]
    fn the_delay_doubles_up_to_the_cap() {
        let backoff = Settings::default().backoff;
        let delays: Vec<u128> = [1, 2, 3, 7, 8, 40, u32::MAX].map(|n| backoff.after(n).as_millis()).into();
        assert_eq!(delays, [100, 200, 400, 6400, 10_000, 10_000, 10_000]);
    }
}
