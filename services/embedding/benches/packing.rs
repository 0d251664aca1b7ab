//! What it costs to say which texts share a forward pass; the pass itself takes milliseconds.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use thicket_embedding::packing;

/// Lengths of texts as captions have them: most short, some cut at the model's 77 tokens.
fn lengths(count: usize) -> Vec<usize> {
    (0..count).map(|index| 8 + (index * 7919) % 70).collect()
}

fn cuts(c: &mut Criterion) {
    let mut group = c.benchmark_group("passes");
    for count in [1, 16, 256, 4096] {
        let lengths = lengths(count);
        group.throughput(Throughput::Elements(count as u64));
        group.bench_with_input(BenchmarkId::from_parameter(count), &lengths, |b, lengths| {
            b.iter(|| packing::passes(black_box(lengths), 4096));
        });
    }
    group.finish();
}

criterion_group!(benches, cuts);
criterion_main!(benches);
