use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use thicket_engine::{
    AdapterInfo, Answer, Answerer, Ask, EngineError, Generation, Kind, Load, Progress, Prompt, Sampling,
    Ticket, Verdict,
};
use thicket_imaging::RgbImage;
use thicket_runtime::{Deadline, Fault, Stepped, Steps};
use thicket_telemetry::instruments;
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
    pub(crate) kind: Kind,
    /// When the call arrived.
    pub(crate) since: Instant,
    /// The image's place in memory, held as long as a question about it is open.
    pub(crate) _memory: Option<Arc<OwnedSemaphorePermit>>,
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
    /// Urgency counts from here.
    epoch: Instant,
    open: HashMap<Ticket, Open>,
    /// What ended without the model.
    ended: Vec<(Ticket, Result<Reply, Fault>)>,
    /// What was last said of the prefix cache.
    reported: Load,
}

/// What is known of a question that the model has taken up.
struct Open {
    since: Instant,
    first_token: Option<Instant>,
    _memory: Option<Arc<OwnedSemaphorePermit>>,
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
        let reported = answerer.load();
        Ok(Self { answerer, adapters, epoch: started, open: HashMap::new(), ended: Vec::new(), reported })
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

    fn ask(&mut self, ticket: Ticket, question: Question, deadline: Deadline) {
        let Question { prompt, ask, kind, since, _memory } = question;
        let until = deadline.instant().saturating_duration_since(self.epoch);
        let urgency = u64::try_from(until.as_nanos()).unwrap_or(u64::MAX);
        match self.answerer.submit(ticket, thicket_engine::Question { prompt, ask, kind, urgency }) {
            Ok(()) => _ = self.open.insert(ticket, Open { since, first_token: None, _memory }),
            Err(error) => self.ended.push((ticket, Err(error.into()))),
        }
    }

    /// The model's answer as the handlers get it.
    fn reply(&mut self, ticket: Ticket, answer: Result<Answer, EngineError>) -> Result<Reply, Fault> {
        let open = self.open.remove(&ticket);
        match answer? {
            Answer::Verdict(verdict) => Ok(Reply::Verdict(check(verdict)?)),
            Answer::Text(generation) => {
                let further = generation.output_tokens.saturating_sub(1);
                if let Some(first) = open.and_then(|open| open.first_token).filter(|_| further > 0) {
                    let seconds = first.elapsed().as_secs_f64() / further as f64;
                    instruments().time_per_output_token.record(seconds, &[]);
                }
                Ok(Reply::Text(generation))
            }
        }
    }

    fn record(&mut self, progress: &Progress) {
        let (all, load) = (instruments(), self.answerer.load());
        for ticket in &progress.first_tokens {
            if let Some(open) = self.open.get_mut(ticket) {
                open.first_token = Some(Instant::now());
                all.time_to_first_token.record(open.since.elapsed().as_secs_f64(), &[]);
            }
        }
        all.step_tokens.record((progress.prompt_tokens + progress.output_tokens) as u64, &[]);
        all.sequences_running.record(load.running as u64, &[]);
        all.sequences_waiting.record(load.waiting as u64, &[]);
        all.prefix_cache_size.record(load.prefix_bytes as u64, &[]);
        all.prefix_cache_hits.add(load.prefix_hits - self.reported.prefix_hits, &[]);
        all.prefix_cache_misses.add(load.prefix_misses - self.reported.prefix_misses, &[]);
        if load.cache_limit > 0 {
            all.kv_cache_utilization.record(load.cache_tokens as f64 / load.cache_limit as f64, &[]);
        }
        self.reported = load;
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

impl Steps for Engine {
    type Job = Job;
    type Output = Reply;

    const CONTINUOUS: bool = true;

    fn take(&mut self, ticket: Ticket, job: Job, deadline: Deadline) {
        match job {
            Job::Question(question) => self.ask(ticket, question, deadline),
            Job::Load { name, folder } => {
                let loaded = self.load(&name, &folder).map(Reply::Loaded);
                self.ended.push((ticket, loaded));
            }
            Job::Unload { name } => {
                let known = self.unload(&name);
                self.ended.push((ticket, Ok(Reply::Unloaded(known))));
            }
        }
    }

    fn cancel(&mut self, ticket: Ticket) {
        self.answerer.cancel(ticket);
        self.open.remove(&ticket);
        self.ended.retain(|(ended, _)| *ended != ticket);
    }

    fn step(&mut self) -> Stepped<Reply> {
        let mut done = std::mem::take(&mut self.ended);
        if self.open.is_empty() {
            return Stepped { started: Vec::new(), done };
        }
        let progress = self.answerer.step();
        self.record(&progress);
        for (ticket, answer) in progress.done {
            done.push((ticket, self.reply(ticket, answer)));
        }
        Stepped { started: progress.started, done }
    }

    fn waiting(&self) -> usize {
        self.answerer.load().waiting
    }
}
