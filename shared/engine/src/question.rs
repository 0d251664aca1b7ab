use std::fmt;

use crate::{EngineError, Generation, Prompt, Sampling, Verdict};

/// The caller's name of a question or job: no two that are open at a time share one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

impl fmt::Display for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", self.0)
    }
}

/// What a question is for. The kinds share an engine fairly, so none of them can wait for ever behind another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A judgement about an image: short, and somebody waits for it.
    Locate,
    /// A long text about an image.
    Describe,
    /// A text made from texts.
    Aggregate,
}

impl Kind {
    /// Every kind, in the order of [`Self::index`].
    pub const ALL: [Self; 3] = [Self::Locate, Self::Describe, Self::Aggregate];

    /// Its share of contended tokens, in parts of the sum over the kinds that want any.
    #[must_use]
    pub const fn weight(self) -> usize {
        match self {
            Self::Locate => 4,
            Self::Describe => 2,
            Self::Aggregate => 1,
        }
    }

    /// Its place in [`Self::ALL`].
    #[must_use]
    pub const fn index(self) -> usize {
        match self {
            Self::Locate => 0,
            Self::Describe => 1,
            Self::Aggregate => 2,
        }
    }
}

/// What is wanted of a prompt.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Ask {
    /// p(Yes), read from one forward pass; nothing is decoded.
    Judgement,
    /// A text.
    Text(Sampling),
}

/// One question.
#[derive(Debug, Clone)]
pub struct Question {
    /// What the model is shown.
    pub prompt: Prompt,
    /// What is wanted.
    pub ask: Ask,
    /// What it is for.
    pub kind: Kind,
    /// Of waiting questions of one kind the smallest goes first, then the oldest. A deadline serves well.
    pub urgency: u64,
}

impl Question {
    /// A question as urgent as any, of the kind that its prompt and what is asked make it.
    #[must_use]
    pub fn new(prompt: Prompt, ask: Ask) -> Self {
        let kind = match (&ask, &prompt.image) {
            (Ask::Judgement, _) => Kind::Locate,
            (Ask::Text(_), Some(_)) => Kind::Describe,
            (Ask::Text(_), None) => Kind::Aggregate,
        };
        Self { prompt, ask, kind, urgency: 0 }
    }
}

/// What came of a question.
#[derive(Debug, Clone)]
pub enum Answer {
    /// To [`Ask::Judgement`].
    Verdict(Verdict),
    /// To [`Ask::Text`].
    Text(Generation),
}

/// What one step of an [`crate::Answerer`] did.
#[derive(Debug, Default)]
pub struct Progress {
    /// Questions that stopped waiting: the step was the first to work on them.
    pub started: Vec<Ticket>,
    /// Texts whose first token the step chose.
    pub first_tokens: Vec<Ticket>,
    /// Questions that have ended.
    pub done: Vec<(Ticket, Result<Answer, EngineError>)>,
    /// Prompt tokens that were run.
    pub prompt_tokens: usize,
    /// Generated tokens that were run.
    pub output_tokens: usize,
}

/// What an [`crate::Answerer`] has in hand.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Load {
    /// Questions being worked on.
    pub running: usize,
    /// Questions taken up that have not started.
    pub waiting: usize,
    /// Tokens of the key-value budget that running questions hold.
    pub cache_tokens: usize,
    /// The key-value budget in tokens; 0 for an engine without one.
    pub cache_limit: usize,
    /// Bytes of keys and values kept of the beginnings of prompts.
    pub prefix_bytes: usize,
    /// Questions so far that found the beginning of their prompt computed, or being computed.
    pub prefix_hits: u64,
    /// Questions so far whose beginning had to be computed.
    pub prefix_misses: u64,
}

impl Load {
    /// Nothing runs and nothing waits.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.running + self.waiting == 0
    }
}
