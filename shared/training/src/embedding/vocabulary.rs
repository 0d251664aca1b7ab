//! A small CLIP vocabulary: the merge list of a byte-pair encoding, learnt from the sample's texts.

use std::{collections::BTreeMap, fmt::Write as _, fs, path::Path};

use thicket_clip::{ClipTokenizer, VOCABULARY_FILE};
use tokenizers::models::bpe::{BPE, BpeTrainer};

use crate::TrainingError;

/// Entries of a CLIP vocabulary that are not merges: 256 bytes, the same at the end of a word, and two marks.
const BASE: usize = 514;
const END_OF_WORD: &str = "</w>";

/// A merge list in the published file format.
#[derive(Debug)]
pub(crate) struct Vocabulary {
    pub(crate) file: String,
    /// Entries, marks included.
    pub(crate) size: usize,
}

/// The vocabulary of an earlier model, to go on with.
pub(crate) fn of(folder: &Path) -> Result<Vocabulary, TrainingError> {
    let path = folder.join(VOCABULARY_FILE);
    let file = fs::read_to_string(&path).map_err(|cause| {
        TrainingError::model("reading a vocabulary", format!("{}: {cause}", path.display()))
    })?;
    let size = BASE + file.lines().skip(1).filter(|line| !line.is_empty()).count();
    Ok(Vocabulary { file, size })
}

/// Learns the merges that make one symbol of every word that occurs twice, at most `merges` of them.
pub(crate) fn learn(texts: impl Iterator<Item = String>, merges: usize) -> Result<Vocabulary, TrainingError> {
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    for text in texts {
        let text = ClipTokenizer::clean(&text);
        for word in text.split(|c: char| !c.is_ascii_alphabetic()).filter(|word| !word.is_empty()) {
            *counts.entry(word.to_string()).or_default() += 1;
        }
    }
    let failed = |cause: &dyn std::fmt::Display| TrainingError::model("learning the vocabulary", cause);
    let letters: std::collections::HashSet<char> = ('a'..='z').collect();
    let trainer = BpeTrainer::builder()
        .vocab_size(2 * letters.len() + merges)
        .min_frequency(2)
        .show_progress(false)
        .initial_alphabet(letters)
        .end_of_word_suffix(END_OF_WORD.to_string())
        .build();
    let mut model = BPE::default();
    let words = counts.iter().map(|(word, &count)| (word.as_str().into(), count)).collect();
    trainer.do_train(&words, &mut model).map_err(|cause| failed(&cause))?;
    let json = serde_json::to_value(&model).map_err(|cause| failed(&cause))?;
    let learnt = json["merges"].as_array().map(Vec::as_slice).unwrap_or_default();
    let mut file = "#version: 0.2, merges of the built-in sample\n".to_string();
    let mut size = BASE;
    for merge in learnt.iter().take(merges) {
        let (left, right) = match merge {
            serde_json::Value::Array(pair) => (pair[0].as_str(), pair[1].as_str()),
            other => other
                .as_str()
                .and_then(|text| text.split_once(' '))
                .map_or((None, None), |(a, b)| (Some(a), Some(b))),
        };
        let (Some(left), Some(right)) = (left, right) else {
            return Err(failed(&"a merge that is no pair"));
        };
        writeln!(file, "{left} {right}").map_err(|cause| failed(&cause))?;
        size += 1;
    }
    Ok(Vocabulary { file, size })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_learnt_word_is_one_token_between_the_marks() {
        let texts = (0..30).map(|_| "A woman in a red coat. She wears a red coat".to_string());
        let vocabulary = learn(texts, 100).unwrap();
        let tokenizer = ClipTokenizer::from_reader(vocabulary.file.as_bytes(), vocabulary.size).unwrap();
        let ids = tokenizer.encode("red coat", 8);
        assert_eq!(ids.iter().filter(|&&id| id != 0).count(), 4, "{ids:?}");
        assert_eq!(tokenizer.vocab_size(), vocabulary.size);
    }
}
