//! From a text to the ids that the text tower takes.

use crate::{ClipTokenizer, hugging_face::HfTokenizer};

/// A checkpoint folder's tokeniser.
#[derive(Debug)]
pub(crate) enum TextEncoder {
    Clip(Box<ClipTokenizer>),
    HuggingFace(Box<HfTokenizer>),
}

impl TextEncoder {
    /// `length` ids of a text, marks included and zeros behind; `None` where it holds no word.
    ///
    /// # Errors
    /// Why the tokeniser fails at the text.
    pub(crate) fn row(&self, text: &str, length: usize) -> Result<Option<Vec<u32>>, String> {
        match self {
            Self::Clip(tokenizer) => {
                let words = tokenizer.tokens(text, length);
                Ok((!words.is_empty()).then(|| tokenizer.framed(words, length)))
            }
            Self::HuggingFace(tokenizer) => {
                let mut row = tokenizer.encode(text)?;
                if let Some(ids) = &mut row {
                    ids.resize(length, 0);
                }
                Ok(row)
            }
        }
    }

    /// Hex digest of the vocabulary.
    pub(crate) fn fingerprint(&self) -> &str {
        match self {
            Self::Clip(tokenizer) => tokenizer.fingerprint(),
            Self::HuggingFace(tokenizer) => tokenizer.fingerprint(),
        }
    }
}
