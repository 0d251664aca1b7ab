//! What deciding about a step costs, beside the step itself.

use std::hint::black_box;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use thicket_engine::schedule::{Demand, Limits, Prefix, Scheduler};
use thicket_engine::{Kind, Ticket};

const LIMITS: Limits = Limits { step_tokens: 512, step_patches: 2048, sequences: 32, cache_tokens: 40_000 };

/// Questions of every kind about a few images.
fn filled(questions: u64) -> Scheduler {
    let mut scheduler = Scheduler::new(LIMITS).expect("limits to work within");
    for id in 0..questions {
        let kind = Kind::ALL[id as usize % Kind::ALL.len()];
        let image = [(id % 16) as u8; 32];
        let prefix = (kind != Kind::Aggregate).then_some(Prefix { key: image, tokens: 70, patches: 256 });
        let new_tokens = if kind == Kind::Locate { 0 } else { 400 };
        let demand = Demand { kind, urgency: id, prefix, tokens: 60, new_tokens };
        scheduler.push(Ticket(id), demand).expect("it fits");
    }
    scheduler
}

fn step(bench: &mut Criterion) {
    for questions in [8, 256] {
        bench.bench_function(&format!("first step of {questions} questions"), |bench| {
            bench.iter_batched(
                || filled(questions),
                |mut scheduler| {
                    black_box(scheduler.plan(|_| false));
                    scheduler
                },
                BatchSize::SmallInput,
            );
        });
    }
    let mut busy = filled(256);
    for _ in 0..20 {
        busy.plan(|_| false);
    }
    bench.bench_function("step of 32 running and 224 waiting questions", |bench| {
        bench.iter(|| black_box(busy.plan(|_| false)));
    });
}

criterion_group!(benches, step);
criterion_main!(benches);
