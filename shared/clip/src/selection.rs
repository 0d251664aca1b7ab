//! The token-selection embedding (TSE) of RDE.

use candle_core::{D, DType, Module, Result, Tensor};
use candle_nn::{Init, VarBuilder};
use thicket_kernels::{Linear, linear, softmax};

use crate::block::attention_scale;

const BATCH_NORM_EPS: f64 = 1e-5;
/// Keeps the normalisation of a zero token from dividing by zero.
const NORM_EPS: f64 = 1e-8;

/// Attention weights of one query per batch row, averaged over the heads, as `[batch][keys]`.
///
/// `q` is `[batch, heads, 1, d]`, `k` `[batch, heads, keys, d]`, `hidden` where given `[batch, 1, 1, keys]`, 0 for
/// visible keys and minus infinity for the others. No gradient flows through a selection.
pub(crate) fn attention_row(q: &Tensor, k: &Tensor, hidden: Option<&Tensor>) -> Result<Vec<Vec<f32>>> {
    let scale = attention_scale(q.dim(D::Minus1)?);
    let q = q.detach().to_dtype(DType::F32)?.contiguous()?;
    let k = k.detach().to_dtype(DType::F32)?;
    let scores = (q.matmul(&k.t()?.contiguous()?)? * scale)?;
    let scores = match hidden {
        Some(hidden) => scores.broadcast_add(hidden)?,
        None => scores,
    };
    softmax(&scores)?.mean(1)?.squeeze(1)?.to_vec2()
}

/// Indices of the `count` largest weights, ascending; of equal weights the earlier ones.
pub(crate) fn largest(weights: &[f32], count: usize) -> Vec<u32> {
    let mut order: Vec<u32> = (0..weights.len() as u32).collect();
    let weight = |index: u32| weights[index as usize];
    order.sort_by(|&a, &b| weight(b).total_cmp(&weight(a)).then(a.cmp(&b)));
    order.truncate(count);
    order.sort_unstable();
    order
}

/// One tower's head over selected tokens: `max over tokens of projection(x) + perceptron(x)`.
#[derive(Debug, Clone)]
pub(crate) struct TokenSelection {
    projection: Linear,
    /// `[hidden, input]`
    input: Tensor,
    input_bias: Tensor,
    norm: BatchNorm,
    output: Linear,
}

/// Batch normalisation by its running statistics, which training leaves as they are.
#[derive(Debug, Clone)]
struct BatchNorm {
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    inverse_deviation: Tensor,
}

impl BatchNorm {
    fn new(width: usize, builder: VarBuilder<'_>) -> Result<Self> {
        let mean = builder.get_with_hints(width, "running_mean", Init::Const(0.0))?.detach();
        let variance = builder.get_with_hints(width, "running_var", Init::Const(1.0))?.detach();
        Ok(Self {
            weight: builder.get_with_hints(width, "weight", Init::Const(1.0))?,
            bias: builder.get_with_hints(width, "bias", Init::Const(0.0))?,
            mean,
            inverse_deviation: (variance + BATCH_NORM_EPS)?.sqrt()?.recip()?,
        })
    }

    /// The weight and bias of the linear map that does `layer` and then this.
    fn after(&self, layer: &Tensor, layer_bias: &Tensor) -> Result<(Tensor, Tensor)> {
        let scale = (&self.weight * &self.inverse_deviation)?;
        let weight = layer.to_dtype(scale.dtype())?.broadcast_mul(&scale.unsqueeze(1)?)?;
        let bias = (((layer_bias - &self.mean)? * scale)? + &self.bias)?;
        Ok((weight, bias))
    }
}

impl TokenSelection {
    /// `projection` names the linear map beside the perceptron: the published towers call it differently.
    pub(crate) fn new(
        input: usize,
        hidden: usize,
        output: usize,
        projection: &str,
        builder: VarBuilder<'_>,
    ) -> Result<Self> {
        let mlp = builder.pp("mlp");
        let first = mlp.pp("layers.0");
        let spread = (1.0 / input as f64).sqrt();
        let weight =
            first.get_with_hints((hidden, input), "weight", Init::Uniform { lo: -spread, up: spread })?;
        Ok(Self {
            projection: Linear::new(input, output, true, builder.pp(projection))?,
            input: weight,
            input_bias: first.get_with_hints(hidden, "bias", Init::Const(0.0))?,
            norm: BatchNorm::new(hidden, mlp.pp("bns.0"))?,
            output: Linear::new(hidden, output, true, mlp.pp("layers.1"))?,
        })
    }

    /// Embeds the selected tokens of each batch row as `[batch, dim]` in f32.
    ///
    /// `tokens` is `[batch, n, embedding]`. `selected` names the tokens of each row, at least one; rows may have
    /// different numbers.
    pub(crate) fn forward(&self, tokens: &Tensor, selected: &[Vec<u32>]) -> Result<Tensor> {
        let (batch, count, width) = tokens.dims3()?;
        let most = selected.iter().map(Vec::len).max().unwrap_or(0);
        let mut rows = Vec::with_capacity(batch * most);
        let mut padding = Vec::with_capacity(batch * most);
        for (row, chosen) in selected.iter().enumerate() {
            let first_row = (row * count) as u32;
            let filler = most - chosen.len();
            rows.extend(chosen.iter().map(|index| first_row + index));
            rows.extend(std::iter::repeat_n(first_row, filler));
            padding.extend(std::iter::repeat_n(0.0_f32, chosen.len()));
            padding.extend(std::iter::repeat_n(f32::NEG_INFINITY, filler));
        }
        let device = tokens.device();
        let rows = Tensor::from_vec(rows, batch * most, device)?;
        let x = tokens.reshape((batch * count, width))?.index_select(&rows, 0)?;
        let norm = (x.sqr()?.sum_keepdim(D::Minus1)?.sqrt()? + NORM_EPS)?;
        let x = x.broadcast_div(&norm)?;

        let (weight, bias) = self.norm.after(&self.input, &self.input_bias)?;
        let perceptron = self.output.forward(&linear(&x, &weight, Some(&bias))?.relu()?)?;
        let y = (self.projection.forward(&x)? + perceptron)?;
        let y = y.reshape((batch, most, ()))?.to_dtype(DType::F32)?;
        let y = if padding.contains(&f32::NEG_INFINITY) {
            y.broadcast_add(&Tensor::from_vec(padding, (batch, most, 1), device)?)?
        } else {
            y
        };
        y.max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_are_found_and_ties_go_to_the_earlier() {
        assert_eq!(largest(&[0.1, 0.5, 0.2, 0.5, -1.0], 3), [1, 2, 3]);
        assert_eq!(largest(&[0.0, 0.0, 0.0], 2), [0, 1]);
        assert_eq!(largest(&[0.3, f32::NEG_INFINITY], 9), [0, 1]);
    }
}
