use candle_core::{CpuStorage, CustomOp2, CustomOp3, DType, Error, Layout, Module, Result, Shape, Tensor};
use candle_nn::VarBuilder;
use half::slice::HalfFloatSliceExt;
use rayon::prelude::*;

use crate::{
    elementwise::{Activation, quick_gelu},
    memory::{contiguous, in_order, is_cpu_f32, rows_per_task, with_values, zeros},
    prepared::{Backend, PreparedLinear},
    product::{matrix, multiply, multiply_packed},
};

/// `y = x W^T + b` with `W` of shape `[out, in]`, as checkpoints store it.
#[derive(Debug, Clone)]
pub struct Linear {
    weight: Weight,
    bias: Option<Tensor>,
}

#[derive(Debug, Clone)]
enum Weight {
    Plain(Tensor),
    /// With its bias.
    Prepared(PreparedLinear),
}

impl Linear {
    /// Takes `weight` `[output, input]` and, where `bias` is set, `bias` `[output]` from the builder.
    ///
    /// # Errors
    /// Those of the builder: a tensor that is missing or has another shape.
    pub fn new(input: usize, output: usize, bias: bool, builder: VarBuilder<'_>) -> Result<Self> {
        let spread = (1.0 / input as f64).sqrt();
        let uniform = candle_nn::Init::Uniform { lo: -spread, up: spread };
        let weight = builder.get_with_hints((output, input), "weight", uniform)?;
        let bias = if bias {
            Some(builder.get_with_hints(output, "bias", candle_nn::Init::Const(0.0))?)
        } else {
            None
        };
        Ok(Self::from_parts(weight, bias))
    }

    /// From tensors: `weight` `[out, in]`, `bias` `[out]`.
    #[must_use]
    pub fn from_parts(weight: Tensor, bias: Option<Tensor>) -> Self {
        Self { weight: Weight::Plain(weight), bias }
    }

    /// Makes the map ready for inference on inputs of type `compute`, where the backend can, see [`PreparedLinear`]. It has
    /// no gradient from then on.
    ///
    /// # Errors
    /// Those of [`PreparedLinear::new`].
    pub fn prepare(&mut self, compute: DType, backend: Backend) -> Result<()> {
        if let Weight::Plain(weight) = &self.weight
            && let Some(map) = PreparedLinear::new(weight, self.bias.as_ref(), compute, backend)?
        {
            (self.weight, self.bias) = (Weight::Prepared(map), None);
        }
        Ok(())
    }

    /// `activation(x W^T + b) + residual`: x `[..., in]`, residual f32 `[..., out]`.
    ///
    /// The result has the type of x, or f32 where there is a residual.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn forward_into(
        &self,
        x: &Tensor,
        activation: Activation,
        residual: Option<&Tensor>,
    ) -> Result<Tensor> {
        let weight = match &self.weight {
            Weight::Prepared(map) => return map.forward(x, activation, residual),
            Weight::Plain(weight) => weight,
        };
        let y = linear(x, weight, self.bias.as_ref())?;
        let y = match activation {
            Activation::None => y,
            Activation::QuickGelu => quick_gelu(&y)?,
            Activation::Silu => y.silu()?,
        };
        match residual {
            None => Ok(y),
            Some(residual) => residual + y.to_dtype(DType::F32)?,
        }
    }

    /// `next(activation(x W^T + b)) + residual`, with no activation of the next map: as two times [`Self::forward_into`], and faster where
    /// both are made ready for it.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn forward_through(
        &self,
        x: &Tensor,
        activation: Activation,
        next: &Self,
        residual: Option<&Tensor>,
    ) -> Result<Tensor> {
        match (&self.weight, &next.weight) {
            (Weight::Prepared(first), Weight::Prepared(next)) => {
                first.forward_through(x, activation, next, residual)
            }
            _ => next.forward_into(&self.forward_into(x, activation, None)?, Activation::None, residual),
        }
    }
}

impl Module for Linear {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.forward_into(x, Activation::None, None)
    }
}

