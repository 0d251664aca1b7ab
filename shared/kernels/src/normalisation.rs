use std::ops::Range;

use candle_core::{CpuStorage, CustomOp2, CustomOp3, D, DType, Error, Layout, Result, Shape, Tensor};
use rayon::prelude::*;
use thicket_cuda::Scale;
use thicket_onednn::{Moments, Norm};

use crate::{
    cast::rounded,
    linear::sum_rows,
    memory::{contiguous, is_cpu_f32, made, rows_per_task, with_values},
    reduction::sum_of,
};

/// Layer normalisation over the last dimension, computed in f32: `(x - mean) / sqrt(var + eps) * weight + bias`.
///
/// `x` is `[..., d]`, `weight` and `bias` are `[d]`; the result has the type `output`. From f32 to bf16 on the CPU it is for
/// inference and has no gradient.
///
/// # Errors
/// Shapes that do not fit.
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64, output: DType) -> Result<Tensor> {
    if is_cpu_f32(x) {
        let x = x.contiguous()?;
        let moments = Moments { eps: eps as f32, centred: true };
        return match output {
            DType::F32 => x.apply_op3(weight, bias, LayerNorm { moments, output }),
            DType::BF16 => x.apply_op3_no_bwd(weight, bias, &LayerNorm { moments, output }),
            _ => layer_norm(&x, weight, bias, eps, DType::F32)?.to_dtype(output),
        };
    }
    let scale = Scale { weight, bias: Some(bias) };
    if let Some(normal) = thicket_cuda::normalised(x, scale, eps as f32, true, output)? {
        return Ok(normal);
    }
    let wide = x.to_dtype(DType::F32)?;
    if !x.device().is_cpu() && ![x, weight, bias].into_iter().any(Tensor::track_op) {
        // One kernel, without a gradient.
        return candle_nn::ops::layer_norm(&wide.contiguous()?, weight, bias, eps as f32)?.to_dtype(output);
    }
    let centred = wide.broadcast_sub(&wide.mean_keepdim(D::Minus1)?)?;
    let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
    let normal = centred.broadcast_div(&(variance + eps)?.sqrt()?)?.to_dtype(x.dtype())?;
    normal.broadcast_mul(weight)?.broadcast_add(bias)?.to_dtype(output)
}

/// Root-mean-square normalisation over the last dimension, computed in f32: `x / sqrt(mean(x^2) + eps) * weight`.
///
/// `x` is `[..., d]`, `weight` is `[d]`; the result has the type `output`, as that of [`layer_norm`].
///
/// # Errors
/// Shapes that do not fit.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64, output: DType) -> Result<Tensor> {
    if is_cpu_f32(x) {
        let x = x.contiguous()?;
        let moments = Moments { eps: eps as f32, centred: false };
        return match output {
            DType::F32 => x.apply_op2(weight, RmsNorm { moments, output }),
            DType::BF16 => x.apply_op2_no_bwd(weight, &RmsNorm { moments, output }),
            _ => rms_norm(&x, weight, eps, DType::F32)?.to_dtype(output),
        };
    }
    if let Some(normal) =
        thicket_cuda::normalised(x, Scale { weight, bias: None }, eps as f32, false, output)?
    {
        return Ok(normal);
    }
    let wide = x.to_dtype(DType::F32)?;
    if !x.device().is_cpu() && !x.track_op() && !weight.track_op() {
        return candle_nn::ops::rms_norm(&wide.contiguous()?, weight, eps as f32)?.to_dtype(output);
    }
    let mean_square = wide.sqr()?.mean_keepdim(D::Minus1)?;
    wide.broadcast_div(&(mean_square + eps)?.sqrt()?)?
        .to_dtype(x.dtype())?
        .broadcast_mul(weight)?
        .to_dtype(output)
}

/// Mean, or zero, and `1 / sqrt(variance + eps)` of a row.
fn moments(row: &[f32], wanted: Moments) -> (f32, f32) {
    wanted.of(row).unwrap_or_else(|| {
        let n = row.len() as f32;
        let mean = if wanted.centred { sum_of(row, |x| x) / n } else { 0.0 };
        let variance = sum_of(row, |x| (x - mean) * (x - mean)) / n;
        (mean, 1.0 / (variance + wanted.eps).sqrt())
    })
}

