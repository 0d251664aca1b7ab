//! Linear maps at the shapes of the models: candle's product, this crate's with a plain and with a prepared weight, and
//! oneDNN's; and attention. The throughput counts multiplications and additions: its "elements" are floating-point operations.

use std::hint::black_box;

use candle_core::{DType, Device, Tensor};
use criterion::{BenchmarkId, Criterion, Throughput};
use thicket_kernels::{Activation, Backend, Mask, PreparedLinear, attention, linear};
use thicket_onednn::Library;

/// (rows, in, out): eight images of ViT-B/16, 64 texts of CLIP, a prompt and one token of Qwen2-VL-2B.
const SHAPES: [(usize, usize, usize); 11] = [
    (1576, 768, 2304),
    (1576, 768, 768),
    (1576, 768, 3072),
    (1576, 3072, 768),
    (4928, 512, 1536),
    (4928, 512, 2048),
    (4928, 2048, 512),
    (400, 1536, 8960),
    (400, 8960, 1536),
    (1, 1536, 8960),
    (1, 8960, 1536),
];

fn products(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("linear");
    group.sample_size(10);
    for (rows, input, output) in SHAPES {
        let random = |shape: &[usize]| Tensor::randn(0f32, 1.0, shape, &Device::Cpu).expect("a tensor");
        let (x, weight, bias) = (random(&[rows, input]), random(&[output, input]), random(&[output]));
        let half = weight.to_dtype(DType::BF16).expect("a cast");
        group.throughput(Throughput::Elements(2 * (rows * input * output) as u64));
        let shape = format!("{rows}x{input}x{output}");
        group.bench_function(BenchmarkId::new("candle", &shape), |bencher| {
            let transposed = weight.t().expect("a matrix");
            bencher.iter(|| black_box(&x).matmul(&transposed).expect("a product"));
        });
        group.bench_function(BenchmarkId::new("plain", &shape), |bencher| {
            bencher.iter(|| linear(black_box(&x), &weight, Some(&bias)).expect("a product"));
        });
        type Made =
            fn(&Tensor, Option<&Tensor>, DType, Backend) -> candle_core::Result<Option<PreparedLinear>>;
        let many: Made = PreparedLinear::new;
        let mut prepared = vec![
            ("prepared", &weight, DType::F32, Backend::Plain, many),
            ("prepared bf16", &half, DType::F32, Backend::Plain, many),
        ];
        if let Ok(library) = Library::get() {
            prepared.push(("onednn", &weight, DType::F32, Backend::OneDnn(library), many));
            // In the tiles of AMX where there are any.
            if library.check_bf16().is_ok() {
                prepared.push(("in bf16", &half, DType::BF16, Backend::OneDnn(library), many));
                let few: Made = PreparedLinear::for_few_rows;
                prepared.push(("in bf16 for few rows", &half, DType::BF16, Backend::OneDnn(library), few));
            }
        }
        for (name, weight, compute, backend, make) in prepared {
            let x = x.to_dtype(compute).expect("a cast");
            let map = make(weight, Some(&bias), compute, backend).expect("a weight");
            let map = map.expect("a product on the CPU");
            group.bench_function(BenchmarkId::new(name, &shape), |bencher| {
                bencher.iter(|| map.forward(black_box(&x), Activation::None, None).expect("a product"));
            });
        }
    }
    group.finish();
}

/// The two maps of an MLP in bf16, one after the other and at once: eight images of ViT-B/16 and 64 texts of CLIP.
fn two_maps(criterion: &mut Criterion) {
    let Some(library) = Library::get().ok().filter(|library| library.check_bf16().is_ok()) else { return };
    let mut group = criterion.benchmark_group("two maps");
    group.sample_size(10);
    for (rows, width, inner) in [(1576, 768, 3072), (4928, 512, 2048)] {
        let random = |shape: &[usize]| {
            let values = Tensor::randn(0f32, 1.0, shape, &Device::Cpu);
            values.and_then(|values| values.to_dtype(DType::BF16)).expect("a tensor")
        };
        let (x, activation) = (random(&[rows, width]), Activation::QuickGelu);
        let [first, next] = [(inner, width), (width, inner)].map(|(output, input)| {
            let weight = random(&[output, input]);
            let map = PreparedLinear::new(&weight, None, DType::BF16, Backend::OneDnn(library));
            map.expect("a weight").expect("a product on the CPU")
        });
        group.throughput(Throughput::Elements(4 * (rows * width * inner) as u64));
        let shape = format!("{rows}x{width}x{inner}");
        group.bench_function(BenchmarkId::new("one after the other", &shape), |bencher| {
            bencher.iter(|| {
                let hidden = first.forward(black_box(&x), activation, None).expect("a product");
                next.forward(&hidden, Activation::None, None).expect("a product")
            });
        });
        group.bench_function(BenchmarkId::new("at once", &shape), |bencher| {
            bencher.iter(|| first.forward_through(black_box(&x), activation, &next, None).expect("products"));
        });
    }
    group.finish();
}

/// (batch, heads, key heads, queries, width of a head): eight images of ViT-B/16, 64 texts of CLIP, a prompt of Qwen2-VL-2B.
const HEADS: [(usize, usize, usize, usize, usize, Mask); 3] =
    [(8, 12, 12, 197, 64, Mask::Full), (64, 8, 8, 77, 64, Mask::Causal), (1, 12, 2, 400, 128, Mask::Causal)];

fn heads(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("attention");
    group.sample_size(10);
    for (batch, heads, key_heads, queries, dim, mask) in &HEADS {
        let random = |heads: usize| {
            let rows = Tensor::randn(0f32, 1.0, (*batch, *queries, heads, *dim), &Device::Cpu);
            rows.and_then(|rows| rows.transpose(1, 2)).expect("a tensor")
        };
        let inputs = [random(*heads), random(*key_heads), random(*key_heads)];
        group.throughput(Throughput::Elements(4 * (batch * heads * queries * queries * dim) as u64));
        let shape = format!("{batch}x{heads}x{queries}x{dim}");
        let mut kinds = vec![("plain", DType::F32, Backend::Plain)];
        if let Ok(library) = Library::get()
            && library.check_bf16().is_ok()
        {
            kinds.push(("in bf16", DType::BF16, Backend::OneDnn(library)));
        }
        for (name, compute, backend) in kinds {
            let [q, k, v] = inputs.each_ref().map(|input| input.to_dtype(compute).expect("a cast"));
            let scale = (*dim as f64).powf(-0.5);
            group.bench_function(BenchmarkId::new(name, &shape), |bencher| {
                bencher.iter(|| attention(black_box(&q), &k, &v, scale, mask, backend).expect("attention"));
            });
        }
    }
    group.finish();
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    products(&mut criterion);
    two_maps(&mut criterion);
    heads(&mut criterion);
    criterion.final_summary();
}
