use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::try_join_all;
use opentelemetry::KeyValue;
use thicket_engine::{EmbedderInfo, EngineError, PreparedText, Preprocessor, Similarity as EngineSimilarity};
use thicket_imaging::RgbImage;
use thicket_proto::v1::embed_image_result::Result as ImageResult;
use thicket_proto::v1::embedding_service_server::EmbeddingService;
use thicket_proto::v1::{
    EmbedImageRequest, EmbedImageResponse, EmbedImageResult, EmbedTextRequest, EmbedTextResponse,
    EmbeddingModel, GetModelRequest, GetModelResponse, Similarity, Vector,
};
use thicket_runtime::{Batches, Call, CpuWork, Fault, ImageDecoder, Replicas, Right, check_text};
use thicket_telemetry::{code_name, instruments, names};
use tonic::{Request, Response, Status};

use crate::engine::{Engine, Job, Vectors};
use crate::packing;

/// Most texts of one call.
pub const MAX_TEXTS: usize = 256;
/// Most images of one call.
pub const MAX_IMAGES: usize = 64;

/// The handlers of the embedding service.
#[derive(Debug, Clone)]
pub(crate) struct Service {
    pub(crate) workers: Replicas<Batches<Engine>>,
    pub(crate) decoder: ImageDecoder,
    /// Where texts are tokenised. Apart from the images' decoding, so that texts that take long hold no image up.
    pub(crate) texts: CpuWork,
    /// Set by the first model thread whose model is loaded.
    pub(crate) model: Arc<OnceLock<Loaded>>,
    /// Most tokens of a forward pass.
    pub(crate) budget: usize,
}

/// What the handlers know of the model.
pub(crate) struct Loaded {
    pub(crate) info: EmbedderInfo,
    pub(crate) preprocessor: Arc<dyn Preprocessor>,
}

impl fmt::Debug for Loaded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Loaded").field("info", &self.info).finish_non_exhaustive()
    }
}

#[tonic::async_trait]
impl EmbeddingService for Service {
    async fn get_model(
        &self,
        request: Request<GetModelRequest>,
    ) -> Result<Response<GetModelResponse>, Status> {
        Call::of(&request).require(Right::Read, None)?;
        Ok(Response::new(GetModelResponse { model: Some(describe(self.info()?)) }))
    }

    async fn embed_text(
        &self,
        request: Request<EmbedTextRequest>,
    ) -> Result<Response<EmbedTextResponse>, Status> {
        let call = Call::of(&request);
        call.require(Right::Read, None)?;
        let texts = request.into_inner().texts;
        check_count("texts", "TOO_MANY_TEXTS", texts.len(), MAX_TEXTS)?;
        for (index, text) in texts.iter().enumerate() {
            check_text(format!("texts[{index}]"), text)?;
        }
        let vectors = self.recorded(self.embed_texts(texts, &call)).await?;
        Ok(Response::new(EmbedTextResponse {
            vectors: vectors.into_iter().map(|values| Vector { values }).collect(),
            model_fingerprint: self.info()?.fingerprint.clone(),
        }))
    }

    async fn embed_image(
        &self,
        request: Request<EmbedImageRequest>,
    ) -> Result<Response<EmbedImageResponse>, Status> {
        let call = Call::of(&request);
        call.require(Right::Read, None)?;
        let images = request.into_inner().images;
        check_count("images", "TOO_MANY_IMAGES", images.len(), MAX_IMAGES)?;
        let results = images.into_iter().enumerate().map(|(index, bytes)| {
            let call = &call;
            async move {
                let field = format!("images[{index}]");
                match self.embed_image(field, bytes, call).await {
                    Ok(mut vectors) => {
                        Ok(ImageResult::Vector(Vector { values: vectors.pop().unwrap_or_default() }))
                    }
                    // What is wrong with an image concerns it alone; anything else concerns the whole call.
                    Err(fault @ (Fault::InvalidInput { .. } | Fault::OutOfRange { .. })) => {
                        Ok(ImageResult::Error(fault.to_item_error()))
                    }
                    Err(fault) => Err(fault),
                }
            }
        });
        let results = self.recorded(try_join_all(results)).await?;
        Ok(Response::new(EmbedImageResponse {
            results: results.into_iter().map(|result| EmbedImageResult { result: Some(result) }).collect(),
            model_fingerprint: self.info()?.fingerprint.clone(),
        }))
    }
}

