use std::sync::Arc;
use std::time::Instant;

use thicket_engine::{Answerer, EngineError, Generation, Prompt, Sampling, Verdict};
use thicket_imaging::RgbImage;
use thicket_runtime::{Fault, Work};
use tokio::sync::OwnedSemaphorePermit;

/// Side in pixels of the picture that the model is warmed up with.
const WARM_UP_SIDE: u32 = 56;

/// One question.
#[derive(Debug)]
pub(crate) struct Job {
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
}

/// The model, as the work of one thread.
pub(crate) struct Engine {
    answerer: Box<dyn Answerer>,
}

impl Engine {
    /// Takes the model and asks it one thing in each way, so that the first call finds it warm and a model that cannot
    /// compute is never put in service.
    pub(crate) fn warm(mut answerer: Box<dyn Answerer>) -> Result<Self, EngineError> {
        let started = Instant::now();
        let picture = RgbImage::from_pixel(WARM_UP_SIDE, WARM_UP_SIDE, [128; 3].into());
        let prompt = Prompt { image: Some(Arc::new(picture)), text: "Is there a person?".to_owned() };
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
        Ok(Self { answerer })
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

    /// Judgements go with judgements; texts with texts that are sampled alike.
    fn joins(first: &Job, next: &Job) -> bool {
        first.ask == next.ask
    }

    fn run(&mut self, jobs: Vec<Job>) -> Vec<Result<Reply, Fault>> {
        let Some(ask) = jobs.first().map(|job| job.ask) else { return Vec::new() };
        let (prompts, _memory): (Vec<_>, Vec<_>) =
            jobs.into_iter().map(|job| (job.prompt, job._memory)).unzip();
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
