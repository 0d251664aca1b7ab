use std::ops::Range;

use candle_core::{CpuStorage, CustomOp1, CustomOp2, D, DType, Layout, Result, Shape, Tensor};
use rayon::prelude::*;
pub use thicket_cuda::Activation;

use crate::cast::{rounded, widened};
use crate::memory::{contiguous, in_order, is_cpu_f32, made, rows_per_task, with_values};
use crate::reduction::{largest, sum_of};

const CHUNK: usize = 16 * 1024;
const QUICK_GELU_SLOPE: f32 = 1.702;

/// `exp(x)` for f32 with a relative error below 3e-7, written without branches so that loops over it vectorise.
///
/// Results below the smallest normal number come out as that number's neighbourhood of zero; results above the largest
/// are clamped to it. Softmax and the sigmoid feel neither.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: adding it leaves the integer part in the low bits
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let x = x.clamp(-87.0, 88.0);
    let shifted = x.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = n.mul_add(-LN2_LOW, n.mul_add(-LN2_HIGH, x));
    // Taylor coefficients of exp on [-ln2/2, ln2/2]; the seventh term is below 1e-8 there.
    let p = r.mul_add(1.0 / 5040.0, 1.0 / 720.0);
    let p = r.mul_add(p, 1.0 / 120.0);
    let p = r.mul_add(p, 1.0 / 24.0);
    let p = r.mul_add(p, 1.0 / 6.0);
    let p = r.mul_add(p, 0.5);
    let p = r.mul_add(p, 1.0);
    let p = r.mul_add(p, 1.0);
    let exponent = shifted.to_bits().wrapping_sub(ROUND.to_bits());
    f32::from_bits(p.to_bits().wrapping_add(exponent << 23))
}

/// Replaces every value by what the activation makes of it.
#[inline(always)]
pub(crate) fn activate(activation: Activation, values: &mut [f32]) {
    match activation {
        Activation::None => {}
        Activation::QuickGelu => {
            values.iter_mut().for_each(|x| *x /= 1.0 + exp(-QUICK_GELU_SLOPE * *x));
        }
        Activation::Silu => values.iter_mut().for_each(|x| *x /= 1.0 + exp(-*x)),
    }
}

/// `x * sigmoid(1.702 x)`, the activation of CLIP and of the Qwen2-VL vision tower. Any shape.
///
/// # Errors
/// Those of candle: a device that fails.
pub fn quick_gelu(x: &Tensor) -> Result<Tensor> {
    if is_cpu_f32(x) {
        x.contiguous()?.apply_op1(QuickGelu)
    } else {
        x * candle_nn::ops::sigmoid(&(x * f64::from(QUICK_GELU_SLOPE))?)?
    }
}

/// `silu(gate) * up`, computed in f32 and rounded once to the type of both. Any shape.
///
/// # Errors
/// Shapes or types that differ.
pub fn gated(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    let fits = gate.dims() == up.dims() && gate.dtype() == up.dtype();
    if fits && gate.device().is_cpu() && matches!(gate.dtype(), DType::F32 | DType::BF16) {
        return gate.contiguous()?.apply_op2(&up.contiguous()?, Gated);
    }
    if let Some(gated) = thicket_cuda::gated(gate, up)? {
        return Ok(gated);
    }
    (gate.to_dtype(DType::F32)?.silu()? * up.to_dtype(DType::F32)?)?.to_dtype(up.dtype())
}

struct Gated;

impl Gated {
    fn run<T: Copy + Default + Send + Sync>(
        gate: &[T],
        up: &[T],
        wide: impl Fn(T) -> f32 + Sync,
        stored: impl Fn(f32) -> T + Sync,
    ) -> Vec<T> {
        let make = |(): &mut (), places: Range<usize>, output: &mut [T]| {
            for (y, (&gate, &up)) in output.iter_mut().zip(gate[places.clone()].iter().zip(&up[places])) {
                let gate = wide(gate);
                *y = stored(gate / (1.0 + exp(-gate)) * wide(up));
            }
        };
        made(gate.len(), || (), make)
    }
}

