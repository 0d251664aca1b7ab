//! Pillow's resampling, in its own fixed-point arithmetic.
//!
//! Two passes, first along rows, then along columns, with 8-bit rounding in between. Shrinking widens the filter's
//! support by the reduction factor, which is what makes it antialiased. Weights are rounded to multiples of 2^-22.

use image::RgbImage;

/// Fraction bits of a weight: 32 bits less 8 for the pixel and 2 for the overshoot of a cubic.
const PRECISION_BITS: u32 = 32 - 8 - 2;

/// An interpolation filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filter {
    /// The triangle filter, support 1.
    Bilinear,
    /// The cubic of Keys with a = -0.5, support 2.
    Bicubic,
}

impl Filter {
    fn support(self) -> f64 {
        match self {
            Self::Bilinear => 1.0,
            Self::Bicubic => 2.0,
        }
    }

    fn weight(self, x: f64) -> f64 {
        let x = x.abs();
        match self {
            Self::Bilinear if x < 1.0 => 1.0 - x,
            Self::Bicubic if x < 1.0 => (1.5 * x - 2.5) * x * x + 1.0,
            Self::Bicubic if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5,
            _ => 0.0,
        }
    }
}

/// The source samples that make one output sample.
struct Taps {
    first: usize,
    weights: Vec<i32>,
}

/// Resizes to exactly `height` x `width`, the aspect ratio not kept, with the result of Pillow's
/// `Image.resize((width, height), filter)`.
///
/// An image without area has nothing to sample: its result is black.
pub fn resize(image: &RgbImage, height: u32, width: u32, filter: Filter) -> RgbImage {
    let (old_width, old_height) = image.dimensions();
    if (old_width, old_height) == (width, height) {
        return image.clone();
    }
    if old_width == 0 || old_height == 0 || width == 0 || height == 0 {
        return RgbImage::new(width, height);
    }
    let columns = taps(old_width, width, filter);
    let rows = taps(old_height, height, filter);
    if old_width == width {
        return resample_columns(image, &rows);
    }
    if old_height == height {
        return resample_rows(image, &columns);
    }
    resample_columns(&resample_rows(image, &columns), &rows)
}

fn taps(old: u32, new: u32, filter: Filter) -> Vec<Taps> {
    let scale = f64::from(old) / f64::from(new);
    let stretch = scale.max(1.0);
    let support = filter.support() * stretch;
    (0..new)
        .map(|index| {
            let center = (f64::from(index) + 0.5) * scale;
            let first = (center - support + 0.5).max(0.0) as usize;
            let end = ((center + support + 0.5) as usize).min(old as usize);
            let mut weights: Vec<f64> = (first..end)
                .map(|sample| filter.weight((sample as f64 - center + 0.5) * (1.0 / stretch)))
                .collect();
            let total: f64 = weights.iter().sum();
            if total != 0.0 {
                weights.iter_mut().for_each(|weight| *weight /= total);
            }
            Taps { first, weights: weights.into_iter().map(fixed_point).collect() }
        })
        .collect()
}

fn fixed_point(weight: f64) -> i32 {
    let half = if weight < 0.0 { -0.5 } else { 0.5 };
    (weight * f64::from(1 << PRECISION_BITS) + half) as i32
}

fn rounded(sum: i32) -> u8 {
    (sum >> PRECISION_BITS).clamp(0, 255) as u8
}

const HALF: i32 = 1 << (PRECISION_BITS - 1);

fn resample_rows(image: &RgbImage, columns: &[Taps]) -> RgbImage {
    let mut out = RgbImage::new(columns.len() as u32, image.height());
    let old_stride = 3 * image.width() as usize;
    let new_stride = 3 * columns.len();
    let rows = image.as_raw().chunks_exact(old_stride);
    for (row, out_row) in rows.zip(out.chunks_exact_mut(new_stride)) {
        for (taps, pixel) in columns.iter().zip(out_row.chunks_exact_mut(3)) {
            let mut sums = [HALF; 3];
            let samples = row[3 * taps.first..].chunks_exact(3);
            for (sample, &weight) in samples.zip(&taps.weights) {
                for (sum, &value) in sums.iter_mut().zip(sample) {
                    *sum += i32::from(value) * weight;
                }
            }
            for (value, sum) in pixel.iter_mut().zip(sums) {
                *value = rounded(sum);
            }
        }
    }
    out
}

fn resample_columns(image: &RgbImage, rows: &[Taps]) -> RgbImage {
    let mut out = RgbImage::new(image.width(), rows.len() as u32);
    let stride = 3 * image.width() as usize;
    let mut sums = vec![0_i32; stride];
    for (taps, out_row) in rows.iter().zip(out.chunks_exact_mut(stride)) {
        sums.fill(HALF);
        let samples = image.as_raw()[stride * taps.first..].chunks_exact(stride);
        for (row, &weight) in samples.zip(&taps.weights) {
            for (sum, &value) in sums.iter_mut().zip(row) {
                *sum += i32::from(value) * weight;
            }
        }
        for (value, &sum) in out_row.iter_mut().zip(&sums) {
            *value = rounded(sum);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_same_size_changes_nothing() {
        let image = RgbImage::from_fn(5, 3, |x, y| image::Rgb([x as u8, y as u8, 200]));
        assert_eq!(resize(&image, 3, 5, Filter::Bicubic), image);
    }

    #[test]
    fn an_image_without_area_becomes_black() {
        let black = resize(&RgbImage::new(0, 7), 2, 2, Filter::Bilinear);
        assert_eq!(black, RgbImage::new(2, 2));
        assert_eq!(resize(&RgbImage::new(4, 4), 0, 3, Filter::Bilinear).dimensions(), (3, 0));
    }

    proptest! {
        #[test]
        fn a_flat_image_stays_flat(
            old in (1_u32..40, 1_u32..40), new in (1_u32..40, 1_u32..40), colour: [u8; 3], cubic: bool,
        ) {
            let filter = if cubic { Filter::Bicubic } else { Filter::Bilinear };
            let flat = RgbImage::from_pixel(old.0, old.1, image::Rgb(colour));
            let resized = resize(&flat, new.1, new.0, filter);
            prop_assert_eq!(resized, RgbImage::from_pixel(new.0, new.1, image::Rgb(colour)));
        }
    }
}
