use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::Arc;

use thicket_engine::{Kind, Sampling};
use thicket_proto::v1::answer_service_server::AnswerService;
use thicket_proto::v1::{
    AggregateRequest, AggregateResponse, DecomposeRequest, DecomposeResponse, DescribeRequest,
    DescribeResponse, ForgetImageRequest, ForgetImageResponse, ForgetImagesRequest, ForgetImagesResponse,
    GetAnswerModelRequest, GetAnswerModelResponse, ListAdaptersRequest, ListAdaptersResponse,
    LoadAdapterRequest, LoadAdapterResponse, LocateRequest, LocateResponse, RewriteRequest, RewriteResponse,
    Timing, UnloadAdapterRequest, UnloadAdapterResponse,
};
use thicket_runtime::{Call, Fault, MAX_TEXT_BYTES, Right, check_text};
use thicket_thi::Answer;
use thicket_thi::prompts::{PromptError, PromptSet, Template, describe, lines, usable_refinement};
use tonic::{Request, Response, Status};

use crate::adapters::to_wire;
use crate::archive::Archive;
use crate::memory::{Description, Memory};
use crate::model::Model;
use crate::store::{Kept, Key};

/// Least probability that the yes and no words must have together; below it the model's text is read instead.
pub const MIN_MASS: f64 = 0.5;
/// Most attribute answers that are merged into a text.
pub const MAX_ANSWERS: usize = 64;
/// Most images that are forgotten in one call.
pub const MAX_FORGOTTEN: usize = 10_000;
/// Most rewrites of one sentence.
pub const MAX_REWRITES: u32 = 16;
/// Highest sampling temperature.
pub const MAX_TEMPERATURE: f64 = 2.0;

/// Tokens of a yes or no in words.
const YES_NO_TOKENS: usize = 32;

/// The handlers of the answer service.
#[derive(Debug, Clone)]
pub(crate) struct Service {
    pub(crate) model: Model,
    pub(crate) prompts: Arc<PromptSet>,
    pub(crate) memory: Arc<Memory>,
    pub(crate) archive: Archive,
    pub(crate) max_output_tokens: usize,
}

#[tonic::async_trait]
impl AnswerService for Service {
    async fn get_answer_model(
        &self,
        request: Request<GetAnswerModelRequest>,
    ) -> Result<Response<GetAnswerModelResponse>, Status> {
        admit(&request)?;
        let info = self.model.info()?;
        Ok(Response::new(GetAnswerModelResponse {
            name: info.name.clone(),
            fingerprint: info.fingerprint.clone(),
            prompt_version: self.prompts.version().to_owned(),
            context_length: u32::try_from(info.context_length).unwrap_or(u32::MAX),
        }))
    }

    async fn locate(&self, request: Request<LocateRequest>) -> Result<Response<LocateResponse>, Status> {
        let call = admit(&request)?;
        let LocateRequest { text, image, adapter } = request.into_inner();
        check_text("text", &text)?;
        let prompt = self.prompts.locate(&text).map_err(unrendered)?;
        let (fingerprint, since) = (self.model.fingerprint(&adapter)?, self.archive.since());
        let key = Key::new(&image, &["locate", &fingerprint, &prompt]);
        if let Some(Kept::Judgement { p_yes, usable, raw_text }) = self.archive.find(key, &call).await {
            let timing = Some(Timing::default());
            return Ok(Response::new(LocateResponse { p_yes, usable, raw_text, timing, cached: true }));
        }
        let mut session = self.model.session(&call, &adapter)?;
        let picture = session.decode(image).await?;
        let verdict = session.judge(&picture, prompt.clone()).await?;
        let (p_yes, usable, raw_text) = if verdict.mass >= MIN_MASS {
            (verdict.p_yes, true, String::new())
        } else {
            let sampling = greedy(YES_NO_TOKENS);
            let text = session.generate(Kind::Locate, Some(&picture), prompt, sampling).await?.text;
            let answer = Answer::from_text(&text);
            (f64::from(u8::from(answer.confirms())), answer != Answer::Unusable, text)
        };
        let kept = Kept::Judgement { p_yes, usable, raw_text: raw_text.clone() };
        self.archive.keep(key, kept, since, &call).await;
        let timing = Some(session.timing());
        Ok(Response::new(LocateResponse { p_yes, usable, raw_text, timing, cached: false }))
    }

