use std::collections::HashMap;

use candle_core::Tensor;
use image::RgbImage;

/// Most bytes of image tokens kept between calls.
const CAPACITY_BYTES: usize = 64 << 20;

/// Digest of an image's size and pixels.
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

/// The vision tower's output for the images asked about last; the least recently used go first.
#[derive(Debug)]
pub(crate) struct FeatureCache {
    entries: HashMap<ImageKey, Entry>,
    bytes: usize,
    capacity: usize,
    clock: u64,
}

#[derive(Debug)]
struct Entry {
    tokens: Tensor,
    used: u64,
}

impl FeatureCache {
    pub(crate) fn new() -> Self {
        Self::with_capacity(CAPACITY_BYTES)
    }

    fn with_capacity(capacity: usize) -> Self {
        Self { entries: HashMap::new(), bytes: 0, capacity, clock: 0 }
    }

    /// The tokens of an image, if they are held.
    pub(crate) fn get(&mut self, key: &ImageKey) -> Option<Tensor> {
        self.clock += 1;
        let entry = self.entries.get_mut(key)?;
        entry.used = self.clock;
        Some(entry.tokens.clone())
    }

    /// Keeps the tokens of an image, if there can ever be room for them. `tokens` must own its memory alone, or more
    /// than the counted bytes would be held.
    pub(crate) fn insert(&mut self, key: ImageKey, tokens: Tensor) {
        let size = size_of(&tokens);
        if size > self.capacity {
            return;
        }
        self.clock += 1;
        if let Some(old) = self.entries.insert(key, Entry { tokens, used: self.clock }) {
            self.bytes -= size_of(&old.tokens);
        }
        self.bytes += size;
        while self.bytes > self.capacity {
            let Some(oldest) = self.entries.iter().min_by_key(|(_, entry)| entry.used).map(|(key, _)| *key)
            else {
                break;
            };
            if let Some(old) = self.entries.remove(&oldest) {
                self.bytes -= size_of(&old.tokens);
            }
        }
    }
}

fn size_of(tokens: &Tensor) -> usize {
    tokens.elem_count() * tokens.dtype().size_in_bytes()
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;

    fn tokens(count: usize) -> Tensor {
        Tensor::zeros((count, 4), DType::F32, &Device::Cpu).unwrap()
    }

    #[test]
    fn the_least_recently_used_image_goes_first() {
        let mut cache = FeatureCache::with_capacity(2 * 16);
        let keys = [[0; 32], [1; 32], [2; 32]];
        cache.insert(keys[0], tokens(1));
        cache.insert(keys[1], tokens(1));
        assert!(cache.get(&keys[0]).is_some());
        cache.insert(keys[2], tokens(1));
        assert!(cache.get(&keys[1]).is_none());
        assert!(cache.get(&keys[0]).is_some() && cache.get(&keys[2]).is_some());
        cache.insert(keys[1], tokens(3));
        assert!(cache.get(&keys[1]).is_none(), "an entry above the capacity is not kept");
        assert_eq!(cache.bytes, 32);
    }

    #[test]
    fn images_of_another_shape_and_images_seen_otherwise_have_other_keys() {
        assert_ne!(image_key(&RgbImage::new(2, 3), ""), image_key(&RgbImage::new(3, 2), ""));
        assert_ne!(image_key(&RgbImage::new(2, 3), ""), image_key(&RgbImage::new(2, 3), "adapter"));
    }
}
