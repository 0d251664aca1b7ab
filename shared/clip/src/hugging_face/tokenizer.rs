//! The tokeniser of a Hugging Face folder.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};
use tokenizers::{Tokenizer, TruncationParams};

use crate::{ClipError, Config, EndMark};

const TOKENIZER_FILE: &str = "tokenizer.json";
const VOCABULARY_FILE: &str = "vocab.json";
const MERGES_FILE: &str = "merges.txt";
const START: &str = "<|startoftext|>";
const END: &str = "<|endoftext|>";
/// How transformers splits a text when it makes a tokeniser of a vocabulary and a merge list.
const WORDS: &str = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";
/// Lines that transformers reads of a merge list, its heading included.
const MERGE_LINES: usize = 49_152 - 256 - 2 + 1;

/// A tokeniser that puts the marks around a text and cuts it to the model's length.
pub(crate) struct HfTokenizer {
    inner: Tokenizer,
    /// The tokens of a text without a word: the marks.
    marks: usize,
    fingerprint: String,
}

impl fmt::Debug for HfTokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HfTokenizer").field("marks", &self.marks).finish_non_exhaustive()
    }
}

/// Reads `tokenizer.json`, else `vocab.json` and `merges.txt`; `None` where the folder has none of them.
///
/// # Errors
/// [`ClipError::File`] for an unreadable or incomplete set, [`ClipError::Tokenizer`] for one that is damaged or does
/// not fit the model.
pub(crate) fn read(dir: &Path, config: &Config) -> Result<Option<HfTokenizer>, ClipError> {
    let whole = dir.join(TOKENIZER_FILE);
    if crate::folder::holds(&whole)? {
        let text = text(&whole)?;
        return HfTokenizer::new(&whole, text.into_bytes(), config).map(Some);
    }
    let (vocabulary, merges) = (dir.join(VOCABULARY_FILE), dir.join(MERGES_FILE));
    if !crate::folder::holds(&vocabulary)? && !crate::folder::holds(&merges)? {
        return Ok(None);
    }
    let description = describe(&vocabulary, &text(&vocabulary)?, &text(&merges)?)?;
    HfTokenizer::new(&vocabulary, description.to_string().into_bytes(), config).map(Some)
}

fn text(path: &Path) -> Result<String, ClipError> {
    fs::read_to_string(path)
        .map_err(|cause| ClipError::File { path: path.to_path_buf(), reason: cause.to_string() })
}

/// What `tokenizer.json` would be: transformers makes its fast tokeniser of the two files in this way.
fn describe(path: &Path, vocabulary: &str, merges: &str) -> Result<Value, ClipError> {
    let damaged = |reason: String| ClipError::Tokenizer { path: path.to_path_buf(), reason };
    let vocabulary: Value = serde_json::from_str(vocabulary).map_err(|cause| damaged(cause.to_string()))?;
    let id = |token: &str| {
        vocabulary.get(token).cloned().ok_or_else(|| damaged(format!("it has no token {token}")))
    };
    let (start, end) = (id(START)?, id(END)?);
    let merges: Vec<&str> = merges.trim().split('\n').take(MERGE_LINES).skip(1).collect();
    let mark = |content: &str, id: &Value| {
        json!({
            "id": id, "content": content, "normalized": true, "special": true,
            "single_word": false, "lstrip": false, "rstrip": false,
        })
    };
    Ok(json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [mark(START, &start), mark(END, &end)],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "NFC"},
            {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "},
            {"type": "Lowercase"},
        ]},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": WORDS}, "behavior": "Removed", "invert": true},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        ]},
        "post_processor": {
            "type": "RobertaProcessing", "sep": [END, end], "cls": [START, start],
            "trim_offsets": false, "add_prefix_space": false,
        },
        "decoder": null,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": END, "continuing_subword_prefix": "",
            "end_of_word_suffix": "</w>", "fuse_unk": false, "byte_fallback": false,
            "vocab": vocabulary, "merges": merges,
        },
    }))
}

impl HfTokenizer {
    /// `path` is what an error names.
    fn new(path: &Path, description: Vec<u8>, config: &Config) -> Result<Self, ClipError> {
        let refuse = |reason: String| ClipError::Tokenizer { path: PathBuf::from(path), reason };
        let failed = |cause: tokenizers::Error| refuse(first_line(&cause.to_string()));
        let fingerprint = blake3::hash(&description).to_hex().to_string();
        let mut inner = Tokenizer::from_bytes(&description).map_err(failed)?;
        inner.with_padding(None);
        if let Some(&id) = inner.get_vocab(true).values().max()
            && id as usize >= config.vocab_size
        {
            let reason = format!("its largest id is {id}, text_config.vocab_size is {}", config.vocab_size);
            return Err(refuse(reason));
        }
        inner.with_truncation(None).map_err(failed)?;
        let marks = inner.encode_fast("", true).map_err(failed)?.get_ids().to_vec();
        if marks.last().is_none_or(|&id| id == 0) {
            return Err(refuse("it puts no end mark behind a text".to_owned()));
        }
        if let EndMark::Id(id) = config.end_mark
            && !marks.contains(&id)
        {
            let reason = format!("it puts {marks:?} around a text, text_config.eos_token_id is {id}");
            return Err(refuse(reason));
        }
        if marks.len() >= config.text_length {
            let reason = format!(
                "its {} marks leave no room in text_config.max_position_embeddings {}",
                marks.len(),
                config.text_length
            );
            return Err(refuse(reason));
        }
        let cut = TruncationParams { max_length: config.text_length, ..TruncationParams::default() };
        inner.with_truncation(Some(cut)).map_err(failed)?;
        Ok(Self { inner, marks: marks.len(), fingerprint })
    }

    /// Ids of a text with its marks, at most as many as the model takes; `None` where the text holds no word.
    ///
    /// # Errors
    /// Why the tokeniser fails at the text.
    pub(crate) fn encode(&self, text: &str) -> Result<Option<Vec<u32>>, String> {
        let encoding = self.inner.encode_fast(text, true).map_err(|cause| first_line(&cause.to_string()))?;
        let ids = encoding.get_ids();
        Ok((ids.len() > self.marks).then(|| ids.to_vec()))
    }

    /// Hex digest of the tokeniser.
    pub(crate) fn fingerprint(&self) -> &str {
        &self.fingerprint
    }
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}
