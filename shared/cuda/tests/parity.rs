//! The kernels against tensor operations in f32 on the CPU. Needs a GPU; where there is none nothing is checked, unless
//! `THICKET_TEST_CUDA=required` says that there must be one.
#![cfg(feature = "cuda")]

use candle_core::{D, DType, Device, Result, Tensor};
use thicket_cuda::{
    Activation, Entry, Scale, Sequence, attention, attention_of_each, finished, gated, normalised, rotated,
    stored,
};

/// The GPU, where there is one.
fn gpu() -> Option<Device> {
    match Device::new_cuda(0) {
        Ok(device) => Some(device),
        Err(error) => {
            let required = std::env::var("THICKET_TEST_CUDA").is_ok_and(|value| value == "required");
            assert!(!required, "no GPU: {error}");
            None
        }
    }
}

/// The same values on the GPU, rounded to `dtype`, and on the CPU in f32.
fn random(shape: &[usize], dtype: DType, gpu: &Device) -> Result<(Tensor, Tensor)> {
    let values = Tensor::randn(0f32, 1.0, shape, &Device::Cpu)?.to_dtype(dtype)?;
    Ok((values.to_device(gpu)?, values.to_dtype(DType::F32)?))
}

fn assert_close(actual: &Tensor, expected: &Tensor, relative: f32) -> Result<()> {
    assert_eq!(actual.dims(), expected.dims());
    let actual = actual.to_device(&Device::Cpu)?.to_dtype(DType::F32)?;
    let error = (actual - expected)?.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>()?;
    let largest = expected.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>()?;
    assert!(error <= relative * largest, "{error} of {largest}");
    Ok(())
}

/// What a type keeps of a value, and a little for sums in another order.
fn precision(dtype: DType) -> f32 {
    if dtype == DType::BF16 { 1.0 / 200.0 } else { 1e-5 }
}

#[test]
fn a_product_is_finished_in_one_pass() -> Result<()> {
    let Some(gpu) = gpu() else { return Ok(()) };
    for dtype in [DType::F32, DType::BF16] {
        let (y, wide) = random(&[3, 77, 136], dtype, &gpu)?;
        let ((bias, bias_wide), (residual, residual_wide)) =
            (random(&[136], DType::F32, &gpu)?, random(&[3, 77, 136], DType::F32, &gpu)?);
        for activation in [Activation::None, Activation::QuickGelu, Activation::Silu] {
            for (with_bias, with_residual) in [(false, false), (true, false), (false, true), (true, true)] {
                let sum = if with_bias { wide.broadcast_add(&bias_wide)? } else { wide.clone() };
                let expected = match activation {
                    Activation::None => sum,
                    Activation::QuickGelu => (&sum / ((&sum * -1.702)?.exp()? + 1.0)?)?,
                    Activation::Silu => (&sum / ((&sum * -1.0)?.exp()? + 1.0)?)?,
                };
                let expected = if with_residual { (expected + &residual_wide)? } else { expected };
                let actual =
                    finished(&y, with_bias.then_some(&bias), activation, with_residual.then_some(&residual))?;
                let actual = actual.expect("there is a kernel");
                assert_eq!(actual.dtype(), if with_residual { DType::F32 } else { dtype });
                assert_close(&actual, &expected, precision(dtype))?;
            }
        }
    }
    Ok(())
}

#[test]
fn what_no_kernel_takes_is_left_to_the_caller() -> Result<()> {
    let Some(gpu) = gpu() else { return Ok(()) };
    let (odd, _) = random(&[3, 5], DType::BF16, &gpu)?;
    assert!(finished(&odd, None, Activation::None, None)?.is_none());
    let half = odd.to_dtype(DType::F16)?;
    assert!(finished(&half, None, Activation::None, None)?.is_none());
    let (q, _) = random(&[1, 2, 3, 24], DType::BF16, &gpu)?;
    assert!(attention(&q, &q, &q, 1.0, false)?.is_none());
    assert!(
        gated(&Tensor::zeros(8, DType::F32, &Device::Cpu)?, &Tensor::zeros(8, DType::F32, &Device::Cpu)?)?
            .is_none()
    );
    Ok(())
}

#[test]
fn a_gate_multiplies() -> Result<()> {
    let Some(gpu) = gpu() else { return Ok(()) };
    for dtype in [DType::F32, DType::BF16] {
        let ((gate, gate_wide), (up, up_wide)) =
            (random(&[33, 56], dtype, &gpu)?, random(&[33, 56], dtype, &gpu)?);
        let expected = (gate_wide.silu()? * up_wide)?;
        assert_close(&gated(&gate, &up)?.expect("there is a kernel"), &expected, precision(dtype))?;
    }
    Ok(())
}

