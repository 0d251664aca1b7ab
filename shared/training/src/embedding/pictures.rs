//! Images as the small two-tower sees them in training: resized once, varied at every use.

use candle_core::{Device, Result, Tensor};
use image::{RgbImage, imageops};
use rand::Rng;
use rayon::prelude::*;
use thicket_imaging::{Filter, clip_normalised, resize};

use crate::sample::Sample;

/// Largest shift of a varied image in pixels, both ways.
const SHIFT: i64 = 4;
const ERASE: f64 = 0.3;

/// All images of a split at the model's input size.
#[derive(Debug)]
pub(crate) struct Pictures {
    images: Vec<RgbImage>,
    size: (usize, usize),
}

impl Pictures {
    pub(crate) fn new(sample: &Sample, size: (usize, usize)) -> Self {
        let shrink = |image: &RgbImage| resize(image, size.0 as u32, size.1 as u32, Filter::Bilinear);
        Self { images: sample.images.par_iter().map(shrink).collect(), size }
    }

    /// f32 (views, 3, height, width), flipped, shifted and partly erased at random.
    pub(crate) fn varied(&self, views: &[usize], rng: &mut impl Rng) -> Result<Tensor> {
        let changes: Vec<Change> = views.iter().map(|_| Change::draw(self.size, rng)).collect();
        let pixels: Vec<Vec<f32>> = views
            .par_iter()
            .zip(changes)
            .map(|(&view, change)| clip_normalised(&change.apply(&self.images[view])))
            .collect();
        let (height, width) = self.size;
        Tensor::from_vec(pixels.concat(), (views.len(), 3, height, width), &Device::Cpu)
    }
}

/// One variation.
struct Change {
    flip: bool,
    shift: (i64, i64),
    /// Left, top, width, height.
    erased: Option<[u32; 4]>,
}

impl Change {
    fn draw((height, width): (usize, usize), rng: &mut impl Rng) -> Self {
        let erased = rng.random_bool(ERASE).then(|| {
            let w = rng.random_range(width / 8..=width / 3) as u32;
            let h = rng.random_range(height / 12..=height / 5) as u32;
            let left = rng.random_range(0..=width as u32 - w);
            [left, rng.random_range(0..=height as u32 - h), w, h]
        });
        Self {
            flip: rng.random_bool(0.5),
            shift: (rng.random_range(-SHIFT..=SHIFT), rng.random_range(-SHIFT..=SHIFT)),
            erased,
        }
    }

    fn apply(&self, image: &RgbImage) -> RgbImage {
        // The colour that normalises to about zero.
        const MEAN: image::Rgb<u8> = image::Rgb([123, 117, 104]);
        let mut canvas = RgbImage::from_pixel(image.width(), image.height(), MEAN);
        if self.flip {
            imageops::replace(&mut canvas, &imageops::flip_horizontal(image), self.shift.0, self.shift.1);
        } else {
            imageops::replace(&mut canvas, image, self.shift.0, self.shift.1);
        }
        if let Some([left, top, width, height]) = self.erased {
            let patch = RgbImage::from_pixel(width, height, MEAN);
            imageops::replace(&mut canvas, &patch, i64::from(left), i64::from(top));
        }
        canvas
    }
}