    async fn describe(
        &self,
        request: Request<DescribeRequest>,
    ) -> Result<Response<DescribeResponse>, Status> {
        let call = admit(&request)?;
        let DescribeRequest { image, adapter } = request.into_inner();
        let fingerprint = self.model.fingerprint(&adapter)?;
        let since = self.archive.since();
        let (version, limit) =
            (self.prompts.template_version(Template::Describe), self.max_output_tokens.to_string());
        let key = Key::new(&image, &["describe", &fingerprint, &version, &limit]);
        let mut session = self.model.session(&call, &adapter)?;
        let (spent, archive, asking) = (&mut session, &self.archive, &call);
        let make = move || async move {
            if let Some(Kept::Description { text }) = archive.find(key, asking).await {
                return Ok((Description { answers: describe::sentences(&text), text }, true));
            }
            let prompt = self.prompts.describe().map_err(unrendered)?;
            let picture = spent.decode(image).await?;
            let sampling = greedy(self.max_output_tokens);
            let text = spent.generate(Kind::Describe, Some(&picture), prompt, sampling).await?.text;
            archive.keep(key, Kept::Description { text: text.clone() }, since, asking).await;
            Ok((Description { answers: describe::sentences(&text), text }, false))
        };
        let (description, cached) = self.memory.get_or_make(key, make).await?;
        Ok(Response::new(DescribeResponse {
            usable: description.answers.iter().any(|answer| usable_refinement(answer)),
            answers: description.answers.clone(),
            raw_text: description.text.clone(),
            cached,
            timing: Some(session.timing()),
        }))
    }

    async fn aggregate(
        &self,
        request: Request<AggregateRequest>,
    ) -> Result<Response<AggregateResponse>, Status> {
        let call = admit(&request)?;
        let AggregateRequest { text, answers, adapter } = request.into_inner();
        check_text("text", &text)?;
        check_answers(&answers)?;
        let mut parts = vec![text];
        parts.extend(answers);
        let prompt = self.prompts.aggregate(&parts).map_err(unrendered)?;
        let mut session = self.model.session(&call, &adapter)?;
        let text =
            session.generate(Kind::Aggregate, None, prompt, greedy(self.max_output_tokens)).await?.text;
        Ok(Response::new(AggregateResponse {
            usable: usable_refinement(&text),
            text,
            timing: Some(session.timing()),
        }))
    }

    async fn decompose(
        &self,
        request: Request<DecomposeRequest>,
    ) -> Result<Response<DecomposeResponse>, Status> {
        let call = admit(&request)?;
        let DecomposeRequest { text, adapter } = request.into_inner();
        check_text("text", &text)?;
        let prompt = self.prompts.decompose(&text).map_err(unrendered)?;
        let mut session = self.model.session(&call, &adapter)?;
        let raw_text =
            session.generate(Kind::Aggregate, None, prompt, greedy(self.max_output_tokens)).await?.text;
        Ok(Response::new(DecomposeResponse {
            sentences: lines(&raw_text),
            raw_text,
            timing: Some(session.timing()),
        }))
    }

    async fn rewrite(&self, request: Request<RewriteRequest>) -> Result<Response<RewriteResponse>, Status> {
        let call = admit(&request)?;
        let RewriteRequest { sentence, count, temperature, seed, adapter } = request.into_inner();
        check_text("sentence", &sentence)?;
        if !(1..=MAX_REWRITES).contains(&count) {
            let message = format!("1 to {MAX_REWRITES}, got {count}");
            return Err(Fault::invalid("count", "COUNT_OUT_OF_RANGE", message).into());
        }
        if !(0.0..=MAX_TEMPERATURE).contains(&temperature) {
            let message = format!("0 to {MAX_TEMPERATURE}, got {temperature}");
            return Err(Fault::invalid("temperature", "TEMPERATURE_OUT_OF_RANGE", message).into());
        }
        let wanted = count as usize;
        let prompt = self.prompts.rewrite(&sentence, wanted).map_err(unrendered)?;
        let mut session = self.model.session(&call, &adapter)?;
        let mut rewrites: Vec<String> = Vec::new();
        // One answer holds several rewrites, one a line; with a temperature, further answers fill up what is missing.
        let attempts = if temperature > 0.0 { u64::from(count) } else { 1 };
        for attempt in 0..attempts {
            let sampling =
                Sampling { temperature, seed: seed.wrapping_add(attempt), ..greedy(self.max_output_tokens) };
            for rewrite in
                lines(&session.generate(Kind::Aggregate, None, prompt.clone(), sampling).await?.text)
            {
                if rewrites.len() < wanted && !rewrites.contains(&rewrite) {
                    rewrites.push(rewrite);
                }
            }
            if rewrites.len() == wanted {
                break;
            }
        }
        Ok(Response::new(RewriteResponse { rewrites, timing: Some(session.timing()) }))
    }