#[test]
fn rows_are_normalised() -> Result<()> {
    let Some(gpu) = gpu() else { return Ok(()) };
    for width in [4, 40, 768, 1_536, 3_584] {
        let (x, wide) = random(&[37, width], DType::F32, &gpu)?;
        let (x, wide) = ((x + 3.0)?, (wide + 3.0)?);
        let ((weight, weight_wide), (bias, bias_wide)) =
            (random(&[width], DType::F32, &gpu)?, random(&[width], DType::F32, &gpu)?);
        for output in [DType::F32, DType::BF16] {
            let centred = wide.broadcast_sub(&wide.mean_keepdim(D::Minus1)?)?;
            let normal = |x: &Tensor| x.broadcast_div(&(x.sqr()?.mean_keepdim(D::Minus1)? + 1e-5)?.sqrt()?);
            let expected = normal(&centred)?.broadcast_mul(&weight_wide)?.broadcast_add(&bias_wide)?;
            let scale = Scale { weight: &weight, bias: Some(&bias) };
            let actual = normalised(&x, scale, 1e-5, true, output)?.expect("there is a kernel");
            assert_eq!(actual.dtype(), output);
            assert_close(&actual, &expected, precision(output))?;
            let expected = normal(&wide)?.broadcast_mul(&weight_wide)?;
            let scale = Scale { weight: &weight, bias: None };
            let actual = normalised(&x, scale, 1e-5, false, output)?.expect("there is a kernel");
            assert_close(&actual, &expected, precision(output))?;
        }
    }
    Ok(())
}

#[test]
fn heads_of_a_view_are_rotated() -> Result<()> {
    let Some(gpu) = gpu() else { return Ok(()) };
    for dtype in [DType::F32, DType::BF16] {
        let (joint, joint_wide) = random(&[19, 3, 4, 80], dtype, &gpu)?;
        let ((cos, cos_wide), (sin, sin_wide)) =
            (random(&[19, 1, 40], DType::F32, &gpu)?, random(&[19, 1, 40], DType::F32, &gpu)?);
        let part = |joint: &Tensor| joint.narrow(1, 1, 1)?.squeeze(1);
        let wide = part(&joint_wide)?;
        let (a, b) = (wide.narrow(2, 0, 40)?, wide.narrow(2, 40, 40)?);
        let first = (a.broadcast_mul(&cos_wide)? - b.broadcast_mul(&sin_wide)?)?;
        let second = (b.broadcast_mul(&cos_wide)? + a.broadcast_mul(&sin_wide)?)?;
        let expected = Tensor::cat(&[first, second], 2)?;
        let actual = rotated(&part(&joint)?, &cos, &sin)?.expect("there is a kernel");
        assert_close(&actual, &expected, precision(dtype))?;
    }
    Ok(())
}

/// `[queries, heads, d]` over `[keys, kv heads, d]` in f32 on the CPU.
fn plain(q: &Tensor, k: &Tensor, v: &Tensor, scale: f64, causal: bool) -> Result<Tensor> {
    let ((queries, heads, dim), (keys, kv_heads, _)) = (q.dims3()?, k.dims3()?);
    let group = heads / kv_heads;
    let spread = |x: &Tensor| {
        x.unsqueeze(2)?
            .expand((keys, kv_heads, group, dim))?
            .reshape((keys, heads, dim))?
            .transpose(0, 1)?
            .contiguous()
    };
    let scores = (q.transpose(0, 1)?.contiguous()?.matmul(&spread(k)?.t()?.contiguous()?)? * scale)?;
    let hidden: Vec<f32> = (0..queries)
        .flat_map(|i| {
            (0..keys).map(move |j| if causal && j > i + keys - queries { f32::NEG_INFINITY } else { 0.0 })
        })
        .collect();
    let scores = scores.broadcast_add(&Tensor::from_vec(hidden, (queries, keys), &Device::Cpu)?)?;
    let exponentials = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?)?.exp()?;
    let weights = exponentials.broadcast_div(&exponentials.sum_keepdim(D::Minus1)?)?;
    weights.matmul(&spread(v)?)?.transpose(0, 1)?.contiguous()
}

