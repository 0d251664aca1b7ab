//! The first question about an image against the second. `THICKET_BENCH_MODEL` names another model folder than the
//! sample's.

use std::path::PathBuf;
use std::sync::Arc;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use image::{Rgb, RgbImage};
use thicket_engine::{Answerer, Prompt};
use thicket_qwen::{LoadOptions, QwenAnswerer};

/// As pedestrian images are cut.
const SIZE: (u32, u32) = (128, 384);

fn question(image: &Arc<RgbImage>, text: &str) -> [Prompt; 1] {
    [Prompt::new(Some(image.clone()), text)]
}

/// A picture that no other is equal to.
fn picture(number: u32) -> Arc<RgbImage> {
    let [a, b, c, _] = number.to_le_bytes();
    Arc::new(RgbImage::from_fn(SIZE.0, SIZE.1, |x, y| Rgb([x as u8 ^ a, y as u8 ^ b, c])))
}

fn prefix(bench: &mut Criterion) {
    let sample = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../models/sample-answer");
    let folder = std::env::var_os("THICKET_BENCH_MODEL").map_or(sample, PathBuf::from);
    let mut answerer = QwenAnswerer::load(&folder, LoadOptions::reference("bench")).expect("a model");
    let mut number = 0;
    let mut group = bench.benchmark_group("prefix");
    group.sample_size(10);
    group.bench_function("first question about an image", |bench| {
        bench.iter_batched(
            || {
                number += 1;
                question(&picture(number), "Is this a man with a red rucksack and a grey coat?")
            },
            |prompts| answerer.judge(&prompts).remove(0).expect("judged"),
            BatchSize::PerIteration,
        );
    });
    let seen = picture(0);
    answerer.judge(&question(&seen, "Yes?")).remove(0).expect("judged");
    group.bench_function("second question about an image", |bench| {
        bench.iter(|| {
            let prompts = question(&seen, "Is this a man with a red rucksack and a grey coat?");
            answerer.judge(&prompts).remove(0).expect("judged")
        });
    });
    group.finish();
}

criterion_group!(benches, prefix);
criterion_main!(benches);
