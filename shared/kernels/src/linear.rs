use candle_core::{CpuStorage, CustomOp2, D, Layout, Module, Result, Shape, Tensor};
use candle_nn::VarBuilder;
use rayon::prelude::*;

use crate::memory::{contiguous, is_cpu_f32, rows_per_task, with_values};

/// `y = x W^T + b` with `W` of shape `[out, in]`, as checkpoints store it.
#[derive(Debug, Clone)]
pub struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
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
        Ok(Self { weight, bias })
    }

    /// From tensors: `weight` `[out, in]`, `bias` `[out]`.
    #[must_use]
    pub fn from_parts(weight: Tensor, bias: Option<Tensor>) -> Self {
        Self { weight, bias }
    }

    /// The weight, `[out, in]`.
    #[must_use]
    pub fn weight(&self) -> &Tensor {
        &self.weight
    }
}

impl Module for Linear {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        linear(x, &self.weight, self.bias.as_ref())
    }
}

/// `x W^T + b`: x `[..., in]`, weight `[out, in]`, bias `[out]`, result `[..., out]`.
///
/// # Errors
/// Shapes that do not fit.
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let (output, input) = weight.dims2()?;
    let mut shape = x.dims().to_vec();
    // One large product instead of one for each leading index.
    let y = x.reshape(((), input))?.matmul(&weight.t()?)?;
    let y = match bias {
        None => y,
        Some(bias) if is_cpu_f32(&y) => y.apply_op2(bias, AddBias)?,
        Some(bias) => y.broadcast_add(bias)?,
    };
    if let Some(last) = shape.last_mut() {
        *last = output;
    }
    y.reshape(shape)
}

/// Adds a row to every row. candle's own broadcast addition sums the gradient element by element with index
/// arithmetic, which costs as much as the matrix product beside it.
struct AddBias;

impl CustomOp2 for AddBias {
    fn name(&self) -> &'static str {
        "add-bias"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let bias = contiguous(bias, bias_layout)?;
        let mut output = contiguous(x, x_layout)?.to_vec();
        let width = bias.len();
        output.par_chunks_mut(width * rows_per_task(width)).for_each(|rows| {
            for row in rows.chunks_mut(width) {
                for (y, b) in row.iter_mut().zip(bias) {
                    *y += b;
                }
            }
        });
        Ok((CpuStorage::F32(output), x_layout.shape().clone()))
    }

    fn bwd(
        &self,
        _: &Tensor,
        bias: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let width = bias.dim(D::Minus1)?;
        let sums = with_values(gradient, |values| Ok(sum_rows(values, width)))?;
        Ok((Some(gradient.clone()), Some(Tensor::from_vec(sums, width, gradient.device())?)))
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
}
