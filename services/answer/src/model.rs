use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use opentelemetry::KeyValue;
use thicket_engine::{AnswererInfo, Generation, Prompt, Sampling, Verdict};
use thicket_imaging::RgbImage;
use thicket_proto::v1::Timing;
use thicket_runtime::{Call, Done, Fault, ImageDecoder, Worker};
use thicket_telemetry::{code_name, instruments, names};
use tokio::sync::OwnedSemaphorePermit;

use crate::engine::{Ask, Engine, Job, Reply};

/// The model as the handlers see it: questions go in, answers and their cost come out.
#[derive(Debug, Clone)]
pub(crate) struct Model {
    pub(crate) worker: Worker<Engine>,
    pub(crate) decoder: ImageDecoder,
    /// Set by the model thread once the model is loaded.
    pub(crate) info: Arc<OnceLock<AnswererInfo>>,
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
    timing: Timing,
}

impl Model {
    pub(crate) fn info(&self) -> Result<&AnswererInfo, Fault> {
        let starting =
            || Fault::unavailable("STARTING", "the model is still loading", Duration::from_secs(1));
        self.info.get().ok_or_else(starting)
    }

    pub(crate) fn session<'a>(&'a self, call: &'a Call) -> Session<'a> {
        Session { model: self, call, timing: Timing::default() }
    }
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
        match self.ask(Some(picture), text, Ask::Judgement).await? {
            Reply::Verdict(verdict) => Ok(verdict),
            Reply::Text(_) => Err(Fault::internal("a text in place of a judgement")),
        }
    }

    /// A generated text.
    pub(crate) async fn generate(
        &mut self,
        picture: Option<&Picture>,
        text: String,
        sampling: Sampling,
    ) -> Result<Generation, Fault> {
        match self.ask(picture, text, Ask::Text(sampling)).await? {
            Reply::Text(generation) => Ok(generation),
            Reply::Verdict(_) => Err(Fault::internal("a judgement in place of a text")),
        }
    }

    async fn ask(&mut self, picture: Option<&Picture>, text: String, ask: Ask) -> Result<Reply, Fault> {
        let started = Instant::now();
        let prompt = Prompt { image: picture.map(|picture| picture.pixels.clone()), text };
        let _memory = picture.map(|picture| picture.memory.clone());
        let result = self.model.worker.submit(Job { prompt, ask, _memory }, self.call.deadline()).await;
        self.record(started, result.as_ref());
        let Done { output, queued, ran } = result?;
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
        Reply::Text(generation) => (generation.prompt_tokens, generation.tokens.len()),
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
