use std::time::Duration;

use thicket_dispatch::{HedgeAfter, Share, Silence};
use thicket_runtime::parse_duration;
use thicket_upstream::Settings;

use crate::ConfigError;

/// Rounds asked ahead where nothing else is said: with five rounds, all that are left when the second is asked.
pub const DEFAULT_ASK_AHEAD: usize = 3;
/// Most rounds asked ahead: each holds an image in memory.
pub const MOST_ASK_AHEAD: usize = 16;
const OFF: &str = "off";

/// Flags of how the other roles are called, for `#[command(flatten)]`.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Calls to other roles")]
pub struct CallingArgs {
    /// Later rounds that a low-similarity query may ask ahead, each of an answer replica that has nothing to do; 0 to 16
    #[arg(long, env = "THICKET_ASK_AHEAD", value_name = "N", default_value_t = DEFAULT_ASK_AHEAD)]
    pub ask_ahead: usize,
    /// When a call is made a second time, at another replica, because the first takes long: `off`, a time, or `p95x2`, twice
    /// the time within which 95 of a hundred calls of its kind are answered
    #[arg(long, env = "THICKET_HEDGE_AFTER", value_name = "WHEN", default_value = OFF, value_parser = parse_hedge_after)]
    pub hedge_after: HedgeAfter,
    /// Most calls made a second time so, of a hundred
    #[arg(long, env = "THICKET_HEDGE_PERCENT", value_name = "P", default_value_t = 5)]
    pub hedge_percent: u32,
    /// Shortest time without an answer after which a call goes to another replica, or `off`; it is ten times the usual time
    /// where that is longer, and two minutes while that is unknown
    #[arg(long, env = "THICKET_SILENT_AFTER", value_name = "TIME", default_value = "10s", value_parser = parse_silent_after)]
    pub silent_after: SilentAfter,
}

/// Shortest time without an answer after which a call goes to another replica; `None` for never.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SilentAfter(pub Option<Duration>);

/// How the other roles are called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Calling {
    /// Later rounds that a query of low similarity may ask ahead, 0 to [`MOST_ASK_AHEAD`]. Default: [`DEFAULT_ASK_AHEAD`].
    pub ask_ahead: usize,
    /// When a call is made a second time because the first takes long. Default: never.
    pub hedge_after: HedgeAfter,
    /// Most calls made a second time so, of a hundred. Default: 5.
    pub hedge_percent: u32,
    /// When a call counts as lost. Default: after 10 s at the least.
    pub silent_after: SilentAfter,
}

impl Default for Calling {
    fn default() -> Self {
        let dispatch = thicket_dispatch::Settings::default();
        Self {
            ask_ahead: DEFAULT_ASK_AHEAD,
            hedge_after: dispatch.hedge_after,
            hedge_percent: dispatch.hedges.percent,
            silent_after: SilentAfter(dispatch.silence.map(|silence| silence.least)),
        }
    }
}

impl CallingArgs {
    /// The validated settings.
    ///
    /// # Errors
    /// [`ConfigError`] for the first value out of range.
    pub fn calling(&self) -> Result<Calling, ConfigError> {
        let &Self { ask_ahead, hedge_after, hedge_percent, silent_after } = self;
        if ask_ahead > MOST_ASK_AHEAD {
            return Err(ConfigError::AskAhead { limit: MOST_ASK_AHEAD, actual: ask_ahead });
        }
        let calling = Calling { ask_ahead, hedge_after, hedge_percent, silent_after };
        calling.upstream(None).dispatch.check()?;
        Ok(calling)
    }
}

impl Calling {
    /// The same for an upstream, with the token that replicas want.
    pub(crate) fn upstream(&self, token: Option<String>) -> Settings {
        let settings = Settings { token, ..Settings::default() };
        let silence = |silence: Silence| {
            let least = self.silent_after.0?;
            Some(Silence { least, unknown: silence.unknown.max(least), ..silence })
        };
        let dispatch = thicket_dispatch::Settings {
            hedge_after: self.hedge_after,
            hedges: Share { percent: self.hedge_percent, ..settings.dispatch.hedges },
            silence: settings.dispatch.silence.and_then(silence),
            ..settings.dispatch
        };
        Settings { dispatch, ..settings }
    }
}

/// Reads `off`, a time, `p95` or `p95x2`.
fn parse_hedge_after(text: &str) -> Result<HedgeAfter, String> {
    if text == OFF {
        return Ok(HedgeAfter::Never);
    }
    let Some(quantile) = text.strip_prefix('p') else { return parse_duration(text).map(HedgeAfter::Fixed) };
    let (percentile, times) = quantile.split_once('x').unwrap_or((quantile, "1"));
    let percentile = percentile.parse().ok().filter(|percentile| (1..=100).contains(percentile));
    let times = times.parse::<u32>().ok().filter(|times| (1..=1_000).contains(times));
    match (percentile, times) {
        (Some(percentile), Some(times)) => Ok(HedgeAfter::Quantile { percentile, percent: 100 * times }),
        _ => Err("write `off`, a time such as 800ms, or p95x2: 1 to 100, and 1 to 1000 times".to_owned()),
    }
}

fn parse_silent_after(text: &str) -> Result<SilentAfter, String> {
    if text == OFF {
        Ok(SilentAfter(None))
    } else {
        parse_duration(text).map(|least| SilentAfter(Some(least)))
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        calling: CallingArgs,
    }

    fn calling(flags: &[&str]) -> Result<Calling, String> {
        let line =
            Line::try_parse_from([&["coordinator"], flags].concat()).map_err(|error| error.to_string())?;
        line.calling.calling().map_err(|error| error.to_string())
    }

    #[test]
    fn without_flags_the_defaults_hold() {
        assert_eq!(calling(&[]).unwrap(), Calling::default());
        assert_eq!(Calling::default().upstream(None).dispatch, Settings::default().dispatch);
    }

    #[test]
    fn a_second_copy_is_sent_after_a_time_or_a_multiple_of_what_is_usual() {
        let after = |text| calling(&["--hedge-after", text]).map(|calling| calling.hedge_after);
        assert_eq!(after("off").unwrap(), HedgeAfter::Never);
        assert_eq!(after("800ms").unwrap(), HedgeAfter::Fixed(Duration::from_millis(800)));
        assert_eq!(after("p99").unwrap(), HedgeAfter::Quantile { percentile: 99, percent: 100 });
        assert_eq!(after("p95x2").unwrap(), HedgeAfter::Quantile { percentile: 95, percent: 200 });
        for bad in ["p0", "p101", "p95x0", "p95x", "soon", "p", "0s"] {
            assert!(after(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_out_of_range_is_refused_by_name() {
        for (flags, name) in [
            (["--ask-ahead", "17"], "ask-ahead"),
            (["--hedge-percent", "101"], "hedges.percent"),
            (["--silent-after", "0s"], "silence.least"),
        ] {
            let error = calling(&flags).unwrap_err();
            assert!(error.contains(name), "{flags:?}: {error}");
        }
        assert_eq!(calling(&["--silent-after", "off"]).unwrap().upstream(None).dispatch.silence, None);
    }
}
