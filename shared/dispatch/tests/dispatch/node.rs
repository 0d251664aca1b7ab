use std::collections::BTreeSet;
use std::time::Duration;

use thicket_dispatch::{Backoff, Failure, ReplicaState, ReplicaView, Ticket};

/// A replica as the model sees it.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) capacity: u32,
    pub(crate) has: BTreeSet<Ticket>,
    pub(crate) is_draining: bool,
    /// It said or showed that it cannot answer before.
    pub(crate) not_before: Duration,
    /// In a row, those while it was left alone not counted.
    pub(crate) failures: u32,
    /// Copies lost in a row.
    pub(crate) unanswered: u32,
}

impl Node {
    pub(crate) fn new(capacity: u32) -> Self {
        let not_before = Duration::ZERO;
        Self { capacity, has: BTreeSet::new(), is_draining: false, not_before, failures: 0, unanswered: 0 }
    }

    pub(crate) fn learns(&mut self, failure: Failure, now: Duration, backoff: Backoff) {
        let delay = match failure {
            Failure::Overloaded { retry_after } => retry_after.clamp(backoff.base, backoff.cap),
            Failure::Unavailable | Failure::Broken if self.failures > 0 && now < self.not_before => return,
            Failure::Unavailable | Failure::Broken => {
                self.failures += 1;
                (backoff.base * 2u32.pow((self.failures - 1).min(20))).min(backoff.cap)
            }
            Failure::Rejected => {
                self.responds();
                return;
            }
        };
        self.not_before = self.not_before.max(now + delay);
    }

    pub(crate) fn responds(&mut self) {
        self.failures = 0;
        self.unanswered = 0;
    }

    pub(crate) fn state(&self, now: Duration) -> ReplicaState {
        match self {
            Self { is_draining: true, .. } => ReplicaState::Draining,
            Self { not_before: until, .. } if now < *until => ReplicaState::BackedOff { until: *until },
            Self { failures: 0, .. } => ReplicaState::Open,
            _ => ReplicaState::Trial,
        }
    }
}

/// Most questions that a replica may have now; `None` where it accepts none.
pub(crate) fn limit(view: &ReplicaView) -> Option<u64> {
    match view.state {
        ReplicaState::Open => Some(view.capacity.into()),
        ReplicaState::Trial => Some(1),
        ReplicaState::BackedOff { .. } | ReplicaState::Draining => None,
    }
}
