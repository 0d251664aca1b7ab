use candle_core::{DType, Result, Tensor};
use candle_transformers::generation::{LogitsProcessor, Sampling as Strategy};
use thicket_engine::{EngineError, Finish, Sampling};

use crate::{
    cache::KvCache,
    language::{LanguageModel, Segment},
    model::QwenModel,
    prompt::EncodedPrompt,
    readout,
};

/// Most sequences decoded side by side.
const MAX_SEQUENCES: usize = 32;
/// Most prompt tokens in one forward pass, unless a single prompt is longer.
pub(crate) const MAX_PREFILL_TOKENS: usize = 4096;
/// Most bytes of keys and values held for the sequences side by side, unless a single one needs more.
const MAX_CACHE_BYTES: usize = 2 << 30;
/// Room for new tokens that a cache starts with; it grows when an answer is longer.
const FIRST_ANSWER_TOKENS: usize = 64;

/// A prompt with what it needs to be run.
#[derive(Debug)]
pub(crate) struct Task {
    /// The caller's index of the prompt.
    pub(crate) index: usize,
    pub(crate) prompt: EncodedPrompt,
    /// Tokens of the prompt's image.
    pub(crate) image: Option<Tensor>,
}

/// What came of a task.
#[derive(Debug)]
pub(crate) struct Completion {
    pub(crate) prompt_tokens: usize,
    pub(crate) tokens: Vec<u32>,
    pub(crate) finish: Finish,
}

/// The result of a task, by the caller's index.
pub(crate) type Outcome = (usize, std::result::Result<Completion, EngineError>);

/// A sequence that is being decoded.
struct Active {
    index: usize,
    prompt_tokens: usize,
    /// Most tokens to generate.
    limit: usize,
    tokens: Vec<u32>,
    next_position: u32,
    cache: KvCache,
    chooser: Chooser,
}

/// Chooses the next token of one sequence.
enum Chooser {
    Greedy,
    Sampled(Box<LogitsProcessor>),
}

impl Chooser {
    fn new(sampling: &Sampling) -> Self {
        if sampling.temperature == 0.0 {
            return Self::Greedy;
        }
        let strategy = Strategy::All { temperature: sampling.temperature };
        Self::Sampled(Box::new(LogitsProcessor::from_sampling(sampling.seed, strategy)))
    }

    /// `row` is (vocab), `values` the same on the CPU.
    fn choose(&mut self, row: &Tensor, values: &[f32]) -> std::result::Result<u32, EngineError> {
        let largest = argmax(values)?;
        match self {
            Self::Greedy => Ok(largest),
            Self::Sampled(processor) => {
                processor.sample(row).map_err(|cause| EngineError::internal("sampling", cause))
            }
        }
    }
}

/// Index of the largest value, the first of equals.
fn argmax(values: &[f32]) -> std::result::Result<u32, EngineError> {
    let mut best = (0, f32::NEG_INFINITY);
    for (index, &value) in values.iter().enumerate() {
        if value.is_nan() {
            return Err(EngineError::internal("decoding", "the logits are not numbers"));
        }
        if value > best.1 {
            best = (index, value);
        }
    }
    Ok(best.0 as u32)
}

/// Runs prompts to their last tokens: returns (tasks, vocab) in f32. Nothing is kept of them.
pub(crate) fn last_logits(model: &QwenModel, tasks: &[Task]) -> Result<Tensor> {
    let segments = tasks.iter().map(|task| Segment { tokens: task.prompt.tokens.len(), cache: None });
    prefill(model, tasks, segments.collect())
}

fn prefill(model: &QwenModel, tasks: &[Task], mut segments: Vec<Segment<'_>>) -> Result<Tensor> {
    let tokens: Vec<u32> = tasks.iter().flat_map(|task| &task.prompt.tokens).copied().collect();
    let positions: Vec<_> = tasks.iter().flat_map(|task| &task.prompt.positions).copied().collect();
    let images: Vec<&Tensor> = tasks.iter().filter_map(|task| task.image.as_ref()).collect();
    let embeddings = model.embed(&tokens, &images)?;
    let hidden = model.language.forward_ragged(&embeddings, &positions, &mut segments)?;
    model.language.logits(&hidden)?.to_dtype(DType::F32)
}

