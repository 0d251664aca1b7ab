use std::{
    fmt,
    fs::File,
    io::{BufRead, BufReader, Cursor},
    path::Path,
};

use instant_clip_tokenizer::{Token, Tokenizer};
use regex::Regex;

use crate::{ClipError, Config, html, repair};

/// Name of the optional vocabulary file in a checkpoint folder.
pub const VOCABULARY_FILE: &str = "bpe_simple_vocab.txt";

/// Symbols for single bytes, inside and at the end of a word.
const BYTE_SYMBOLS: usize = 512;
/// Bytes, and so how far the symbol of one at the end of a word is behind that inside.
const BYTES: u32 = 256;
/// A contraction where case is ignored: the long s is an s.
const LONG_S_CONTRACTION: &str = "'\u{17f}";
/// The start and the end mark.
const MARKS: usize = 2;
/// Entries of the published vocabulary.
const PUBLISHED_SIZE: usize = 49_408;
/// In the published vocabulary the last merge gave its place to the mask of IRRA's training task.
const PUBLISHED_MASK: u32 = 49_405;
/// What the word of that merge, "jekyll", is made of instead. The published code fails at that word.
const PUBLISHED_MASKED_WORD: [u32; 2] = [43_893, 865];
/// Longest word in bytes that is merged as one; beyond, no word of any language, and merging takes quadratic time.
const LONGEST_WORD: usize = 1024;

/// U+0345 belongs to no word: ignoring case it is the letter iota, so that the published pattern's negated class does not
/// match it, and its class of letters does not either.
const WORD_PATTERN: &str = r"(?i:<\|startoftext\|>|<\|mask\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d)|\p{L}+|\p{N}|[^\s\p{L}\p{N}\x{345}]+";

/// CLIP's byte-pair tokeniser with the text cleaning of its published code.
pub struct ClipTokenizer {
    inner: Tokenizer,
    words: Regex,
    vocab_size: usize,
    published: bool,
    fingerprint: String,
}

impl fmt::Debug for ClipTokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClipTokenizer")
            .field("vocab_size", &self.vocab_size)
            .field("published", &self.published)
            .finish_non_exhaustive()
    }
}

impl ClipTokenizer {
    /// The published vocabulary of 49,408 entries, as IRRA and RDE use it.
    ///
    /// # Errors
    /// [`ClipError::Vocabulary`] where the built-in patterns do not compile, which a test rules out.
    pub fn published() -> Result<Self, ClipError> {
        Self::assemble(Tokenizer::new(), PUBLISHED_SIZE, true, "published".to_owned())
    }

    /// The vocabulary of OpenAI's models, in which the last merge still is one, for a model of this size.
    ///
    /// # Errors
    /// [`ClipError::VocabularySize`] where the model has another number of entries.
    pub(crate) fn openai(config: &Config) -> Result<Self, ClipError> {
        if config.vocab_size != PUBLISHED_SIZE {
            let embedding = config.vocab_size;
            return Err(ClipError::VocabularySize { vocabulary: PUBLISHED_SIZE, embedding });
        }
        Self::assemble(Tokenizer::new(), PUBLISHED_SIZE, false, "openai".to_owned())
    }

