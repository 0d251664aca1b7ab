use std::path::{Path, PathBuf};

use tokenizers::Tokenizer;

use crate::config::Config;

/// The position of a token on the time, height and width axes; all three are equal for text.
pub type Position = [u32; 3];

const SYSTEM_TURN: &str = "system\nYou are a helpful assistant.";
const USER_TURN: &str = "user\n";
const ASSISTANT_TURN: &str = "assistant\n";
const START_OF_TURN: &str = "<|im_start|>";
const END_OF_TURN: &str = "<|im_end|>";
const VISION_START: &str = "<|vision_start|>";
const VISION_END: &str = "<|vision_end|>";
const IMAGE_PAD: &str = "<|image_pad|>";

/// Why prompts cannot be written for a model.
#[derive(Debug, thiserror::Error)]
pub enum PromptError {
    /// The tokenizer file cannot be read.
    #[error("{} is not a usable tokenizer: {reason}", path.display())]
    Tokenizer {
        /// The file.
        path: PathBuf,
        /// The cause.
        reason: String,
    },
    /// The tokenizer lacks a token that the chat template needs.
    #[error("tokenizer.json: there is no token {token}")]
    MissingToken {
        /// The token.
        token: &'static str,
    },
    /// The configuration gives a special token another id than the tokenizer does.
    #[error("tokenizer.json: {token} has the id {found}, {field} of config.json is {expected}")]
    OtherId {
        /// The token.
        token: &'static str,
        /// Its id in the tokenizer.
        found: u32,
        /// The field of the configuration.
        field: &'static str,
        /// The id there.
        expected: u32,
    },
    /// The tokenizer knows tokens that the model has no embedding for.
    #[error("tokenizer.json: the largest id {id} is outside the model's vocabulary of {vocab_size}")]
    OutsideVocabulary {
        /// The largest token id.
        id: u32,
        /// Rows of the embedding table.
        vocab_size: usize,
    },
    /// A text that the tokenizer fails on.
    #[error("the text cannot be tokenized: {reason}")]
    Untokenizable {
        /// The cause.
        reason: String,
    },
    /// The image placeholders of a token list do not match the images.
    #[error("{found} image placeholders do not match the images' {expected}")]
    ImageTokens {
        /// Placeholders that the images need.
        expected: usize,
        /// Placeholders in the list.
        found: usize,
    },
}

/// A prompt in the model's terms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncodedPrompt {
    /// Token ids, an image as its run of placeholders.
    pub tokens: Vec<u32>,
    /// The position of every token.
    pub positions: Vec<Position>,
}

impl EncodedPrompt {
    /// The position, on all axes, of the token that follows.
    #[must_use]
    pub fn next_position(&self) -> u32 {
        next_position(&self.positions)
    }
}

/// The chat template of Qwen2-VL and Qwen2.5-VL over a tokenizer: a system turn with the stock sentence, one user turn with at most
/// one image before the text, and the opening of the assistant's turn.
///
/// Special tokens spelled out in a user's text are read as plain text, so that no text can end its own turn.
#[derive(Debug, Clone)]
pub struct PromptEncoder {
    tokenizer: Tokenizer,
    /// Up to and including the start mark of the user turn.
    opening: Vec<u32>,
    user: Vec<u32>,
    /// From the end of the user turn to the opening of the assistant's.
    closing: Vec<u32>,
    end_of_turn: u32,
    image_token: u32,
    vision_start: u32,
    vision_end: u32,
}

impl PromptEncoder {
    /// Reads a `tokenizer.json`.
    ///
    /// # Errors
    /// [`PromptError`] where the file is unusable or does not fit the model.
    pub fn from_file(path: &Path, config: &Config) -> Result<Self, PromptError> {
        let tokenizer = Tokenizer::from_file(path).map_err(|cause| PromptError::Tokenizer {
            path: path.to_path_buf(),
            reason: cause.to_string().lines().next().unwrap_or_default().to_string(),
        })?;
        Self::new(tokenizer, config)
    }

