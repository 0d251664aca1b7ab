use std::time::Instant;

use thicket_engine::{Embedder, EmbedderInfo, EngineError, PreparedImage, PreparedText};
use thicket_imaging::RgbImage;
use thicket_runtime::{Fault, Held, Work};

use crate::packing;

/// What the model thread is asked. Everything is prepared: the thread does nothing but forward passes.
#[derive(Debug)]
pub(crate) enum Job {
    /// Texts of one call.
    Texts(Vec<PreparedText>),
    /// One image, and how many tokens the model makes of it.
    Image { image: Held<PreparedImage>, tokens: usize },
}

/// One vector a text, or the one of the image.
pub(crate) type Vectors = Vec<Vec<f32>>;

/// The model, as the work of one thread.
pub(crate) struct Engine {
    embedder: Box<dyn Embedder>,
    /// Most tokens of a pass.
    budget: usize,
}

impl Engine {
    /// Takes the model and runs one text and one image through it, so that the first call finds it warm and a model that
    /// cannot compute is never put in service.
    pub(crate) fn warm(mut embedder: Box<dyn Embedder>, budget: usize) -> Result<Self, EngineError> {
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
        Ok(Self { embedder, budget })
    }

    /// Texts of all jobs, those of like length in one pass. What goes wrong concerns the jobs that it happens to alone.
    fn texts(&mut self, jobs: Vec<Vec<PreparedText>>) -> Vec<Result<Vectors, Fault>> {
        let counts: Vec<usize> = jobs.iter().map(Vec::len).collect();
        let mut texts: Vec<Option<PreparedText>> = jobs.into_iter().flatten().map(Some).collect();
        let lengths: Vec<usize> = texts.iter().flatten().map(|text| text.ids.len()).collect();
        let mut results = vec![None; texts.len()];
        for pass in packing::passes(&lengths, self.budget) {
            let together: Vec<PreparedText> = pass.iter().filter_map(|&place| texts[place].take()).collect();
            let embedded = self.embed(pass.len(), |embedder| embedder.embed_prepared_texts(&together));
            for (place, result) in pass.into_iter().zip(embedded) {
                results[place] = Some(result);
            }
        }
        let mut results = results.into_iter().map(|result| result.unwrap_or_else(|| Err(unanswered())));
        counts.into_iter().map(|count| results.by_ref().take(count).collect()).collect()
    }

    fn images(&mut self, images: &[PreparedImage]) -> Vec<Result<Vectors, Fault>> {
        let embedded = self.embed(images.len(), |embedder| embedder.embed_prepared_images(images));
        embedded.into_iter().map(|result| Ok(vec![result?])).collect()
    }

    /// Runs a pass and checks each of its vectors.
    fn embed(
        &mut self,
        count: usize,
        run: impl FnOnce(&mut dyn Embedder) -> Result<Vectors, EngineError>,
    ) -> Vec<Result<Vec<f32>, Fault>> {
        let vectors = run(self.embedder.as_mut()).and_then(|vectors| {
            let reason = || format!("{} vectors for {count} inputs", vectors.len());
            if vectors.len() == count {
                Ok(vectors)
            } else {
                Err(EngineError::internal("embedding", reason()))
            }
        });
        match vectors {
            Ok(vectors) => {
                let info = self.embedder.info();
                vectors.into_iter().map(|vector| Ok(check(info, &vector).map(|()| vector)?)).collect()
            }
            Err(error) => vec![Err(Fault::from(error)); count],
        }
    }
}

fn unanswered() -> Fault {
    Fault::internal("a text was left out of every pass")
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

impl Work for Engine {
    type Job = Job;
    type Output = Vectors;

    /// In tokens, padding left aside: the passes of a batch keep it small.
    fn weight(job: &Job) -> usize {
        match job {
            Job::Texts(texts) => texts.iter().map(|text| text.ids.len()).sum(),
            Job::Image { tokens, .. } => *tokens,
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
                Job::Image { image, .. } => {
                    let (image, place) = image.into_parts();
                    images.push(image);
                    memory.push(place);
                }
            }
        }
        // Jobs of one batch are of one kind, so one of the two is empty.
        if images.is_empty() { self.texts(texts) } else { self.images(&images) }
    }
}