/// Splits tasks into runs of bounded total length, in order.
pub(crate) fn chunks_by_tokens(tasks: Vec<Task>, limit: usize) -> Vec<Vec<Task>> {
    let mut chunks: Vec<Vec<Task>> = Vec::new();
    let mut tokens = 0;
    for task in tasks {
        let length = task.prompt.tokens.len();
        match chunks.last_mut() {
            Some(chunk) if tokens + length <= limit => {
                tokens += length;
                chunk.push(task);
            }
            _ => {
                tokens = length;
                chunks.push(vec![task]);
            }
        }
    }
    chunks
}

/// Decodes tasks side by side: new ones join and finished ones leave between steps.
pub(crate) struct Decoder<'a> {
    model: &'a QwenModel,
    sampling: &'a Sampling,
    stops: &'a [u32],
    active: Vec<Active>,
    outcomes: Vec<Outcome>,
}

impl<'a> Decoder<'a> {
    pub(crate) fn new(model: &'a QwenModel, sampling: &'a Sampling, stops: &'a [u32]) -> Self {
        Self { model, sampling, stops, active: Vec::new(), outcomes: Vec::new() }
    }

    /// Runs all tasks to their end. A forward pass that fails takes down the sequences that were in it, not the rest.
    pub(crate) fn run(mut self, tasks: Vec<Task>) -> Vec<Outcome> {
        let mut waiting = tasks.into_iter().peekable();
        while waiting.peek().is_some() || !self.active.is_empty() {
            let mut newcomers = Vec::new();
            let (mut tokens, mut bytes) = (0, self.reserved_bytes());
            while let Some(task) = waiting.peek() {
                let length = task.prompt.tokens.len();
                let needed = self.bytes_for(length + self.limit(length));
                let alone = self.active.is_empty() && newcomers.is_empty();
                let fits = self.active.len() + newcomers.len() < MAX_SEQUENCES
                    && bytes + needed <= MAX_CACHE_BYTES
                    && (newcomers.is_empty() || tokens + length <= MAX_PREFILL_TOKENS);
                if !alone && !fits {
                    break;
                }
                tokens += length;
                bytes += needed;
                newcomers.extend(waiting.next());
            }
            if newcomers.is_empty() {
                self.step();
            } else {
                self.admit(newcomers);
            }
        }
        self.outcomes
    }

    fn limit(&self, prompt_tokens: usize) -> usize {
        let room = self.model.config().max_position_embeddings.saturating_sub(prompt_tokens);
        self.sampling.max_tokens.min(room)
    }

    fn bytes_for(&self, tokens: usize) -> usize {
        tokens.saturating_mul(self.model.language.cache_bytes_per_token())
    }

    fn reserved_bytes(&self) -> usize {
        self.active.iter().map(|active| self.bytes_for(active.prompt_tokens + active.limit)).sum()
    }

    /// Runs the prompts of new tasks and chooses their first tokens.
    fn admit(&mut self, tasks: Vec<Task>) {
        let started = self.new_caches(&tasks).and_then(|mut caches| {
            let segments = tasks
                .iter()
                .zip(&mut caches)
                .map(|(task, cache)| Segment { tokens: task.prompt.tokens.len(), cache: Some(cache) })
                .collect();
            Ok((prefill(self.model, &tasks, segments)?, caches))
        });
        let (logits, caches) = match started {
            Ok(started) => started,
            Err(cause) => {
                let failed = tasks.iter().map(|task| task.index);
                self.outcomes
                    .extend(failed.map(|index| (index, Err(EngineError::internal("prefill", &cause)))));
                return;
            }
        };
        let newcomers = tasks
            .into_iter()
            .zip(caches)
            .map(|(task, cache)| Active {
                index: task.index,
                prompt_tokens: task.prompt.tokens.len(),
                limit: self.limit(task.prompt.tokens.len()),
                tokens: Vec::new(),
                next_position: task.prompt.next_position(),
                cache,
                chooser: Chooser::new(self.sampling),
            })
            .collect();
        self.choose(newcomers, &logits);
    }

    fn new_caches(&self, tasks: &[Task]) -> Result<Vec<KvCache>> {
        tasks
            .iter()
            .map(|task| {
                let length = task.prompt.tokens.len();
                self.model.language.new_cache(length + self.limit(length).min(FIRST_ANSWER_TOKENS))
            })
            .collect()
    }