    /// Takes over a tokenizer.
    ///
    /// # Errors
    /// [`PromptError`] where it lacks a special token, disagrees with the configuration on its id, or does not fit the
    /// model's vocabulary.
    pub fn new(mut tokenizer: Tokenizer, config: &Config) -> Result<Self, PromptError> {
        tokenizer.set_encode_special_tokens(true);
        tokenizer.with_padding(None);
        tokenizer
            .with_truncation(None)
            .map_err(|cause| PromptError::Untokenizable { reason: cause.to_string() })?;
        if let Some(&id) = tokenizer.get_vocab(true).values().max()
            && id as usize >= config.vocab_size
        {
            return Err(PromptError::OutsideVocabulary { id, vocab_size: config.vocab_size });
        }
        let special = |token| tokenizer.token_to_id(token).ok_or(PromptError::MissingToken { token });
        let (start_of_turn, end_of_turn) = (special(START_OF_TURN)?, special(END_OF_TURN)?);
        for (token, field, expected) in [
            (VISION_START, "vision_start_token_id", config.vision_start_token_id),
            (VISION_END, "vision_end_token_id", config.vision_end_token_id),
            (IMAGE_PAD, "image_token_id", config.image_token_id),
        ] {
            let found = special(token)?;
            if found != expected {
                return Err(PromptError::OtherId { token, found, field, expected });
            }
        }
        let mut encoder = Self {
            tokenizer,
            opening: Vec::new(),
            user: Vec::new(),
            closing: Vec::new(),
            end_of_turn,
            image_token: config.image_token_id,
            vision_start: config.vision_start_token_id,
            vision_end: config.vision_end_token_id,
        };
        let line_break = encoder.tokenize("\n")?;
        encoder.opening = [
            &[start_of_turn][..],
            &encoder.tokenize(SYSTEM_TURN)?,
            &[end_of_turn],
            &line_break,
            &[start_of_turn],
        ]
        .concat();
        encoder.user = encoder.tokenize(USER_TURN)?;
        encoder.closing =
            [&[end_of_turn][..], &line_break, &[start_of_turn], &encoder.tokenize(ASSISTANT_TURN)?].concat();
        Ok(encoder)
    }

    /// Writes a whole prompt. `image` is the (rows, columns) of the image's merged tokens.
    ///
    /// # Errors
    /// [`PromptError::Untokenizable`].
    pub fn encode(&self, text: &str, image: Option<(usize, usize)>) -> Result<EncodedPrompt, PromptError> {
        let tokens = match image {
            Some(grid) => [self.image_prefix(grid), self.question(text)?].concat(),
            // The text continues the line of the role, and its first characters may join that line's tokens.
            None => {
                [&self.opening[..], &self.tokenize(&format!("{USER_TURN}{text}"))?, &self.closing].concat()
            }
        };
        let positions = self.positions(&tokens, image.as_slice())?;
        Ok(EncodedPrompt { tokens, positions })
    }

    /// What all prompts about an image share: the system turn, the opening of the user turn and the image.
    #[must_use]
    pub fn image_prefix(&self, (rows, columns): (usize, usize)) -> Vec<u32> {
        let placeholders = vec![self.image_token; rows * columns];
        [&self.opening[..], &self.user, &[self.vision_start], &placeholders, &[self.vision_end]].concat()
    }

    /// What follows [`Self::image_prefix`]: the text, the end of the turn and the opening of the assistant's.
    ///
    /// # Errors
    /// [`PromptError::Untokenizable`].
    pub fn question(&self, text: &str) -> Result<Vec<u32>, PromptError> {
        let mut tokens = self.tokenize(text)?;
        tokens.extend_from_slice(&self.closing);
        Ok(tokens)
    }

    /// Positions of a token list whose image placeholders stand for `images`, (rows, columns) of merged tokens each.
    ///
    /// # Errors
    /// [`PromptError::ImageTokens`] where they do not match.
    pub fn positions(&self, tokens: &[u32], images: &[(usize, usize)]) -> Result<Vec<Position>, PromptError> {
        position_ids(tokens, self.image_token, images)
    }

