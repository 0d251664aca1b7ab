use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use opentelemetry::KeyValue;
use thicket_engine::{AdapterInfo, AnswererInfo, Ask, Generation, Kind, Prompt, Sampling, Verdict};
use thicket_imaging::RgbImage;
use thicket_proto::v1::Timing;
use thicket_runtime::{Call, Done, Fault, ImageDecoder, Replicas};
use thicket_telemetry::{code_name, instruments, names};
use tokio::sync::OwnedSemaphorePermit;
use tracing::field::Empty;
use tracing::{Instrument, info_span};

use crate::adapters::{Adapters, missing};
use crate::engine::{Engine, Job, Question, Reply};

/// The model as the handlers see it: questions go in, answers and their cost come out.
#[derive(Debug, Clone)]
pub(crate) struct Model {
    pub(crate) workers: Replicas<Engine>,
    pub(crate) decoder: ImageDecoder,
    /// Set by the model thread once the model is loaded.
    pub(crate) info: Arc<OnceLock<AnswererInfo>>,
    pub(crate) adapters: Adapters,
}

/// An image that several questions can be about.
#[derive(Debug, Clone)]
pub(crate) struct Picture {
    pixels: Arc<RgbImage>,
    memory: Arc<OwnedSemaphorePermit>,
}

/// The questions of one call, and what they have cost so far.
#[derive(Debug)]
pub(crate) struct Session<'a> {
    model: &'a Model,
    call: &'a Call,
    /// Who answers; `None` for the model as it was started.
    adapter: Option<Arc<str>>,
    timing: Timing,
}

impl Model {
    pub(crate) fn info(&self) -> Result<&AnswererInfo, Fault> {
        let starting =
            || Fault::unavailable("STARTING", "the model is still loading", Duration::from_secs(1));
        self.info.get().ok_or_else(starting)
    }

    /// Fingerprint of the model under an adapter, of the model itself for an empty name.
    pub(crate) fn fingerprint(&self, adapter: &str) -> Result<String, Fault> {
        let info = self.info()?;
        if adapter.is_empty() { Ok(info.fingerprint.clone()) } else { self.adapters.fingerprint(adapter) }
    }

    /// Questions to an adapter, to the model itself for an empty name.
    ///
    /// # Errors
    /// [`Fault::NotFound`] for an adapter that is not loaded.
    pub(crate) fn session<'a>(&'a self, call: &'a Call, adapter: &str) -> Result<Session<'a>, Fault> {
        self.fingerprint(adapter)?;
        let adapter = if adapter.is_empty() { None } else { Some(adapter.into()) };
        Ok(Session { model: self, call, adapter, timing: Timing::default() })
    }

    /// Loads an adapter of the adapter folder.
    pub(crate) async fn load_adapter(&self, call: &Call, name: String) -> Result<AdapterInfo, Fault> {
        self.info()?;
        let (adapters, asked) = (self.adapters.clone(), name.clone());
        let folder = off_thread(move || adapters.folder_of(&asked)).await?;
        let load = || Job::Load { name: name.clone(), folder: folder.clone() };
        match self.workers.submit_to_all(load, call.deadline()).await {
            Ok(loaded) => match loaded.into_iter().next().map(|done| done.output) {
                Some(Reply::Loaded(info)) => Ok(info),
                other => Err(unexpected(other.as_ref())),
            },
            Err(fault) => {
                // Copies of the model that differ in their adapters would answer differently.
                if self.workers.are_several() {
                    self.workers
                        .submit_to_all(|| Job::Unload { name: name.clone() }, call.deadline())
                        .await?;
                }
                Err(fault)
            }
        }
    }

    /// Gives up an adapter.
    pub(crate) async fn unload_adapter(&self, call: &Call, name: String) -> Result<(), Fault> {
        self.fingerprint(&name)?;
        let unload = || Job::Unload { name: name.clone() };
        let unloaded = self.workers.submit_to_all(unload, call.deadline()).await?;
        match unloaded.into_iter().next().map(|done| done.output) {
            Some(Reply::Unloaded(true)) => Ok(()),
            Some(Reply::Unloaded(false)) => Err(missing(&name)),
            other => Err(unexpected(other.as_ref())),
        }
    }

    /// Names of the adapters that could be loaded.
    pub(crate) async fn available_adapters(&self) -> Result<Vec<String>, Fault> {
        let adapters = self.adapters.clone();
        off_thread(move || adapters.available()).await
    }
}

