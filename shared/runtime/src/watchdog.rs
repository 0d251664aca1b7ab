use std::time::Duration;

use crate::health::Check;

/// How long one step of an engine may take before the engine counts as stuck, where nothing else is said.
pub const DEFAULT_STUCK_AFTER: Duration = Duration::from_secs(120);
/// After so many times that, a restart is asked for.
const HOPELESS: u32 = 5;
/// Looks at the engine for each time that it may take.
const LOOKS: u32 = 8;

/// What an engine does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Activity {
    Rests,
    /// One step has taken so long until now.
    Works(Duration),
    /// It will not work any more.
    Ended,
}

/// Says in a role's health when an engine hangs in a step, which it cannot say itself: first that no new work should come,
/// and much later that only a restart will help. An engine that goes on after all is welcome.
#[derive(Debug)]
pub(crate) struct Watchdog {
    pub(crate) limit: Duration,
    /// Fails while the engine is stuck.
    pub(crate) ready: Check,
    /// Fails for good.
    pub(crate) live: Check,
}

impl Watchdog {
    /// Watches until the engine has ended. `look` waits for a time, at most, and says what the engine does then.
    pub(crate) fn run(self, look: impl Fn(Duration) -> Activity, stuck: impl Fn(bool)) {
        let mut was_stuck = false;
        loop {
            let worked = match look(self.limit / LOOKS) {
                Activity::Rests => Duration::ZERO,
                Activity::Works(worked) => worked,
                Activity::Ended => return,
            };
            let is_stuck = worked > self.limit;
            if is_stuck != was_stuck {
                was_stuck = is_stuck;
                stuck(is_stuck);
                if is_stuck {
                    let reason = format!("one step takes longer than {:?}", self.limit);
                    tracing::error!(reason, "the engine is stuck");
                    self.ready.fail(reason);
                } else {
                    tracing::info!("the engine goes on");
                    self.ready.pass();
                }
            }
            if worked > self.limit * HOPELESS {
                self.live.fail(format!("one step takes longer than {:?}", self.limit * HOPELESS));
                return;
            }
        }
    }
}