/// `x W^T + b`: x `[..., in]`, weight `[out, in]`, bias `[out]`, result `[..., out]`.
///
/// In f32 on the CPU a row of the result depends on its own row of `x` alone, bit for bit, whatever the number of rows
/// and threads. There, the weight may also be f16 or bf16: it is widened as it is used, so that the result is that of
/// the same weight in f32, bit for bit. Such a weight has no gradient.
///
/// # Errors
/// Shapes that do not fit.
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let (output, input) = weight.dims2()?;
    if x.dims().last() != Some(&input) || bias.is_some_and(|bias| bias.dims() != [output]) {
        return Err(Error::Msg(format!(
            "linear map of x {:?} by weight {:?} and bias {:?}",
            x.dims(),
            weight.dims(),
            bias.map(Tensor::dims)
        )));
    }
    if is_cpu_f32(x) {
        let (x, weight) = (x.contiguous()?, weight.contiguous()?);
        return match bias {
            Some(bias) => x.apply_op3(&weight, &bias.contiguous()?, Affine),
            None => x.apply_op2(&weight, Affine),
        };
    }
    let mut shape = x.dims().to_vec();
    // One large product instead of one for each leading index.
    let y = x.reshape(((), input))?.matmul(&weight.t()?)?;
    let y = match bias {
        None => y,
        Some(bias) => y.broadcast_add(bias)?,
    };
    if let Some(last) = shape.last_mut() {
        *last = output;
    }
    y.reshape(shape)
}

/// The linear map on the CPU in f32.
///
/// candle's own matrix product starts threads of its own for each call and adds the bias, forward and backward, in
/// passes that cost as much again.
struct Affine;

impl Affine {
    fn forward(
        (x, x_layout): (&CpuStorage, &Layout),
        (weight, weight_layout): (&CpuStorage, &Layout),
        bias: Option<&[f32]>,
    ) -> Result<(CpuStorage, Shape)> {
        let (output, input) = weight_layout.shape().dims2()?;
        let x = contiguous(x, x_layout)?;
        let rows = x.len() / input.max(1);
        let mut y = zeros(rows * output);
        let x = matrix(x, input)?;
        match weight {
            CpuStorage::F16(weight) => {
                multiply_packed(x, in_order(weight, weight_layout)?, bias, &mut y, |narrow, wide| {
                    narrow.convert_to_f32_slice(wide);
                })?;
            }
            CpuStorage::BF16(weight) => {
                multiply_packed(x, in_order(weight, weight_layout)?, bias, &mut y, |narrow, wide| {
                    narrow.convert_to_f32_slice(wide);
                })?;
            }
            _ => {
                let weight = matrix(contiguous(weight, weight_layout)?, input)?;
                multiply(x, weight.reversed_axes(), bias, &mut y)?;
            }
        }
        let mut shape = x_layout.dims().to_vec();
        if let Some(last) = shape.last_mut() {
            *last = output;
        }
        Ok((CpuStorage::F32(y), Shape::from(shape)))
    }

    /// Gradients of x and of the weight.
    fn backward(x: &Tensor, weight: &Tensor, gradient: &Tensor) -> Result<(Tensor, Tensor)> {
        let (output, input) = weight.dims2()?;
        let (dx, dw) = with_values(x, |x_values| {
            with_values(weight, |weight_values| {
                with_values(gradient, |gradient_values| {
                    let (x, weight) = (matrix(x_values, input)?, matrix(weight_values, input)?);
                    let gradient = matrix(gradient_values, output)?;
                    let mut dx = vec![0f32; x_values.len()];
                    multiply(gradient, weight, None, &mut dx)?;
                    let mut dw = vec![0f32; weight_values.len()];
                    multiply(gradient.reversed_axes(), x, None, &mut dw)?;
                    Ok((dx, dw))
                })
            })
        })?;
        let device = x.device();
        Ok((Tensor::from_vec(dx, x.shape(), device)?, Tensor::from_vec(dw, (output, input), device)?))
    }
}

impl CustomOp3 for Affine {
    fn name(&self) -> &'static str {
        "linear"
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
        Self::forward((x, x_layout), (weight, weight_layout), Some(contiguous(bias, bias_layout)?))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (dx, dw) = Self::backward(x, weight, gradient)?;
        let width = bias.dim(0)?;
        let db = with_values(gradient, |gradient| Ok(sum_rows(gradient, width)))?;
        Ok((Some(dx), Some(dw), Some(Tensor::from_vec(db, width, x.device())?)))
    }
}

impl CustomOp2 for Affine {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        Self::forward((x, x_layout), (weight, weight_layout), None)
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (dx, dw) = Self::backward(x, weight, gradient)?;
        Ok((Some(dx), Some(dw)))
    }
}

