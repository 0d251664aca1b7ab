use std::{collections::HashMap, sync::Arc};

use candle_core::Tensor;
use image::RgbImage;
use thicket_cache::Cache;

use crate::{
    model::QwenModel,
    processor::{ImagePatches, Processor, batch_patches},
};

/// Most patches in one forward pass of the vision tower, unless a single image has more.
const MAX_PATCHES: usize = 8192;

/// Digest of an image's size and pixels and of the eyes that see it.
pub(crate) type ImageKey = [u8; 32];

/// Names an image by its content and by what changes the eyes that see it: the digest of an adapter of the vision tower,
/// empty without one.
pub(crate) fn image_key(image: &RgbImage, eyes: &str) -> ImageKey {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&(eyes.len() as u64).to_le_bytes());
    hasher.update(eyes.as_bytes());
    hasher.update(&image.width().to_le_bytes());
    hasher.update(&image.height().to_le_bytes());
    hasher.update(image.as_raw());
    *hasher.finalize().as_bytes()
}

/// Images as the language model reads them; the ones asked about last are kept.
#[derive(Debug)]
pub(crate) struct Features {
    kept: Cache<ImageKey, Tensor>,
}

/// The tokens of each image, or why there are none.
pub(crate) type Seen = HashMap<ImageKey, Result<Tensor, String>>;

impl Features {
    /// `budget` in bytes.
    pub(crate) fn new(budget: usize) -> Self {
        Self { kept: Cache::new(budget) }
    }

    /// The image tokens, (tokens, hidden) each, of images: from memory, or from the vision tower of `model`.
    pub(crate) fn of(
        &mut self,
        model: &QwenModel,
        processor: &Processor,
        images: &[(ImageKey, Arc<RgbImage>)],
    ) -> Seen {
        let mut seen = Seen::new();
        let mut missing: Vec<(ImageKey, &RgbImage)> = Vec::new();
        for (key, image) in images {
            if seen.contains_key(key) || missing.iter().any(|(known, _)| known == key) {
                continue;
            }
            match self.kept.get(key) {
                Some(tokens) => _ = seen.insert(*key, Ok(tokens.clone())),
                None => missing.push((*key, image)),
            }
        }
        // Images of one size stand together, so that the tower runs them as one batch.
        missing.sort_by_key(|(_, image)| image.dimensions());
        let mut batch: Vec<(ImageKey, ImagePatches)> = Vec::new();
        let mut patches = 0;
        for (key, image) in missing {
            match processor.patches(image) {
                Err(cause) => _ = seen.insert(key, Err(cause.to_string())),
                Ok(cut) => {
                    let count = cut.grid.0 * cut.grid.1;
                    if patches + count > MAX_PATCHES {
                        self.look(model, std::mem::take(&mut batch), &mut seen);
                        patches = 0;
                    }
                    patches += count;
                    batch.push((key, cut));
                }
            }
        }
        self.look(model, batch, &mut seen);
        seen
    }

    /// Runs the vision tower over a batch.
    fn look(&mut self, model: &QwenModel, batch: Vec<(ImageKey, ImagePatches)>, seen: &mut Seen) {
        if batch.is_empty() {
            return;
        }
        let patches: Vec<&ImagePatches> = batch.iter().map(|(_, patches)| patches).collect();
        let tokens = batch_patches(&patches, model.language.dtype(), model.language.device())
            .and_then(|(patches, grids)| model.vision.forward(&patches, &grids));
        let per_token = model.config().vision_config.patches_per_token();
        let mut start = 0;
        for (key, patches) in &batch {
            let count = patches.grid.0 * patches.grid.1 / per_token;
            let own = match &tokens {
                // A copy of its own, so that the batch's memory does not outlive the call.
                Ok(tokens) => tokens.narrow(0, start, count).and_then(|tokens| tokens.force_contiguous()),
                Err(cause) => Err(candle_core::Error::Msg(cause.to_string())),
            };
            start += count;
            if let Ok(tokens) = &own {
                self.kept.insert(*key, tokens.clone(), tokens.elem_count() * tokens.dtype().size_in_bytes());
            }
            seen.insert(*key, own.map_err(|cause| cause.to_string()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_of_another_shape_and_images_seen_otherwise_have_other_keys() {
        assert_ne!(image_key(&RgbImage::new(2, 3), ""), image_key(&RgbImage::new(3, 2), ""));
        assert_ne!(image_key(&RgbImage::new(2, 3), ""), image_key(&RgbImage::new(2, 3), "adapter"));
    }
}
