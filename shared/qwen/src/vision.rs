use candle_core::{DType, Device, Result, Tensor, bail};
use candle_nn::VarBuilder;
use thicket_kernels::Mask;

use crate::{
    config::VisionConfig,
    linear::{LayerNorm, Linear, normal},
    rotary::Rotary,
};

/// Epsilon of every layer norm of the tower.
const NORM_EPS: f64 = 1e-6;
/// Base of the rotary frequencies of the tower.
const ROTARY_BASE: f32 = 10_000.0;

/// The vision tower of Qwen2-VL with its patch merger.
#[derive(Debug, Clone)]
pub struct VisionTower {
    patch_embed: Linear,
    blocks: Vec<Block>,
    merger: Merger,
    config: VisionConfig,
}

#[derive(Debug, Clone)]
struct Block {
    norm1: LayerNorm,
    qkv: Linear,
    proj: Linear,
    norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
    heads: usize,
}

#[derive(Debug, Clone)]
struct Merger {
    norm: LayerNorm,
    hidden: Linear,
    output: Linear,
    patches_per_token: usize,
}

/// Consecutive images of equal patch count, which share one attention call.
struct Run {
    images: usize,
    patches: usize,
}

impl VisionTower {
    /// Builds the tower; `vb` stands at `visual`.
    ///
    /// # Errors
    /// A tensor that is missing or has another shape.
    pub fn new(config: &VisionConfig, vb: &VarBuilder<'_>) -> Result<Self> {
        let std = config.initializer_range;
        let side = config.patch_size;
        let kernel = vb.pp("patch_embed").pp("proj").get_with_hints(
            (config.embed_dim, config.in_channels, config.temporal_patch_size, side, side),
            "weight",
            normal(std),
        )?;
        let patch_embed = Linear::from_weight(kernel.reshape((config.embed_dim, config.patch_values()))?);
        let blocks =
            (0..config.depth).map(|i| Block::new(config, &vb.pp("blocks").pp(i))).collect::<Result<_>>()?;
        let merger = Merger::new(config, &vb.pp("merger"))?;
        Ok(Self { patch_embed, blocks, merger, config: config.clone() })
    }

    /// Turns the patches of some images into language-model tokens. Differentiable.
    ///
    /// `patches` is (patches of all images, values of a patch), each image's patches in merge-block order; `grids` has
    /// the (rows, columns) of patches of every image. Returns (tokens of all images, hidden size): one token for each
    /// merge block, row by row. Images of equal size should stand together: they are computed in one go.
    ///
    /// # Errors
    /// Patches and grids that do not fit each other or the merge size.
    pub fn forward(&self, patches: &Tensor, grids: &[(usize, usize)]) -> Result<Tensor> {
        let merge = self.config.spatial_merge_size;
        let total: usize = grids.iter().map(|(rows, columns)| rows * columns).sum();
        let fits = |&(rows, columns): &(usize, usize)| {
            rows > 0 && columns > 0 && rows.is_multiple_of(merge) && columns.is_multiple_of(merge)
        };
        if patches.dims() != [total, self.config.patch_values()] || !grids.iter().all(fits) {
            bail!(
                "patches {:?} do not fit {} images of {total} patches of {} values in blocks of {merge} x {merge}",
                patches.shape(),
                grids.len(),
                self.config.patch_values()
            );
        }
        let runs = runs_of_equal_size(grids);
        let rotary = self.rotary(grids, patches.device())?;
        let mut x = self.patch_embed.forward(patches)?;
        for block in &self.blocks {
            x = block.forward(&x, &rotary, &runs)?;
        }
        self.merger.forward(&x)
    }

    /// What the tower expects of its input.
    #[must_use]
    pub fn config(&self) -> &VisionConfig {
        &self.config
    }

    /// Every linear map that an adapter can name.
    pub(crate) fn linears(&mut self) -> impl Iterator<Item = &mut Linear> {
        self.blocks.iter_mut().flat_map(Block::linears).chain(self.merger.linears())
    }

    fn rotary(&self, grids: &[(usize, usize)], device: &Device) -> Result<Rotary> {
        let half = self.config.head_dim() / 2;
        let frequencies: Vec<f32> =
            (0..half / 2).map(|j| 1.0 / ROTARY_BASE.powf((2 * j) as f32 / half as f32)).collect();
        let mut angles = Vec::new();
        for &grid in grids {
            for (row, column) in merge_block_order(grid, self.config.spatial_merge_size) {
                angles.extend(frequencies.iter().map(|frequency| row as f32 * frequency));
                angles.extend(frequencies.iter().map(|frequency| column as f32 * frequency));
            }
        }
        Rotary::new(&angles, half, DType::F32, device)
    }
}

/// The (row, column) of every patch in the order in which patches are listed: merge block by merge block, row by row
/// inside a block.
pub(crate) fn merge_block_order(
    (rows, columns): (usize, usize),
    merge: usize,
) -> impl Iterator<Item = (usize, usize)> {
    let inside = move |block: (usize, usize)| {
        (0..merge).flat_map(move |row| {
            (0..merge).map(move |column| (block.0 * merge + row, block.1 * merge + column))
        })
    };
    (0..rows / merge)
        .flat_map(move |block_row| (0..columns / merge).map(move |block_column| (block_row, block_column)))
        .flat_map(inside)
}