    /// Tokens of a plain text, such as an answer. No special token comes out of it.
    ///
    /// # Errors
    /// [`PromptError::Untokenizable`].
    pub fn tokenize(&self, text: &str) -> Result<Vec<u32>, PromptError> {
        let encoding = self
            .tokenizer
            .encode_fast(text, false)
            .map_err(|cause| PromptError::Untokenizable { reason: cause.to_string() })?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The text of generated tokens, special tokens left out.
    ///
    /// # Errors
    /// [`PromptError::Untokenizable`] where the tokenizer cannot decode.
    pub fn decode(&self, tokens: &[u32]) -> Result<String, PromptError> {
        self.tokenizer
            .decode(tokens, true)
            .map_err(|cause| PromptError::Untokenizable { reason: cause.to_string() })
    }

    /// The ids of those words that are one token each, without repeats.
    #[must_use]
    pub fn single_tokens(&self, words: &[&str]) -> Vec<u32> {
        let mut ids = Vec::new();
        for word in words {
            if let Ok(tokens) = self.tokenize(word)
                && let [id] = tokens[..]
                // A tokenizer without the word may have one "unknown" token for everything.
                && self.decode(&[id]).is_ok_and(|text| text.trim() == word.trim())
                && !ids.contains(&id)
            {
                ids.push(id);
            }
        }
        ids
    }

    /// The mark that ends a turn.
    #[must_use]
    pub fn end_of_turn(&self) -> u32 {
        self.end_of_turn
    }

    /// The placeholder of an image token.
    #[must_use]
    pub fn image_token(&self) -> u32 {
        self.image_token
    }
}

/// Positions of a token list: text counts up on all axes at once; an image that starts at position `s` has time `s`,
/// height `s + row` and width `s + column`; what follows it starts above the largest position so far.
///
/// `images` has the (rows, columns) of merged tokens of each run of `image_token`, in order.
///
/// # Errors
/// [`PromptError::ImageTokens`] where runs and images do not match.
pub fn position_ids(
    tokens: &[u32],
    image_token: u32,
    images: &[(usize, usize)],
) -> Result<Vec<Position>, PromptError> {
    let mismatch = || PromptError::ImageTokens {
        expected: images.iter().map(|(rows, columns)| rows * columns).sum(),
        found: tokens.iter().filter(|&&token| token == image_token).count(),
    };
    let mut images_left = images.iter();
    let mut positions: Vec<Position> = Vec::with_capacity(tokens.len());
    let mut next = 0u32;
    while let Some(&token) = tokens.get(positions.len()) {
        if token != image_token {
            positions.push([next; 3]);
            next += 1;
            continue;
        }
        let &(rows, columns) = images_left.next().ok_or_else(mismatch)?;
        let run = tokens.get(positions.len()..positions.len() + rows * columns).ok_or_else(mismatch)?;
        if run.is_empty() || run.iter().any(|&token| token != image_token) {
            return Err(mismatch());
        }
        for row in 0..rows as u32 {
            positions.extend((0..columns as u32).map(|column| [next, next + row, next + column]));
        }
        next += rows.max(columns) as u32;
    }
    if images_left.next().is_some() {
        return Err(mismatch());
    }
    Ok(positions)
}

/// The position after some tokens: one above the largest on any axis, 0 after none.
#[must_use]
pub fn next_position(positions: &[Position]) -> u32 {
    positions.iter().flatten().max().map_or(0, |largest| largest + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const IMAGE: u32 = 9;

    #[test]
    fn an_image_of_13_by_4_tokens_takes_13_positions() {
        let mut tokens = vec![1; 15];
        tokens.extend([IMAGE; 52]);
        tokens.extend([1, 1]);
        let positions = position_ids(&tokens, IMAGE, &[(13, 4)]).unwrap();
        assert_eq!(positions[14], [14, 14, 14]);
        assert_eq!(positions[15], [15, 15, 15]);
        assert_eq!(positions[15 + 51], [15, 27, 18]);
        assert_eq!(positions[15 + 52], [28, 28, 28]);
        assert_eq!(next_position(&positions), 30);
    }

    #[test]
    fn text_alone_counts_up_on_all_axes() {
        assert_eq!(position_ids(&[1, 2, 3], IMAGE, &[]).unwrap(), [[0; 3], [1; 3], [2; 3]]);
        assert_eq!(next_position(&[]), 0);
    }

    #[test]
    fn placeholders_that_do_not_match_the_images_are_refused() {
        for (tokens, images) in [
            (vec![IMAGE; 3], vec![(2, 2)]),
            (vec![IMAGE; 4], vec![]),
            (vec![1, 1], vec![(1, 2)]),
            (vec![IMAGE, 1, IMAGE], vec![(1, 2)]),
            (vec![IMAGE; 5], vec![(2, 2)]),
        ] {
            let error = position_ids(&tokens, IMAGE, &images).unwrap_err();
            assert!(matches!(error, PromptError::ImageTokens { .. }), "{tokens:?} {images:?}");
        }
    }
}
