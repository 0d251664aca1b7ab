use std::ops::Range;

use candle_core::{D, DType, Error, Module, Result, Tensor};
use candle_nn::{Init, VarBuilder};
use thicket_kernels::{
    Activation as Fused, Backend, Linear, Mask, PreparedLinear, attention, layer_norm, linear,
};

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

    /// The same with a result in f32.
    pub(crate) fn into_f32(self) -> Self {
        Self { output: DType::F32, ..self }
    }
}

impl Module for LayerNorm {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        layer_norm(x, &self.weight, &self.bias, self.eps, self.output)
    }
}

/// The map of a token to the embedding, whose matrix checkpoints store transposed.
#[derive(Debug, Clone)]
pub(crate) enum Projection {
    /// `[width, embedding]`
    Plain(Tensor),
    Prepared(PreparedLinear),
}

impl Projection {
    pub(crate) fn prepare(&mut self, compute: DType, backend: Backend) -> Result<()> {
        if let Self::Plain(matrix) = self
            && let Some(map) = PreparedLinear::new(&matrix.t()?, None, compute, backend)?
        {
            *self = Self::Prepared(map);
        }
        Ok(())
    }
}

impl Module for Projection {
    /// `[..., width]` to `[..., embedding]`
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Plain(matrix) => linear(x, &matrix.t()?, None),
            Self::Prepared(map) => map.forward(x, Fused::None, None),
        }
    }
}

/// Queries, keys and values of one block, each `[batch, heads, tokens, head width]`.
pub(crate) struct Projected {
    pub(crate) q: Tensor,
    pub(crate) k: Tensor,
    v: Tensor,
}

/// The map of a block's tokens to queries, keys and values.
#[derive(Debug, Clone)]
enum Projections {
    /// Rows of queries, then keys, then values: weight `[3 width, width]`, bias `[3 width]`.
    Plain { weight: Tensor, bias: Tensor },
    /// All three in one product.
    Prepared(PreparedLinear),
    /// Keys and values in one product, for a block of which few queries are wanted.
    Apart { queries: PreparedLinear, others: PreparedLinear },
}

impl Projections {
    /// Of queries, keys and values those from the `first` on: (batch, tokens, width) to (batch, heads, tokens, head width) each.
    fn forward<const N: usize>(&self, x: &Tensor, first: usize, head_width: usize) -> Result<[Tensor; N]> {
        let wanted = first..first + N;
        let product = |map: &PreparedLinear| map.forward(x, Fused::None, None);
        let parts: Vec<Tensor> = match self {
            // Products over slices of the weight: slicing their joint result would make the backward pass write and add
            // mostly empty copies of it.
            Self::Plain { weight, bias } => {
                let width = x.dim(D::Minus1)?;
                let part = |index: usize| {
                    let weight = weight.narrow(0, index * width, width)?;
                    let bias = bias.narrow(0, index * width, width)?;
                    by_heads(&linear(x, &weight, Some(&bias))?, 1, 0..1, head_width)
                };
                wanted.map(part).collect::<Result<Vec<_>>>()?.concat()
            }
            Self::Prepared(map) => by_heads(&product(map)?, 3, wanted, head_width)?,
            Self::Apart { queries, others } => {
                let mut parts = Vec::new();
                if wanted.start == 0 {
                    parts.extend(by_heads(&product(queries)?, 1, 0..1, head_width)?);
                }
                if wanted.end > 1 {
                    let wanted = wanted.start.max(1) - 1..wanted.end - 1;
                    parts.extend(by_heads(&product(others)?, 2, wanted, head_width)?);
                }
                parts
            }
        };
        parts.try_into().map_err(|_| Error::Msg("queries, keys and values are three".to_owned()))
    }

    fn prepare(&mut self, compute: DType, backend: Backend) -> Result<()> {
        if let Self::Plain { weight, bias } = self
            && let Some(map) = PreparedLinear::new(weight, Some(bias), compute, backend)?
        {
            *self = Self::Prepared(map);
        }
        Ok(())
    }

