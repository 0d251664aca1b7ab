use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use thicket_engine::{AdapterInfo, Answerer, EngineError, Generation, Prompt, Sampling, Verdict};
use thicket_imaging::RgbImage;
use thicket_runtime::{Fault, Work};
use tokio::sync::OwnedSemaphorePermit;

use crate::adapters::Loaded;

/// Side in pixels of the picture that the model is warmed up with.
const WARM_UP_SIDE: u32 = 56;

/// What the model's thread can be asked to do.
#[derive(Debug)]
pub(crate) enum Job {
    /// Answer a question.
    Question(Question),
    /// Load the adapter of a folder under a name.
    Load { name: String, folder: PathBuf },
    /// Give up an adapter.
    Unload { name: String },
}

/// One question.
#[derive(Debug)]
pub(crate) struct Question {
    pub(crate) prompt: Prompt,
    pub(crate) ask: Ask,
    /// The image's place in memory, held as long as a question about it is open.
    pub(crate) _memory: Option<Arc<OwnedSemaphorePermit>>,
}

/// What is wanted of a question.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Ask {
    /// p(Yes) of the first token.
    Judgement,
    /// A text.
    Text(Sampling),
}

/// What came of a question.
#[derive(Debug, Clone)]
pub(crate) enum Reply {
    /// To [`Ask::Judgement`].
    Verdict(Verdict),
    /// To [`Ask::Text`].
    Text(Generation),
    /// To [`Job::Load`].
    Loaded(AdapterInfo),
    /// To [`Job::Unload`]: whether it was there.
    Unloaded(bool),
}

/// The model, as the work of one thread.
pub(crate) struct Engine {
    answerer: Box<dyn Answerer>,
    adapters: Arc<Loaded>,
}

impl Engine {
    /// Takes the model and asks it one thing in each way, so that the first call finds it warm and a model that cannot
    /// compute is never put in service.
    pub(crate) fn warm(mut answerer: Box<dyn Answerer>, adapters: Arc<Loaded>) -> Result<Self, EngineError> {
        let started = Instant::now();
        let picture = RgbImage::from_pixel(WARM_UP_SIDE, WARM_UP_SIDE, [128; 3].into());
        let prompt = Prompt::new(Some(Arc::new(picture)), "Is there a person?");
        let silent = || Err(EngineError::internal("warm-up", "no answer"));
        answerer.judge(std::slice::from_ref(&prompt)).pop().unwrap_or_else(silent).and_then(check)?;
        let one = Sampling { max_tokens: 1, temperature: 0.0, seed: 0 };
        answerer
            .generate(&[prompt], &one)
            .pop()
            .unwrap_or_else(|| Err(EngineError::internal("warm-up", "no text")))?;
        let info = answerer.info();
        tracing::info!(
            model = info.name,
            fingerprint = info.fingerprint,
            context_length = info.context_length,
            seconds = started.elapsed().as_secs_f64(),
            "model is warm"
        );
        Ok(Self { answerer, adapters })
    }

    /// Loads an adapter, in place of any other of its name. The list that the handlers read changes with the model, so
    /// that a caller who has gone meanwhile leaves nothing half done.
    pub(crate) fn load(&mut self, name: &str, folder: &Path) -> Result<AdapterInfo, Fault> {
        self.adapters.require_room(name)?;
        let info = self.answerer.load_adapter(name, folder)?;
        tracing::info!(adapter = name, fingerprint = info.fingerprint, "adapter is loaded");
        self.adapters.insert(info.clone());
        Ok(info)
    }

    fn unload(&mut self, name: &str) -> bool {
        self.adapters.remove(name);
        let known = self.answerer.unload_adapter(name);
        tracing::info!(adapter = name, known, "adapter is given up");
        known
    }

    fn answer(&mut self, questions: Vec<Question>) -> Vec<Result<Reply, Fault>> {
        let Some(ask) = questions.first().map(|question| question.ask) else { return Vec::new() };
        let (prompts, _memory): (Vec<_>, Vec<_>) =
            questions.into_iter().map(|question| (question.prompt, question._memory)).unzip();
        match ask {
            Ask::Judgement => {
                let verdicts = self.answerer.judge(&prompts).into_iter();
                verdicts.map(|verdict| Ok(Reply::Verdict(verdict.and_then(check)?))).collect()
            }
            Ask::Text(sampling) => {
                let texts = self.answerer.generate(&prompts, &sampling).into_iter();
                texts.map(|text| Ok(Reply::Text(text?))).collect()
            }
        }
    }
}

/// Refuses what is no probability.
fn check(verdict: Verdict) -> Result<Verdict, EngineError> {
    let is_probability = |p: f64| (0.0..=1.0).contains(&p);
    if is_probability(verdict.p_yes) && is_probability(verdict.mass) {
        return Ok(verdict);
    }
    let reason = format!("p(yes) {} and mass {} are no probabilities", verdict.p_yes, verdict.mass);
    Err(EngineError::internal("judgement", reason))
}

impl Work for Engine {
    type Job = Job;
    type Output = Reply;

    /// Judgements go with judgements; texts with texts that are sampled alike; adapters come and go alone.
    fn joins(first: &Job, next: &Job) -> bool {
        matches!((first, next), (Job::Question(first), Job::Question(next)) if first.ask == next.ask)
    }

    fn run(&mut self, jobs: Vec<Job>) -> Vec<Result<Reply, Fault>> {
        let mut questions = Vec::with_capacity(jobs.len());
        let mut replies = Vec::new();
        for job in jobs {
            match job {
                Job::Question(question) => questions.push(question),
                Job::Load { name, folder } => replies.push(self.load(&name, &folder).map(Reply::Loaded)),
                Job::Unload { name } => replies.push(Ok(Reply::Unloaded(self.unload(&name)))),
            }
        }
        replies.extend(self.answer(questions));
        replies
    }
}