/// Every row normalised, in f32 or bf16.
fn each_row(x: &[f32], norm: &Norm<'_>, output: DType) -> Result<CpuStorage> {
    let width = norm.weight.len();
    if width == 0 || !x.len().is_multiple_of(width) || norm.bias.is_some_and(|bias| bias.len() != width) {
        return Err(Error::Msg(format!("a norm of {width} weights over {} values", x.len())));
    }
    Ok(match output {
        DType::BF16 => CpuStorage::BF16(norm.narrow(x).unwrap_or_else(|| each_piece(x, norm, rounded))),
        _ => CpuStorage::F32(each_piece(x, norm, |value| value)),
    })
}

/// Every row normalised, piece by piece.
fn each_piece<T: Copy + Default + Send>(
    x: &[f32],
    norm: &Norm<'_>,
    stored: impl Fn(f32) -> T + Sync,
) -> Vec<T> {
    let width = norm.weight.len();
    // A row's mean and scale are found with its first values, and kept for the others.
    let make = |known: &mut Option<(usize, f32, f32)>, places: Range<usize>, output: &mut [T]| {
        let mut place = places.start;
        while place < places.end {
            let (row, column) = (place / width, place % width);
            let columns = column..width.min(column + places.end - place);
            let values = &x[row * width..(row + 1) * width];
            let (mean, scale) = match *known {
                Some((known, mean, scale)) if known == row => (mean, scale),
                _ => moments(values, norm.moments),
            };
            *known = Some((row, mean, scale));
            let output = &mut output[place - places.start..][..columns.len()];
            let weights = &norm.weight[columns.clone()];
            place += columns.len();
            let values = output.iter_mut().zip(&values[columns.clone()]).zip(weights);
            match norm.bias {
                Some(bias) => {
                    for (((y, x), weight), bias) in values.zip(&bias[columns]) {
                        *y = stored((x - mean) * scale * weight + bias);
                    }
                }
                None => {
                    for ((y, x), weight) in values {
                        *y = stored((x - mean) * scale * weight);
                    }
                }
            }
        }
    };
    made(x.len(), || None, make)
}

struct LayerNorm {
    moments: Moments,
    output: DType,
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
        let y = each_row(x, &Norm { weight, bias: Some(bias), moments: self.moments }, self.output)?;
        Ok((y, x_layout.shape().clone()))
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
            let (mean, scale) = moments(x, self.moments);
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
    moments: Moments,
    output: DType,
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
        let y = each_row(x, &Norm { weight, bias: None, moments: self.moments }, self.output)?;
        Ok((y, x_layout.shape().clone()))
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
            let (_, scale) = moments(x, self.moments);
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
        let fused = layer_norm(&x, &weight, &bias, 1e-5, DType::F32)?;
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
        let fused = rms_norm(&x, &weight, 1e-6, DType::F32)?;
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

    #[test]
    fn weights_of_another_length_are_refused() -> Result<()> {
        let (x, weight, bias, _) = variables(24)?;
        for output in [DType::F32, DType::BF16] {
            let refused = layer_norm(&x, &weight.narrow(0, 0, 23)?, &bias, 1e-5, output).unwrap_err();
            assert!(refused.to_string().contains("a norm of 23 weights over 864 values"), "{refused}");
            assert!(layer_norm(&x, &weight, &bias.narrow(0, 0, 20)?, 1e-5, output).is_err());
            assert!(rms_norm(&x, &weight.narrow(0, 0, 23)?, 1e-6, output).is_err());
        }
        Ok(())
    }

    #[test]
    fn a_norm_to_bf16_is_the_rounded_one() -> Result<()> {
        let (x, weight, bias, _) = variables(40)?;
        let wide = layer_norm(&x, &weight, &bias, 1e-5, DType::F32)?.to_dtype(DType::BF16)?;
        let narrow = layer_norm(&x, &weight, &bias, 1e-5, DType::BF16)?;
        assert_eq!(narrow.dtype(), DType::BF16);
        assert_close(&narrow.to_dtype(DType::F32)?, &wide.to_dtype(DType::F32)?, 0.0)?;
        let wide = rms_norm(&x, &weight, 1e-6, DType::F32)?.to_dtype(DType::BF16)?;
        let narrow = rms_norm(&x, &weight, 1e-6, DType::BF16)?;
        assert_close(&narrow.to_dtype(DType::F32)?, &wide.to_dtype(DType::F32)?, 0.0)
    }
}
