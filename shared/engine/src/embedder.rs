use image::RgbImage;

use crate::EngineError;

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
}

/// A two-tower model: texts and images to unit vectors of one space.
pub trait Embedder: Send {
    /// What this model is.
    fn info(&self) -> &EmbedderInfo;

    /// Embeds texts.
    ///
    /// Returns one unit vector of [`EmbedderInfo::dimension`] values for each text, in order.
    ///
    /// # Errors
    /// [`EngineError::InvalidInput`] for a text without a word, [`EngineError::Internal`] where the forward pass fails.
    fn embed_texts(&mut self, texts: &[String]) -> Result<Vec<Vec<f32>>, EngineError>;

    /// Embeds images of any size (resized inside to [`EmbedderInfo::image_size`]).
    ///
    /// Returns one unit vector of [`EmbedderInfo::dimension`] values for each image, in order.
    ///
    /// # Errors
    /// [`EngineError::Internal`] where the forward pass fails.
    fn embed_images(&mut self, images: &[RgbImage]) -> Result<Vec<Vec<f32>>, EngineError>;
}
