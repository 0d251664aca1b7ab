use image::RgbImage;

/// Per-channel mean (red, green, blue) of CLIP's training images, for pixels scaled to 0..1.
pub const MEAN: [f32; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];

/// Per-channel standard deviation (red, green, blue) of CLIP's training images, for pixels scaled to 0..1.
pub const STD: [f32; 3] = [0.268_629_54, 0.261_302_6, 0.275_777_1];

/// Pixels as CLIP (and Qwen2-VL) sees them: `(value / 255 - MEAN) / STD`.
///
/// Returns `3 * height * width` values in channel, row, column order.
pub fn clip_normalised(image: &RgbImage) -> Vec<f32> {
    let tables: [[f32; 256]; 3] = std::array::from_fn(|channel| {
        std::array::from_fn(|value| (value as f32 / 255.0 - MEAN[channel]) / STD[channel])
    });
    planes(image, &tables)
}

/// The pixel arithmetic of an image processor's settings, which may differ from CLIP's.
#[derive(Debug, Clone, PartialEq)]
pub struct Normalisation {
    tables: Box<[[f32; 256]; 3]>,
}

impl Normalisation {
    /// `(value * scale - mean) / std` for each channel (red, green, blue).
    ///
    /// The product is taken in f64 and rounded to f32, the rest is f32, as in the image processors of transformers.
    #[must_use]
    pub fn new(scale: f64, mean: [f64; 3], std: [f64; 3]) -> Self {
        let tables = std::array::from_fn(|channel| {
            std::array::from_fn(|value| {
                ((value as f64 * scale) as f32 - mean[channel] as f32) / std[channel] as f32
            })
        });
        Self { tables: Box::new(tables) }
    }

    /// Returns `3 * height * width` values in channel, row, column order.
    #[must_use]
    pub fn apply(&self, image: &RgbImage) -> Vec<f32> {
        planes(image, &self.tables)
    }
}

fn planes(image: &RgbImage, tables: &[[f32; 256]; 3]) -> Vec<f32> {
    let area = image.width() as usize * image.height() as usize;
    let mut planes = vec![0.0; 3 * area];
    for (channel, table) in tables.iter().enumerate() {
        let plane = &mut planes[channel * area..(channel + 1) * area];
        for (out, pixel) in plane.iter_mut().zip(image.as_raw().chunks_exact(3)) {
            *out = table[usize::from(pixel[channel])];
        }
    }
    planes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_come_channel_by_channel_and_row_by_row() {
        let image = RgbImage::from_raw(2, 1, vec![0, 128, 255, 255, 0, 10]).unwrap();
        let values = clip_normalised(&image);
        let expected = [(0, 0), (255, 0), (128, 1), (0, 1), (255, 2), (10, 2)];
        assert_eq!(values.len(), expected.len());
        for (value, (byte, channel)) in values.iter().zip(expected) {
            let exact = (f64::from(byte) / 255.0 - f64::from(MEAN[channel])) / f64::from(STD[channel]);
            assert!((f64::from(*value) - exact).abs() < 1e-6, "{value} is not {exact}");
        }
    }
}
