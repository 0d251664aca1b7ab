use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use candle_core::{Result, Tensor, bail};
use thicket_cache::Cache;
use thicket_engine::{
    Answer, EngineError, Finish, Generation, Load, Progress, Ticket,
    schedule::{Demand, Limits, LimitsError, Plan, PrefixKey, PrefixSlice, Scheduler, Slice},
};

use crate::{
    cache::{KvCache, KvPrefix},
    choosing::Words,
    features::{Features, ImageKey},
    language::Segment,
    model::QwenModel,
    processor::Processor,
    prompt::PromptEncoder,
    readout::Readout,
    sequence::{Goal, Group, Sequence, View, Writing},
};

/// Bytes and tokens that an engine may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budgets {
    /// Tokens of one step, at least twice [`Self::sequences`]. Default: 512.
    pub step_tokens: usize,
    /// Questions worked on at a time, at least 1. Default: 32.
    pub sequences: usize,
    /// Bytes of the keys and values of running questions. Default: 2 GiB.
    pub cache_bytes: usize,
    /// Bytes of the keys and values kept of images that were asked about; 0 keeps none. Default: 1 GiB.
    pub prefix_bytes: usize,
    /// Bytes of what the vision tower made of images; 0 keeps nothing. Default: 64 MiB.
    pub feature_bytes: usize,
}

impl Default for Budgets {
    fn default() -> Self {
        Self {
            step_tokens: 512,
            sequences: 32,
            cache_bytes: 2 << 30,
            prefix_bytes: 1 << 30,
            feature_bytes: 64 << 20,
        }
    }
}

impl Budgets {
    /// Bytes of everything that is kept between steps.
    #[must_use]
    pub fn cached_bytes(&self) -> u64 {
        (self.cache_bytes as u64)
            .saturating_add(self.prefix_bytes as u64)
            .saturating_add(self.feature_bytes as u64)
    }
}

/// Image patches seen for the first time in a step, for each of its tokens.
const PATCHES_PER_TOKEN: usize = 4;

/// What answers are made with beside the model.
#[derive(Debug)]
pub(crate) struct Tools {
    pub(crate) processor: Processor,
    pub(crate) encoder: PromptEncoder,
    pub(crate) words: Words,
    /// Tokens that end an answer.
    pub(crate) stops: Vec<u32>,
}

/// Works on many sequences at a time. A step sees new images, then runs one forward pass for each adapter in use.
#[derive(Debug)]
pub(crate) struct Engine {
    scheduler: Scheduler,
    sequences: HashMap<Ticket, Sequence>,
    /// The beginnings that running sequences use.
    groups: HashMap<PrefixKey, Group>,
    /// The beginnings used last, in use or not.
    prefixes: Cache<PrefixKey, KvPrefix>,
    features: Features,
    cache_limit: usize,
    bytes_per_token: usize,
    hits: u64,
    misses: u64,
}

/// The part of a step that one model does.
#[derive(Debug)]
struct Pass {
    model: Arc<QwenModel>,
    prefixes: Vec<PrefixSlice>,
    slices: Vec<Slice>,
    decoding: Vec<Ticket>,
}

impl Pass {
    /// The sequences whose next token it finds, in the order of its logits.
    fn answering(&self) -> Vec<Ticket> {
        let ending = self.slices.iter().filter(|slice| slice.last).map(|slice| slice.ticket);
        ending.chain(self.decoding.iter().copied()).collect()
    }

    fn tickets(&self) -> Vec<Ticket> {
        self.slices.iter().map(|slice| slice.ticket).chain(self.decoding.iter().copied()).collect()
    }
}

impl Engine {
    pub(crate) fn new(model: &QwenModel, budgets: &Budgets) -> std::result::Result<Self, LimitsError> {
        let bytes_per_token = model.language.cache_bytes_per_token();
        let cache_limit = budgets.cache_bytes / bytes_per_token.max(1);
        let scheduler = Scheduler::new(Limits {
            step_tokens: budgets.step_tokens,
            step_patches: budgets.step_tokens.saturating_mul(PATCHES_PER_TOKEN),
            sequences: budgets.sequences,
            cache_tokens: cache_limit,
        })?;
        Ok(Self {
            scheduler,
            sequences: HashMap::new(),
            groups: HashMap::new(),
            prefixes: Cache::new(budgets.prefix_bytes),
            features: Features::new(budgets.feature_bytes),
            cache_limit,
            bytes_per_token,
            hits: 0,
            misses: 0,
        })
    }

