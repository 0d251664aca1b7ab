use std::fmt;

use candle_transformers::generation::{LogitsProcessor, Sampling as Strategy};
use thicket_engine::{EngineError, Sampling, Verdict};

use crate::{prompt::PromptEncoder, readout::WordLogits};

/// Highest sampling temperature accepted.
const MAX_TEMPERATURE: f64 = 10.0;

const YES_WORDS: [&str; 6] = ["Yes", "yes", "YES", " Yes", " yes", " YES"];
const NO_WORDS: [&str; 6] = ["No", "no", "NO", " No", " no", " NO"];

/// Refuses a sampling out of range.
pub(crate) fn check(sampling: &Sampling) -> Result<(), EngineError> {
    if sampling.max_tokens == 0 {
        return Err(EngineError::invalid("max_tokens", "at least 1 expected, got 0"));
    }
    let temperature = sampling.temperature;
    if !(0.0..=MAX_TEMPERATURE).contains(&temperature) {
        let reason = format!("0 to {MAX_TEMPERATURE} expected, got {temperature}");
        return Err(EngineError::invalid("temperature", reason));
    }
    Ok(())
}

/// The tokens that mean Yes and No.
#[derive(Debug)]
pub(crate) struct Words {
    yes: Vec<u32>,
    no: Vec<u32>,
}

impl Words {
    pub(crate) fn of(encoder: &PromptEncoder) -> Self {
        Self { yes: encoder.single_tokens(&YES_WORDS), no: encoder.single_tokens(&NO_WORDS) }
    }

    /// The tokens for Yes, then those for No.
    pub(crate) fn all(&self) -> Vec<u32> {
        self.yes.iter().chain(&self.no).copied().collect()
    }

    /// As [`Self::verdict`], from the logits of [`Self::all`] and the sum over the vocabulary.
    pub(crate) fn verdict_of_parts(
        &self,
        parts: &WordLogits,
        prompt_tokens: usize,
    ) -> Result<Verdict, EngineError> {
        if !parts.log_sum_exp.is_finite() {
            return Err(EngineError::internal("judging", "the logits are not numbers"));
        }
        let (yes, no) = (parts.share(0..self.yes.len()), parts.share(self.yes.len()..parts.words.len()));
        let p_yes = if yes + no > 0.0 { yes / (yes + no) } else { 0.0 };
        Ok(Verdict { p_yes, mass: (yes + no).min(1.0), prompt_tokens })
    }

    /// Reads p(Yes) from the logits (vocab) of the first answer token.
    pub(crate) fn verdict(&self, logits: &[f32], prompt_tokens: usize) -> Result<Verdict, EngineError> {
        let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let weight = |logit: f32| f64::from(logit - largest).exp();
        let total: f64 = logits.iter().map(|&logit| weight(logit)).sum();
        if !total.is_finite() {
            return Err(EngineError::internal("judging", "the logits are not numbers"));
        }
        let share = |words: &[u32]| words.iter().map(|&word| weight(logits[word as usize])).sum::<f64>();
        let (yes, no) = (share(&self.yes), share(&self.no));
        let p_yes = if yes + no > 0.0 { yes / (yes + no) } else { 0.0 };
        Ok(Verdict { p_yes, mass: ((yes + no) / total).min(1.0), prompt_tokens })
    }
}

/// Chooses the next token of one sequence.
pub(crate) enum Chooser {
    Greedy,
    Sampled(Box<LogitsProcessor>),
}

impl fmt::Debug for Chooser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Greedy => "Greedy",
            Self::Sampled(_) => "Sampled",
        })
    }
}

impl Chooser {
    pub(crate) fn new(sampling: &Sampling) -> Self {
        if sampling.temperature == 0.0 {
            return Self::Greedy;
        }
        let strategy = Strategy::All { temperature: sampling.temperature };
        Self::Sampled(Box::new(LogitsProcessor::from_sampling(sampling.seed, strategy)))
    }
}

/// Index of the largest value, each made f32 by `wide`, the first of equals; `None` where a value is not a number.
pub(crate) fn argmax<T: Copy>(values: &[T], wide: impl Fn(T) -> f32) -> Option<u32> {
    const LANES: usize = 16;
    // The largest and then its place: a loop that looked for both could not be done in vectors.
    let mut largest = [f32::NEG_INFINITY; LANES];
    let mut no_number = [false; LANES];
    let (chunks, rest) = values.as_chunks::<LANES>();
    for chunk in chunks.iter().map(<[T; LANES]>::as_slice).chain([rest]) {
        for ((largest, no_number), value) in largest.iter_mut().zip(&mut no_number).zip(chunk) {
            let value = wide(*value);
            *no_number |= value.is_nan();
            *largest = if value > *largest { value } else { *largest };
        }
    }
    if no_number.contains(&true) {
        return None;
    }
    let largest = largest.into_iter().fold(f32::NEG_INFINITY, f32::max);
    Some(values.iter().position(|value| wide(*value) == largest).unwrap_or(0) as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_equal_values_is_chosen() {
        let same = |value: f32| value;
        assert_eq!(argmax(&[1.0, 3.0, 3.0, 2.0], same), Some(1));
        for place in 0..40 {
            let mut values = [-2.0; 40];
            values[place..].fill(-1.0);
            assert_eq!(argmax(&values, same), Some(place as u32));
        }
        assert_eq!(argmax(&[f32::NEG_INFINITY; 20], same), Some(0));
    }

    #[test]
    fn logits_that_are_not_numbers_have_no_largest() {
        for place in 0..40 {
            let mut values = [1.0; 40];
            values[place] = f32::NAN;
            assert_eq!(argmax(&values, |value| value), None);
        }
    }
}
