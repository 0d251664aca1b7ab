use candle_core::{DType, Device, Result, Tensor};
use candle_nn::{Init, VarBuilder};
use thicket_kernels::{Activation, Backend, PreparedLinear, Quantization, QuantizedMatrix, gated};

/// A linear map over the last dimension of (rows, in).
#[derive(Debug, Clone)]
pub(crate) struct Linear {
    /// The path of its weight in the checkpoint, without `.weight`; empty for a map that has no weight of its own.
    name: String,
    weight: Weight,
    bias: Option<Tensor>,
    low_rank: Option<LowRank>,
}

#[derive(Debug, Clone)]
enum Weight {
    /// (out, in), in the type of the arithmetic or a narrower one.
    Plain(Tensor),
    /// With the bias.
    Prepared(PreparedLinear),
    Quantized(QuantizedMatrix),
}

/// `scale * b a`, what an adapter adds to a weight.
#[derive(Debug, Clone)]
pub(crate) struct LowRank {
    /// (rank, in)
    pub(crate) a: Tensor,
    /// (out, rank)
    pub(crate) b: Tensor,
    pub(crate) scale: f64,
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
        Ok(Self { name: vb.prefix(), ..Self::from_weight(weight) })
    }

    /// A map without bias whose (out, in) matrix is given.
    pub(crate) fn from_weight(weight: Tensor) -> Self {
        Self { name: String::new(), weight: Weight::Plain(weight), bias: None, low_rank: None }
    }

    /// The path of its weight in the checkpoint.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// (out, in)
    pub(crate) fn sizes(&self) -> Result<(usize, usize)> {
        match &self.weight {
            Weight::Plain(weight) => weight.dims2(),
            Weight::Prepared(map) => Ok(map.sizes()),
            Weight::Quantized(matrix) => Ok(matrix.sizes()),
        }
    }

    /// (rows, in) to (rows, out).
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let y = match &self.weight {
            Weight::Plain(weight) => thicket_kernels::linear(x, weight, self.bias.as_ref())?,
            Weight::Prepared(map) => map.forward(x, Activation::None, None)?,
            Weight::Quantized(matrix) => matrix.apply(x, self.bias.as_ref())?,
        };
        let Some(LowRank { a, b, scale }) = &self.low_rank else { return Ok(y) };
        let inner = thicket_kernels::linear(x, a, None)?;
        y + (thicket_kernels::linear(&inner, b, None)? * *scale)?
    }

    /// `activation(forward(x)) + residual`, residual f32 (rows, out). The result has the type of x, or f32 where there is a
    /// residual.
    pub(crate) fn forward_into(
        &self,
        x: &Tensor,
        activation: Activation,
        residual: Option<&Tensor>,
    ) -> Result<Tensor> {
        if let (Weight::Prepared(map), None) = (&self.weight, &self.low_rank) {
            return map.forward(x, activation, residual);
        }
        let y = self.forward(x)?;
        let y = match activation {
            Activation::None => y,
            Activation::QuickGelu => thicket_kernels::quick_gelu(&y)?,
            Activation::Silu => y.silu()?,
        };
        match residual {
            None => Ok(y),
            Some(residual) => residual + y.to_dtype(DType::F32)?,
        }
    }

    /// `next(activation(forward(x))) + residual`: as two times [`Self::forward_into`], and faster where both are made ready for it.
    pub(crate) fn forward_through(
        &self,
        x: &Tensor,
        activation: Activation,
        next: &Self,
        residual: Option<&Tensor>,
    ) -> Result<Tensor> {
        match (&self.weight, &next.weight) {
            (Weight::Prepared(first), Weight::Prepared(second))
                if self.low_rank.is_none() && next.low_rank.is_none() =>
            {
                first.forward_through(x, activation, second, residual)
            }
            _ => next.forward_into(&self.forward_into(x, activation, None)?, Activation::None, residual),
        }
    }

    /// Makes the map ready for inference on inputs of type `compute`, where the backend can. It has no gradient from then
    /// on.
    pub(crate) fn prepare(&mut self, compute: DType, backend: Backend) -> Result<()> {
        if let Weight::Plain(weight) = &self.weight
            && let Some(map) = PreparedLinear::new(weight, self.bias.as_ref(), compute, backend)?
        {
            (self.weight, self.bias) = (Weight::Prepared(map), None);
        }
        Ok(())
    }

    /// As [`Self::prepare`] for a map of the language model: decoding reads it for a row or a few at a time.
    pub(crate) fn prepare_for_decoding(&mut self, compute: DType, backend: Backend) -> Result<()> {
        if let Weight::Plain(weight) = &self.weight
            && let Some(map) = PreparedLinear::for_few_rows(weight, self.bias.as_ref(), compute, backend)?
        {
            (self.weight, self.bias) = (Weight::Prepared(map), None);
        }
        Ok(())
    }

    /// As [`Self::prepare_for_decoding`] for the table of the embeddings, so that [`Self::rows`] can still read it.
    pub(crate) fn prepare_table(&mut self, compute: DType, backend: Backend) -> Result<()> {
        if let Weight::Plain(weight) = &self.weight
            && let Some(map) = PreparedLinear::table(weight, compute, backend)?
        {
            self.weight = Weight::Prepared(map);
        }
        Ok(())
    }

    /// Rows of the weight in `compute`: u32 (n) to (n, in). Differentiable where the weight is.
    pub(crate) fn rows(&self, indices: &Tensor, compute: DType) -> Result<Tensor> {
        match &self.weight {
            Weight::Plain(table) => table.index_select(indices, 0)?.to_dtype(compute),
            Weight::Prepared(map) => map.rows(&indices.to_vec1::<u32>()?)?.to_dtype(compute),
            Weight::Quantized(_) => candle_core::bail!("rows of a quantized weight"),
        }
    }

    /// Adds an adapter's part, which fits, in place of any it had.
    pub(crate) fn adapt(&mut self, part: LowRank) {
        self.low_rank = Some(part);
    }

    /// Replaces the weight by a quantized one on `device`. False where its rows do not divide into blocks: then it stays
    /// as it is.
    pub(crate) fn quantize(&mut self, quantization: Quantization, device: &Device) -> Result<bool> {
        let Weight::Plain(weight) = &self.weight else { return Ok(true) };
        if !weight.dim(1)?.is_multiple_of(Quantization::BLOCK) {
            return Ok(false);
        }
        let matrix = QuantizedMatrix::new(&weight.to_device(&Device::Cpu)?, quantization, device)?;
        self.weight = Weight::Quantized(matrix);
        Ok(true)
    }
}

