use std::fmt;
use std::time::Duration;

use crate::rendezvous;

/// Where a question waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lane {
    /// The first-round question of a high-similarity query.
    High,
    /// Everything else that somebody waits for.
    Low,
    /// Questions whose answers may turn out not to be needed: for replicas that have nothing else to do.
    Ahead,
}

impl Lane {
    /// Every lane, in the order in which they go.
    pub const ALL: [Self; 3] = [Self::High, Self::Low, Self::Ahead];
}

impl fmt::Display for Lane {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::High => "high",
            Self::Low => "low",
            Self::Ahead => "ahead",
        })
    }
}

/// Who waits for the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Urgency {
    /// A person.
    Interactive,
    /// A batch job.
    Batch,
}

/// Questions of one kind take about the same time: what is late is judged among them. The caller numbers its kinds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Kind(pub u8);

/// Names the image a question is about. Equal images have equal keys; two images that share a key only share a replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ImageKey(pub(crate) u64);

impl ImageKey {
    /// The key of an image, from its content hash or its name. The same in every process.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(rendezvous::stable_hash(bytes))
    }
}

/// Names a question that was taken. Never used twice by one dispatcher; a later one is greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub(crate) u64);

impl fmt::Display for Ticket {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", self.0)
    }
}

/// What the dispatcher knows of a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Question {
    /// Where it waits.
    pub lane: Lane,
    /// Who waits for it.
    pub urgency: Urgency,
    /// When nobody waits for the answer any more; `None` for never.
    pub deadline: Option<Duration>,
    /// The image it is about; without one it goes to the least loaded replica.
    pub image: Option<ImageKey>,
    /// What it is compared with to call it late.
    pub kind: Kind,
}
