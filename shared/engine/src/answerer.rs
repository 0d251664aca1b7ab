use std::{path::Path, sync::Arc};

use image::RgbImage;

use crate::{Answer, Ask, EngineError, Load, Progress, Question, Ticket};

/// One user turn: at most one image, which comes first, then text. The chat template is the model's business.
#[derive(Debug, Clone)]
pub struct Prompt {
    /// The image the text is about, in its original size.
    pub image: Option<Arc<RgbImage>>,
    /// The text after the image.
    pub text: String,
    /// Name of the loaded adapter that answers; `None` for the model as it was started.
    pub adapter: Option<Arc<str>>,
}

impl Prompt {
    /// A prompt to the model as it was started.
    #[must_use]
    pub fn new(image: Option<Arc<RgbImage>>, text: impl Into<String>) -> Self {
        Self { image, text: text.into(), adapter: None }
    }
}

/// How the next token is chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// Upper bound on generated tokens, the end mark included; at least 1.
    pub max_tokens: usize,
    /// 0 is greedy; above, logits are divided by it before sampling. Finite, 0 to 10.
    pub temperature: f64,
    /// Seed of the sampler; unused at temperature 0.
    pub seed: u64,
}

/// Why a generation stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// The model ended its turn.
    EndOfTurn,
    /// [`Sampling::max_tokens`] was reached.
    Length,
}

/// A generated answer.
#[derive(Debug, Clone)]
pub struct Generation {
    /// The decoded text, special tokens left out.
    pub text: String,
    /// The generated token ids, without the end mark; empty where the model does not tell them.
    pub tokens: Vec<u32>,
    /// Generated tokens.
    pub output_tokens: usize,
    /// Tokens of the prompt, image tokens included.
    pub prompt_tokens: usize,
    /// Why it stopped.
    pub finish: Finish,
}

/// A yes/no judgement read from the logits of the first answer token.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Verdict {
    /// Probability of Yes given that the answer is Yes or No, 0 to 1: `P(yes words) / (P(yes words) + P(no words))`.
    pub p_yes: f64,
    /// Probability that the first token is one of the yes or no words at all, 0 to 1. A low value means that the
    /// model did not answer in the asked form.
    pub mass: f64,
    /// Tokens of the prompt, image tokens included.
    pub prompt_tokens: usize,
}

/// What a caller must know of an answer model.
#[derive(Debug, Clone)]
pub struct AnswererInfo {
    /// The name it is served under.
    pub name: String,
    /// Hex digest of the weights, the configuration and the adapter: equal fingerprints give equal greedy answers.
    pub fingerprint: String,
    /// Most tokens of prompt and answer together.
    pub context_length: usize,
}

/// What a caller must know of a loaded adapter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdapterInfo {
    /// The name that prompts call it by.
    pub name: String,
    /// Hex digest of the base model and the adapter: equal fingerprints give equal greedy answers.
    pub fingerprint: String,
}

/// A multimodal language model that works on many questions at a time, step by step.
///
/// Questions are taken up at any time between two steps. A step is a bounded piece of work, so that whoever owns the
/// model can take up, give up and answer questions often. At temperature 0 the answer to a question does not depend on
/// what else is asked, before or meanwhile. A bad prompt fails alone.
pub trait Answerer: Send {
    /// What this model is.
    fn info(&self) -> &AnswererInfo;

    /// Makes the adapter in a folder available under a name, in place of any other of that name. The base is shared:
    /// what is added is the adapter's own size. Questions taken up before keep the adapter they were asked of.
    ///
    /// # Errors
    /// [`EngineError::InvalidInput`] for a folder that holds no adapter for this model; whatever had the name stays.
    fn load_adapter(&mut self, name: &str, folder: &Path) -> Result<AdapterInfo, EngineError>;

    /// Gives up an adapter. False where none has the name.
    fn unload_adapter(&mut self, name: &str) -> bool;

    /// Takes up a question; a later step reports what came of it under `ticket`.
    ///
    /// # Errors
    /// [`EngineError::InvalidInput`] for a prompt, a sampling or an adapter that cannot be used, or a question that the
    /// key-value budget could never hold. It is not taken up then.
    fn submit(&mut self, ticket: Ticket, question: Question) -> Result<(), EngineError>;

    /// Gives up a question: no step works on it or reports it any more. One that is not open is ignored.
    fn cancel(&mut self, ticket: Ticket);

    /// Works for one step. Without an open question nothing happens.
    fn step(&mut self) -> Progress;

    /// What is in hand.
    fn load(&self) -> Load;

    /// Reads p(Yes) of each prompt, running until all are answered. For an owner who asks nothing else meanwhile: with
    /// other questions open every result is an [`EngineError::Internal`].
    fn judge(&mut self, prompts: &[Prompt]) -> Vec<Result<Verdict, EngineError>> {
        let answers = answer_all(self, prompts, Ask::Judgement).into_iter();
        answers
            .map(|answer| match answer? {
                Answer::Verdict(verdict) => Ok(verdict),
                Answer::Text(_) => Err(EngineError::internal("judging", "a text came back")),
            })
            .collect()
    }

    /// Generates an answer to each prompt, as [`Self::judge`]. Every prompt starts from the same seed.
    fn generate(&mut self, prompts: &[Prompt], sampling: &Sampling) -> Vec<Result<Generation, EngineError>> {
        let answers = answer_all(self, prompts, Ask::Text(*sampling)).into_iter();
        answers
            .map(|answer| match answer? {
                Answer::Text(generation) => Ok(generation),
                Answer::Verdict(_) => Err(EngineError::internal("generating", "a judgement came back")),
            })
            .collect()
    }
}

/// Asks every prompt and works until all have been answered.
fn answer_all<A: Answerer + ?Sized>(
    answerer: &mut A,
    prompts: &[Prompt],
    ask: Ask,
) -> Vec<Result<Answer, EngineError>> {
    let lost = |reason: &str| Err(EngineError::internal("answering", reason));
    if !answerer.load().is_idle() {
        return prompts.iter().map(|_| lost("other questions are open")).collect();
    }
    let mut answers: Vec<_> = prompts.iter().map(|_| lost("the prompt's result was lost")).collect();
    for (index, prompt) in prompts.iter().enumerate() {
        if let Err(error) = answerer.submit(Ticket(index as u64), Question::new(prompt.clone(), ask)) {
            answers[index] = Err(error);
        }
    }
    while !answerer.load().is_idle() {
        for (Ticket(index), answer) in answerer.step().done {
            if let Some(place) = answers.get_mut(index as usize) {
                *place = answer;
            }
        }
    }
    answers
}
