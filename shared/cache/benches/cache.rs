//! What keeping and finding a value costs.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use thicket_cache::Cache;

const HELD: u32 = 10_000;

fn full() -> Cache<[u8; 32], u32> {
    let mut cache = Cache::new(HELD as usize);
    (0..HELD).for_each(|number| cache.insert(key(number), number, 1));
    cache
}

fn key(number: u32) -> [u8; 32] {
    let mut key = [0; 32];
    key[..4].copy_from_slice(&number.to_le_bytes());
    key
}

fn cache(bench: &mut Criterion) {
    let mut held = full();
    let mut number = 0;
    bench.bench_function("a hit among 10,000", |bench| {
        bench.iter(|| {
            number = (number + 7) % HELD;
            black_box(held.get(&key(number)).copied())
        });
    });
    bench.bench_function("an insertion that evicts one of 10,000", |bench| {
        bench.iter(|| {
            number += 1;
            held.insert(key(HELD + number), number, 1);
        });
    });
}

criterion_group!(benches, cache);
criterion_main!(benches);