    async fn forget_image(
        &self,
        request: Request<ForgetImageRequest>,
    ) -> Result<Response<ForgetImageResponse>, Status> {
        let call = Call::of(&request);
        call.require(Right::Write, None)?;
        let image = hash("image_hash", &request.into_inner().image_hash)?;
        let answers = self.forget([image].into(), &call).await?;
        Ok(Response::new(ForgetImageResponse { answers }))
    }

    async fn forget_images(
        &self,
        request: Request<ForgetImagesRequest>,
    ) -> Result<Response<ForgetImagesResponse>, Status> {
        let call = Call::of(&request);
        call.require(Right::Write, None)?;
        let hashes = request.into_inner().image_hashes;
        if hashes.is_empty() || hashes.len() > MAX_FORGOTTEN {
            let message = format!("1 to {MAX_FORGOTTEN}, got {}", hashes.len());
            return Err(Fault::invalid("image_hashes", "IMAGE_COUNT_OUT_OF_RANGE", message).into());
        }
        let images = hashes.iter().enumerate().map(|(i, text)| hash(format!("image_hashes[{i}]"), text));
        let answers = self.forget(images.collect::<Result<_, Fault>>()?, &call).await?;
        Ok(Response::new(ForgetImagesResponse { answers }))
    }

    async fn list_adapters(
        &self,
        request: Request<ListAdaptersRequest>,
    ) -> Result<Response<ListAdaptersResponse>, Status> {
        admit(&request)?;
        let available = self.model.available_adapters().await?;
        Ok(Response::new(ListAdaptersResponse { loaded: self.model.adapters.loaded(), available }))
    }

    async fn load_adapter(
        &self,
        request: Request<LoadAdapterRequest>,
    ) -> Result<Response<LoadAdapterResponse>, Status> {
        let call = Call::of(&request);
        call.require(Right::Admin, None)?;
        let adapter = self.model.load_adapter(&call, request.into_inner().name).await?;
        Ok(Response::new(LoadAdapterResponse { adapter: Some(to_wire(adapter)) }))
    }

    async fn unload_adapter(
        &self,
        request: Request<UnloadAdapterRequest>,
    ) -> Result<Response<UnloadAdapterResponse>, Status> {
        let call = Call::of(&request);
        call.require(Right::Admin, None)?;
        self.model.unload_adapter(&call, request.into_inner().name).await?;
        Ok(Response::new(UnloadAdapterResponse {}))
    }
}

impl Service {
    /// Deletes what is kept of images; returns how many answers.
    async fn forget(&self, images: BTreeSet<[u8; 32]>, call: &Call) -> Result<u64, Fault> {
        let remembered = self.memory.forget(&images);
        let archived = self.archive.forget(images, call).await?;
        // What is archived was remembered first, if it still is.
        Ok(archived.max(remembered))
    }
}

fn admit<T>(request: &Request<T>) -> Result<Call, Fault> {
    let call = Call::of(request);
    call.require(Right::Read, None)?;
    Ok(call)
}

/// Reads the hash of an image.
fn hash(field: impl Into<Cow<'static, str>>, hex: &str) -> Result<[u8; 32], Fault> {
    blake3::Hash::from_hex(hex).map(Into::into).map_err(|_| {
        let message = format!("64 hex digits expected, got {} bytes", hex.len());
        Fault::invalid(field, "IMAGE_HASH", message)
    })
}

fn greedy(max_tokens: usize) -> Sampling {
    Sampling { max_tokens, temperature: 0.0, seed: 0 }
}

/// An operator's template failed on an input that it was not tried with at start.
fn unrendered(error: PromptError) -> Fault {
    Fault::internal(error)
}

/// Answers may be empty: they are passed on as the model gave them.
fn check_answers(answers: &[String]) -> Result<(), Fault> {
    if answers.len() > MAX_ANSWERS {
        let message = format!("at most {MAX_ANSWERS}, got {}", answers.len());
        return Err(Fault::invalid("answers", "TOO_MANY_ANSWERS", message));
    }
    let bytes: usize = answers.iter().map(String::len).sum();
    if bytes > MAX_TEXT_BYTES {
        let message = format!("at most {MAX_TEXT_BYTES} bytes together, got {bytes}");
        return Err(Fault::invalid("answers", "TEXT_TOO_LONG", message));
    }
    Ok(())
}