/// Sum over the rows of a row-major matrix. The partial sums are added in row order, so that the result does not
/// depend on the number of threads.
pub(crate) fn sum_rows(values: &[f32], width: usize) -> Vec<f32> {
    let partial: Vec<Vec<f32>> = values
        .par_chunks(width * rows_per_task(width))
        .map(|rows| {
            let mut sum = vec![0f32; width];
            for row in rows.chunks(width) {
                for (total, value) in sum.iter_mut().zip(row) {
                    *total += value;
                }
            }
            sum
        })
        .collect();
    let mut sum = vec![0f32; width];
    for part in partial {
        for (total, value) in sum.iter_mut().zip(part) {
            *total += value;
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;
    use crate::attention::tests::assert_close;

    #[test]
    fn linear_and_its_gradients_equal_the_composition() -> Result<()> {
        let device = Device::Cpu;
        let x = Var::from_tensor(&Tensor::randn(0f32, 1.0, (3, 50, 24), &device)?)?;
        let weight = Var::from_tensor(&Tensor::randn(0f32, 1.0, (17, 24), &device)?)?;
        let bias = Var::from_tensor(&Tensor::randn(0f32, 1.0, 17, &device)?)?;
        let scale = Tensor::randn(0f32, 1.0, (3, 50, 17), &device)?;
        let fused = linear(&x, &weight, Some(&bias))?;
        let composed = x.broadcast_matmul(&weight.t()?)?.broadcast_add(&bias)?;
        assert_close(&fused, &composed, 1e-4)?;
        let actual = (fused * &scale)?.sum_all()?.backward()?;
        let expected = (composed * &scale)?.sum_all()?.backward()?;
        for variable in [&x, &weight, &bias] {
            assert_close(actual.get(variable).unwrap(), expected.get(variable).unwrap(), 1e-3)?;
        }
        Ok(())
    }

    #[test]
    fn a_map_without_bias_equals_the_composition() -> Result<()> {
        let x = Var::from_tensor(&Tensor::randn(0f32, 1.0, (300, 20), &Device::Cpu)?)?;
        let weight = Var::from_tensor(&Tensor::randn(0f32, 1.0, (9, 20), &Device::Cpu)?)?;
        let scale = Tensor::randn(0f32, 1.0, (300, 9), &Device::Cpu)?;
        let fused = linear(&x, &weight, None)?;
        let composed = x.matmul(&weight.t()?)?;
        assert_close(&fused, &composed, 1e-4)?;
        let actual = (fused * &scale)?.sum_all()?.backward()?;
        let expected = (composed * &scale)?.sum_all()?.backward()?;
        for variable in [&x, &weight] {
            assert_close(actual.get(variable).unwrap(), expected.get(variable).unwrap(), 1e-3)?;
        }
        Ok(())
    }

    #[test]
    fn a_row_does_not_depend_on_its_companions() -> Result<()> {
        let x = Tensor::randn(0f32, 1.0, (301, 300), &Device::Cpu)?;
        let weight = Tensor::randn(0f32, 1.0, (70, 300), &Device::Cpu)?;
        let together = linear(&x, &weight, None)?.to_vec2::<f32>()?;
        for row in [0, 1, 63, 64, 300] {
            let alone = linear(&x.narrow(0, row, 1)?, &weight, None)?.to_vec2::<f32>()?;
            assert_eq!(alone[0], together[row]);
        }
        Ok(())
    }

    #[test]
    fn a_16_bit_weight_gives_the_bits_of_the_widened_one() -> Result<()> {
        for (rows, input, output) in [(1, 300, 70), (301, 300, 700), (5, 1, 1), (70, 4000, 90)] {
            let x = Tensor::randn(0f32, 1.0, (rows, input), &Device::Cpu)?;
            let bias = Tensor::randn(0f32, 1.0, output, &Device::Cpu)?;
            for dtype in [DType::F16, DType::BF16] {
                let narrow = Tensor::randn(0f32, 1.0, (output, input), &Device::Cpu)?.to_dtype(dtype)?;
                let wide = narrow.to_dtype(DType::F32)?;
                for bias in [None, Some(&bias)] {
                    let actual = linear(&x, &narrow, bias)?.to_vec2::<f32>()?;
                    assert_eq!(actual, linear(&x, &wide, bias)?.to_vec2::<f32>()?);
                }
            }
        }
        Ok(())
    }

    #[test]
    fn a_weight_that_does_not_fit_names_both_shapes() -> Result<()> {
        let x = Tensor::zeros((2, 3), candle_core::DType::F32, &Device::Cpu)?;
        let weight = Tensor::zeros((5, 4), candle_core::DType::F32, &Device::Cpu)?;
        let error = linear(&x, &weight, None).unwrap_err().to_string();
        assert!(error.contains("[2, 3]") && error.contains("[5, 4]"), "{error}");
        Ok(())
    }
}
