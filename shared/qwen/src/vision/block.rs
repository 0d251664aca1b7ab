use candle_core::{DType, Result, Tensor};
use candle_nn::VarBuilder;
use thicket_kernels::{Activation, Backend, Mask};

use super::layout::Run;
use crate::{
    config::{VisionConfig, VisionFamily},
    linear::{LayerNorm, Linear, RmsNorm, gate_and_up},
    rotary::Rotary,
};

/// Epsilon of every norm of the tower.
const NORM_EPS: f64 = 1e-6;

/// The norm of a family: layer norm in Qwen2-VL, RMS norm in Qwen2.5-VL.
#[derive(Debug, Clone)]
pub(super) enum Norm {
    Layer(LayerNorm),
    RootMeanSquare(RmsNorm),
}

/// The MLP of a family: two maps with QuickGELU between them in Qwen2-VL, a gated one with SiLU in Qwen2.5-VL.
#[derive(Debug, Clone)]
enum Mlp {
    Plain { hidden: Linear, output: Linear },
    Gated { gate: Linear, up: Linear, down: Linear },
}

#[derive(Debug, Clone)]
pub(super) struct Block {
    norm1: Norm,
    qkv: Linear,
    proj: Linear,
    norm2: Norm,
    mlp: Mlp,
    heads: usize,
    /// What multiplies in attention.
    backend: Backend,
}

impl Norm {
    /// The norm of a patch token.
    pub(super) fn new(config: &VisionConfig, vb: &VarBuilder<'_>) -> Result<Self> {
        let width = config.embed_dim;
        match config.family {
            VisionFamily::Qwen2 { .. } => LayerNorm::new(width, NORM_EPS, vb).map(Self::Layer),
            VisionFamily::Qwen2_5 { .. } => RmsNorm::new(width, NORM_EPS, vb).map(Self::RootMeanSquare),
        }
    }

    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Layer(norm) => norm.forward(x),
            Self::RootMeanSquare(norm) => norm.forward(x),
        }
    }
}

impl Mlp {
    fn new(config: &VisionConfig, vb: &VarBuilder<'_>) -> Result<Self> {
        let (width, inner, std) = (config.embed_dim, config.mlp_size(), config.initializer_range);
        Ok(match config.family {
            VisionFamily::Qwen2 { .. } => Self::Plain {
                hidden: Linear::with_bias(width, inner, std, &vb.pp("fc1"))?,
                output: Linear::with_bias(inner, width, std, &vb.pp("fc2"))?,
            },
            VisionFamily::Qwen2_5 { .. } => Self::Gated {
                gate: Linear::with_bias(width, inner, std, &vb.pp("gate_proj"))?,
                up: Linear::with_bias(width, inner, std, &vb.pp("up_proj"))?,
                down: Linear::with_bias(inner, width, std, &vb.pp("down_proj"))?,
            },
        })
    }

    fn linears(&mut self) -> impl Iterator<Item = &mut Linear> {
        let maps = match self {
            Self::Plain { hidden, output } => vec![hidden, output],
            Self::Gated { gate, up, down } => vec![gate, up, down],
        };
        maps.into_iter()
    }

    /// What it makes of `x`, added to the stream.
    fn forward_into(&self, x: &Tensor, stream: &Tensor) -> Result<Tensor> {
        match self {
            Self::Plain { hidden, output } => {
                hidden.forward_through(x, Activation::QuickGelu, output, Some(stream))
            }
            Self::Gated { gate, up, down } => {
                down.forward_into(&gate_and_up(gate, up, x)?, Activation::None, Some(stream))
            }
        }
    }
}

impl Block {
    pub(super) fn new(config: &VisionConfig, vb: &VarBuilder<'_>) -> Result<Self> {
        let (dim, std) = (config.embed_dim, config.initializer_range);
        let attention = vb.pp("attn");
        Ok(Self {
            norm1: Norm::new(config, &vb.pp("norm1"))?,
            qkv: Linear::with_bias(dim, 3 * dim, std, &attention.pp("qkv"))?,
            proj: Linear::with_bias(dim, dim, std, &attention.pp("proj"))?,
            norm2: Norm::new(config, &vb.pp("norm2"))?,
            mlp: Mlp::new(config, &vb.pp("mlp"))?,
            heads: config.num_heads,
            backend: Backend::Plain,
        })
    }

