//! From the canvas to the picture: averaging, blur, light, colour cast and noise.

use image::{Rgb, RgbImage};
use rand::Rng;

use super::canvas::Canvas;
use super::{HEIGHT, OVERSAMPLING, WIDTH};

/// Takes a picture with a camera drawn at random.
pub(super) fn take(canvas: &Canvas, rng: &mut impl Rng) -> RgbImage {
    let mut picture = average(canvas);
    let blur = rng.random_range(0.0f32..1.0).powi(2) * 0.24;
    smooth(&mut picture, blur);
    let warmth = rng.random_range(-0.1f32..0.1);
    let green = rng.random_range(-0.04f32..0.04);
    let light = rng.random_range(0.8f32..1.12);
    let contrast = rng.random_range(0.85f32..1.08);
    let gains = [light * (1.0 + warmth), light * (1.0 + green), light * (1.0 - warmth)];
    let noise = rng.random_range(0.0f32..1.0).powi(2) * 14.0;
    RgbImage::from_fn(WIDTH, HEIGHT, |x, y| {
        let pixel = picture[(y * WIDTH + x) as usize];
        Rgb(std::array::from_fn(|channel| {
            // The sum of two uniform numbers is close enough to a bell curve.
            let grain = noise * (rng.random::<f32>() + rng.random::<f32>() - 1.0);
            let level = (pixel[channel] * gains[channel] - 128.0) * contrast + 128.0 + grain;
            level.round().clamp(0.0, 255.0) as u8
        }))
    })
}

/// The mean of each block of canvas pixels.
fn average(canvas: &Canvas) -> Vec<[f32; 3]> {
    let (data, stride) = (canvas.pixmap.data(), (WIDTH * OVERSAMPLING) as usize);
    let step = OVERSAMPLING as usize;
    let mut picture = Vec::with_capacity((WIDTH * HEIGHT) as usize);
    for y in 0..HEIGHT as usize {
        for x in 0..WIDTH as usize {
            let mut sum = [0u32; 3];
            for row in 0..step {
                for column in 0..step {
                    let at = 4 * ((y * step + row) * stride + x * step + column);
                    for (channel, sum) in sum.iter_mut().enumerate() {
                        *sum += u32::from(data[at + channel]);
                    }
                }
            }
            picture.push(sum.map(|total| total as f32 / (OVERSAMPLING * OVERSAMPLING) as f32));
        }
    }
    picture
}

/// A separable blur; each neighbour gets the share `side` in `0..=0.25`.
fn smooth(picture: &mut [[f32; 3]], side: f32) {
    let (width, height) = (WIDTH as usize, HEIGHT as usize);
    let mut pass = |count: usize, length: usize, outer: usize, inner: usize| {
        for line in 0..count {
            let at = |i: usize| line * outer + i * inner;
            let mut before = picture[at(0)];
            for i in 0..length {
                let here = picture[at(i)];
                let after = picture[at((i + 1).min(length - 1))];
                picture[at(i)] =
                    std::array::from_fn(|c| here[c] * (1.0 - 2.0 * side) + (before[c] + after[c]) * side);
                before = here;
            }
        }
    };
    pass(height, width, width, 1);
    pass(width, height, 1, width);
}