impl Service {
    fn loaded(&self) -> Result<&Loaded, Fault> {
        let starting =
            || Fault::unavailable("STARTING", "the model is still loading", Duration::from_secs(1));
        self.model.get().ok_or_else(starting)
    }

    fn info(&self) -> Result<&EmbedderInfo, Fault> {
        Ok(&self.loaded()?.info)
    }

    /// Tokenises the texts of a call, has them embedded in as many jobs as their length asks for, and puts the vectors in
    /// the order of the texts.
    async fn embed_texts(&self, texts: Vec<String>, call: &Call) -> Result<Vectors, Fault> {
        let preprocessor = &self.loaded()?.preprocessor;
        let prepared = texts.into_iter().enumerate().map(|(index, text)| async move {
            let preprocessor = preprocessor.clone();
            let prepared = self.texts.run(move || preprocessor.text(&text)).await?;
            prepared.map_err(|error| match error {
                EngineError::InvalidInput { reason, .. } => {
                    Fault::invalid(format!("texts[{index}]"), "INVALID_INPUT", reason)
                }
                error => error.into(),
            })
        });
        let mut prepared: Vec<Option<PreparedText>> =
            try_join_all(prepared).await?.into_iter().map(Some).collect();
        let lengths: Vec<usize> = prepared.iter().flatten().map(|text| text.ids.len()).collect();
        let jobs = packing::jobs(&lengths, self.budget);
        let answers = jobs.iter().map(|places| {
            let texts = places.iter().filter_map(|&place| prepared[place].take()).collect();
            self.submit(Job::Texts(texts), call)
        });
        let answers = try_join_all(answers).await?;
        let mut vectors = vec![Vec::new(); lengths.len()];
        for (place, vector) in jobs.into_iter().flatten().zip(answers.into_iter().flatten()) {
            vectors[place] = vector;
        }
        Ok(vectors)
    }

    /// Decodes, resizes and normalises an image, and has what is left of it embedded.
    async fn embed_image(&self, field: String, bytes: Bytes, call: &Call) -> Result<Vectors, Fault> {
        let Loaded { info, preprocessor } = self.loaded()?;
        let (preprocessor, tokens) = (preprocessor.clone(), info.image_tokens);
        let (height, width) = info.image_size;
        let size = 3 * height as usize * width as usize * size_of::<f32>();
        let prepare = move |image: &RgbImage| preprocessor.image(image);
        let image = self.decoder.decode_into(field, bytes, size, prepare).await?;
        self.submit(Job::Image { image, tokens }, call).await
    }

    async fn submit(&self, job: Job, call: &Call) -> Result<Vectors, Fault> {
        Ok(self.workers.submit(job, call.deadline()).await?.output)
    }

    /// Records how long a request to the model took.
    async fn recorded<T>(&self, work: impl Future<Output = Result<T, Fault>>) -> Result<T, Fault> {
        let started = Instant::now();
        let result = work.await;
        let mut attributes =
            vec![KeyValue::new(names::OPERATION, "embeddings"), KeyValue::new(names::PROVIDER, "thicket")];
        if let Some(Loaded { info, .. }) = self.model.get() {
            attributes.push(KeyValue::new(names::MODEL, info.name.clone()));
        }
        if let Err(fault) = &result {
            attributes.push(KeyValue::new(names::ERROR_TYPE, code_name(fault.code())));
        }
        instruments().request_duration.record(started.elapsed().as_secs_f64(), &attributes);
        result
    }
}

fn check_count(field: &'static str, too_many: &'static str, count: usize, most: usize) -> Result<(), Fault> {
    match count {
        0 => Err(Fault::invalid(field, "EMPTY", format!("1 to {most}, got none"))),
        _ if count > most => Err(Fault::invalid(field, too_many, format!("1 to {most}, got {count}"))),
        _ => Ok(()),
    }
}

fn describe(info: &EmbedderInfo) -> EmbeddingModel {
    let similarity = match info.similarity {
        EngineSimilarity::Cosine => Similarity::Cosine,
        EngineSimilarity::MeanOfTwoCosines => Similarity::MeanOfTwoCosines,
    };
    EmbeddingModel {
        name: info.name.clone(),
        fingerprint: info.fingerprint.clone(),
        dimension: u32::try_from(info.dimension).unwrap_or(u32::MAX),
        similarity: similarity.into(),
        image_height: info.image_size.0,
        image_width: info.image_size.1,
        text_length: u32::try_from(info.text_length).unwrap_or(u32::MAX),
    }
}