    /// A vocabulary of `vocab_size` entries from a merge list in the published file format: one line that is skipped,
    /// then one merge a line. Lines beyond `vocab_size - 514` merges are ignored.
    ///
    /// # Errors
    /// [`ClipError::Vocabulary`] where a line is no merge of earlier symbols, [`ClipError::VocabularySize`] where the
    /// list is too short, or the size is out of range (515 to 65,535).
    pub fn from_reader(mut reader: impl BufRead, vocab_size: usize) -> Result<Self, ClipError> {
        let size = u16::try_from(vocab_size)
            .ok()
            .filter(|_| vocab_size > BYTE_SYMBOLS + MARKS)
            .ok_or(ClipError::VocabularySize { vocabulary: BYTE_SYMBOLS + MARKS, embedding: vocab_size })?;
        let damaged = |cause: std::io::Error| ClipError::Vocabulary { reason: cause.to_string() };
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes).map_err(damaged)?;
        let fingerprint = blake3::hash(&bytes).to_hex().to_string();
        let inner = Tokenizer::with_vocabulary(Cursor::new(bytes), size).map_err(damaged)?;
        let vocabulary = usize::from(inner.end_of_text().to_u16()) + 1;
        if vocabulary != vocab_size {
            return Err(ClipError::VocabularySize { vocabulary, embedding: vocab_size });
        }
        Self::assemble(inner, vocab_size, false, fingerprint)
    }

    /// The vocabulary of a checkpoint folder whose token embedding has `vocab_size` rows: its
    /// `bpe_simple_vocab.txt`, else the published one.
    ///
    /// # Errors
    /// As [`ClipTokenizer::from_reader`]; [`ClipError::File`] where the file cannot be read.
    pub fn from_folder(dir: &Path, vocab_size: usize) -> Result<Self, ClipError> {
        let path = dir.join(VOCABULARY_FILE);
        if path.exists() {
            let file = File::open(&path)
                .map_err(|cause| ClipError::File { path: path.clone(), reason: cause.to_string() })?;
            return Self::from_reader(BufReader::new(file), vocab_size);
        }
        if vocab_size != PUBLISHED_SIZE {
            return Err(ClipError::VocabularySize { vocabulary: PUBLISHED_SIZE, embedding: vocab_size });
        }
        Self::published()
    }

    fn assemble(
        inner: Tokenizer,
        vocab_size: usize,
        published: bool,
        fingerprint: String,
    ) -> Result<Self, ClipError> {
        let words =
            Regex::new(WORD_PATTERN).map_err(|cause| ClipError::Vocabulary { reason: cause.to_string() })?;
        Ok(Self { inner, words, vocab_size, published, fingerprint })
    }

    /// Entries of the vocabulary, the marks included.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// Id of the mark before a text.
    #[must_use]
    pub fn start(&self) -> u32 {
        id(self.inner.start_of_text())
    }

    /// Id of the mark behind a text, the largest of the vocabulary.
    #[must_use]
    pub fn end(&self) -> u32 {
        id(self.inner.end_of_text())
    }

    /// Hex digest of the vocabulary, or `published`.
    #[must_use]
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// Repairs and normalises a text as CLIP's published code does: broken encodings, curly quotes, ligatures, wide
    /// characters and controls are repaired, HTML references resolved twice, white space collapsed, and the whole
    /// lower-cased.
    #[must_use]
    pub fn clean(text: &str) -> String {
        let plain = html::unescape(&html::unescape(&repair::fix_text(text)));
        let mut spaced = String::with_capacity(plain.len());
        for word in plain.split(is_space).filter(|word| !word.is_empty()) {
            if !spaced.is_empty() {
                spaced.push(' ');
            }
            spaced.push_str(word);
        }
        spaced.to_lowercase()
    }

    /// Ids of a text without marks, at most `limit` of them; empty where the text holds no word.
    #[must_use]
    pub fn tokens(&self, text: &str, limit: usize) -> Vec<u32> {
        let cleaned = Self::clean(text);
        let mut ids = Vec::new();
        let mut word_tokens = Vec::new();
        for word in self.words.find_iter(&cleaned) {
            if ids.len() >= limit {
                break;
            }
            if let Some(special) = self.special(word.as_str()) {
                ids.push(special);
                continue;
            }
            word_tokens.clear();
            self.inner.encode(shortened(word.as_str()), &mut word_tokens);
            let whole = word_tokens.iter().map(|&token| id(token));
            if word.as_str() == LONG_S_CONTRACTION {
                // The crate takes it for two words, which no merge joins: its first token must not end one.
                ids.extend(whole.enumerate().map(|(at, id)| if at == 0 { id - BYTES } else { id }));
                continue;
            }
            for id in whole {
                match id {
                    PUBLISHED_MASK if self.published => ids.extend(PUBLISHED_MASKED_WORD),
                    id => ids.push(id),
                }
            }
        }
        ids.truncate(limit);
        ids
    }

    /// Exactly `length` ids of a text: the start mark, the text, the end mark, then zeros. A longer text is cut.
    /// `length` is at least 2.
    #[must_use]
    pub fn encode(&self, text: &str, length: usize) -> Vec<u32> {
        self.framed(self.tokens(text, length), length)
    }

    /// Puts the marks around the ids of a text and brings the whole to `length`.
    pub(crate) fn framed(&self, words: Vec<u32>, length: usize) -> Vec<u32> {
        let mut ids = Vec::with_capacity(length);
        ids.push(self.start());
        ids.extend(words.into_iter().take(length.saturating_sub(MARKS)));
        ids.push(self.end());
        ids.resize(length, 0);
        ids
    }

    fn special(&self, word: &str) -> Option<u32> {
        match word {
            "<|startoftext|>" => Some(self.start()),
            "<|endoftext|>" => Some(self.end()),
            "<|mask|>" if self.published => Some(PUBLISHED_MASK),
            _ => None,
        }
    }
}

fn id(token: Token) -> u32 {
    u32::from(token.to_u16())
}

fn shortened(word: &str) -> &str {
    let end = (0..=LONGEST_WORD.min(word.len())).rev().find(|&end| word.is_char_boundary(end));
    &word[..end.unwrap_or(0)]
}

/// White space as Python's `str.isspace` sees it: four separators of ASCII more than Unicode's property.
fn is_space(character: char) -> bool {
    character.is_whitespace() || matches!(character, '\u{1c}'..='\u{1f}')
}
