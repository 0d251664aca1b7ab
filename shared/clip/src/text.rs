use candle_core::{D, DType, Module, Result, Tensor};
use candle_nn::{Init, VarBuilder};
use thicket_kernels::{Backend, Mask, cast, placed};

use crate::{
    Config,
    block::{LayerNorm, Projected, Projection, Transformer, normal},
};

/// The text side of CLIP with every token projected.
#[derive(Debug, Clone)]
pub(crate) struct TextTower {
    /// Perhaps in a narrower type than that of the arithmetic, which is the positions'.
    token_embedding: Tensor,
    positional_embedding: Tensor,
    /// For inference, f32.
    places: Option<Tensor>,
    transformer: Transformer,
    ln_final: LayerNorm,
    text_projection: Projection,
}

impl TextTower {
    pub(crate) fn new(config: &Config, builder: VarBuilder<'_>) -> Result<Self> {
        let &Config { ref text, text_length, vocab_size, embed_dim, .. } = config;
        let width = text.width;
        let embed = |rows, name, stdev| -> Result<Tensor> {
            builder.get_with_hints((rows, width), name, Init::Randn { mean: 0.0, stdev })
        };
        let projection = normal((width as f64).powf(-0.5));
        Ok(Self {
            token_embedding: embed(vocab_size, "token_embedding.weight", 0.02)?,
            positional_embedding: embed(text_length, "positional_embedding", 0.01)?
                .to_dtype(builder.dtype())?,
            places: None,
            transformer: Transformer::new(text, builder.pp("transformer"))?,
            ln_final: LayerNorm::new(text, builder.pp("ln_final"))?,
            text_projection: Projection::Plain(builder.get_with_hints(
                (width, embed_dim),
                "text_projection",
                projection,
            )?),
        })
    }

    /// Makes the products ready for inference.
    pub(crate) fn prepare(&mut self, backend: Backend) -> Result<()> {
        self.places = Some(self.positional_embedding.to_dtype(DType::F32)?);
        self.text_projection.prepare(self.positional_embedding.dtype(), backend)?;
        self.transformer.prepare(backend)
    }

    /// `ids`: u32 `[batch, tokens]`. Returns all but the end of the last block: its input, `[batch, tokens, width]`, and its
    /// projections.
    pub(crate) fn before_last(&self, ids: &Tensor) -> Result<(Tensor, Projected)> {
        let (batch, length) = ids.dims2()?;
        let width = self.token_embedding.dim(D::Minus1)?;
        let positions = self.positional_embedding.narrow(0, 0, length)?;
        let embedded = self.token_embedding.index_select(&ids.flatten_all()?, 0)?;
        let embedded = cast(&embedded, positions.dtype())?.reshape((batch, length, width))?;
        let x = match &self.places {
            Some(places) => placed(&embedded, &places.narrow(0, 0, length)?)?,
            None => embedded.broadcast_add(&positions)?.to_dtype(DType::F32)?,
        };
        self.transformer.before_last(x, &Mask::Causal)
    }

    /// The projected tokens `[rows, embedding]` that `rows` names of the batch's `batch * tokens`, given what
    /// [`Self::before_last`] made: nobody looks at the others.
    pub(crate) fn finish(&self, x: &Tensor, projected: &Projected, rows: &Tensor) -> Result<Tensor> {
        let x = self.transformer.last_tokens(x, projected, &Mask::Causal, rows)?;
        self.text_projection.forward(&self.ln_final.forward(&x)?)
    }
}
