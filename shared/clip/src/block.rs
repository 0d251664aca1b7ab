use candle_core::{DType, Module, Result, Tensor};
use candle_nn::{Init, VarBuilder};
use thicket_kernels::{Linear, Mask, attention, layer_norm, linear, quick_gelu};

use crate::{Activation, TowerConfig};

pub(crate) fn normal(stdev: f64) -> Init {
    Init::Randn { mean: 0.0, stdev }
}

/// Layer normalisation over the last dimension, from the f32 of a tower's stream to the type that it multiplies in.
#[derive(Debug, Clone)]
pub(crate) struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    eps: f64,
    output: DType,
}

impl LayerNorm {
    pub(crate) fn new(tower: &TowerConfig, builder: VarBuilder<'_>) -> Result<Self> {
        let width = tower.width;
        let get = |name, value| builder.get_with_hints_dtype(width, name, Init::Const(value), DType::F32);
        Ok(Self {
            weight: get("weight", 1.0)?,
            bias: get("bias", 0.0)?,
            eps: tower.norm_eps,
            output: builder.dtype(),
        })
    }
}

impl Module for LayerNorm {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        layer_norm(x, &self.weight, &self.bias, self.eps)?.to_dtype(self.output)
    }
}

/// Queries, keys and values of one block, each `[batch, heads, tokens, head width]`.
pub(crate) struct Projected {
    pub(crate) q: Tensor,
    pub(crate) k: Tensor,
    v: Tensor,
}

/// One pre-norm transformer block.
#[derive(Debug, Clone)]
pub(crate) struct Block {
    width: usize,
    head_width: usize,
    activation: Activation,
    ln_1: LayerNorm,
    /// Rows of queries, then keys, then values, `[3 width, width]`.
    in_proj_weight: Tensor,
    in_proj_bias: Tensor,
    out_proj: Linear,
    ln_2: LayerNorm,
    c_fc: Linear,
    c_proj: Linear,
}

impl Block {
    /// A fresh model's residual branches start smaller the deeper its tower is.
    fn new(tower: &TowerConfig, builder: VarBuilder<'_>) -> Result<Self> {
        let &TowerConfig { width, layers, head_width, mlp_width, activation, .. } = tower;
        let attn = builder.pp("attn");
        let mlp = builder.pp("mlp");
        let scale = (width as f64).powf(-0.5);
        let residual = scale * (2.0 * layers as f64).powf(-0.5);
        let in_proj = normal(scale);
        Ok(Self {
            width,
            head_width,
            activation,
            ln_1: LayerNorm::new(tower, builder.pp("ln_1"))?,
            in_proj_weight: attn.get_with_hints((3 * width, width), "in_proj_weight", in_proj)?,
            in_proj_bias: attn.get_with_hints(3 * width, "in_proj_bias", Init::Const(0.0))?,
            out_proj: dense(width, width, residual, attn.pp("out_proj"))?,
            ln_2: LayerNorm::new(tower, builder.pp("ln_2"))?,
            c_fc: dense(width, mlp_width, (2.0 * width as f64).powf(-0.5), mlp.pp("c_fc"))?,
            c_proj: dense(mlp_width, width, residual, mlp.pp("c_proj"))?,
        })
    }

    /// `x`: f32 `[batch, tokens, width]`.
    pub(crate) fn project(&self, x: &Tensor) -> Result<Projected> {
        let (batch, tokens, _) = x.dims3()?;
        let x = self.ln_1.forward(x)?;
        // Three products over slices of the weight: slicing their joint result would make the backward pass write
        // and add three mostly empty copies of it.
        let part = |index: usize| {
            let weight = self.in_proj_weight.narrow(0, index * self.width, self.width)?;
            let bias = self.in_proj_bias.narrow(0, index * self.width, self.width)?;
            linear(&x, &weight, Some(&bias))?
                .reshape((batch, tokens, self.width / self.head_width, self.head_width))?
                .transpose(1, 2)
        };
        Ok(Projected { q: part(0)?, k: part(1)?, v: part(2)? })
    }

    /// The rest of the block, given what [`Block::project`] made of `x`.
    pub(crate) fn finish(&self, x: &Tensor, projected: &Projected, mask: &Mask) -> Result<Tensor> {
        let Projected { q, k, v } = projected;
        let mixed =
            attention(q, k, v, attention_scale(self.head_width), mask)?.transpose(1, 2)?.flatten_from(2)?;
        // The stream stays f32 between blocks: rounding it each time would cost a half-precision model most.
        let x = (x + self.out_proj.forward(&mixed)?.to_dtype(DType::F32)?)?;
        let hidden = self.c_fc.forward(&self.ln_2.forward(&x)?)?;
        let hidden = match self.activation {
            Activation::QuickGelu => quick_gelu(&hidden)?,
            Activation::Gelu => hidden.gelu_erf()?,
        };
        x + self.c_proj.forward(&hidden)?.to_dtype(DType::F32)?
    }
}

pub(crate) fn attention_scale(head_width: usize) -> f64 {
    (head_width as f64).powf(-0.5)
}

fn dense(input: usize, output: usize, stdev: f64, builder: VarBuilder<'_>) -> Result<Linear> {
    let weight = builder.get_with_hints((output, input), "weight", normal(stdev))?;
    let bias = builder.get_with_hints(output, "bias", Init::Const(0.0))?;
    Ok(Linear::from_parts(weight, Some(bias)))
}

/// A stack of blocks.
#[derive(Debug, Clone)]
pub(crate) struct Transformer {
    blocks: Vec<Block>,
    last: Block,
}

impl Transformer {
    /// A tower of at least one block.
    pub(crate) fn new(tower: &TowerConfig, builder: VarBuilder<'_>) -> Result<Self> {
        let builder = builder.pp("resblocks");
        let last = tower.layers.saturating_sub(1);
        Ok(Self {
            blocks: (0..last).map(|index| Block::new(tower, builder.pp(index))).collect::<Result<_>>()?,
            last: Block::new(tower, builder.pp(last))?,
        })
    }

    /// `x`: f32 `[batch, tokens, width]`. Returns the output, of the same shape, and the last block's projections.
    pub(crate) fn forward(&self, x: Tensor, mask: &Mask) -> Result<(Tensor, Projected)> {
        let x = self.blocks.iter().try_fold(x, |x, block| block.finish(&x, &block.project(&x)?, mask))?;
        let projected = self.last.project(&x)?;
        Ok((self.last.finish(&x, &projected, mask)?, projected))
    }
}
