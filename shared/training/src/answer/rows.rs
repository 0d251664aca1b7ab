//! Packing: several texts about one image share one row, so that the image is computed once.

use candle_core::{Device, Result, Tensor};
use thicket_qwen::{Mask, Position, QwenModel, next_position, position_ids};

use super::tutor::{Phrase, Phrases, States, Tutor};

/// A token that the model should foresee.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Target {
    /// Index, in the section, of the token whose successor is asked for.
    pub(crate) at: usize,
    /// The token that should follow.
    pub(crate) token: u32,
}

/// One text. It sees the row's prefix and itself; its positions go on from the prefix.
#[derive(Debug, Clone, Default)]
pub(crate) struct Section {
    pub(crate) tokens: Vec<u32>,
    /// The Yes or No that should follow.
    pub(crate) judgement: Option<Target>,
    /// The words that should follow, where they are more than a judgement.
    pub(crate) answer: Vec<Target>,
    /// Where its phrases end, and what is to be known there.
    pub(crate) phrases: Vec<Phrase>,
}

impl Section {
    /// A question and its answer: every token of the answer is a target.
    pub(crate) fn answered(question: Vec<u32>, answer: &[u32]) -> Self {
        let start = question.len();
        let targets = answer
            .iter()
            .enumerate()
            .map(|(index, &token)| Target { at: start + index - 1, token })
            .collect();
        let mut tokens = question;
        // Nothing follows the last token of an answer, so it is not fed in.
        tokens.extend_from_slice(&answer[..answer.len().saturating_sub(1)]);
        Self { tokens, answer: targets, ..Self::default() }
    }

    /// A question with a Yes or No for an answer.
    pub(crate) fn judged(question: Vec<u32>, word: u32) -> Self {
        let at = question.len().saturating_sub(1);
        Self { tokens: question, judgement: Some(Target { at, token: word }), ..Self::default() }
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
    /// u32 (targets): flat index of the predicting token, the judgements first.
    at: Tensor,
    /// u32 (targets, 1)
    wanted: Tensor,
    judgements: usize,
    phrases: Option<Phrases>,
}

/// What a model makes of a batch.
struct Passed {
    /// (targets, vocabulary)
    logits: Tensor,
    states: States,
}

/// What a model holds of the captions in a batch, in logits: for minus against.
#[derive(Debug, Default)]
pub(crate) struct Margins {
    /// Of every judgement, in order.
    pub(crate) judgements: Vec<f32>,
    /// Of every phrase, in order, with whether it fits.
    pub(crate) phrases: Vec<(f32, Option<bool>)>,
    /// Share of the attributes named by phrases that are told as the image shows them.
    pub(crate) seen: f32,
}

impl Batch {
    /// Joins rows. Padding is a section of its own with no targets.
    pub(crate) fn new(rows: &[Row], image_token: u32) -> Result<Self> {
        let length = rows.iter().map(Row::len).max().unwrap_or(0);
        let mut lists = Lists::default();
        for (index, row) in rows.iter().enumerate() {
            lists.push(row, index * length, length, image_token)?;
        }
        let judgements = lists.judgements.len();
        let targets: Vec<Target> = lists.judgements.into_iter().chain(lists.answers).collect();
        let count = targets.len();
        let at: Vec<u32> = targets.iter().map(|target| target.at as u32).collect();
        let wanted: Vec<u32> = targets.iter().map(|target| target.token).collect();
        let device = &Device::Cpu;
        Ok(Self {
            rows: rows.len(),
            length,
            tokens: lists.tokens,
            positions: lists.positions,
            sections: Tensor::from_vec(lists.sections, (rows.len(), length), device)?,
            at: Tensor::from_vec(at, count, device)?,
            wanted: Tensor::from_vec(wanted, (count, 1), device)?,
            judgements,
            phrases: Phrases::new(&lists.phrases)?,
        })
    }

