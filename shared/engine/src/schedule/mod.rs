//! Decides what goes into each step of an engine that works on many questions at a time. Pure: no model, no clock.
//!
//! Every sequence that is decoding gets one token a step. What is left of the step's tokens goes to prompts in chunks,
//! shared among the kinds by their weights, so that a long prompt of one kind holds up another kind by no more than its
//! share. The beginning that prompts have in common is run once and counted once.
//!
//! Sequences and their keys and values come out of two pools: a quarter is kept for judgements, which end within a few
//! steps; the rest is for all. The pool for all is handed out in weighted fair order by tokens, and a question that is
//! next and does not fit is waited for, never passed over. So the question that is the first of its kind waits, of every
//! other kind `j`, for at most `w_j / w_k * C + C` tokens, `w` being the weights and `C` the largest question's tokens;
//! counting starts anew where a more urgent one of its own kind takes that place.

mod pool;
mod share;

use std::collections::{BTreeMap, HashMap};

pub use share::{Plan, PrefixSlice, Slice};

use crate::{Kind, Ticket, schedule::pool::Pools};

/// Names the beginning that some prompts have in common: equal keys, equal keys and values.
pub type PrefixKey = [u8; 32];

/// What a step, and what all running questions together, may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Tokens of a step, at least twice [`Self::sequences`].
    pub step_tokens: usize,
    /// Image patches seen for the first time in a step; an image with more is seen alone.
    pub step_patches: usize,
    /// Questions that run at a time, at least 1.
    pub sequences: usize,
    /// Tokens whose keys and values are held for running questions, at least 1.
    pub cache_tokens: usize,
}

/// Limits that no engine can work within.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LimitsError {
    /// Nothing could ever run.
    #[error("{limit}: at least 1, got 0")]
    Zero {
        /// The limit.
        limit: &'static str,
    },
    /// Decoding alone would leave prompts no room.
    #[error("step tokens: at least {least}, twice the sequences, got {actual}")]
    StepTokens {
        /// Twice [`Limits::sequences`].
        least: usize,
        /// [`Limits::step_tokens`].
        actual: usize,
    },
}

impl Limits {
    /// Checks that an engine can work within them.
    ///
    /// # Errors
    /// [`LimitsError`] with the limit and its value.
    pub fn check(&self) -> Result<(), LimitsError> {
        for (limit, value) in [("sequences", self.sequences), ("cache tokens", self.cache_tokens)] {
            if value == 0 {
                return Err(LimitsError::Zero { limit });
            }
        }
        let least = self.sequences.saturating_mul(2);
        if self.step_tokens < least {
            return Err(LimitsError::StepTokens { least, actual: self.step_tokens });
        }
        Ok(())
    }
}

/// The beginning of a prompt that others may share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prefix {
    /// Its name.
    pub key: PrefixKey,
    /// Its tokens, at least 1.
    pub tokens: usize,
    /// Patches of its image, which has to be seen before it is run.
    pub patches: usize,
}

/// What a question takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Demand {
    /// What it is for.
    pub kind: Kind,
    /// The smallest of a kind goes first, then the oldest.
    pub urgency: u64,
    /// The beginning of its prompt, where others may share it.
    pub prefix: Option<Prefix>,
    /// Tokens of its prompt after the prefix, at least 1.
    pub tokens: usize,
    /// Most tokens it generates; 0 for a judgement.
    pub new_tokens: usize,
}

impl Demand {
    /// Tokens that are its own in a cache.
    fn own(&self) -> usize {
        self.tokens + self.new_tokens
    }

    /// Everything it can take.
    fn whole(&self) -> usize {
        self.own() + self.prefix.map_or(0, |prefix| prefix.tokens)
    }
}

/// A question that could never run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "prompt and answer take {needed} tokens of the key-value budget, at most {limit} can be given to one question"
)]
pub struct TooLarge {
    /// Tokens of prompt and longest answer.
    pub needed: usize,
    /// Tokens of the pool for all.
    pub limit: usize,
}

#[derive(Debug)]
struct Entry {
    demand: Demand,
    /// Its place in the queue of its kind.
    place: (u64, u64),
    /// The pool that its sequence came out of; `None` while it waits.
    pool: Option<usize>,
    /// Own prompt tokens that were given to steps.
    done: usize,
}

/// A shared prefix that running questions use.
#[derive(Debug)]
struct Group {
    users: usize,
    pool: usize,
    tokens: usize,
    patches: usize,
    /// Tokens that were given to steps.
    done: usize,
}

/// The questions of an engine, waiting and running.
#[derive(Debug)]
pub struct Scheduler {
    limits: Limits,
    pools: Pools,
    entries: HashMap<Ticket, Entry>,
    waiting: [BTreeMap<(u64, u64), Ticket>; Kind::ALL.len()],
    /// In the order of admission.
    running: Vec<Ticket>,
    groups: HashMap<PrefixKey, Group>,
    /// Weighted tokens that each kind was given of the pool for all.
    served: [u64; Kind::ALL.len()],
    /// What the kind that was served last had been given: a kind that comes back starts there.
    clock: u64,
    arrivals: u64,
    /// Which kind is first in the next step.
    turn: usize,
}

impl Scheduler {
    /// A scheduler without questions.
    ///
    /// # Errors
    /// [`LimitsError`].
    pub fn new(limits: Limits) -> Result<Self, LimitsError> {
        limits.check()?;
        Ok(Self {
            limits,
            pools: Pools::new(&limits),
            entries: HashMap::new(),
            waiting: Default::default(),
            running: Vec::new(),
            groups: HashMap::new(),
            served: [0; Kind::ALL.len()],
            clock: 0,
            arrivals: 0,
            turn: 0,
        })
    }

