//! What is read of logits, and where: a row of the vocabulary's length does not travel from a GPU.

use candle_core::{CpuStorage, D, DType, Result, Storage, Tensor};
use rayon::prelude::*;
use thicket_engine::{EngineError, Verdict};
use thicket_kernels::widened;

use crate::choosing::{Chooser, Words, argmax};

/// Logits (rows, vocab) of a forward pass, read as far as the answers need them.
pub(crate) struct Readout {
    logits: Tensor,
    /// The token of the largest logit of each row.
    largest: Vec<Option<u32>>,
    /// What a GPU reads off by itself for judgements, one a row.
    words: Option<Vec<WordLogits>>,
}

impl Readout {
    /// # Errors
    /// A failure of the device.
    pub(crate) fn new(logits: Tensor, words: &Words) -> Result<Self> {
        if logits.device().is_cpu() {
            let logits = if logits.dtype() == DType::BF16 { logits } else { logits.to_dtype(DType::F32)? };
            return Ok(Self { largest: largest_of_rows(&logits)?, words: None, logits });
        }
        let logits = logits.to_dtype(DType::F32)?;
        let words = Some(word_logits(&logits, &words.all())?);
        Ok(Self { largest: greedy(&logits)?, words, logits })
    }

    /// p(Yes) by one row.
    pub(crate) fn verdict(
        &self,
        row: usize,
        words: &Words,
        prompt_tokens: usize,
    ) -> std::result::Result<Verdict, EngineError> {
        match &self.words {
            Some(parts) => words.verdict_of_parts(&parts[row], prompt_tokens),
            None => {
                let row = self.row(row).and_then(|row| row.to_vec1::<f32>());
                let row = row.map_err(|cause| EngineError::internal("reading logits", cause))?;
                words.verdict(&row, prompt_tokens)
            }
        }
    }

    /// The next token by one row.
    pub(crate) fn choose(&self, row: usize, chooser: &mut Chooser) -> std::result::Result<u32, EngineError> {
        let largest = self.largest[row];
        let largest =
            largest.ok_or_else(|| EngineError::internal("decoding", "the logits are not numbers"))?;
        match chooser {
            Chooser::Greedy => Ok(largest),
            Chooser::Sampled(processor) => self
                .row(row)
                .and_then(|row| processor.sample(&row))
                .map_err(|cause| EngineError::internal("sampling", cause)),
        }
    }

    /// One row in f32.
    fn row(&self, row: usize) -> Result<Tensor> {
        self.logits.get(row)?.to_dtype(DType::F32)
    }
}

/// The token of the largest logit of each row on the processor, bf16 or f32 (rows, vocab), where they are.
fn largest_of_rows(logits: &Tensor) -> Result<Vec<Option<u32>>> {
    let logits = logits.contiguous()?;
    let (rows, vocab) = logits.dims2()?;
    let (storage, layout) = logits.storage_and_layout();
    let values = layout.start_offset()..layout.start_offset() + rows * vocab;
    match &*storage {
        Storage::Cpu(CpuStorage::BF16(all)) => {
            Ok(all[values].par_chunks(vocab).map(|row| argmax(row, widened)).collect())
        }
        Storage::Cpu(CpuStorage::F32(all)) => {
            Ok(all[values].par_chunks(vocab).map(|row| argmax(row, |value| value)).collect())
        }
        _ => candle_core::bail!("logits of {:?} on the processor", logits.dtype()),
    }
}

/// What a judgement needs of a row of logits.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct WordLogits {
    /// Logits of the words asked for, in their order.
    pub(crate) words: Vec<f32>,
    /// Logarithm of the sum of the exponentials of the whole row; not a number where a logit is not.
    pub(crate) log_sum_exp: f32,
}

impl WordLogits {
    /// Sum of the probabilities of the words `from .. to`.
    pub(crate) fn share(&self, words: std::ops::Range<usize>) -> f64 {
        let total = f64::from(self.log_sum_exp);
        self.words[words].iter().map(|&logit| (f64::from(logit) - total).exp()).sum()
    }
}

/// Reads the logits of some words and the sum of all: f32 (rows, vocab), to one a row. What travels is
/// `rows * (words + 1)` values.
///
/// # Errors
/// A word outside the vocabulary, or a failure of the device.
pub(crate) fn word_logits(logits: &Tensor, words: &[u32]) -> Result<Vec<WordLogits>> {
    let totals = logits.log_sum_exp(D::Minus1)?.unsqueeze(1)?;
    let read = if words.is_empty() {
        totals
    } else {
        let chosen = logits.index_select(&Tensor::new(words, logits.device())?, 1)?;
        Tensor::cat(&[&chosen, &totals], 1)?
    };
    let split = |mut row: Vec<f32>| {
        let log_sum_exp = row.pop().unwrap_or(f32::NAN);
        WordLogits { words: row, log_sum_exp }
    };
    Ok(read.to_vec2::<f32>()?.into_iter().map(split).collect())
}

