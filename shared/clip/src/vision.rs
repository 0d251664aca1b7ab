use candle_core::{DType, Module, Result, Tensor};
use candle_nn::VarBuilder;
use thicket_kernels::{Activation, Backend, Mask, PreparedLinear, cast, linear, patches, placed};

use crate::{
    Config,
    block::{LastBlock, LayerNorm, Projected, Projection, Transformer, normal},
};

/// The map of a patch's pixels to a token.
#[derive(Debug, Clone)]
enum PatchMap {
    /// A convolution's weight `[width, 3, patch, patch]`.
    Plain(Tensor),
    /// The same as a matrix, of patches that do not overlap.
    Prepared(PreparedLinear),
}

/// The image side of CLIP with every token projected.
#[derive(Debug, Clone)]
pub(crate) struct VisionTower {
    patch: usize,
    stride: usize,
    grid: (usize, usize),
    /// Type of the arithmetic.
    dtype: DType,
    conv1: PatchMap,
    class_embedding: Tensor,
    positional_embedding: Tensor,
    /// For inference, f32 `[tokens, width]`: the positions, with the class token at its own.
    places: Option<Tensor>,
    ln_pre: LayerNorm,
    transformer: Transformer,
    ln_post: LayerNorm,
    proj: Projection,
}

impl VisionTower {
    pub(crate) fn new(config: &Config, builder: VarBuilder<'_>) -> Result<Self> {
        let &Config { patch, stride, ref vision, .. } = config;
        let width = vision.width;
        let scale = normal((width as f64).powf(-0.5));
        let inputs = (3 * patch * patch) as f64;
        let conv1 = normal(inputs.powf(-0.5));
        let tokens = config.image_tokens();
        // Both are used element by element, so that a narrower type than that of the arithmetic would not do.
        let conv1 = builder.get_with_hints((width, 3, patch, patch), "conv1.weight", conv1)?;
        let positions = builder.get_with_hints((tokens, width), "positional_embedding", scale)?;
        Ok(Self {
            patch,
            stride,
            grid: config.grid(),
            dtype: builder.dtype(),
            conv1: PatchMap::Plain(conv1.to_dtype(builder.dtype())?),
            class_embedding: builder.get_with_hints(width, "class_embedding", scale)?,
            positional_embedding: positions.to_dtype(builder.dtype())?,
            places: None,
            // The stream begins with what it makes.
            ln_pre: LayerNorm::new(vision, builder.pp("ln_pre"))?.into_f32(),
            transformer: Transformer::new(vision, builder.pp("transformer"))?,
            ln_post: LayerNorm::new(vision, builder.pp("ln_post"))?,
            proj: Projection::Plain(builder.get_with_hints((width, config.embed_dim), "proj", scale)?),
        })
    }

    /// Makes the products ready for inference.
    pub(crate) fn prepare(&mut self, backend: Backend) -> Result<()> {
        if let PatchMap::Plain(weight) = &self.conv1
            && self.stride == self.patch
            && let Some(map) = PreparedLinear::new(&weight.flatten_from(1)?, None, self.dtype, backend)?
        {
            self.conv1 = PatchMap::Prepared(map);
        }
        let class = self.class_embedding.to_dtype(DType::F32)?.unsqueeze(0)?;
        let positions = self.positional_embedding.to_dtype(DType::F32)?;
        let (first, others) = (positions.narrow(0, 0, 1)?, positions.narrow(0, 1, positions.dim(0)? - 1)?);
        self.places = Some(Tensor::cat(&[&(class + first)?, &others], 0)?);
        self.proj.prepare(self.dtype, backend)?;
        self.transformer.prepare_last_for_few(backend)?;
        self.transformer.prepare(backend)
    }

    /// `pixels`: `[batch, 3, height, width]`. Returns the projected tokens `[batch, tokens, embedding]`, the class
    /// token first, and the last block's projections.
    pub(crate) fn forward(&self, pixels: &Tensor) -> Result<(Tensor, Projected)> {
        let (x, projected) = self.transformer.forward(self.stream(pixels)?, &Mask::Full)?;
        Ok((self.embedded(&x)?, projected))
    }

    /// As [`Self::forward`] for those tokens only that `choose` names, given the last block: rows of the batch's `batch * tokens`, as many for
    /// each image. In f32 bit for bit what [`Self::forward`] makes of them.
    pub(crate) fn forward_rows(
        &self,
        pixels: &Tensor,
        choose: impl FnOnce(&LastBlock<'_>) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let last = self.transformer.to_last_block(self.stream(pixels)?, &Mask::Full)?;
        self.embedded(&last.finish(&choose(&last)?)?)
    }

    fn embedded(&self, x: &Tensor) -> Result<Tensor> {
        self.proj.forward(&self.ln_post.forward(x)?)
    }

    /// What the first block sees, f32 `[batch, tokens, width]`.
    fn stream(&self, pixels: &Tensor) -> Result<Tensor> {
        let patches = self.patches(pixels)?;
        if let Some(places) = &self.places {
            return self.ln_pre.forward(&placed(&patches, places)?);
        }
        let (batch, _, width) = patches.dims3()?;
        let class = self.class_embedding.broadcast_as((batch, 1, width))?;
        let x = Tensor::cat(&[&class, &patches], 1)?.broadcast_add(&self.positional_embedding)?;
        self.ln_pre.forward(&cast(&x, DType::F32)?)
    }

    /// The patches' tokens `[batch, patches, width]`.
    fn patches(&self, pixels: &Tensor) -> Result<Tensor> {
        if let PatchMap::Plain(weight) = &self.conv1
            && self.stride != self.patch
        {
            let (rows, columns) = self.grid;
            // Without the margin that no patch reaches, which candle's gradient of a convolution does not expect.
            let covered = |count: usize| (count - 1) * self.stride + self.patch;
            let pixels = cast(pixels, self.dtype)?;
            let pixels = pixels.narrow(2, 0, covered(rows))?.narrow(3, 0, covered(columns))?.contiguous()?;
            // candle's convolution on the CPU knows no bf16.
            let wide = if pixels.device().is_cpu() { DType::F32 } else { pixels.dtype() };
            let weight = weight.to_dtype(wide)?;
            let patches = pixels.to_dtype(wide)?.conv2d(&weight, 0, self.stride, 1, 1)?;
            return patches.to_dtype(pixels.dtype())?.flatten_from(2)?.transpose(1, 2);
        }
        // Patches that do not overlap are a permutation of the pixels: one matrix product does the convolution.
        let cells = patches(pixels, self.patch, self.dtype)?;
        match &self.conv1 {
            PatchMap::Plain(weight) => linear(&cells, &weight.flatten_from(1)?, None),
            PatchMap::Prepared(map) => map.forward(&cells, Activation::None, None),
        }
    }
}