    fn prepare_apart(&mut self, compute: DType, backend: Backend) -> Result<()> {
        let Self::Plain { weight, bias } = self else { return Ok(()) };
        let width = weight.dim(1)?;
        let map = |first: usize, count: usize| {
            let (weight, bias) = (weight.narrow(0, first, count)?, bias.narrow(0, first, count)?);
            PreparedLinear::new(&weight, Some(&bias), compute, backend)
        };
        if let (Some(queries), Some(others)) = (map(0, width)?, map(width, 2 * width)?) {
            *self = Self::Apart { queries, others };
        }
        Ok(())
    }
}

/// Those that are wanted of `count` parts: `[batch, tokens, count * heads * head width]` to `[batch, heads, tokens, head width]` each.
fn by_heads(joint: &Tensor, count: usize, wanted: Range<usize>, head_width: usize) -> Result<Vec<Tensor>> {
    let (batch, tokens, _) = joint.dims3()?;
    let joint = joint.reshape((batch, tokens, count, (), head_width))?;
    wanted.map(|index| joint.narrow(2, index, 1)?.squeeze(2)?.transpose(1, 2)).collect()
}

/// One pre-norm transformer block.
#[derive(Debug, Clone)]
pub(crate) struct Block {
    head_width: usize,
    /// What multiplies in attention.
    backend: Backend,
    activation: Activation,
    ln_1: LayerNorm,
    in_proj: Projections,
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
            head_width,
            backend: Backend::Plain,
            activation,
            ln_1: LayerNorm::new(tower, builder.pp("ln_1"))?,
            in_proj: Projections::Plain {
                weight: attn.get_with_hints((3 * width, width), "in_proj_weight", in_proj)?,
                bias: attn.get_with_hints(3 * width, "in_proj_bias", Init::Const(0.0))?,
            },
            out_proj: dense(width, width, residual, attn.pp("out_proj"))?,
            ln_2: LayerNorm::new(tower, builder.pp("ln_2"))?,
            c_fc: dense(width, mlp_width, (2.0 * width as f64).powf(-0.5), mlp.pp("c_fc"))?,
            c_proj: dense(mlp_width, width, residual, mlp.pp("c_proj"))?,
        })
    }

    /// Makes the products ready for inference.
    fn prepare(&mut self, backend: Backend) -> Result<()> {
        let compute = self.ln_1.output;
        self.backend = backend;
        self.in_proj.prepare(compute, backend)?;
        [&mut self.out_proj, &mut self.c_fc, &mut self.c_proj]
            .into_iter()
            .try_for_each(|map| map.prepare(compute, backend))
    }

    /// `x`: f32 `[batch, tokens, width]`.
    pub(crate) fn project(&self, x: &Tensor) -> Result<Projected> {
        let [q, k, v] = self.in_proj.forward(&self.ln_1.forward(x)?, 0, self.head_width)?;
        Ok(Projected { q, k, v })
    }

    /// The rest of the block, given what [`Block::project`] made of `x`.
    pub(crate) fn finish(&self, x: &Tensor, projected: &Projected, mask: &Mask) -> Result<Tensor> {
        self.after_attention(x, &self.attend(projected, mask)?)
    }

    /// What every token attends to, `[batch, tokens, width]`.
    fn attend(&self, Projected { q, k, v }: &Projected, mask: &Mask) -> Result<Tensor> {
        let mixed = attention(q, k, v, attention_scale(self.head_width), mask, self.backend)?;
        mixed.transpose(1, 2)?.flatten_from(2)
    }

    /// The rest, token by token: `x` and what its tokens attend to, `[..., width]`.
    fn after_attention(&self, x: &Tensor, mixed: &Tensor) -> Result<Tensor> {
        // The stream stays f32 between blocks: rounding it each time would cost a half-precision model most.
        let x = self.out_proj.forward_into(mixed, Fused::None, Some(x))?;
        let normal = self.ln_2.forward(&x)?;
        match self.activation {
            Activation::QuickGelu => {
                self.c_fc.forward_through(&normal, Fused::QuickGelu, &self.c_proj, Some(&x))
            }
            Activation::Gelu => {
                let hidden = self.c_fc.forward(&normal)?.gelu_erf()?;
                self.c_proj.forward_into(&hidden, Fused::None, Some(&x))
            }
        }
    }
}