fn runs_of_equal_size(grids: &[(usize, usize)]) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for (rows, columns) in grids {
        let patches = rows * columns;
        match runs.last_mut() {
            Some(run) if run.patches == patches => run.images += 1,
            _ => runs.push(Run { images: 1, patches }),
        }
    }
    runs
}

impl Block {
    fn new(config: &VisionConfig, vb: &VarBuilder<'_>) -> Result<Self> {
        let (dim, inner, std) = (config.embed_dim, config.mlp_size(), config.initializer_range);
        let (attention, mlp) = (vb.pp("attn"), vb.pp("mlp"));
        Ok(Self {
            norm1: LayerNorm::new(dim, NORM_EPS, &vb.pp("norm1"))?,
            qkv: Linear::with_bias(dim, 3 * dim, std, &attention.pp("qkv"))?,
            proj: Linear::with_bias(dim, dim, std, &attention.pp("proj"))?,
            norm2: LayerNorm::new(dim, NORM_EPS, &vb.pp("norm2"))?,
            fc1: Linear::with_bias(dim, inner, std, &mlp.pp("fc1"))?,
            fc2: Linear::with_bias(inner, dim, std, &mlp.pp("fc2"))?,
            heads: config.num_heads,
        })
    }

    fn linears(&mut self) -> impl Iterator<Item = &mut Linear> {
        let Self { qkv, proj, fc1, fc2, .. } = self;
        [qkv, proj, fc1, fc2].into_iter()
    }

    fn forward(&self, x: &Tensor, rotary: &Rotary, runs: &[Run]) -> Result<Tensor> {
        let x = (x + self.attention(&self.norm1.forward(x)?, rotary, runs)?)?;
        let hidden = thicket_kernels::quick_gelu(&self.fc1.forward(&self.norm2.forward(&x)?)?)?;
        x + self.fc2.forward(&hidden)?
    }

    /// Full attention inside every image.
    fn attention(&self, x: &Tensor, rotary: &Rotary, runs: &[Run]) -> Result<Tensor> {
        let (total, dim) = x.dims2()?;
        let head_dim = dim / self.heads;
        let qkv = self.qkv.forward(x)?.reshape((total, 3, self.heads, head_dim))?;
        let queries = rotary.apply(&qkv.narrow(1, 0, 1)?.squeeze(1)?)?;
        let keys = rotary.apply(&qkv.narrow(1, 1, 1)?.squeeze(1)?)?;
        let scale = 1.0 / (head_dim as f64).sqrt();
        let mut start = 0;
        let mut attended = Vec::with_capacity(runs.len());
        for run in runs {
            let tokens = run.images * run.patches;
            let of_run = |all: &Tensor| {
                all.narrow(0, start, tokens)?
                    .reshape((run.images, run.patches, self.heads, head_dim))?
                    .transpose(1, 2)
            };
            let values = qkv
                .narrow(0, start, tokens)?
                .reshape((run.images, run.patches, 3, self.heads, head_dim))?
                .narrow(2, 2, 1)?
                .squeeze(2)?
                .transpose(1, 2)?;
            let out =
                thicket_kernels::attention(&of_run(&queries)?, &of_run(&keys)?, &values, scale, &Mask::Full)?;
            attended.push(out.transpose(1, 2)?.reshape((tokens, dim))?);
            start += tokens;
        }
        let attended = match attended.as_slice() {
            [one] => one.clone(),
            _ => Tensor::cat(&attended, 0)?,
        };
        self.proj.forward(&attended)
    }
}

impl Merger {
    fn new(config: &VisionConfig, vb: &VarBuilder<'_>) -> Result<Self> {
        let patches_per_token = config.patches_per_token();
        let (joined, std) = (config.embed_dim * patches_per_token, config.initializer_range);
        let mlp = vb.pp("mlp");
        Ok(Self {
            norm: LayerNorm::new(config.embed_dim, NORM_EPS, &vb.pp("ln_q"))?,
            hidden: Linear::with_bias(joined, joined, std, &mlp.pp(0))?,
            output: Linear::with_bias(joined, config.hidden_size, std, &mlp.pp(2))?,
            patches_per_token,
        })
    }

    fn linears(&mut self) -> impl Iterator<Item = &mut Linear> {
        [&mut self.hidden, &mut self.output].into_iter()
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (patches, dim) = x.dims2()?;
        let joined = self
            .norm
            .forward(x)?
            .reshape((patches / self.patches_per_token, self.patches_per_token * dim))?;
        self.output.forward(&self.hidden.forward(&joined)?.gelu_erf()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patches_are_listed_block_by_block() {
        let order: Vec<_> = merge_block_order((2, 4), 2).collect();
        assert_eq!(order, [(0, 0), (0, 1), (1, 0), (1, 1), (0, 2), (0, 3), (1, 2), (1, 3)]);
    }

    #[test]
    fn neighbours_of_equal_patch_count_share_a_run() {
        let runs = runs_of_equal_size(&[(2, 4), (4, 2), (2, 2), (2, 4)]);
        let sizes: Vec<_> = runs.iter().map(|run| (run.images, run.patches)).collect();
        assert_eq!(sizes, [(2, 8), (1, 4), (1, 8)]);
    }
}
