use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use futures::future::try_join_all;
use opentelemetry::KeyValue;
use thicket_engine::{EmbedderInfo, Similarity as EngineSimilarity};
use thicket_proto::v1::embed_image_result::Result as ImageResult;
use thicket_proto::v1::embedding_service_server::EmbeddingService;
use thicket_proto::v1::{
    EmbedImageRequest, EmbedImageResponse, EmbedImageResult, EmbedTextRequest, EmbedTextResponse,
    EmbeddingModel, GetModelRequest, GetModelResponse, Similarity, Vector,
};
use thicket_runtime::{Batches, Call, Fault, ImageDecoder, Right, Worker, check_text};
use thicket_telemetry::{code_name, instruments, names};
use tonic::{Request, Response, Status};

use crate::engine::{Engine, Job, Vectors};

/// Most texts of one call.
pub const MAX_TEXTS: usize = 256;
/// Most images of one call.
pub const MAX_IMAGES: usize = 64;

/// The handlers of the embedding service.
#[derive(Debug, Clone)]
pub(crate) struct Service {
    pub(crate) worker: Worker<Batches<Engine>>,
    pub(crate) decoder: ImageDecoder,
    /// Set by the model thread once the model is loaded.
    pub(crate) info: Arc<OnceLock<EmbedderInfo>>,
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
        let vectors = self.recorded(self.submit(Job::Texts(texts), &call)).await?;
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
                let embedded = match self.decoder.decode(field, bytes).await {
                    Ok(image) => self.submit(Job::Image(image), call).await,
                    Err(fault) => Err(fault),
                };
                match embedded {
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
    fn info(&self) -> Result<&EmbedderInfo, Fault> {
        let starting =
            || Fault::unavailable("STARTING", "the model is still loading", Duration::from_secs(1));
        self.info.get().ok_or_else(starting)
    }

    async fn submit(&self, job: Job, call: &Call) -> Result<Vectors, Fault> {
        Ok(self.worker.submit(job, call.deadline()).await?.output)
    }

    /// Records how long a request to the model took.
    async fn recorded<T>(&self, work: impl Future<Output = Result<T, Fault>>) -> Result<T, Fault> {
        let started = Instant::now();
        let result = work.await;
        let mut attributes =
            vec![KeyValue::new(names::OPERATION, "embeddings"), KeyValue::new(names::PROVIDER, "thicket")];
        if let Some(info) = self.info.get() {
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