    /// The sum of the mean losses of the judgements, of the answers' tokens and of what the phrases are to show, as far
    /// as the batch has them. `images` are the image tokens of the rows that have one.
    pub(crate) fn loss(&self, model: &QwenModel, tutor: &Tutor, images: &[&Tensor]) -> Result<Tensor> {
        let passed = self.pass(model, tutor, images)?;
        let surprise =
            candle_nn::ops::log_softmax(&passed.logits, 1)?.gather(&self.wanted, 1)?.squeeze(1)?.neg()?;
        let answers = surprise.dim(0)? - self.judgements;
        let mut parts = Vec::with_capacity(4);
        if self.judgements > 0 {
            parts.push(surprise.narrow(0, 0, self.judgements)?.mean_all()?);
        }
        if answers > 0 {
            parts.push(surprise.narrow(0, self.judgements, answers)?.mean_all()?);
        }
        if let Some(phrases) = &self.phrases {
            let loss = tutor.loss(&passed.states, phrases)?;
            parts.extend([loss.seen, loss.verdict]);
        }
        Tensor::stack(&parts, 0)?.sum_all()
    }

    /// How much the model favours `yes` over `no`.
    pub(crate) fn margins(
        &self,
        model: &QwenModel,
        tutor: &Tutor,
        images: &[&Tensor],
        (yes, no): (u32, u32),
    ) -> Result<Margins> {
        let passed = self.pass(model, tutor, images)?;
        let logits = passed.logits.narrow(0, 0, self.judgements)?;
        let column = |token: u32| logits.narrow(1, token as usize, 1)?.squeeze(1);
        let judgements = (column(yes)? - column(no)?)?.to_vec1()?;
        let Some(phrases) = &self.phrases else {
            return Ok(Margins { judgements, ..Margins::default() });
        };
        let margins = tutor.margins(&passed.states, phrases)?;
        Ok(Margins {
            judgements,
            phrases: margins.into_iter().zip(phrases.verdicts.iter().copied()).collect(),
            seen: tutor.accuracy(&passed.states, phrases)?,
        })
    }

    fn pass(&self, model: &QwenModel, tutor: &Tutor, images: &[&Tensor]) -> Result<Passed> {
        let x = model.embed(&self.tokens, images)?.reshape((self.rows, self.length, ()))?;
        let mask = Mask::Sections(self.sections.clone());
        let mut states = States::default();
        let hidden = model.language.forward_watched(&x, &self.positions, &mask, &mut |passed, state| {
            tutor.keep(&mut states, passed, state);
        })?;
        let hidden = hidden.flatten(0, 1)?.index_select(&self.at, 0)?;
        Ok(Passed { logits: model.language.logits(&hidden)?, states })
    }
}

#[derive(Default)]
struct Lists {
    tokens: Vec<u32>,
    positions: Vec<Position>,
    sections: Vec<u32>,
    judgements: Vec<Target>,
    answers: Vec<Target>,
    phrases: Vec<Phrase>,
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
            let offset = self.tokens.len();
            self.tokens.extend_from_slice(&section.tokens);
            self.positions.extend((0..section.tokens.len() as u32).map(|index| [first + index; 3]));
            self.sections.extend(std::iter::repeat_n(number, section.tokens.len()));
            let over_the_batch = |target: &Target| Target { at: offset + target.at, ..*target };
            self.judgements.extend(section.judgement.iter().map(over_the_batch));
            self.answers.extend(section.answer.iter().map(over_the_batch));
            self.phrases.extend(
                section.phrases.iter().map(|phrase| Phrase { at: offset + phrase.at, ..phrase.clone() }),
            );
        }
        let padding = start + length - self.tokens.len();
        self.tokens.extend(std::iter::repeat_n(0, padding));
        self.positions.extend(std::iter::repeat_n([0; 3], padding));
        self.sections.extend(std::iter::repeat_n(number + 1, padding));
        Ok(())
    }
}
