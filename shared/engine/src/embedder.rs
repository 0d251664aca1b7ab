use std::sync::Arc;

use image::RgbImage;

use crate::EngineError;

/// Images that [`Embedder::embed_images`] prepares before it embeds them.
const IMAGES_AT_A_TIME: usize = 32;

/// How two vectors of one model are compared. A collection records it and refuses vectors of another model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Similarity {
    /// The cosine of one global embedding; the stored vector is that unit vector.
    Cosine,
    /// The mean of the global (BGE) and the token-selection (TSE) cosine of RDE. The stored vector is
    /// `[bge, tse] / sqrt(2)`, so that one inner product is the mean.
    MeanOfTwoCosines,
}

/// What a caller must know of an embedding model.
#[derive(Debug, Clone)]
pub struct EmbedderInfo {
    /// The name it is served under.
    pub name: String,
    /// Hex digest of the weights and the configuration: equal fingerprints give equal vectors.
    pub fingerprint: String,
    /// Length of every vector.
    pub dimension: usize,
    /// Which similarity the inner product of two vectors is.
    pub similarity: Similarity,
    /// Input size of an image as `(height, width)` in pixels.
    pub image_size: (u32, u32),
    /// Number of text tokens seen, start and end marks included; a longer text is cut.
    pub text_length: usize,
    /// Tokens of an image: its patches and the class token.
    pub image_tokens: usize,
}

/// A text as the text tower takes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PreparedText {
    /// Token ids, start and end marks included, no padding; 1 to [`EmbedderInfo::text_length`] of them.
    pub ids: Vec<u32>,
}

/// An image as the image tower takes it.
#[derive(Debug, Clone, PartialEq)]
pub struct PreparedImage {
    /// Normalised pixels, f32 `[3, height, width]` of [`EmbedderInfo::image_size`] in this order.
    pub pixels: Vec<f32>,
}

/// What has to be done to an input before a forward pass. It shares no state with the model, so that any number of
/// threads can prepare inputs while one computes.
pub trait Preprocessor: Send + Sync {
    /// Makes token ids of a text.
    ///
    /// # Errors
    /// [`EngineError::InvalidInput`] for a text without a word.
    fn text(&self, text: &str) -> Result<PreparedText, EngineError>;

    /// Resizes and normalises an image of any size.
    fn image(&self, image: &RgbImage) -> PreparedImage;
}

/// A two-tower model: texts and images to unit vectors of one space.
///
/// The vector of an input does not depend on what else is in its batch, up to the rounding of the device.
pub trait Embedder: Send {
    /// What this model is.
    fn info(&self) -> &EmbedderInfo;

    /// The model's preparation of inputs.
    fn preprocessor(&self) -> Arc<dyn Preprocessor>;

    /// Embeds texts that are prepared. A pass is as long as its longest text.
    ///
    /// Returns one unit vector of [`EmbedderInfo::dimension`] values for each text, in order.
    ///
    /// # Errors
    /// [`EngineError::Internal`] where the forward pass fails.
    fn embed_prepared_texts(&mut self, texts: &[PreparedText]) -> Result<Vec<Vec<f32>>, EngineError>;

    /// Embeds images that are prepared.
    ///
    /// Returns one unit vector of [`EmbedderInfo::dimension`] values for each image, in order.
    ///
    /// # Errors
    /// [`EngineError::Internal`] where the forward pass fails.
    fn embed_prepared_images(&mut self, images: &[PreparedImage]) -> Result<Vec<Vec<f32>>, EngineError>;

    /// Prepares and embeds texts.
    ///
    /// # Errors
    /// As [`Preprocessor::text`] and [`Embedder::embed_prepared_texts`].
    fn embed_texts(&mut self, texts: &[String]) -> Result<Vec<Vec<f32>>, EngineError> {
        let preprocessor = self.preprocessor();
        let prepared = texts.iter().enumerate().map(|(index, text)| {
            preprocessor.text(text).map_err(|error| match error {
                EngineError::InvalidInput { field, reason } if texts.len() > 1 => {
                    EngineError::invalid(field, format!("number {index} of {}: {reason}", texts.len()))
                }
                error => error,
            })
        });
        let prepared = prepared.collect::<Result<Vec<_>, _>>()?;
        self.embed_prepared_texts(&prepared)
    }

    /// Prepares and embeds images of any size, some at a time.
    ///
    /// # Errors
    /// As [`Embedder::embed_prepared_images`].
    fn embed_images(&mut self, images: &[RgbImage]) -> Result<Vec<Vec<f32>>, EngineError> {
        let preprocessor = self.preprocessor();
        let mut vectors = Vec::with_capacity(images.len());
        for images in images.chunks(IMAGES_AT_A_TIME) {
            let prepared: Vec<_> = images.iter().map(|image| preprocessor.image(image)).collect();
            vectors.extend(self.embed_prepared_images(&prepared)?);
        }
        Ok(vectors)
    }
}
