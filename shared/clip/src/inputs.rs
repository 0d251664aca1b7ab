//! From texts and images to the network's inputs, apart from the network.

use image::RgbImage;
use thicket_engine::{EngineError, PreparedImage, PreparedText, Preprocessor};

use crate::{encoder::TextEncoder, preprocessing::Preprocessing};

/// A checkpoint folder's tokeniser and image preparation.
#[derive(Debug)]
pub(crate) struct Inputs {
    text: TextEncoder,
    image: Preprocessing,
    /// Most tokens of a text.
    text_length: usize,
}

impl Inputs {
    pub(crate) fn new(text: TextEncoder, image: Preprocessing, text_length: usize) -> Self {
        Self { text, image, text_length }
    }
}

impl Preprocessor for Inputs {
    fn text(&self, text: &str) -> Result<PreparedText, EngineError> {
        let row = self.text.row(text, self.text_length);
        let row = row.map_err(|reason| EngineError::invalid("text", reason))?;
        let mut ids = row.ok_or_else(|| EngineError::invalid("text", "it holds no word"))?;
        // Zeros behind the end mark are padding; one zero stays of a row that is nothing else.
        let used = ids.iter().rposition(|&id| id != 0).map_or(1, |last| last + 1);
        ids.truncate(used);
        Ok(PreparedText { ids })
    }

    fn image(&self, image: &RgbImage) -> PreparedImage {
        PreparedImage { pixels: self.image.pixels(image) }
    }
}