/// Runs what waits for a disk where it may wait.
async fn off_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Fault> + Send + 'static,
) -> Result<T, Fault> {
    tokio::task::spawn_blocking(work).await.map_err(Fault::internal)?
}

fn unexpected(reply: Option<&Reply>) -> Fault {
    Fault::internal(format!("another reply than was asked for: {reply:?}"))
}

impl Session<'_> {
    /// What the questions so far have cost.
    pub(crate) fn timing(&self) -> Timing {
        self.timing
    }

    pub(crate) async fn decode(&mut self, bytes: Bytes) -> Result<Picture, Fault> {
        let started = Instant::now();
        let (pixels, memory) = self.model.decoder.decode("image", bytes).await?.into_parts();
        self.timing.prepare_ns += nanoseconds(started.elapsed());
        Ok(Picture { pixels: Arc::new(pixels), memory: Arc::new(memory) })
    }

    /// p(Yes) of the first answer token.
    pub(crate) async fn judge(&mut self, picture: &Picture, text: String) -> Result<Verdict, Fault> {
        match self.ask(Kind::Locate, Some(picture), text, Ask::Judgement).await? {
            Reply::Verdict(verdict) => Ok(verdict),
            other => Err(unexpected(Some(&other))),
        }
    }

    /// A generated text.
    pub(crate) async fn generate(
        &mut self,
        kind: Kind,
        picture: Option<&Picture>,
        text: String,
        sampling: Sampling,
    ) -> Result<Generation, Fault> {
        match self.ask(kind, picture, text, Ask::Text(sampling)).await? {
            Reply::Text(generation) => Ok(generation),
            other => Err(unexpected(Some(&other))),
        }
    }

    async fn ask(
        &mut self,
        kind: Kind,
        picture: Option<&Picture>,
        text: String,
        ask: Ask,
    ) -> Result<Reply, Fault> {
        let started = Instant::now();
        let image = picture.map(|picture| picture.pixels.clone());
        let prompt = Prompt { image, text, adapter: self.adapter.clone() };
        let _memory = picture.map(|picture| picture.memory.clone());
        let job = Job::Question(Question { prompt, ask, kind, since: started, _memory });
        // The model's thread knows no spans: this one says how long it took, and how long the question waited for it.
        let span = info_span!("question", ?kind, queued_ns = Empty, inference_ns = Empty);
        let result = self.model.workers.submit(job, self.call.deadline()).instrument(span.clone()).await;
        self.record(started, result.as_ref());
        let Done { output, queued, ran } = result?;
        // What is unsigned would reach the collector as text.
        let [queued_ns, ran_ns] =
            [queued, ran].map(|time| i64::try_from(time.as_nanos()).unwrap_or(i64::MAX));
        span.record("queued_ns", queued_ns).record("inference_ns", ran_ns);
        let (prompt_tokens, output_tokens) = tokens(&output);
        self.timing.queue_ns += nanoseconds(queued);
        self.timing.inference_ns += nanoseconds(ran);
        self.timing.prompt_tokens += u32::try_from(prompt_tokens).unwrap_or(u32::MAX);
        self.timing.output_tokens += u32::try_from(output_tokens).unwrap_or(u32::MAX);
        Ok(output)
    }

    fn record(&self, started: Instant, result: Result<&Done<Reply>, &Fault>) {
        let mut attributes =
            vec![KeyValue::new(names::OPERATION, "chat"), KeyValue::new(names::PROVIDER, "thicket")];
        if let Some(info) = self.model.info.get() {
            attributes.push(KeyValue::new(names::MODEL, info.name.clone()));
        }
        match result {
            Ok(done) => {
                let (input, output) = tokens(&done.output);
                for (kind, count) in [("input", input), ("output", output)] {
                    let mut attributes = attributes.clone();
                    attributes.push(KeyValue::new(names::TOKEN_TYPE, kind));
                    instruments().token_usage.record(count as u64, &attributes);
                }
            }
            Err(fault) => attributes.push(KeyValue::new(names::ERROR_TYPE, code_name(fault.code()))),
        }
        instruments().request_duration.record(started.elapsed().as_secs_f64(), &attributes);
    }
}

/// Tokens of the prompt and of the answer.
fn tokens(reply: &Reply) -> (usize, usize) {
    match reply {
        Reply::Verdict(verdict) => (verdict.prompt_tokens, 0),
        Reply::Text(generation) => (generation.prompt_tokens, generation.output_tokens),
        Reply::Loaded(_) | Reply::Unloaded(_) => (0, 0),
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
