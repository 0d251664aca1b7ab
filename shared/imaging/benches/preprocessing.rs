//! What an image costs before the forward pass: decoding, resizing, normalising.

use std::hint::black_box;
use std::io::Cursor;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use image::ImageFormat;
use thicket_imaging::{Filter, Limits, RgbImage, clip_normalised, decode, resize};

/// Input size of the published person search models.
const MODEL_SIZE: (u32, u32) = (384, 128);

/// A picture with as much detail in every place, so that no encoder gets away with little.
fn picture(width: u32, height: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| {
        let noise = x.wrapping_mul(2_654_435_761) ^ y.wrapping_mul(40_503);
        image::Rgb([(x ^ y) as u8, (noise >> 13) as u8 / 4, (x + 2 * y) as u8])
    })
}

fn encoded(image: &RgbImage, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    image.write_to(&mut bytes, format).expect("it encodes");
    bytes.into_inner()
}

fn preprocessing(c: &mut Criterion) {
    let limits = Limits::default();
    for (name, width, height) in [("pedestrian_200x500", 200, 500), ("frame_1920x1080", 1920, 1080)] {
        let image = picture(width, height);
        let mut group = c.benchmark_group(name);
        group.throughput(Throughput::Elements(u64::from(width) * u64::from(height)));
        for (kind, format) in [("decode_jpeg", ImageFormat::Jpeg), ("decode_png", ImageFormat::Png)] {
            let bytes = encoded(&image, format);
            group.bench_function(kind, |b| b.iter(|| decode(black_box(&bytes), &limits)));
        }
        let (rows, columns) = MODEL_SIZE;
        for (kind, filter) in [("resize_bilinear", Filter::Bilinear), ("resize_bicubic", Filter::Bicubic)] {
            group.bench_function(kind, |b| b.iter(|| resize(black_box(&image), rows, columns, filter)));
        }
        group.finish();
    }
    let small = picture(MODEL_SIZE.1, MODEL_SIZE.0);
    c.bench_function("normalise_384x128", |b| b.iter(|| clip_normalised(black_box(&small))));
}

criterion_group!(benches, preprocessing);
criterion_main!(benches);