#[test]
fn a_batch_attends_from_one_joint_tensor() -> Result<()> {
    let Some(gpu) = gpu() else { return Ok(()) };
    for (batch, tokens, heads, dim) in
        [(1, 1, 1, 64), (3, 197, 12, 64), (50, 77, 2, 64), (2, 260, 4, 80), (2, 65, 3, 128)]
    {
        let (joint, joint_wide) = random(&[batch, tokens, 3, heads, dim], DType::BF16, &gpu)?;
        let part = |index: usize| joint.narrow(2, index, 1)?.squeeze(2)?.transpose(1, 2);
        let scale = (dim as f64).powf(-0.5);
        for causal in [false, true] {
            let actual =
                attention(&part(0)?, &part(1)?, &part(2)?, scale as f32, causal)?.expect("there is a kernel");
            for row in 0..batch {
                let wide = |index: usize| joint_wide.get(row)?.narrow(1, index, 1)?.squeeze(1);
                let expected = plain(&wide(0)?, &wide(1)?, &wide(2)?, scale, causal)?;
                assert_close(&actual.get(row)?, &expected, 1.0 / 60.0)?;
            }
        }
    }
    Ok(())
}

#[test]
fn sequences_of_all_lengths_attend_over_a_shared_beginning_and_their_own() -> Result<()> {
    let Some(gpu) = gpu() else { return Ok(()) };
    let (heads, kv_heads, dim) = (12, 2, 128);
    let scale = (dim as f64).powf(-0.5);
    let (beginning, beginning_wide) = random(&[2, 130, kv_heads, dim], DType::BF16, &gpu)?;
    let mut sequences = Vec::new();
    let mut expected = Vec::new();
    for number in 0..60 {
        let own = 1 + number * 7 % 95;
        let queries = if number % 3 == 0 { 1 } else { own };
        let (q, q_wide) = random(&[queries, heads, dim], DType::BF16, &gpu)?;
        let (cache, cache_wide) = random(&[2, own + 5, kv_heads, dim], DType::BF16, &gpu)?;
        let rows = |cache: &Tensor, part: usize| cache.get(part)?.narrow(0, 0, own);
        let begins = number % 4 != 1;
        let wide = |part: usize| match begins {
            true => Tensor::cat(&[&beginning_wide.get(part)?, &rows(&cache_wide, part)?], 0),
            false => rows(&cache_wide, part),
        };
        expected.push(plain(&q_wide, &wide(0)?, &wide(1)?, scale, true)?);
        sequences.push(Sequence {
            queries: q,
            beginning: if begins { Some((beginning.get(0)?, beginning.get(1)?)) } else { None },
            keys: rows(&cache, 0)?,
            values: rows(&cache, 1)?,
        });
    }
    let actual = attention_of_each(&sequences, scale as f32, true)?.expect("there is a kernel");
    let mut start = 0;
    for expected in expected {
        let rows = expected.dim(0)?;
        assert_close(&actual.narrow(0, start, rows)?, &expected, 1.0 / 60.0)?;
        start += rows;
    }
    assert_eq!(start, actual.dim(0)?);
    Ok(())
}

#[test]
fn entries_are_written_where_they_belong_and_nothing_else_is() -> Result<()> {
    let Some(gpu) = gpu() else { return Ok(()) };
    let mut entries = Vec::new();
    let mut expected = Vec::new();
    for number in 0..70 {
        let (capacity, rows, at) = (40 + number, 1 + number % 20, number % 21);
        let [held_keys, held_values] = [0, 1].map(|_| Tensor::zeros((capacity, 2, 128), DType::BF16, &gpu));
        let ((keys, wide_keys), (values, wide_values)) =
            (random(&[rows, 2, 128], DType::BF16, &gpu)?, random(&[rows, 2, 128], DType::BF16, &gpu)?);
        let within = |wide: &Tensor| {
            let zeros = |rows: usize| Tensor::zeros((rows, 2, 128), DType::F32, &Device::Cpu);
            let (before, behind) = (zeros(at)?, zeros(capacity - at - rows)?);
            Tensor::cat(&[&before, wide, &behind], 0)
        };
        expected.push((within(&wide_keys)?, within(&wide_values)?));
        entries.push(Entry { keys, values, held_keys: held_keys?, held_values: held_values?, at });
    }
    stored(&entries)?.expect("there is a kernel");
    for (entry, (keys, values)) in entries.iter().zip(&expected) {
        assert_close(&entry.held_keys, keys, 0.0)?;
        assert_close(&entry.held_values, values, 0.0)?;
    }
    let mut beyond = entries.swap_remove(0);
    beyond.at = 40;
    assert!(stored(&[beyond]).unwrap_err().to_string().contains("at row 40 of a cache [40"));
    Ok(())
}
