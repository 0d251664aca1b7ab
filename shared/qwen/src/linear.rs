use candle_core::{Result, Tensor};
use candle_nn::{Init, VarBuilder};

/// A linear map over the last dimension of (rows, in).
#[derive(Debug, Clone)]
pub(crate) struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Linear {
    /// Takes `weight` (out, in) and `bias` (out); fresh weights are normal with standard deviation `std`.
    pub(crate) fn with_bias(input: usize, output: usize, std: f64, vb: &VarBuilder<'_>) -> Result<Self> {
        let bias = vb.get_with_hints(output, "bias", Init::Const(0.0))?;
        Ok(Self { bias: Some(bias), ..Self::without_bias(input, output, std, vb)? })
    }

    /// As [`Self::with_bias`] for a map that has none.
    pub(crate) fn without_bias(input: usize, output: usize, std: f64, vb: &VarBuilder<'_>) -> Result<Self> {
        let weight = vb.get_with_hints((output, input), "weight", normal(std))?;
        Ok(Self { weight, bias: None })
    }

    /// A map without bias whose (out, in) matrix is given.
    pub(crate) fn from_weight(weight: Tensor) -> Self {
        Self { weight, bias: None }
    }

    /// (rows, in) to (rows, out).
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        thicket_kernels::linear(x, &self.weight, self.bias.as_ref())
    }
}

/// How fresh weights are drawn.
pub(crate) fn normal(std: f64) -> Init {
    Init::Randn { mean: 0.0, stdev: std }
}

/// The weight of a norm layer, ones when fresh.
pub(crate) fn norm_weight(size: usize, vb: &VarBuilder<'_>) -> Result<Tensor> {
    vb.get_with_hints(size, "weight", Init::Const(1.0))
}

/// Layer norm with an affine part.
#[derive(Debug, Clone)]
pub(crate) struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    eps: f64,
}

impl LayerNorm {
    pub(crate) fn new(size: usize, eps: f64, vb: &VarBuilder<'_>) -> Result<Self> {
        let bias = vb.get_with_hints(size, "bias", Init::Const(0.0))?;
        Ok(Self { weight: norm_weight(size, vb)?, bias, eps })
    }

    /// Normalises the last dimension.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        thicket_kernels::layer_norm(x, &self.weight, &self.bias, self.eps)
    }
}