/// How fresh weights are drawn.
pub(crate) fn normal(std: f64) -> Init {
    Init::Randn { mean: 0.0, stdev: std }
}

/// `silu(gate(x)) * up(x)`.
pub(crate) fn gate_and_up(gate: &Linear, up: &Linear, x: &Tensor) -> Result<Tensor> {
    gated(&gate.forward(x)?, &up.forward(x)?)
}

/// What a norm layer multiplies by, in f32, ones when fresh.
fn norm_weight(size: usize, vb: &VarBuilder<'_>) -> Result<Tensor> {
    vb.get_with_hints_dtype(size, "weight", Init::Const(1.0), DType::F32)
}

/// RMS norm, from the f32 of a model's stream to the type that it multiplies in.
#[derive(Debug, Clone)]
pub(crate) struct RmsNorm {
    weight: Tensor,
    eps: f64,
    output: DType,
}

impl RmsNorm {
    pub(crate) fn new(size: usize, eps: f64, vb: &VarBuilder<'_>) -> Result<Self> {
        Ok(Self { weight: norm_weight(size, vb)?, eps, output: vb.dtype() })
    }

    /// Normalises the last dimension of an f32 tensor.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        thicket_kernels::rms_norm(x, &self.weight, self.eps, self.output)
    }
}

/// Layer norm with an affine part, from f32 as [`RmsNorm`].
#[derive(Debug, Clone)]
pub(crate) struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    eps: f64,
    output: DType,
}

impl LayerNorm {
    pub(crate) fn new(size: usize, eps: f64, vb: &VarBuilder<'_>) -> Result<Self> {
        let bias = vb.get_with_hints_dtype(size, "bias", Init::Const(0.0), DType::F32)?;
        Ok(Self { weight: norm_weight(size, vb)?, bias, eps, output: vb.dtype() })
    }

    /// Normalises the last dimension of an f32 tensor.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        thicket_kernels::layer_norm(x, &self.weight, &self.bias, self.eps, self.output)
    }
}