impl CustomOp2 for Gated {
    fn name(&self) -> &'static str {
        "gated"
    }

    fn cpu_fwd(
        &self,
        gate: &CpuStorage,
        gate_layout: &Layout,
        up: &CpuStorage,
        up_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let y = match (gate, up) {
            (CpuStorage::BF16(gate), CpuStorage::BF16(up)) => CpuStorage::BF16(Self::run(
                in_order(gate, gate_layout)?,
                in_order(up, up_layout)?,
                widened,
                rounded,
            )),
            _ => CpuStorage::F32(Self::run(
                contiguous(gate, gate_layout)?,
                contiguous(up, up_layout)?,
                |value| value,
                |value| value,
            )),
        };
        Ok((y, gate_layout.shape().clone()))
    }

    fn bwd(
        &self,
        gate: &Tensor,
        up: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let sigmoid = candle_nn::ops::sigmoid(gate)?;
        let silu = (gate * &sigmoid)?;
        // d silu = sigmoid + silu (1 - sigmoid)
        let slope = (&sigmoid + (&silu * (1.0 - &sigmoid)?)?)?;
        Ok((Some(((gradient * up)? * slope)?), Some((gradient * silu)?)))
    }
}

struct QuickGelu;

impl CustomOp1 for QuickGelu {
    fn name(&self) -> &'static str {
        "quick-gelu"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let input = contiguous(storage, layout)?;
        let make = |(): &mut (), places: Range<usize>, output: &mut [f32]| {
            for (y, &x) in output.iter_mut().zip(&input[places]) {
                *y = x / (1.0 + exp(-QUICK_GELU_SLOPE * x));
            }
        };
        Ok((CpuStorage::F32(made(input.len(), || (), make)), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let result = with_values(x, |x| {
            with_values(gradient, |gradient| {
                let mut output = vec![0f32; x.len()];
                output
                    .par_chunks_mut(CHUNK)
                    .zip(x.par_chunks(CHUNK))
                    .zip(gradient.par_chunks(CHUNK))
                    .for_each(|((output, x), gradient)| {
                        for ((y, &x), &g) in output.iter_mut().zip(x).zip(gradient) {
                            let s = 1.0 / (1.0 + exp(-QUICK_GELU_SLOPE * x));
                            *y = g * s * (1.0 + QUICK_GELU_SLOPE * x * (1.0 - s));
                        }
                    });
                Ok(output)
            })
        })?;
        Ok(Some(Tensor::from_vec(result, x.shape(), x.device())?))
    }
}

/// Rotary positions: the two halves `a`, `b` of every head of x `[tokens, heads, d]` become `(a cos - b sin, b cos + a sin)`,
/// computed in f32; cos and sin are f32 `[tokens, 1, d / 2]`. For a GPU: on the CPU it is several passes.
///
/// # Errors
/// Shapes that do not fit.
pub fn rotate(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    if let Some(rotated) = thicket_cuda::rotated(x, cos, sin)? {
        return Ok(rotated);
    }
    let half = x.dim(D::Minus1)? / 2;
    let wide = x.to_dtype(DType::F32)?;
    let (a, b) = (wide.narrow(D::Minus1, 0, half)?, wide.narrow(D::Minus1, half, half)?);
    let first = (a.broadcast_mul(cos)? - b.broadcast_mul(sin)?)?;
    let second = (b.broadcast_mul(cos)? + a.broadcast_mul(sin)?)?;
    Tensor::cat(&[first, second], D::Minus1)?.to_dtype(x.dtype())
}

/// Softmax over the last dimension, largest value subtracted first.
///
/// # Errors
/// Those of candle: a device that fails.
pub fn softmax(x: &Tensor) -> Result<Tensor> {
    if is_cpu_f32(x) && x.elem_count() > 0 {
        x.contiguous()?.apply_op1(Softmax)
    } else if x.device().is_cpu() || x.track_op() {
        candle_nn::ops::softmax(x, D::Minus1)
    } else {
        candle_nn::ops::softmax_last_dim(&x.contiguous()?)
    }
}

struct Softmax;

impl CustomOp1 for Softmax {
    fn name(&self) -> &'static str {
        "softmax"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let mut output = contiguous(storage, layout)?.to_vec();
        let width = layout.shape().dims().last().copied().unwrap_or(1);
        output.par_chunks_mut(width * rows_per_task(width)).for_each(|rows| {
            rows.chunks_mut(width).for_each(softmax_row);
        });
        Ok((CpuStorage::F32(output), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, result: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let width = x.dim(D::Minus1)?;
        let output = with_values(result, |p| {
            with_values(gradient, |gradient| {
                let mut output = vec![0f32; p.len()];
                let chunk = width * rows_per_task(width);
                output
                    .par_chunks_mut(chunk)
                    .zip(p.par_chunks(chunk))
                    .zip(gradient.par_chunks(chunk))
                    .for_each(|((output, p), gradient)| {
                        let rows = output.chunks_mut(width).zip(p.chunks(width)).zip(gradient.chunks(width));
                        for ((output, p), gradient) in rows {
                            let dot: f32 = p.iter().zip(gradient).map(|(p, g)| p * g).sum();
                            for ((y, &p), &g) in output.iter_mut().zip(p).zip(gradient) {
                                *y = p * (g - dot);
                            }
                        }
                    });
                Ok(output)
            })
        })?;
        Ok(Some(Tensor::from_vec(output, x.shape(), x.device())?))
    }
}

/// Softmax of one row in place. The row must hold at least one finite value.
pub(crate) fn softmax_row(row: &mut [f32]) {
    let largest = largest(row);
    row.iter_mut().for_each(|value| *value = exp(*value - largest));
    let scale = 1.0 / sum_of(row, |value| value);
    row.iter_mut().for_each(|value| *value *= scale);
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;

    #[test]
    fn exp_agrees_with_the_standard_library_to_3e_7() {
        let mut worst = 0f64;
        for step in 0..200_000 {
            let x = -86.0 + 173.0 * step as f32 / 200_000.0;
            let expected = f64::from(x).exp();
            worst = worst.max((f64::from(exp(x)) - expected).abs() / expected);
        }
        assert!(worst < 3e-7, "worst relative error {worst}");
    }

    #[test]
    fn quick_gelu_and_its_gradient_equal_the_composition() -> Result<()> {
        let x = Var::from_tensor(&Tensor::randn(0f32, 2.0, (7, 33), &Device::Cpu)?)?;
        let weight = Tensor::randn(0f32, 1.0, (7, 33), &Device::Cpu)?;
        let composed = (x.as_tensor() * candle_nn::ops::sigmoid(&(x.as_tensor() * 1.702)?)?)?;
        let fused = quick_gelu(&x)?;
        crate::attention::tests::assert_close(&fused, &composed, 1e-5)?;
        let expected = (composed * &weight)?.sum_all()?.backward()?;
        let actual = (fused * &weight)?.sum_all()?.backward()?;
        crate::attention::tests::assert_close(actual.get(&x).unwrap(), expected.get(&x).unwrap(), 1e-5)
    }

    #[test]
    fn softmax_and_its_gradient_equal_the_composition() -> Result<()> {
        let x = Var::from_tensor(&Tensor::randn(0f32, 3.0, (5, 4, 19), &Device::Cpu)?)?;
        let weight = Tensor::randn(0f32, 1.0, (5, 4, 19), &Device::Cpu)?;
        let composed = candle_nn::ops::softmax(&x, D::Minus1)?;
        let fused = softmax(&x)?;
        crate::attention::tests::assert_close(&fused, &composed, 1e-6)?;
        let expected = (composed * &weight)?.sum_all()?.backward()?;
        let actual = (fused * &weight)?.sum_all()?.backward()?;
        crate::attention::tests::assert_close(actual.get(&x).unwrap(), expected.get(&x).unwrap(), 1e-5)
    }
}
