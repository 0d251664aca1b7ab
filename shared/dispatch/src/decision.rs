//! What comes out of a dispatcher, and what callers report to it.

use std::time::Duration;

use crate::{Lane, ReplicaId, Ticket};

/// Why a question is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Why {
    /// Its turn has come.
    First,
    /// An earlier copy failed, or the replica that had it was lost.
    Retry,
    /// Another copy takes long; the first answer wins.
    Hedge,
}

/// What the caller has to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Send a question to a replica, and report how it went with
    /// [`Dispatcher::answered`](crate::Dispatcher::answered) or [`Dispatcher::failed`](crate::Dispatcher::failed).
    Ask {
        /// The question.
        ticket: Ticket,
        /// Where it goes.
        replica: ReplicaId,
        /// Why it is sent.
        why: Why,
    },
    /// A copy was not answered for too long: stop it.
    Lose {
        /// The question.
        ticket: Ticket,
        /// Where the copy is to be stopped.
        replica: ReplicaId,
        /// Whether the replica is ejected, as hung.
        is_ejected: bool,
        /// What becomes of the question.
        fate: AfterFailure,
    },
    /// Tell whoever waits that the deadline passed.
    Expire {
        /// The question, which has ended.
        ticket: Ticket,
        /// Where copies of it are to be stopped.
        stop: Vec<ReplicaId>,
    },
}

/// A question that was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Its lane is full.
    #[error(
        "the {lane} lane holds {actual} questions, at most {limit} may wait: try again in {retry_after:?}"
    )]
    Full {
        /// The lane.
        lane: Lane,
        /// Most questions of the lane.
        limit: usize,
        /// Questions that wait in it.
        actual: usize,
        /// About as long as the lane needs to be worked off, 100 ms to 30 s; 1 s while that is unknown.
        retry_after: Duration,
    },
    /// Its deadline had passed when it came.
    #[error("the deadline passed {late:?} before the question came")]
    Expired {
        /// Time since the deadline.
        late: Duration,
    },
}

/// How a copy of a question failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// The replica has too much to do and did nothing. It is left alone for as long as it asks, within
    /// [`Backoff`](crate::Backoff), and the question is not charged to the retry budget.
    Overloaded {
        /// What it asks for.
        retry_after: Duration,
    },
    /// No answer, and nothing of one: the replica cannot be reached, is starting, or does not answer in time.
    Unavailable,
    /// The answer broke off after its first byte. Never sent again.
    Broken,
    /// The replica refuses this question for what it is, as any other would. Never sent again.
    Rejected,
}

/// Why a question ended without an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum GaveUp {
    /// It was sent as often as allowed.
    #[error("no answer after {limit} attempts")]
    Attempts {
        /// [`Settings::attempts`](crate::Settings::attempts).
        limit: u32,
    },
    /// Too large a share of the questions was sent again lately.
    #[error("the retry budget of {percent} % of the calls is spent")]
    RetryBudget {
        /// The percentage of [`Settings::retries`](crate::Settings::retries).
        percent: u32,
    },
    /// [`Failure::Broken`].
    #[error("the answer broke off")]
    Broken,
    /// [`Failure::Rejected`].
    #[error("the question was rejected")]
    Rejected,
}

/// What became of a reported answer.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub enum Answered {
    /// It is the answer; the question has ended.
    Accepted {
        /// Where other copies of it are to be stopped.
        stop: Vec<ReplicaId>,
    },
    /// The question has ended, or this replica does not have it: ignore the answer. Nothing changed.
    Late,
}

/// What became of a question whose copy failed.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub enum AfterFailure {
    /// It waits again, at its old place.
    Queued,
    /// Another copy is still being answered.
    OtherCopy,
    /// It has ended: tell whoever waits.
    Ended {
        /// Why it is not sent again.
        reason: GaveUp,
        /// Where other copies of it are to be stopped.
        stop: Vec<ReplicaId>,
    },
    /// The question has ended, or this replica does not have it. Nothing changed.
    Late,
}