    pub(crate) fn push(
        &mut self,
        ticket: Ticket,
        sequence: Sequence,
        demand: Demand,
    ) -> std::result::Result<(), EngineError> {
        if self.sequences.contains_key(&ticket) {
            return Err(EngineError::internal("taking a question up", format!("{ticket} is open already")));
        }
        self.scheduler
            .push(ticket, demand)
            .map_err(|too_large| EngineError::invalid("text", too_large.to_string()))?;
        self.sequences.insert(ticket, sequence);
        Ok(())
    }

    pub(crate) fn cancel(&mut self, ticket: Ticket) {
        self.scheduler.remove(ticket);
        self.sequences.remove(&ticket);
        self.leave_unused();
    }

    pub(crate) fn load(&self) -> Load {
        Load {
            running: self.scheduler.running(),
            waiting: self.scheduler.waiting(),
            cache_tokens: self.scheduler.cache_tokens(),
            cache_limit: self.cache_limit,
            prefix_bytes: self.prefixes.size(),
            prefix_hits: self.hits,
            prefix_misses: self.misses,
        }
    }

    pub(crate) fn step(&mut self, tools: &Tools) -> Progress {
        let mut progress = Progress::default();
        let mut held = HashMap::new();
        let plan = self.scheduler.plan(|key| match self.prefixes.get(key) {
            None => false,
            Some(prefix) => {
                held.insert(*key, prefix.clone());
                true
            }
        });
        progress.started.clone_from(&plan.started);
        progress.prompt_tokens = plan.prompt_tokens();
        progress.output_tokens = plan.decoding.len();
        self.open(&plan, held, &mut progress);
        self.see(&plan, tools, &mut progress);
        for pass in self.passes(plan) {
            match self.run(&pass) {
                Ok(logits) => {
                    self.keep(&pass);
                    if let Some(logits) = logits {
                        self.answer(&pass, logits, tools, &mut progress);
                    }
                }
                Err(cause) => self.fail(&pass, &EngineError::internal("forward pass", cause), &mut progress),
            }
        }
        self.leave_unused();
        progress
    }

    /// Brings the beginnings of the plan's new questions into use.
    fn open(&mut self, plan: &Plan, mut held: HashMap<PrefixKey, KvPrefix>, progress: &mut Progress) {
        let with_prefix = plan
            .started
            .iter()
            .filter(|ticket| self.sequences.get(ticket).is_some_and(|sequence| sequence.prefix.is_some()));
        let (questions, computed) = (with_prefix.count(), plan.opened.len() - held.len());
        self.misses += computed as u64;
        self.hits += (questions - computed) as u64;
        for (key, ticket) in &plan.opened {
            let Some(sequence) = self.sequences.get_mut(ticket) else { continue };
            let group = match (held.remove(key), sequence.beginning.take()) {
                (Some(shared), _) => Ok(Group::held(shared)),
                (None, Some(beginning)) => Group::to_run(sequence.view.clone(), beginning),
                (None, None) => continue,
            };
            match group {
                Ok(group) => _ = self.groups.insert(*key, group),
                Err(cause) => self.fail_users(key, &EngineError::internal("a new cache", cause), progress),
            }
        }
        for ticket in &plan.started {
            if let Some(sequence) = self.sequences.get_mut(ticket) {
                sequence.beginning = None;
            }
        }
    }

    /// Shows the model the images whose beginnings are run from the start.
    fn see(&mut self, plan: &Plan, tools: &Tools, progress: &mut Progress) {
        let mut by_eyes: BTreeMap<Arc<str>, (Arc<QwenModel>, Vec<_>)> = BTreeMap::new();
        let new = plan.prefixes.iter().filter(|slice| slice.start == 0);
        for unrun in new.filter_map(|slice| self.groups.get(&slice.key)?.rest.as_ref()) {
            let (_, images) = by_eyes
                .entry(unrun.view.eyes.clone())
                .or_insert_with(|| (unrun.view.model.clone(), Vec::new()));
            images.push((unrun.beginning.image_key, unrun.beginning.image.clone()));
        }
        let mut seen = HashMap::new();
        for (model, images) in by_eyes.into_values() {
            seen.extend(self.features.of(&model, &tools.processor, &images));
        }
        for slice in plan.prefixes.iter().filter(|slice| slice.start == 0) {
            if let Err(reason) = self.embed(&slice.key, &seen) {
                self.fail_users(&slice.key, &EngineError::internal("image forward pass", reason), progress);
            }
        }
    }

