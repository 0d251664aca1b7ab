use candle_core::{CpuStorage, CustomOp2, CustomOp3, D, DType, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use crate::{
    linear::sum_rows,
    memory::{contiguous, is_cpu_f32, rows_per_task, with_values},
    reduction::sum_of,
};

/// Layer normalisation over the last dimension, computed in f32: `(x - mean) / sqrt(var + eps) * weight + bias`.
///
/// `x` is `[..., d]`, `weight` and `bias` are `[d]`.
///
/// # Errors
/// Shapes that do not fit.
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    if is_cpu_f32(x) {
        return x.contiguous()?.apply_op3(weight, bias, LayerNorm { eps: eps as f32 });
    }
    let wide = x.to_dtype(DType::F32)?;
    let centred = wide.broadcast_sub(&wide.mean_keepdim(D::Minus1)?)?;
    let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
    let normal = centred.broadcast_div(&(variance + eps)?.sqrt()?)?.to_dtype(x.dtype())?;
    normal.broadcast_mul(weight)?.broadcast_add(bias)
}

/// Root-mean-square normalisation over the last dimension, computed in f32: `x / sqrt(mean(x^2) + eps) * weight`.
///
/// `x` is `[..., d]`, `weight` is `[d]`.
///
/// # Errors
/// Shapes that do not fit.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    if is_cpu_f32(x) {
        return x.contiguous()?.apply_op2(weight, RmsNorm { eps: eps as f32 });
    }
    let wide = x.to_dtype(DType::F32)?;
    let mean_square = wide.sqr()?.mean_keepdim(D::Minus1)?;
    wide.broadcast_div(&(mean_square + eps)?.sqrt()?)?.to_dtype(x.dtype())?.broadcast_mul(weight)
}

/// Mean and `1 / sqrt(var + eps)` of a row.
fn moments(row: &[f32], eps: f32) -> (f32, f32) {
    let n = row.len() as f32;
    let mean = sum_of(row, |x| x) / n;
    let variance = sum_of(row, |x| (x - mean) * (x - mean)) / n;
    (mean, 1.0 / (variance + eps).sqrt())
}

fn inverse_rms(row: &[f32], eps: f32) -> f32 {
    1.0 / (sum_of(row, |x| x * x) / row.len() as f32 + eps).sqrt()
}

struct LayerNorm {
    eps: f32,
}

