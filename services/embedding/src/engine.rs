use std::time::Instant;

use thicket_engine::{Embedder, EmbedderInfo, EngineError};
use thicket_imaging::RgbImage;
use thicket_runtime::{DecodedImage, Fault, Work};

/// What the model thread is asked.
#[derive(Debug)]
pub(crate) enum Job {
    /// The texts of one call.
    Texts(Vec<String>),
    /// One image.
    Image(DecodedImage),
}

/// One vector a text, or the one of the image.
pub(crate) type Vectors = Vec<Vec<f32>>;

/// The model, as the work of one thread.
pub(crate) struct Engine {
    embedder: Box<dyn Embedder>,
}

impl Engine {
    /// Takes the model and runs one text and one image through it, so that the first call finds it warm and a model that
    /// cannot compute is never put in service.
    pub(crate) fn warm(mut embedder: Box<dyn Embedder>) -> Result<Self, EngineError> {
        let started = Instant::now();
        let info = embedder.info().clone();
        let (height, width) = info.image_size;
        let texts = embedder.embed_texts(&["a person".to_owned()])?;
        let images = embedder.embed_images(&[RgbImage::new(width, height)])?;
        for vector in texts.iter().chain(&images) {
            check(&info, vector)?;
        }
        tracing::info!(
            model = info.name,
            fingerprint = info.fingerprint,
            dimension = info.dimension,
            seconds = started.elapsed().as_secs_f64(),
            "model is warm"
        );
        Ok(Self { embedder })
    }

    fn texts(&mut self, jobs: Vec<Vec<String>>) -> Vec<Result<Vectors, Fault>> {
        let all = jobs.concat();
        match self.embed(all.len(), |embedder| embedder.embed_texts(&all)) {
            Ok(vectors) => {
                let mut vectors = vectors.into_iter();
                jobs.iter().map(|texts| Ok(vectors.by_ref().take(texts.len()).collect())).collect()
            }
            // One bad text fails its own call, not its neighbours'.
            Err(EngineError::InvalidInput { .. }) if jobs.len() > 1 => {
                jobs.into_iter().flat_map(|texts| self.texts(vec![texts])).collect()
            }
            Err(error) => all_failed(jobs.len(), error),
        }
    }

    fn images(&mut self, images: Vec<RgbImage>) -> Vec<Result<Vectors, Fault>> {
        match self.embed(images.len(), |embedder| embedder.embed_images(&images)) {
            Ok(vectors) => vectors.into_iter().map(|vector| Ok(vec![vector])).collect(),
            Err(EngineError::InvalidInput { .. }) if images.len() > 1 => {
                images.into_iter().flat_map(|image| self.images(vec![image])).collect()
            }
            Err(error) => all_failed(images.len(), error),
        }
    }

    fn embed(
        &mut self,
        count: usize,
        run: impl FnOnce(&mut dyn Embedder) -> Result<Vectors, EngineError>,
    ) -> Result<Vectors, EngineError> {
        let vectors = run(self.embedder.as_mut())?;
        if vectors.len() != count {
            let reason = format!("{} vectors for {count} inputs", vectors.len());
            return Err(EngineError::internal("embedding", reason));
        }
        let info = self.embedder.info();
        vectors.iter().try_for_each(|vector| check(info, vector))?;
        Ok(vectors)
    }
}

fn check(info: &EmbedderInfo, vector: &[f32]) -> Result<(), EngineError> {
    if vector.len() != info.dimension {
        let reason = format!("a vector of {} values, the model has {}", vector.len(), info.dimension);
        return Err(EngineError::internal("embedding", reason));
    }
    if vector.iter().any(|value| !value.is_finite()) {
        return Err(EngineError::internal("embedding", "a value that is not finite"));
    }
    Ok(())
}

fn all_failed(jobs: usize, error: EngineError) -> Vec<Result<Vectors, Fault>> {
    let fault = Fault::from(error);
    vec![Err(fault); jobs]
}

impl Work for Engine {
    type Job = Job;
    type Output = Vectors;

    fn weight(job: &Job) -> usize {
        match job {
            Job::Texts(texts) => texts.len(),
            Job::Image(_) => 1,
        }
    }

    fn joins(first: &Job, next: &Job) -> bool {
        std::mem::discriminant(first) == std::mem::discriminant(next)
    }

    fn run(&mut self, jobs: Vec<Job>) -> Vec<Result<Vectors, Fault>> {
        let mut texts = Vec::new();
        let mut images = Vec::new();
        let mut memory = Vec::new();
        for job in jobs {
            match job {
                Job::Texts(job) => texts.push(job),
                Job::Image(image) => {
                    let (image, place) = image.into_parts();
                    images.push(image);
                    memory.push(place);
                }
            }
        }
        // Jobs of one batch are of one kind, so one of the two is empty.
        if images.is_empty() { self.texts(texts) } else { self.images(images) }
    }
}
