//! Packing: several texts about one image share one row, so that the image is computed once.

use candle_core::{Device, Result, Tensor};
use thicket_qwen::{Mask, Position, QwenModel, next_position, position_ids};

/// A token that the model should foresee.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Target {
    /// Index, in the section, of the token whose successor is asked for.
    pub(crate) at: usize,
    /// The token that should follow.
    pub(crate) token: u32,
    /// Weight in the loss.
    pub(crate) weight: f32,
}

/// One text. It sees the row's prefix and itself; its positions go on from the prefix.
#[derive(Debug, Clone, Default)]
pub(crate) struct Section {
    pub(crate) tokens: Vec<u32>,
    pub(crate) targets: Vec<Target>,
}

impl Section {
    /// A question and its answer: every token of the answer is a target.
    pub(crate) fn answered(question: Vec<u32>, answer: &[u32], weight: f32) -> Self {
        let start = question.len();
        let targets = answer
            .iter()
            .enumerate()
            .map(|(index, &token)| Target { at: start + index - 1, token, weight })
            .collect();
        let mut tokens = question;
        // Nothing follows the last token of an answer, so it is not fed in.
        tokens.extend_from_slice(&answer[..answer.len().saturating_sub(1)]);
        Self { tokens, targets }
    }
}

/// A prefix, at most one image in it, and the texts that share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Row {
    /// Tokens seen by all sections; empty for rows without an image.
    pub(crate) prefix: Vec<u32>,
    /// (rows, columns) of the image's tokens.
    pub(crate) grid: Option<(usize, usize)>,
    pub(crate) sections: Vec<Section>,
}

impl Row {
    fn len(&self) -> usize {
        self.prefix.len() + self.sections.iter().map(|section| section.tokens.len()).sum::<usize>()
    }
}

/// Rows brought to one length.
#[derive(Debug)]
pub(crate) struct Batch {
    rows: usize,
    length: usize,
    tokens: Vec<u32>,
    positions: Vec<Position>,
    sections: Tensor,
    /// u32 (targets): flat index of the predicting token.
    at: Tensor,
    /// u32 (targets, 1)
    wanted: Tensor,
    /// f32 (targets)
    weights: Tensor,
}

impl Batch {
    /// Joins rows. Padding is a section of its own with no targets.
    pub(crate) fn new(rows: &[Row], image_token: u32) -> Result<Self> {
        let length = rows.iter().map(Row::len).max().unwrap_or(0);
        let mut batch = Lists::default();
        for (index, row) in rows.iter().enumerate() {
            batch.push(row, index * length, length, image_token)?;
        }
        let count = batch.wanted.len();
        let device = &Device::Cpu;
        Ok(Self {
            rows: rows.len(),
            length,
            tokens: batch.tokens,
            positions: batch.positions,
            sections: Tensor::from_vec(batch.sections, (rows.len(), length), device)?,
            at: Tensor::from_vec(batch.at, count, device)?,
            wanted: Tensor::from_vec(batch.wanted, (count, 1), device)?,
            weights: Tensor::from_vec(batch.weights, count, device)?,
        })
    }

    /// Weighted mean of the cross-entropy over all targets. `images` are the image tokens of the rows that have one.
    pub(crate) fn loss(&self, model: &QwenModel, images: &[&Tensor]) -> Result<Tensor> {
        let logits = self.logits(model, images)?;
        let log_p = candle_nn::ops::log_softmax(&logits, 1)?.gather(&self.wanted, 1)?.squeeze(1)?;
        let total = self.weights.sum_all()?.to_scalar::<f32>()?;
        (log_p * &self.weights)?.sum_all()?.affine(-1.0 / f64::from(total.max(1e-6)), 0.0)
    }

    /// How much more each target's position favours `yes` than `no`, in logits, target by target.
    pub(crate) fn margins(
        &self,
        model: &QwenModel,
        images: &[&Tensor],
        yes: u32,
        no: u32,
    ) -> Result<Vec<f32>> {
        let logits = self.logits(model, images)?;
        let column = |token: u32| logits.narrow(1, token as usize, 1)?.squeeze(1);
        (column(yes)? - column(no)?)?.to_vec1()
    }

    /// (targets, vocabulary)
    fn logits(&self, model: &QwenModel, images: &[&Tensor]) -> Result<Tensor> {
        let x = model.embed(&self.tokens, images)?.reshape((self.rows, self.length, ()))?;
        let mask = Mask::Sections(self.sections.clone());
        let hidden = model.language.forward_dense(&x, &self.positions, &mask)?.flatten(0, 1)?;
        model.language.logits(&hidden.index_select(&self.at, 0)?)
    }
}

#[derive(Default)]
struct Lists {
    tokens: Vec<u32>,
    positions: Vec<Position>,
    sections: Vec<u32>,
    at: Vec<u32>,
    wanted: Vec<u32>,
    weights: Vec<f32>,
}

impl Lists {
    fn push(&mut self, row: &Row, start: usize, length: usize, image_token: u32) -> Result<()> {
        let prefix = position_ids(&row.prefix, image_token, row.grid.as_slice())
            .map_err(|cause| candle_core::Error::Msg(cause.to_string()))?;
        let first = next_position(&prefix);
        self.tokens.extend_from_slice(&row.prefix);
        self.positions.extend(prefix);
        self.sections.extend(std::iter::repeat_n(0, row.prefix.len()));
        let mut number = 0;
        for section in &row.sections {
            number += 1;
            let offset = self.tokens.len() as u32;
            self.tokens.extend_from_slice(&section.tokens);
            self.positions.extend((0..section.tokens.len() as u32).map(|index| [first + index; 3]));
            self.sections.extend(std::iter::repeat_n(number, section.tokens.len()));
            for target in &section.targets {
                self.at.push(offset + target.at as u32);
                self.wanted.push(target.token);
                self.weights.push(target.weight);
            }
        }
        let padding = start + length - self.tokens.len();
        self.tokens.extend(std::iter::repeat_n(0, padding));
        self.positions.extend(std::iter::repeat_n([0; 3], padding));
        self.sections.extend(std::iter::repeat_n(number + 1, padding));
        Ok(())
    }
}