/// A tower's last block, of which few tokens are wanted, and what it is given: each of them sees all tokens.
pub(crate) struct LastBlock<'a> {
    block: &'a Block,
    /// f32 `[batch, tokens, width]`, and normalised.
    x: Tensor,
    normal: Tensor,
    k: Tensor,
    v: Tensor,
}

impl<'a> LastBlock<'a> {
    fn new(block: &'a Block, x: Tensor) -> Result<Self> {
        let normal = block.ln_1.forward(&x)?;
        let [k, v] = block.in_proj.forward(&normal, 1, block.head_width)?;
        Ok(Self { block, x, normal, k, v })
    }

    /// `[batch, heads, tokens, head width]`
    pub(crate) fn keys(&self) -> &Tensor {
        &self.k
    }

    /// The queries of some tokens, `rows` of the batch's `batch * tokens`, as many for each of the batch: `[batch, heads, rows, head width]`.
    pub(crate) fn queries(&self, rows: &Tensor) -> Result<Tensor> {
        let [queries] = self.block.in_proj.forward(&chosen(&self.normal, rows)?, 0, self.block.head_width)?;
        Ok(queries)
    }

    /// The block's output for some tokens, as many for each of the batch: bit for bit what the whole block makes of them, where a product's
    /// row does not depend on the others.
    pub(crate) fn finish(&self, rows: &Tensor) -> Result<Tensor> {
        let projected = Projected { q: self.queries(rows)?, k: self.k.clone(), v: self.v.clone() };
        self.block.finish(&chosen(&self.x, rows)?, &projected, &Mask::Full)
    }
}

/// Some tokens of a batch, as many for each: `[batch, tokens, width]` to `[batch, rows, width]`.
fn chosen(tokens: &Tensor, rows: &Tensor) -> Result<Tensor> {
    let (batch, _, width) = tokens.dims3()?;
    tokens.flatten_to(1)?.index_select(rows, 0)?.reshape((batch, (), width))
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

    /// Makes the last block ready for few queries, before [`Self::prepare`] does it otherwise.
    pub(crate) fn prepare_last_for_few(&mut self, backend: Backend) -> Result<()> {
        self.last.in_proj.prepare_apart(self.last.ln_1.output, backend)
    }

    /// Makes the products ready for inference, one after the other.
    pub(crate) fn prepare(&mut self, backend: Backend) -> Result<()> {
        self.blocks.iter_mut().try_for_each(|block| block.prepare(backend))?;
        self.last.prepare(backend)
    }

    /// All but the end of the last block: its input, `[batch, tokens, width]`, and its projections.
    pub(crate) fn before_last(&self, x: Tensor, mask: &Mask) -> Result<(Tensor, Projected)> {
        let x = self.before(x, mask)?;
        let projected = self.last.project(&x)?;
        Ok((x, projected))
    }

    fn before(&self, x: Tensor, mask: &Mask) -> Result<Tensor> {
        self.blocks.iter().try_fold(x, |x, block| block.finish(&x, &block.project(&x)?, mask))
    }

    /// All but the last block, and what its tokens see.
    pub(crate) fn to_last_block(&self, x: Tensor, mask: &Mask) -> Result<LastBlock<'_>> {
        LastBlock::new(&self.last, self.before(x, mask)?)
    }

    /// The output of some tokens, given what [`Self::before_last`] made: `rows` of the batch's `batch * tokens`, any number of each, which see
    /// what the mask lets them. `[rows, width]`.
    pub(crate) fn last_tokens(
        &self,
        x: &Tensor,
        projected: &Projected,
        mask: &Mask,
        rows: &Tensor,
    ) -> Result<Tensor> {
        let chosen = |all: &Tensor| all.flatten_to(1)?.index_select(rows, 0);
        self.last.after_attention(&chosen(x)?, &chosen(&self.last.attend(projected, mask)?)?)
    }

    /// `x`: f32 `[batch, tokens, width]`. Returns the output, of the same shape, and the last block's projections.
    pub(crate) fn forward(&self, x: Tensor, mask: &Mask) -> Result<(Tensor, Projected)> {
        let (x, projected) = self.before_last(x, mask)?;
        Ok((self.last.finish(&x, &projected, mask)?, projected))
    }
}
