use candle_core::{DType, Device, Error, Result, Tensor};
use candle_nn::VarBuilder;
use thicket_kernels::{Backend, among_workers};

use crate::{
    Config, EndMark,
    block::Projected,
    names,
    selection::{TokenSelection, attention_row, largest},
    text::TextTower,
    vision::VisionTower,
};

/// Weight given to a token that must not be selected; attention weights are never negative.
const NEVER: f32 = -1.0;

/// What the image tower makes of a batch; nothing is normalised.
#[derive(Debug, Clone)]
pub struct ImageFeatures {
    /// Global embedding, f32 `[batch, embed_dim]`.
    pub bge: Tensor,
    /// Token-selection embedding, f32 `[batch, tse dim]`, where the model has one.
    pub tse: Option<Tensor>,
    /// Every projected token, `[batch, tokens, embed_dim]` in the model's dtype, the class token first, then the
    /// patches row by row.
    pub tokens: Tensor,
}

/// What the text tower makes of a batch; nothing is normalised.
#[derive(Debug, Clone)]
pub struct TextFeatures {
    /// Global embedding, f32 `[batch, embed_dim]`.
    pub bge: Tensor,
    /// Token-selection embedding, f32 `[batch, tse dim]`, where the model has one.
    pub tse: Option<Tensor>,
}

/// The two-tower network.
///
/// Its outputs are differentiable in all weights; only the choice of tokens in the selection is not, and batch
/// normalisation always uses its running statistics.
#[derive(Debug, Clone)]
pub struct TwoTower {
    config: Config,
    vision: VisionTower,
    text: TextTower,
    image_selection: Option<TokenSelection>,
    text_selection: Option<TokenSelection>,
}

impl TwoTower {
    /// Takes the weights from `builder`, by their names in published checkpoints. A builder over a `VarMap` makes a
    /// fresh model with CLIP's own initialisation.
    ///
    /// # Errors
    /// Sizes that make no model, and the builder's errors, which name the tensor.
    pub fn new(config: &Config, builder: VarBuilder<'_>) -> Result<Self> {
        config.validate().map_err(|cause| Error::Msg(cause.to_string()))?;
        let base = builder.pp(names::BASE);
        let selection = |prefix: &str, projection: &str| {
            config
                .tse
                .map(|tse| {
                    let builder = builder.pp(prefix);
                    TokenSelection::new(config.embed_dim, tse.hidden, tse.dim, projection, builder)
                })
                .transpose()
        };
        Ok(Self {
            config: config.clone(),
            vision: VisionTower::new(config, base.pp("visual"))?,
            text: TextTower::new(config, base)?,
            image_selection: selection(names::IMAGE_TSE, "fc")?,
            text_selection: selection(names::TEXT_TSE, "linear")?,
        })
    }

    /// Makes a model ready for inference: where the backend multiplies, the matrices of the blocks are packed, one after
    /// the other. The model has no gradients from then on.
    ///
    /// # Errors
    /// A failure of the backend.
    pub fn prepare(&mut self, backend: Backend) -> Result<()> {
        self.vision.prepare(backend)?;
        self.text.prepare(backend)
    }

    /// The sizes of the model.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Encodes CLIP-normalised pixels, `[batch, 3, height, width]` of the configured size.
    ///
    /// # Errors
    /// Another shape, or a failure of the device.
    pub fn encode_image(&self, pixels: &Tensor) -> Result<ImageFeatures> {
        self.check_pixels(pixels)?;
        let (tokens, projected) = self.vision.forward(pixels)?;
        let bge = tokens.narrow(1, 0, 1)?.squeeze(1)?.to_dtype(DType::F32)?;
        let tse = match &self.image_selection {
            None => None,
            Some(selection) => {
                let selected = self.selected_patches(&projected.q.narrow(2, 0, 1)?, &projected.k)?;
                Some(selection.forward(&tokens, &selected)?)
            }
        };
        Ok(ImageFeatures { bge, tse, tokens })
    }

    /// As [`Self::encode_image`] without the tokens: those that no embedding is made of are not finished. Returns the
    /// embeddings `bge` and `tse`, in f32 bit for bit the same.
    ///
    /// # Errors
    /// As [`Self::encode_image`].
    pub fn embed_image(&self, pixels: &Tensor) -> Result<(Tensor, Option<Tensor>)> {
        among_workers(pixels.device(), || self.embedded_image(pixels))
    }