impl CustomOp3 for LayerNorm {
    fn name(&self) -> &'static str {
        "layer-norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, weight, bias) =
            (contiguous(x, x_layout)?, contiguous(weight, weight_layout)?, contiguous(bias, bias_layout)?);
        let width = weight.len();
        let mut output = vec![0f32; x.len()];
        let chunk = width * rows_per_task(width);
        output.par_chunks_mut(chunk).zip(x.par_chunks(chunk)).for_each(|(output, x)| {
            for (output, x) in output.chunks_mut(width).zip(x.chunks(width)) {
                let (mean, scale) = moments(x, self.eps);
                for (((y, x), w), b) in output.iter_mut().zip(x).zip(weight).zip(bias) {
                    *y = (x - mean) * scale * w + b;
                }
            }
        });
        Ok((CpuStorage::F32(output), x_layout.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        _: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let width = weight.dim(0)?;
        // dx = scale * (g - mean(g) - x^ * mean(g * x^)) with g = gradient * weight and x^ the normalised row.
        let (dx, dw, db) = gradients(x, weight, gradient, |x, g, dx, normal| {
            let (mean, scale) = moments(x, self.eps);
            let n = x.len() as f32;
            let (mut sum, mut dot) = (0.0, 0.0);
            for ((x, g), normal) in x.iter().zip(g.iter()).zip(normal.iter_mut()) {
                *normal = (x - mean) * scale;
                sum += g;
                dot += g * *normal;
            }
            for ((dx, g), normal) in dx.iter_mut().zip(g).zip(normal.iter()) {
                *dx = scale * (g - sum / n - normal * dot / n);
            }
        })?;
        let device = x.device();
        Ok((
            Some(Tensor::from_vec(dx, x.shape(), device)?),
            Some(Tensor::from_vec(dw, width, device)?),
            Some(Tensor::from_vec(db, width, device)?),
        ))
    }
}

struct RmsNorm {
    eps: f32,
}

impl CustomOp2 for RmsNorm {
    fn name(&self) -> &'static str {
        "rms-norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, weight) = (contiguous(x, x_layout)?, contiguous(weight, weight_layout)?);
        let width = weight.len();
        let mut output = vec![0f32; x.len()];
        let chunk = width * rows_per_task(width);
        output.par_chunks_mut(chunk).zip(x.par_chunks(chunk)).for_each(|(output, x)| {
            for (output, x) in output.chunks_mut(width).zip(x.chunks(width)) {
                let scale = inverse_rms(x, self.eps);
                for ((y, x), w) in output.iter_mut().zip(x).zip(weight) {
                    *y = x * scale * w;
                }
            }
        });
        Ok((CpuStorage::F32(output), x_layout.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let width = weight.dim(0)?;
        let (dx, dw, _) = gradients(x, weight, gradient, |x, g, dx, normal| {
            let scale = inverse_rms(x, self.eps);
            let mut dot = 0.0;
            for ((x, g), normal) in x.iter().zip(g.iter()).zip(normal.iter_mut()) {
                *normal = x * scale;
                dot += g * *normal;
            }
            let mean_dot = dot / x.len() as f32;
            for ((dx, g), normal) in dx.iter_mut().zip(g).zip(normal.iter()) {
                *dx = scale * (g - normal * mean_dot);
            }
        })?;
        let device = x.device();
        Ok((Some(Tensor::from_vec(dx, x.shape(), device)?), Some(Tensor::from_vec(dw, width, device)?)))
    }
}

/// Gradients of a normalisation: of the input, of the weight and of the bias.
///
/// `row(x, g, dx, normal)` sees one row of the input and `g = gradient * weight`; it writes the input's gradient and
/// the normalised row.
fn gradients(
    x: &Tensor,
    weight: &Tensor,
    gradient: &Tensor,
    row: impl Fn(&[f32], &[f32], &mut [f32], &mut [f32]) + Sync,
) -> Result<(Vec<f32>, Vec<f32>, Vec<f32>)> {
    with_values(x, |x| {
        with_values(weight, |weight| {
            with_values(gradient, |gradient| {
                let width = weight.len();
                let chunk = width * rows_per_task(width);
                let mut dx = vec![0f32; x.len()];
                let mut weighted = vec![0f32; x.len()];
                dx.par_chunks_mut(chunk)
                    .zip(weighted.par_chunks_mut(chunk))
                    .zip(x.par_chunks(chunk))
                    .zip(gradient.par_chunks(chunk))
                    .for_each(|(((dx, weighted), x), gradient)| {
                        let mut g = vec![0f32; width];
                        let rows = dx
                            .chunks_mut(width)
                            .zip(weighted.chunks_mut(width))
                            .zip(x.chunks(width))
                            .zip(gradient.chunks(width));
                        for (((dx, normal), x), gradient) in rows {
                            for ((g, gradient), w) in g.iter_mut().zip(gradient).zip(weight) {
                                *g = gradient * w;
                            }
                            row(x, &g, dx, normal);
                            for (normal, gradient) in normal.iter_mut().zip(gradient) {
                                *normal *= gradient;
                            }
                        }
                    });
                Ok((dx, sum_rows(&weighted, width), sum_rows(gradient, width)))
            })
        })
    })
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;
    use crate::attention::tests::assert_close;

    fn variables(width: usize) -> Result<(Var, Var, Var, Tensor)> {
        let device = Device::Cpu;
        Ok((
            Var::from_tensor(&Tensor::randn(0.5f32, 2.0, (4, 9, width), &device)?)?,
            Var::from_tensor(&Tensor::randn(1f32, 0.5, width, &device)?)?,
            Var::from_tensor(&Tensor::randn(0f32, 0.5, width, &device)?)?,
            Tensor::randn(0f32, 1.0, (4, 9, width), &device)?,
        ))
    }

    #[test]
    fn layer_norm_and_its_gradients_equal_the_composition() -> Result<()> {
        let (x, weight, bias, scale) = variables(40)?;
        let fused = layer_norm(&x, &weight, &bias, 1e-5)?;
        let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
        let deviation = (centred.sqr()?.mean_keepdim(D::Minus1)? + 1e-5)?.sqrt()?;
        let composed = centred.broadcast_div(&deviation)?.broadcast_mul(&weight)?.broadcast_add(&bias)?;
        assert_close(&fused, &composed, 1e-5)?;
        let actual = (fused * &scale)?.sum_all()?.backward()?;
        let expected = (composed * &scale)?.sum_all()?.backward()?;
        for variable in [&x, &weight, &bias] {
            assert_close(actual.get(variable).unwrap(), expected.get(variable).unwrap(), 1e-4)?;
        }
        Ok(())
    }

    #[test]
    fn rms_norm_and_its_gradients_equal_the_composition() -> Result<()> {
        let (x, weight, _, scale) = variables(24)?;
        let fused = rms_norm(&x, &weight, 1e-6)?;
        let rms = (x.sqr()?.mean_keepdim(D::Minus1)? + 1e-6)?.sqrt()?;
        let composed = x.broadcast_div(&rms)?.broadcast_mul(&weight)?;
        assert_close(&fused, &composed, 1e-5)?;
        let actual = (fused * &scale)?.sum_all()?.backward()?;
        let expected = (composed * &scale)?.sum_all()?.backward()?;
        for variable in [&x, &weight] {
            assert_close(actual.get(variable).unwrap(), expected.get(variable).unwrap(), 1e-4)?;
        }
        Ok(())
    }
}
