use super::Limits;

/// A pool is this part of everything where judgements have one of their own.
const JUDGEMENTS_PART: usize = 4;

/// Sequences and cache tokens, in a pool that judgements have to themselves and one for all.
#[derive(Debug)]
pub(super) struct Pools {
    sequences: [Level; 2],
    tokens: [Level; 2],
}

#[derive(Debug, Clone, Copy)]
struct Level {
    limit: usize,
    used: usize,
}

impl Level {
    fn split(limit: usize, part: usize) -> [Self; 2] {
        [part, limit - part].map(|limit| Self { limit, used: 0 })
    }

    fn has_room(self, amount: usize) -> bool {
        amount <= self.limit - self.used
    }
}

impl Pools {
    /// The pool of judgements alone.
    pub(super) const JUDGEMENTS: usize = 0;
    /// The pool for all.
    pub(super) const ALL: usize = 1;

    pub(super) fn new(limits: &Limits) -> Self {
        let sequences = limits.sequences / JUDGEMENTS_PART;
        // Tokens without a sequence to use them would be lost.
        let tokens = if sequences == 0 { 0 } else { limits.cache_tokens / JUDGEMENTS_PART };
        Self {
            sequences: Level::split(limits.sequences, sequences),
            tokens: Level::split(limits.cache_tokens, tokens),
        }
    }

    /// Most tokens that one question can ever be given.
    pub(super) fn largest(&self) -> usize {
        self.tokens[Self::ALL].limit
    }

    pub(super) fn used(&self) -> usize {
        self.tokens.iter().map(|level| level.used).sum()
    }

    /// Whether there is a sequence and so many tokens.
    pub(super) fn fit(&self, pool: usize, tokens: usize) -> bool {
        self.sequences[pool].has_room(1) && self.tokens[pool].has_room(tokens)
    }

    pub(super) fn take(&mut self, pool: usize, sequences: usize, tokens: usize) {
        self.sequences[pool].used += sequences;
        self.tokens[pool].used += tokens;
    }

    pub(super) fn give_back(&mut self, pool: usize, sequences: usize, tokens: usize) {
        self.sequences[pool].used -= sequences;
        self.tokens[pool].used -= tokens;
    }
}