    /// Runs the last token of every sequence and chooses the next.
    fn step(&mut self) {
        let mut active = std::mem::take(&mut self.active);
        match decode_step(&self.model.language, &mut active) {
            Ok(logits) => self.choose(active, &logits),
            Err(cause) => self.outcomes.extend(
                active.iter().map(|active| (active.index, Err(EngineError::internal("decoding", &cause)))),
            ),
        }
    }

    /// Appends the chosen token to every sequence and keeps those that go on.
    fn choose(&mut self, sequences: Vec<Active>, logits: &Tensor) {
        let mut sequences = sequences;
        let tokens = match chosen(&mut sequences, logits, self.sampling.temperature == 0.0) {
            Ok(tokens) => tokens,
            Err(cause) => {
                self.outcomes.extend(
                    sequences
                        .iter()
                        .map(|active| (active.index, Err(EngineError::internal("decoding", &cause)))),
                );
                return;
            }
        };
        for (mut active, token) in sequences.into_iter().zip(tokens) {
            let finish = match token {
                Err(error) => {
                    self.outcomes.push((active.index, Err(error)));
                    continue;
                }
                Ok(token) if self.stops.contains(&token) => Some(Finish::EndOfTurn),
                Ok(token) => {
                    active.tokens.push(token);
                    (active.tokens.len() >= active.limit).then_some(Finish::Length)
                }
            };
            match finish {
                None => self.active.push(active),
                Some(finish) => {
                    let Active { index, prompt_tokens, tokens, .. } = active;
                    self.outcomes.push((index, Ok(Completion { prompt_tokens, tokens, finish })));
                }
            }
        }
    }
}

/// The next token of each sequence: f32 (sequences, vocab). A GPU reads off greedy tokens itself.
fn chosen(
    sequences: &mut [Active],
    logits: &Tensor,
    greedy: bool,
) -> Result<Vec<std::result::Result<u32, EngineError>>> {
    let not_numbers = || EngineError::internal("decoding", "the logits are not numbers");
    if greedy && !logits.device().is_cpu() {
        let tokens = readout::greedy(logits)?.into_iter();
        return Ok(tokens.map(|token| token.ok_or_else(not_numbers)).collect());
    }
    let rows = logits.to_vec2::<f32>()?;
    let choose = |(row, (active, values)): (usize, (&mut Active, &Vec<f32>))| {
        let row = logits.get(row).map_err(|cause| EngineError::internal("decoding", cause))?;
        active.chooser.choose(&row, values)
    };
    Ok(sequences.iter_mut().zip(&rows).enumerate().map(choose).collect())
}

fn decode_step(language: &LanguageModel, active: &mut [Active]) -> Result<Tensor> {
    let tokens: Vec<u32> = active.iter().filter_map(|active| active.tokens.last().copied()).collect();
    let positions: Vec<_> = active.iter().map(|active| [active.next_position; 3]).collect();
    let mut segments: Vec<_> = active
        .iter_mut()
        .map(|active| {
            active.next_position += 1;
            Segment { tokens: 1, cache: Some(&mut active.cache) }
        })
        .collect();
    let hidden = language.forward_ragged(&language.embed_ids(&tokens)?, &positions, &mut segments)?;
    language.logits(&hidden)?.to_dtype(DType::F32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_equal_values_is_chosen() {
        assert_eq!(argmax(&[1.0, 3.0, 3.0, 2.0]).unwrap(), 1);
    }

    #[test]
    fn logits_that_are_not_numbers_are_an_error() {
        assert!(argmax(&[1.0, f32::NAN, 3.0]).is_err());
    }

    #[test]
    fn chunks_keep_the_order_and_the_limit_and_let_a_long_prompt_stand_alone() {
        let task = |index, length| Task {
            index,
            prompt: EncodedPrompt { tokens: vec![0; length], positions: Vec::new() },
            image: None,
        };
        let tasks = [3, 4, 20, 5, 5, 1].into_iter().enumerate().map(|(i, n)| task(i, n)).collect();
        let chunks: Vec<Vec<usize>> = chunks_by_tokens(tasks, 10)
            .iter()
            .map(|chunk| chunk.iter().map(|task| task.index).collect())
            .collect();
        assert_eq!(chunks, [vec![0, 1], vec![2], vec![3, 4], vec![5]]);
    }
}