    fn embedded_image(&self, pixels: &Tensor) -> Result<(Tensor, Option<Tensor>)> {
        self.check_pixels(pixels)?;
        let (batch, all) = (pixels.dim(0)?, self.config.image_tokens());
        let mut finished = 1;
        let tokens = self.vision.forward_rows(pixels, |last| {
            let mut chosen = vec![vec![0]; batch];
            if self.image_selection.is_some() {
                let class: Vec<u32> = (0..batch).map(|image| (image * all) as u32).collect();
                let query = last.queries(&Tensor::new(class, pixels.device())?)?;
                for (chosen, selected) in chosen.iter_mut().zip(self.selected_patches(&query, last.keys())?) {
                    chosen.extend(selected);
                }
            }
            finished = chosen.first().map_or(1, Vec::len);
            let rows: Vec<u32> = chosen
                .iter()
                .enumerate()
                .flat_map(|(image, chosen)| chosen.iter().map(move |token| (image * all) as u32 + token))
                .collect();
            Tensor::new(rows, pixels.device())
        })?;
        let bge = tokens.narrow(1, 0, 1)?.squeeze(1)?.to_dtype(DType::F32)?;
        let selected = vec![(1..finished as u32).collect::<Vec<u32>>(); batch];
        let tse = self.image_selection.as_ref().map(|selection| selection.forward(&tokens, &selected));
        Ok((bge, tse.transpose()?))
    }

    fn check_pixels(&self, pixels: &Tensor) -> Result<()> {
        let (_, channels, height, width) = pixels.dims4()?;
        if channels == 3 && (height, width) == self.config.image_size {
            return Ok(());
        }
        let (rows, columns) = self.config.image_size;
        Err(Error::Msg(format!(
            "pixels of shape {:?}, the model takes [batch, 3, {rows}, {columns}]",
            pixels.dims()
        )))
    }

    /// The patches of each image that its class token attends to most, as many for each: of that token's query, `[batch, heads, 1, head
    /// width]`, and all keys.
    fn selected_patches(&self, query: &Tensor, keys: &Tensor) -> Result<Vec<Vec<u32>>> {
        let weights = attention_row(query, keys, None)?;
        let selected = weights.into_iter().map(|mut weights| {
            weights[0] = NEVER;
            largest(&weights, self.config.selected_patches())
        });
        Ok(selected.collect())
    }

    /// Encodes token ids, u32 `[batch, length]`, as [`crate::ClipTokenizer::encode`] makes them: at most
    /// [`Config::text_length`] of them, padded with 0 behind the end mark, which [`Config::end_mark`] tells.
    ///
    /// Columns that are padding in every row cost nothing: no token sees what comes after it, so they are left out.
    ///
    /// # Errors
    /// Another shape, an id outside the vocabulary, or a failure of the device.
    pub fn encode_text(&self, ids: &Tensor) -> Result<TextFeatures> {
        among_workers(ids.device(), || self.encoded_text(ids))
    }

    fn encoded_text(&self, ids: &Tensor) -> Result<TextFeatures> {
        let (batch, length) = ids.dims2()?;
        if length == 0 || length > self.config.text_length {
            let limit = self.config.text_length;
            return Err(Error::Msg(format!("texts of {length} tokens, the model takes 1 to {limit}")));
        }
        let rows = ids.to_dtype(DType::U32)?.to_device(&Device::Cpu)?.to_vec2::<u32>()?;
        if let Some(&id) = rows.iter().flatten().find(|&&id| id as usize >= self.config.vocab_size) {
            let limit = self.config.vocab_size;
            return Err(Error::Msg(format!("token id {id}, the vocabulary has {limit} entries")));
        }
        let used = rows.iter().map(|row| used_length(row)).max().unwrap_or(0).max(1);
        let ends: Vec<usize> = rows.iter().map(|row| end_position(row, self.config.end_mark)).collect();

        let ids = ids.narrow(1, 0, used)?.to_dtype(DType::U32)?.contiguous()?;
        let (x, projected) = self.text.before_last(&ids)?;
        let selected = match &self.text_selection {
            None => vec![Vec::new(); batch],
            Some(_) => self.selected_words(&projected, &rows, &ends, used)?,
        };
        // The end mark of each text and then its words, as many for each, the end mark again where there are fewer.
        let most = selected.iter().map(Vec::len).max().unwrap_or(0);
        let finished: Vec<u32> = ends
            .iter()
            .zip(&selected)
            .enumerate()
            .flat_map(|(text, (&end, selected))| {
                let tokens = std::iter::once(end as u32).chain(selected.iter().copied());
                let filler = std::iter::repeat_n(end as u32, most - selected.len());
                tokens.chain(filler).map(move |token| (text * used) as u32 + token)
            })
            .collect();
        let tokens = self.text.finish(&x, &projected, &Tensor::new(finished, ids.device())?)?;
        let tokens = tokens.reshape((batch, 1 + most, self.config.embed_dim))?;
        let bge = tokens.narrow(1, 0, 1)?.squeeze(1)?.to_dtype(DType::F32)?;
        let selected: Vec<Vec<u32>> =
            selected.iter().map(|words| (1..=words.len() as u32).collect()).collect();
        let tse = self.text_selection.as_ref().map(|selection| selection.forward(&tokens, &selected));
        Ok(TextFeatures { bge, tse: tse.transpose()? })
    }