/// The token of the largest logit of each row: f32 (rows, vocab), to one a row; `None` where a logit is not a number or is
/// infinite. Of equal logits the processor takes the first, a GPU any. What travels is two values a row.
///
/// # Errors
/// A failure of the device.
pub(crate) fn greedy(logits: &Tensor) -> Result<Vec<Option<u32>>> {
    let tokens = logits.argmax(D::Minus1)?.to_vec1::<u32>()?;
    let sums = logits.sum(D::Minus1)?.to_vec1::<f32>()?;
    Ok(tokens.into_iter().zip(sums).map(|(token, sum)| sum.is_finite().then_some(token)).collect())
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn rows(rows: usize, vocab: usize) -> Tensor {
        Tensor::randn(0f32, 4.0, (rows, vocab), &Device::Cpu).unwrap()
    }

    #[test]
    fn shares_of_words_are_those_of_the_whole_row_read_on_the_processor() {
        let logits = rows(5, 3000);
        let words = [7, 0, 2999, 12];
        for (read, row) in word_logits(&logits, &words).unwrap().iter().zip(logits.to_vec2::<f32>().unwrap())
        {
            let total: f64 = row.iter().map(|&logit| f64::from(logit).exp()).sum();
            let expected = |words: &[u32]| -> f64 {
                words.iter().map(|&word| f64::from(row[word as usize]).exp()).sum::<f64>() / total
            };
            for range in [0..2, 2..4] {
                let (share, expected) = (read.share(range.clone()), expected(&words[range]));
                assert!((share - expected).abs() <= 1e-5 * expected, "{share} {expected}");
            }
        }
    }

    #[test]
    fn a_row_that_is_not_numbers_has_no_finite_sum() {
        let logits = Tensor::new(&[[1f32, f32::NAN, 3.0], [1.0, 2.0, 3.0]], &Device::Cpu).unwrap();
        let read = word_logits(&logits, &[0]).unwrap();
        assert!(!read[0].log_sum_exp.is_finite());
        assert!(read[1].log_sum_exp.is_finite());
    }

    #[test]
    fn large_logits_do_not_overflow() {
        let logits = Tensor::new(&[[3.0e38f32, 3.0e38, 0.0]], &Device::Cpu).unwrap();
        assert!(word_logits(&logits, &[0]).unwrap()[0].log_sum_exp.is_finite());
    }

    #[test]
    fn no_words_leave_the_sum_alone() {
        let read = word_logits(&rows(2, 9), &[]).unwrap();
        assert!(read.iter().all(|row| row.words.is_empty() && row.log_sum_exp.is_finite()));
    }

    #[test]
    fn the_greedy_token_is_that_of_the_largest_logit_and_the_first_of_equals() {
        let logits = rows(40, 777);
        let expected: Vec<Option<u32>> = logits
            .to_vec2::<f32>()
            .unwrap()
            .iter()
            .map(|row| (0..row.len() as u32).max_by(|&a, &b| row[a as usize].total_cmp(&row[b as usize])))
            .collect();
        assert_eq!(greedy(&logits).unwrap(), expected);
        let equal = Tensor::new(&[[1f32, 3.0, 3.0, 2.0]], &Device::Cpu).unwrap();
        assert_eq!(greedy(&equal).unwrap(), [Some(1)]);
    }

    #[test]
    fn the_processor_reads_the_same_largest_logit_in_either_type() {
        let narrow = rows(7, 500).to_dtype(DType::BF16).unwrap();
        let wide = narrow.to_dtype(DType::F32).unwrap();
        let expected: Vec<_> =
            wide.to_vec2::<f32>().unwrap().into_iter().map(|row| argmax(&row, |value| value)).collect();
        assert_eq!(largest_of_rows(&narrow).unwrap(), expected);
        assert_eq!(largest_of_rows(&wide.narrow(0, 2, 3).unwrap()).unwrap(), expected[2..5]);
    }

    #[test]
    fn a_row_that_is_not_numbers_has_no_greedy_token() {
        let logits = Tensor::new(&[[1f32, f32::NAN, 3.0], [1.0, 2.0, 3.0]], &Device::Cpu).unwrap();
        assert_eq!(greedy(&logits).unwrap(), [None, Some(2)]);
    }
}