    /// Questions that wait.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.entries.len() - self.running.len()
    }

    /// Questions that run.
    #[must_use]
    pub fn running(&self) -> usize {
        self.running.len()
    }

    /// Tokens that running questions hold of the key-value budget; never more than [`Limits::cache_tokens`].
    #[must_use]
    pub fn cache_tokens(&self) -> usize {
        self.pools.used()
    }

    /// Whether a running question uses a prefix.
    #[must_use]
    pub fn uses(&self, key: &PrefixKey) -> bool {
        self.groups.contains_key(key)
    }

    /// The running questions that use a prefix.
    #[must_use]
    pub fn users(&self, key: &PrefixKey) -> Vec<Ticket> {
        let uses =
            |ticket: &&Ticket| self.entries[ticket].demand.prefix.is_some_and(|prefix| prefix.key == *key);
        self.running.iter().filter(uses).copied().collect()
    }

    /// Adds a question to those that wait. `ticket` is no other open question's.
    ///
    /// # Errors
    /// [`TooLarge`] where it could never run.
    pub fn push(&mut self, ticket: Ticket, demand: Demand) -> Result<(), TooLarge> {
        let (needed, limit) = (demand.whole(), self.pools.largest());
        if needed > limit {
            return Err(TooLarge { needed, limit });
        }
        let kind = demand.kind.index();
        if self.waiting[kind].is_empty() {
            self.served[kind] = self.served[kind].max(self.clock);
        }
        let place = (demand.urgency, self.arrivals);
        self.arrivals += 1;
        self.waiting[kind].insert(place, ticket);
        self.entries.insert(ticket, Entry { demand, place, pool: None, done: 0 });
        Ok(())
    }

    /// Takes out a question that has ended or is given up; what it held is free at once. False where it is not open.
    pub fn remove(&mut self, ticket: Ticket) -> bool {
        let Some(entry) = self.entries.remove(&ticket) else { return false };
        let Some(pool) = entry.pool else {
            self.waiting[entry.demand.kind.index()].remove(&entry.place);
            return true;
        };
        self.running.retain(|running| *running != ticket);
        self.pools.give_back(pool, 1, entry.demand.own());
        if let Some(prefix) = entry.demand.prefix
            && let Some(group) = self.groups.get_mut(&prefix.key)
        {
            group.users -= 1;
            if group.users == 0 {
                self.pools.give_back(group.pool, 0, group.tokens);
                self.groups.remove(&prefix.key);
            }
        }
        true
    }

    /// Lets in what fits and says what the next step does. `held` says of a prefix that no running question uses whether
    /// its keys and values are there already.
    pub fn plan(&mut self, mut held: impl FnMut(&PrefixKey) -> bool) -> Plan {
        let mut plan = Plan::default();
        self.admit(&mut plan, &mut held);
        self.share_out(&mut plan);
        plan
    }

    fn admit(&mut self, plan: &mut Plan, held: &mut dyn FnMut(&PrefixKey) -> bool) {
        loop {
            if let Some(ticket) = self.head(Kind::Locate)
                && self.fits(ticket, Pools::JUDGEMENTS)
            {
                self.start(ticket, Pools::JUDGEMENTS, plan, held);
                continue;
            }
            let next = Kind::ALL.into_iter().filter(|kind| self.head(*kind).is_some());
            let Some(kind) = next.min_by_key(|kind| self.served[kind.index()]) else { return };
            let Some(ticket) = self.head(kind).filter(|ticket| self.fits(*ticket, Pools::ALL)) else {
                return;
            };
            self.clock = self.served[kind.index()];
            // Weights divide the heaviest one's.
            let price = (Kind::Locate.weight() / kind.weight()) as u64;
            self.served[kind.index()] += self.entries[&ticket].demand.whole() as u64 * price;
            self.start(ticket, Pools::ALL, plan, held);
        }
    }

    fn head(&self, kind: Kind) -> Option<Ticket> {
        self.waiting[kind.index()].values().next().copied()
    }

    fn fits(&self, ticket: Ticket, pool: usize) -> bool {
        let demand = &self.entries[&ticket].demand;
        let prefix = demand.prefix.filter(|prefix| !self.groups.contains_key(&prefix.key));
        self.pools.fit(pool, demand.own() + prefix.map_or(0, |prefix| prefix.tokens))
    }

    fn start(
        &mut self,
        ticket: Ticket,
        pool: usize,
        plan: &mut Plan,
        held: &mut dyn FnMut(&PrefixKey) -> bool,
    ) {
        let Some(entry) = self.entries.get_mut(&ticket) else { return };
        self.waiting[entry.demand.kind.index()].remove(&entry.place);
        entry.pool = Some(pool);
        self.pools.take(pool, 1, entry.demand.own());
        if let Some(Prefix { key, tokens, patches }) = entry.demand.prefix {
            let group = self.groups.entry(key).or_insert_with(|| {
                self.pools.take(pool, 0, tokens);
                let held = held(&key);
                plan.opened.push((key, ticket));
                Group { users: 0, pool, tokens, patches, done: if held { tokens } else { 0 } }
            });
            group.users += 1;
        }
        self.running.push(ticket);
        plan.started.push(ticket);
    }
}

#[cfg(test)]
mod tests;