    fn embed(
        &mut self,
        key: &PrefixKey,
        seen: &HashMap<ImageKey, std::result::Result<Tensor, String>>,
    ) -> std::result::Result<(), String> {
        let Some(unrun) = self.groups.get_mut(key).and_then(|group| group.rest.as_mut()) else {
            return Ok(());
        };
        let image = match seen.get(&unrun.beginning.image_key) {
            Some(tokens) => tokens.as_ref().map_err(Clone::clone)?,
            None => return Err("no result".to_owned()),
        };
        let embeddings = unrun.view.model.embed(&unrun.beginning.tokens, &[image]);
        unrun.embeddings = Some(embeddings.map_err(|cause| cause.to_string())?);
        Ok(())
    }

    /// The plan, without what has failed meanwhile, by the model that does it.
    fn passes(&self, plan: Plan) -> Vec<Pass> {
        let mut passes: BTreeMap<Arc<str>, Pass> = BTreeMap::new();
        for slice in plan.prefixes {
            if let Some(unrun) = self.groups.get(&slice.key).and_then(|group| group.rest.as_ref()) {
                pass_of(&mut passes, &unrun.view).prefixes.push(slice);
            }
        }
        for slice in plan.slices {
            if let Some(sequence) = self.sequences.get(&slice.ticket) {
                pass_of(&mut passes, &sequence.view).slices.push(slice);
            }
        }
        for ticket in plan.decoding {
            if let Some(sequence) = self.sequences.get(&ticket) {
                pass_of(&mut passes, &sequence.view).decoding.push(ticket);
            }
        }
        passes.into_values().collect()
    }

    /// Runs a pass. Returns (answering sequences, vocab), or nothing where no prompt has come to its end. After an
    /// error everything in the pass is to be thrown away.
    fn run(&mut self, pass: &Pass) -> Result<Option<Tensor>> {
        let (mut embeddings, mut positions) = (Vec::new(), Vec::new());
        let (mut lengths, mut caches): (Vec<usize>, Vec<KvCache>) = (Vec::new(), Vec::new());
        for PrefixSlice { key, start, tokens } in &pass.prefixes {
            let unrun = self.groups.get_mut(key).and_then(|group| group.rest.as_mut());
            let Some(unrun) = unrun else { bail!("a beginning was lost") };
            let Some(rows) = &unrun.embeddings else { bail!("an image was not seen") };
            embeddings.push(rows.narrow(0, *start, *tokens)?);
            positions.extend_from_slice(&unrun.beginning.positions[*start..start + tokens]);
            lengths.push(*tokens);
            caches.extend(unrun.cache.take());
        }
        let mut ids = Vec::new();
        for Slice { ticket, start, tokens, .. } in &pass.slices {
            let Some(sequence) = self.sequences.get_mut(ticket) else { bail!("a question was lost") };
            let group = sequence.prefix.as_ref().and_then(|key| self.groups.get(key));
            sequence.begin(group.map(|group| &group.shared))?;
            ids.extend_from_slice(&sequence.tokens[*start..start + tokens]);
            positions.extend_from_slice(&sequence.positions[*start..start + tokens]);
            lengths.push(*tokens);
            caches.extend(sequence.cache.take());
        }
        for ticket in &pass.decoding {
            let Some(sequence) = self.sequences.get_mut(ticket) else { bail!("a question was lost") };
            let Goal::Write(Writing { tokens, .. }) = &sequence.goal else { bail!("a judgement is decoded") };
            ids.extend(tokens.last());
            positions.push([sequence.next_position; 3]);
            sequence.next_position += 1;
            lengths.push(1);
            caches.extend(sequence.cache.take());
        }
        if !ids.is_empty() {
            embeddings.push(pass.model.language.embed_ids(&ids)?);
        }
        let mut segments: Vec<Segment<'_>> = lengths
            .into_iter()
            .zip(&mut caches)
            .map(|(tokens, cache)| Segment { tokens, cache: Some(cache) })
            .collect();
        let hidden =
            pass.model.language.forward_ragged(&Tensor::cat(&embeddings, 0)?, &positions, &mut segments)?;
        self.put_back(pass, caches);
        logits(pass, &hidden)
    }

    fn put_back(&mut self, pass: &Pass, caches: Vec<KvCache>) {
        let mut caches = caches.into_iter();
        for slice in &pass.prefixes {
            let unrun = self.groups.get_mut(&slice.key).and_then(|group| group.rest.as_mut());
            if let (Some(unrun), Some(cache)) = (unrun, caches.next()) {
                unrun.cache = Some(cache);
            }
        }
        for (ticket, cache) in pass.tickets().iter().zip(caches) {
            if let Some(sequence) = self.sequences.get_mut(ticket) {
                sequence.cache = Some(cache);
            }
        }
    }

