use super::{Group, PrefixKey, Scheduler};
use crate::{Kind, Ticket};

/// What one step does. Prefixes come first: a sequence may follow a prefix that ends in the same step.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Questions that begin to run.
    pub started: Vec<Ticket>,
    /// Prefixes that begin to be used, each with the first question that uses it.
    pub opened: Vec<(PrefixKey, Ticket)>,
    /// Prompt tokens of prefixes.
    pub prefixes: Vec<PrefixSlice>,
    /// Prompt tokens of sequences.
    pub slices: Vec<Slice>,
    /// Sequences whose last token is run for the next one.
    pub decoding: Vec<Ticket>,
}

impl Plan {
    /// Tokens that the step runs.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.prompt_tokens() + self.decoding.len()
    }

    /// Prompt tokens that the step runs.
    #[must_use]
    pub fn prompt_tokens(&self) -> usize {
        let prefixes: usize = self.prefixes.iter().map(|slice| slice.tokens).sum();
        prefixes + self.slices.iter().map(|slice| slice.tokens).sum::<usize>()
    }
}

/// A run of a prefix's tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PrefixSlice {
    /// The prefix.
    pub key: PrefixKey,
    /// Its tokens before this run. At 0 its image has to be seen.
    pub start: usize,
    /// Tokens of this run.
    pub tokens: usize,
}

/// A run of a sequence's own prompt tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slice {
    /// The question.
    pub ticket: Ticket,
    /// Its own prompt tokens before this run.
    pub start: usize,
    /// Tokens of this run.
    pub tokens: usize,
    /// The prompt ends with this run.
    pub last: bool,
}

impl Scheduler {
    /// Gives the step's tokens to the running questions.
    pub(super) fn share_out(&mut self, plan: &mut Plan) {
        let mut pending: [Vec<Ticket>; Kind::ALL.len()] = Default::default();
        for ticket in &self.running {
            let entry = &self.entries[ticket];
            if entry.done < entry.demand.tokens {
                pending[entry.demand.kind.index()].push(*ticket);
            } else if entry.demand.new_tokens > 0 {
                plan.decoding.push(*ticket);
            }
        }
        let mut left = self.limits.step_tokens - plan.decoding.len();
        let mut patches = 0;
        // Who is first may see the first image: the kinds take turns.
        let order: Vec<Kind> = (0..Kind::ALL.len())
            .map(|place| Kind::ALL[(self.turn + place) % Kind::ALL.len()])
            .filter(|kind| !pending[kind.index()].is_empty())
            .collect();
        self.turn = (self.turn + 1) % Kind::ALL.len();
        let weights: usize = order.iter().map(|kind| kind.weight()).sum();
        let shares: Vec<usize> = order.iter().map(|kind| left * kind.weight() / weights).collect();
        for (kind, share) in order.iter().zip(shares) {
            left -= self.fill(&pending[kind.index()], share, &mut patches, plan);
        }
        // What one kind has no use for is the others'.
        for kind in &order {
            left -= self.fill(&pending[kind.index()], left, &mut patches, plan);
        }
    }

    /// Gives up to `budget` tokens to prompts in order. Returns how many were used.
    fn fill(&mut self, tickets: &[Ticket], budget: usize, patches: &mut usize, plan: &mut Plan) -> usize {
        let mut left = budget;
        for ticket in tickets {
            if left == 0 {
                break;
            }
            let Some(entry) = self.entries.get_mut(ticket) else { continue };
            if let Some(prefix) = entry.demand.prefix
                && let Some(group) = self.groups.get_mut(&prefix.key)
                && group.done < group.tokens
            {
                if group.done == 0 {
                    if *patches > 0 && *patches + group.patches > self.limits.step_patches {
                        continue;
                    }
                    *patches += group.patches;
                }
                left -= take_prefix(prefix.key, group, left, plan);
            }
            let tokens = left.min(entry.demand.tokens - entry.done);
            if tokens > 0 {
                let last = entry.done + tokens == entry.demand.tokens;
                match plan.slices.iter_mut().find(|slice| slice.ticket == *ticket) {
                    Some(slice) => {
                        slice.tokens += tokens;
                        slice.last = last;
                    }
                    None => plan.slices.push(Slice { ticket: *ticket, start: entry.done, tokens, last }),
                }
                entry.done += tokens;
                left -= tokens;
            }
        }
        budget - left
    }
}

fn take_prefix(key: PrefixKey, group: &mut Group, budget: usize, plan: &mut Plan) -> usize {
    let tokens = budget.min(group.tokens - group.done);
    match plan.prefixes.iter_mut().find(|slice| slice.key == key) {
        Some(slice) => slice.tokens += tokens,
        None => plan.prefixes.push(PrefixSlice { key, start: group.done, tokens }),
    }
    group.done += tokens;
    tokens
}