    /// Makes the linear maps and attention ready for inference.
    pub(super) fn prepare(&mut self, compute: DType, backend: Backend) -> Result<()> {
        self.backend = backend;
        self.linears().try_for_each(|map| map.prepare(compute, backend))
    }

    pub(super) fn linears(&mut self) -> impl Iterator<Item = &mut Linear> {
        [&mut self.qkv, &mut self.proj].into_iter().chain(self.mlp.linears())
    }

    /// f32 (patches, width) to (patches, width); attention stays inside the windows of `runs`.
    pub(super) fn forward(&self, x: &Tensor, rotary: &Rotary, runs: &[Run]) -> Result<Tensor> {
        let attended = self.attention(&self.norm1.forward(x)?, rotary, runs)?;
        let x = self.proj.forward_into(&attended, Activation::None, Some(x))?;
        self.mlp.forward_into(&self.norm2.forward(&x)?, &x)
    }

    fn attention(&self, x: &Tensor, rotary: &Rotary, runs: &[Run]) -> Result<Tensor> {
        let (total, dim) = x.dims2()?;
        let qkv = self.qkv.forward(x)?.reshape((total, 3, self.heads, dim / self.heads))?;
        let queries = rotary.apply(&qkv.narrow(1, 0, 1)?.squeeze(1)?)?;
        let keys = rotary.apply(&qkv.narrow(1, 1, 1)?.squeeze(1)?)?;
        let mut start = 0;
        let mut attended = Vec::with_capacity(runs.len());
        for run in runs {
            let tokens = run.images * run.patches;
            let of_run = |all: &Tensor| all.narrow(0, start, tokens);
            attended.push(self.attend_run(&of_run(&queries)?, &of_run(&keys)?, &of_run(&qkv)?, run)?);
            start += tokens;
        }
        joined(attended, 0)
    }

    /// Attention of the images of a run: queries and keys (tokens, heads, head width), values as the last third of
    /// (tokens, 3, heads, head width). Returns (tokens, width).
    fn attend_run(&self, queries: &Tensor, keys: &Tensor, qkv: &Tensor, run: &Run) -> Result<Tensor> {
        let (tokens, heads, head_dim) = queries.dims3()?;
        let scale = 1.0 / (head_dim as f64).sqrt();
        let mut start = 0;
        let mut attended = Vec::with_capacity(run.windows.len());
        for windows in &run.windows {
            let length = windows.count * windows.patches;
            let batch = run.images * windows.count;
            let of_windows = |all: &Tensor| {
                all.reshape((run.images, run.patches, heads, head_dim))?
                    .narrow(1, start, length)?
                    .reshape((batch, windows.patches, heads, head_dim))?
                    .transpose(1, 2)
            };
            // A view where the windows make up the whole image.
            let values = qkv
                .reshape((run.images, run.patches, 3 * heads, head_dim))?
                .narrow(1, start, length)?
                .reshape((batch, windows.patches, 3, heads, head_dim))?
                .narrow(2, 2, 1)?
                .squeeze(2)?
                .transpose(1, 2)?;
            let out = thicket_kernels::attention(
                &of_windows(queries)?,
                &of_windows(keys)?,
                &values,
                scale,
                &Mask::Full,
                self.backend,
            )?;
            attended.push(out.transpose(1, 2)?.reshape((run.images, length, heads * head_dim))?);
            start += length;
        }
        joined(attended, 1)?.reshape((tokens, heads * head_dim))
    }
}

fn joined(parts: Vec<Tensor>, dimension: usize) -> Result<Tensor> {
    match parts.as_slice() {
        [one] => Ok(one.clone()),
        _ => Tensor::cat(&parts, dimension),
    }
}