    /// The words of each text that its end mark attends to most.
    fn selected_words(
        &self,
        projected: &Projected,
        rows: &[Vec<u32>],
        ends: &[usize],
        used: usize,
    ) -> Result<Vec<Vec<u32>>> {
        let (batch, heads, _, head_dim) = projected.q.dims4()?;
        let device = projected.q.device();
        let end_rows: Vec<u32> =
            ends.iter().enumerate().map(|(row, end)| (row * used + end) as u32).collect();
        let end_query = projected
            .q
            .detach()
            .transpose(1, 2)?
            .reshape((batch * used, heads * head_dim))?
            .index_select(&Tensor::new(end_rows, device)?, 0)?
            .reshape((batch, heads, 1, head_dim))?;
        let future = future_mask(ends, used, device)?;
        let weights = attention_row(&end_query, &projected.k, Some(&future))?;
        let selected = weights.into_iter().zip(rows).zip(ends).map(|((weights, ids), &end)| {
            selected_words(weights, &ids[..used], end, self.config.selected_words())
        });
        Ok(selected.collect())
    }
}

/// Length of a row of ids without the padding at its end.
fn used_length(ids: &[u32]) -> usize {
    ids.iter().rposition(|&id| id != 0).map_or(0, |last| last + 1)
}

/// First position of the end mark; 0 where a text has none, as in the published code.
fn end_position(ids: &[u32], mark: EndMark) -> usize {
    let mark = match mark {
        EndMark::Largest => ids.iter().copied().max(),
        EndMark::Id(id) => Some(id),
    };
    ids.iter().position(|&id| Some(id) == mark).unwrap_or(0)
}

/// Minus infinity behind the end of each row, as `[batch, 1, 1, length]`.
fn future_mask(ends: &[usize], length: usize, device: &Device) -> Result<Tensor> {
    let mask: Vec<f32> = ends
        .iter()
        .flat_map(|&end| (0..length).map(move |key| if key > end { f32::NEG_INFINITY } else { 0.0 }))
        .collect();
    Tensor::from_vec(mask, (ends.len(), 1, 1, length), device)
}

/// The words that the end mark attends to most: at most `limit`, and at most as many as there are.
///
/// `weights` are those of the end mark's query. Id 0 counts as padding even inside a text, as in the published code;
/// where nothing else is left, one token is selected all the same, where the published code has no answer.
fn selected_words(mut weights: Vec<f32>, ids: &[u32], end: usize, limit: usize) -> Vec<u32> {
    let marks = 2;
    let words = ids.iter().filter(|&&id| id != 0).count().saturating_sub(marks);
    for (weight, &id) in weights.iter_mut().zip(ids) {
        if id == 0 {
            *weight = 0.0;
        }
    }
    weights[0] = NEVER;
    weights[end] = NEVER;
    largest(&weights, words.min(limit).max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padding_marks_and_id_zero_are_not_selected() {
        let ids = [90, 5, 0, 6, 7, 91, 0, 0];
        let weights = vec![0.4, 0.1, 0.3, 0.05, 0.1, 0.05, 0.0, 0.0];
        assert_eq!(selected_words(weights.clone(), &ids, 5, 6), [1, 3, 4]);
        assert_eq!(selected_words(weights, &ids, 5, 2), [1, 4]);
    }

    #[test]
    fn a_text_of_nothing_but_id_zero_still_selects_a_token() {
        assert_eq!(selected_words(vec![0.5, 0.2, 0.3], &[90, 0, 91], 2, 4), [1]);
    }

    #[test]
    fn the_end_is_the_first_largest_id_or_the_first_of_a_given_id() {
        assert_eq!(end_position(&[90, 3, 91, 4, 91, 0], EndMark::Largest), 2);
        assert_eq!(end_position(&[90, 3, 91, 4, 4, 0], EndMark::Id(4)), 3);
        assert_eq!(end_position(&[90, 3, 91], EndMark::Id(7)), 0);
        assert_eq!(used_length(&[90, 0, 91, 0, 0]), 3);
        assert_eq!(used_length(&[0, 0]), 0);
    }
}