    /// Keeps the beginnings that a pass has run to their ends.
    fn keep(&mut self, pass: &Pass) {
        for PrefixSlice { key, start, tokens } in &pass.prefixes {
            let Some(group) = self.groups.get_mut(key) else { continue };
            if start + tokens == group.shared.len() {
                group.rest = None;
                let bytes = group.shared.len() * self.bytes_per_token;
                self.prefixes.insert(*key, group.shared.clone(), bytes);
            }
        }
    }

    /// Answers judgements and goes on with texts, a row of logits each.
    fn answer(&mut self, pass: &Pass, logits: Tensor, tools: &Tools, progress: &mut Progress) {
        let readout = match Readout::new(logits, &tools.words) {
            Ok(readout) => readout,
            Err(cause) => return self.fail(pass, &EngineError::internal("reading logits", cause), progress),
        };
        for (row, ticket) in pass.answering().into_iter().enumerate() {
            let Some(sequence) = self.sequences.get_mut(&ticket) else { continue };
            let prompt_tokens = sequence.prompt_tokens;
            let outcome = match &mut sequence.goal {
                Goal::Judge => {
                    let verdict = readout.verdict(row, &tools.words, prompt_tokens);
                    verdict.map(|verdict| Some(Answer::Verdict(verdict)))
                }
                Goal::Write(writing) => {
                    if writing.tokens.is_empty() {
                        progress.first_tokens.push(ticket);
                    }
                    writing.go_on(&readout, row, &tools.stops).and_then(|finish| {
                        let ended = |finish| written(writing, prompt_tokens, finish, tools);
                        finish.map(ended).transpose().map(|text| text.map(Answer::Text))
                    })
                }
            };
            if let Some(answer) = outcome.transpose() {
                self.finish(ticket, answer, progress);
            }
        }
    }

    fn finish(
        &mut self,
        ticket: Ticket,
        answer: std::result::Result<Answer, EngineError>,
        progress: &mut Progress,
    ) {
        self.scheduler.remove(ticket);
        if self.sequences.remove(&ticket).is_some() {
            progress.done.push((ticket, answer));
        }
    }

    /// Ends everything that was in a pass, and what needs a beginning that was in it.
    fn fail(&mut self, pass: &Pass, error: &EngineError, progress: &mut Progress) {
        for slice in &pass.prefixes {
            self.fail_users(&slice.key, error, progress);
        }
        for ticket in pass.tickets() {
            self.finish(ticket, Err(error.clone()), progress);
        }
    }

    fn fail_users(&mut self, key: &PrefixKey, error: &EngineError, progress: &mut Progress) {
        for ticket in self.scheduler.users(key) {
            self.finish(ticket, Err(error.clone()), progress);
        }
        self.groups.remove(key);
    }

    /// Lets go of the beginnings that no running question uses; those that were kept stay kept.
    fn leave_unused(&mut self) {
        let scheduler = &self.scheduler;
        self.groups.retain(|key, _| scheduler.uses(key));
    }
}

fn pass_of<'a>(passes: &'a mut BTreeMap<Arc<str>, Pass>, view: &View) -> &'a mut Pass {
    passes.entry(view.fingerprint.clone()).or_insert_with(|| Pass {
        model: view.model.clone(),
        prefixes: Vec::new(),
        slices: Vec::new(),
        decoding: Vec::new(),
    })
}

/// The logits of the sequences that a pass finds a token for, from (all sequences, hidden).
fn logits(pass: &Pass, hidden: &Tensor) -> Result<Option<Tensor>> {
    let first = pass.prefixes.len();
    let ending = pass.slices.iter().enumerate().filter(|(_, slice)| slice.last);
    let decoding = (0..pass.decoding.len()).map(|index| pass.slices.len() + index);
    let rows = ending.map(|(index, _)| index).chain(decoding).map(|index| (first + index) as u32);
    let rows: Vec<u32> = rows.collect();
    if rows.is_empty() {
        return Ok(None);
    }
    let hidden = hidden.index_select(&Tensor::new(rows, hidden.device())?, 0)?;
    pass.model.language.logits(&hidden).map(Some)
}

fn written(
    writing: &mut Writing,
    prompt_tokens: usize,
    finish: Finish,
    tools: &Tools,
) -> std::result::Result<Generation, EngineError> {
    let tokens = std::mem::take(&mut writing.tokens);
    let text = tools.encoder.decode(&tokens).map_err(|cause| EngineError::internal("detokenizing", cause))?;
    Ok(Generation { text, output_tokens: tokens.len(), tokens, prompt_tokens, finish })
}
