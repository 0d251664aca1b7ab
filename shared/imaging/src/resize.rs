//! Pillow's resampling, in its own fixed-point arithmetic.
//!
//! Two passes, first along rows, then along columns, with 8-bit rounding in between. Shrinking widens the filter's
//! support by the reduction factor, which is what makes it antialiased. Weights are rounded to multiples of 2^-22.
//!
//! That is the order of every Pillow before 13, with which the published models were trained and scored. Pillow 13 takes
//! the columns first where the height loses more than twice as many pixels as the width, and rounds otherwise there.

use std::{borrow::Cow, ops::Range};

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
/// `Image.resize((width, height), filter)` before version 13.
///
/// An image without area has nothing to sample: its result is black.
pub fn resize(image: &RgbImage, height: u32, width: u32, filter: Filter) -> RgbImage {
    resample(image, (height, 0..height), (width, 0..width), filter)
}

/// The middle `crop_height` x `crop_width` pixels of what [`resize`] to `height` x `width` gives, as the image
/// processors of transformers cut it out; where the resized image is smaller, black surrounds it.
///
/// Only the pixels that are kept are computed, so that a long and thin image costs no more than another.
pub fn resize_centre(
    image: &RgbImage,
    (height, width): (u32, u32),
    (crop_height, crop_width): (u32, u32),
    filter: Filter,
) -> RgbImage {
    let (rows, top) = centre(height, crop_height);
    let (columns, left) = centre(width, crop_width);
    let kept = resample(image, (height, rows), (width, columns), filter);
    if kept.dimensions() == (crop_width, crop_height) {
        return kept;
    }
    let mut framed = RgbImage::new(crop_width, crop_height);
    image::imageops::replace(&mut framed, &kept, i64::from(left), i64::from(top));
    framed
}

/// Which samples of a side the middle `crop` of it are, and how many black ones stand before them.
fn centre(side: u32, crop: u32) -> (Range<u32>, u32) {
    if side >= crop {
        let first = (side - crop) / 2;
        return (first..first + crop, 0);
    }
    (0..side, (crop - side).div_ceil(2))
}

/// Part of a resized image: for each axis the whole new side and the samples of it that are kept.
fn resample(
    image: &RgbImage,
    (height, rows): (u32, Range<u32>),
    (width, columns): (u32, Range<u32>),
    filter: Filter,
) -> RgbImage {
    let (old_width, old_height) = image.dimensions();
    let (kept_width, kept_height) = (columns.end - columns.start, rows.end - rows.start);
    if old_width == 0 || old_height == 0 || kept_width == 0 || kept_height == 0 {
        return RgbImage::new(kept_width, kept_height);
    }
    let narrowed = match (old_width == width, kept_width == width) {
        (true, true) => Cow::Borrowed(image),
        (true, false) => {
            Cow::Owned(image::imageops::crop_imm(image, columns.start, 0, kept_width, old_height).to_image())
        }
        (false, _) => Cow::Owned(resample_rows(image, &taps(old_width, width, columns, filter))),
    };
    match (old_height == height, kept_height == height) {
        (true, true) => narrowed.into_owned(),
        (true, false) => {
            image::imageops::crop_imm(&*narrowed, 0, rows.start, kept_width, kept_height).to_image()
        }
        (false, _) => resample_columns(&narrowed, &taps(old_height, height, rows, filter)),
    }
}

/// The taps of the samples `kept` of a side of `new` samples.
fn taps(old: u32, new: u32, kept: Range<u32>, filter: Filter) -> Vec<Taps> {
    let scale = f64::from(old) / f64::from(new);
    let stretch = scale.max(1.0);
    let support = filter.support() * stretch;
    kept.map(|index| {
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

    #[test]
    fn a_side_that_is_too_short_is_framed_with_the_odd_black_sample_first() {
        assert_eq!(centre(9, 4), (2..6, 0));
        assert_eq!(centre(4, 4), (0..4, 0));
        assert_eq!(centre(3, 6), (0..3, 2));
    }

    #[test]
    fn the_middle_of_a_very_long_image_is_found_without_making_the_rest() {
        // The whole would be 917,504 pixels long.
        let thin = RgbImage::from_fn(4096, 1, |x, _| image::Rgb([(x / 2048 * 255) as u8, 7, 7]));
        let middle = resize_centre(&thin, (224, 224 * 4096), (224, 224), Filter::Bicubic);
        assert_eq!(middle.dimensions(), (224, 224));
        assert_eq!(middle.get_pixel(0, 0)[0], 0);
        assert_eq!(middle.get_pixel(223, 223)[0], 255);
    }

    proptest! {
        #[test]
        fn the_middle_is_that_of_the_whole(
            old in (1_u32..30, 1_u32..30), new in (1_u32..30, 1_u32..30), crop in (1_u32..20, 1_u32..20),
        ) {
            let crop = (crop.0.min(new.0), crop.1.min(new.1));
            let image = RgbImage::from_fn(old.0, old.1, |x, y| image::Rgb([(x * 31) as u8, (y * 57) as u8, (x * y) as u8]));
            let whole = resize(&image, new.0, new.1, Filter::Bicubic);
            let (top, left) = ((new.0 - crop.0) / 2, (new.1 - crop.1) / 2);
            let expected = image::imageops::crop_imm(&whole, left, top, crop.1, crop.0).to_image();
            prop_assert_eq!(resize_centre(&image, new, crop, Filter::Bicubic), expected);
        }

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
