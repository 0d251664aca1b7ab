//! The vocabulary of a small answer model: byte-level BPE in the form of Qwen2's, learnt from the sample's texts.

use std::{collections::HashSet, path::Path};

use tokenizers::{
    AddedToken, SplitDelimiterBehavior, Tokenizer,
    decoders::byte_level::ByteLevel as ByteLevelDecoder,
    models::{
        TrainerWrapper,
        bpe::{BPE, BpeTrainer},
    },
    normalizers::unicode::NFC,
    pre_tokenizers::{
        byte_level::ByteLevel,
        sequence::Sequence,
        split::{Split, SplitPattern},
    },
};

use crate::TrainingError;

/// Where a model folder keeps its vocabulary.
pub(super) const FILE: &str = "tokenizer.json";

/// How Qwen2 cuts a text before BPE.
const SPLIT: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// The marks of the Qwen2-VL chat format, in the order of the published models.
const MARKS: [&str; 8] = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
];

/// Learns at most `size` symbols from `texts` and adds the marks.
pub(crate) fn learn(texts: &[String], size: usize) -> Result<Tokenizer, TrainingError> {
    let failed = |cause: tokenizers::Error| TrainingError::model("learning the vocabulary", cause);
    let mut tokenizer = Tokenizer::new(BPE::default());
    let split = Split::new(SplitPattern::Regex(SPLIT.to_string()), SplitDelimiterBehavior::Isolated, false)
        .map_err(failed)?;
    let bytes = ByteLevel::new(false, false, false);
    tokenizer.with_normalizer(Some(NFC)).map_err(failed)?;
    tokenizer.with_pre_tokenizer(Some(Sequence::new(vec![split.into(), bytes.into()])));
    tokenizer.with_decoder(Some(ByteLevelDecoder::default()));
    let alphabet: HashSet<char> = ByteLevel::alphabet().into_iter().collect();
    let trainer = BpeTrainer::builder()
        .vocab_size(size)
        .min_frequency(2)
        .show_progress(false)
        .initial_alphabet(alphabet)
        .build();
    tokenizer.train(&mut TrainerWrapper::from(trainer), texts.iter()).map_err(failed)?;
    let marks: Vec<AddedToken> = MARKS.iter().map(|&mark| AddedToken::from(mark, true)).collect();
    tokenizer.add_special_tokens(marks).map_err(failed)?;
    Ok(tokenizer)
}

/// The vocabulary of an earlier model, to go on with.
pub(crate) fn of(folder: &Path) -> Result<Tokenizer, TrainingError> {
    let path = folder.join(FILE);
    Tokenizer::from_file(&path)
        .map_err(|cause| TrainingError::model("reading a vocabulary", format!("{}: {cause}", path.display())))
}

/// The id of a mark.
pub(crate) fn mark(tokenizer: &Tokenizer, mark: &'static str) -> Result<u32, TrainingError> {
    tokenizer
        .token_to_id(mark)
        .ok_or_else(|| TrainingError::model("learning the vocabulary", format!("no token {mark}")))
}

pub(crate) fn save(tokenizer: &Tokenizer, path: &Path) -> Result<(), TrainingError> {
    tokenizer.save(path, false).map_err(|cause| TrainingError::model("writing tokenizer.json", cause))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frequent_words_become_one_token_and_any_text_survives() {
        let texts = vec!["Yes No. A man in a red coat, a man in a blue coat. Yes No".to_string(); 20];
        let tokenizer = learn(&texts, 600).unwrap();
        assert_eq!(tokenizer.encode("Yes", false).unwrap().len(), 1);
        assert_eq!(tokenizer.encode(" coat", false).unwrap().len(), 1);
        let odd = "Zürich 12 😀\n";
        let ids = tokenizer.encode(odd, false).unwrap();
        assert_eq!(tokenizer.decode(ids.get_ids(), true).unwrap(), odd);
    }

    #[test]
    fn learning_twice_gives_the_same_vocabulary() {
        let texts: Vec<String> = (0..200).map(|i| format!("word{} and w{} again", i % 7, i % 3)).collect();
        let ids = |tokenizer: &Tokenizer| {
            let mut ids: Vec<(String, u32)> = tokenizer.get_vocab(true).into_iter().collect();
            ids.sort();
            ids
        };
        assert_eq!(ids(&learn(&texts, 320).unwrap()), ids(&learn(&texts, 320).unwrap()));
    }
}
