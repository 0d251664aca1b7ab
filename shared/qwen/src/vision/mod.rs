mod block;
mod layout;

use candle_core::{DType, Device, Result, Tensor, bail};
use candle_nn::VarBuilder;
use thicket_kernels::Backend;

use self::{
    block::{Block, Norm},
    layout::Layout,
};
use crate::{
    config::VisionConfig,
    linear::{Linear, normal},
    rotary::Rotary,
};

pub(crate) use self::layout::merge_block_order;

/// Base of the rotary frequencies of the tower.
const ROTARY_BASE: f32 = 10_000.0;

/// The vision tower of Qwen2-VL or Qwen2.5-VL with its patch merger.
#[derive(Debug, Clone)]
pub struct VisionTower {
    patch_embed: Linear,
    blocks: Vec<Block>,
    merger: Merger,
    config: VisionConfig,
}

#[derive(Debug, Clone)]
struct Merger {
    norm: Norm,
    hidden: Linear,
    output: Linear,
    patches_per_token: usize,
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
        let layout = Layout::new(grids, &self.config);
        let rotary = self.rotary(grids, layout.order(), patches.device())?;
        let mut x =
            self.in_tower_order(&self.patch_embed.forward(patches)?, layout.order())?.to_dtype(DType::F32)?;
        for (index, block) in self.blocks.iter().enumerate() {
            let runs = if self.config.attends_fully(index) { &layout.whole } else { &layout.windowed };
            x = block.forward(&x, &rotary, runs)?;
        }
        let tokens = self.merger.forward(&x)?;
        match layout.places() {
            None => Ok(tokens),
            Some(places) => tokens.index_select(&Tensor::new(places, tokens.device())?, 0),
        }
    }

    /// What the tower expects of its input.
    #[must_use]
    pub fn config(&self) -> &VisionConfig {
        &self.config
    }

    /// Makes the linear maps ready for inference, one after the other.
    pub(crate) fn prepare(&mut self, compute: DType, backend: Backend) -> Result<()> {
        self.blocks.iter_mut().try_for_each(|block| block.prepare(compute, backend))?;
        self.merger.linears().try_for_each(|map| map.prepare(compute, backend))
    }

    /// Every linear map that an adapter can name.
    pub(crate) fn linears(&mut self) -> impl Iterator<Item = &mut Linear> {
        self.blocks.iter_mut().flat_map(Block::linears).chain(self.merger.linears())
    }

    /// Moves whole merge blocks of (patches, width) to their places.
    fn in_tower_order(&self, x: &Tensor, order: Option<&[u32]>) -> Result<Tensor> {
        let Some(order) = order else { return Ok(x.clone()) };
        let (patches, width) = x.dims2()?;
        let per_block = self.config.patches_per_token();
        x.reshape((patches / per_block, per_block * width))?
            .index_select(&Tensor::new(order, x.device())?, 0)?
            .reshape((patches, width))
    }

    fn rotary(&self, grids: &[(usize, usize)], order: Option<&[u32]>, device: &Device) -> Result<Rotary> {
        let half = self.config.head_dim() / 2;
        let frequencies: Vec<f32> =
            (0..half / 2).map(|j| 1.0 / ROTARY_BASE.powf((2 * j) as f32 / half as f32)).collect();
        let merge = self.config.spatial_merge_size;
        let mut positions: Vec<_> = grids.iter().flat_map(|&grid| merge_block_order(grid, merge)).collect();
        if let Some(order) = order {
            let per_block = self.config.patches_per_token();
            positions = order
                .iter()
                .flat_map(|&block| &positions[block as usize * per_block..][..per_block])
                .copied()
                .collect();
        }
        let mut angles = Vec::with_capacity(positions.len() * half);
        for (row, column) in positions {
            angles.extend(frequencies.iter().map(|frequency| row as f32 * frequency));
            angles.extend(frequencies.iter().map(|frequency| column as f32 * frequency));
        }
        Rotary::new(&angles, half, device)
    }
}

impl Merger {
    fn new(config: &VisionConfig, vb: &VarBuilder<'_>) -> Result<Self> {
        let patches_per_token = config.patches_per_token();
        let (joined, std) = (config.embed_dim * patches_per_token, config.initializer_range);
        let mlp = vb.pp("mlp");
        Ok(Self {
            norm: Norm::new(config, &vb.pp("ln_q"))?,
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
        let hidden = self.hidden.forward(&joined)?;
        self.output.forward(&hidden.to_dtype(DType::F32)?.gelu_erf()?.to_dtype(hidden.dtype())?)
    }
}
