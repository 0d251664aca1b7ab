//! The part of the chat interface that is used.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use image::codecs::png::{CompressionType, FilterType, PngEncoder};
use image::{ExtendedColorType, ImageEncoder, RgbImage};
use serde::{Deserialize, Serialize};

/// Alternatives of the first token that are asked for; servers give 20 at most.
pub(crate) const ALTERNATIVES: u8 = 20;

#[derive(Debug, Serialize)]
pub(crate) struct ChatRequest {
    pub(crate) model: String,
    pub(crate) messages: [Message; 1],
    pub(crate) max_tokens: usize,
    pub(crate) temperature: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) seed: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) logprobs: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) top_logprobs: Option<u8>,
    pub(crate) stream: bool,
}

#[derive(Debug, Serialize)]
pub(crate) struct Message {
    role: &'static str,
    content: Vec<Part>,
}

#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Part {
    ImageUrl { image_url: ImageUrl },
    Text { text: String },
}

#[derive(Debug, Serialize)]
struct ImageUrl {
    url: String,
}

impl Message {
    /// A user's turn: the image, where there is one, then the text.
    pub(crate) fn user(image: Option<String>, text: String) -> Self {
        let image = image.map(|url| Part::ImageUrl { image_url: ImageUrl { url } });
        Self { role: "user", content: image.into_iter().chain([Part::Text { text }]).collect() }
    }
}

/// An image as an address that holds it, without loss.
pub(crate) fn data_url(image: &RgbImage) -> Result<String, image::ImageError> {
    let mut bytes = Vec::new();
    PngEncoder::new_with_quality(&mut bytes, CompressionType::Fast, FilterType::Sub).write_image(
        image.as_raw(),
        image.width(),
        image.height(),
        ExtendedColorType::Rgb8,
    )?;
    Ok(format!("data:image/png;base64,{}", STANDARD.encode(bytes)))
}

#[derive(Debug, Deserialize)]
pub(crate) struct ChatResponse {
    pub(crate) choices: Vec<Choice>,
    #[serde(default)]
    pub(crate) usage: Option<Usage>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Choice {
    pub(crate) message: Reply,
    #[serde(default)]
    pub(crate) logprobs: Option<LogProbabilities>,
    #[serde(default)]
    pub(crate) finish_reason: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Reply {
    #[serde(default)]
    pub(crate) content: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct LogProbabilities {
    #[serde(default)]
    pub(crate) content: Option<Vec<Position>>,
}

/// One place of the answer.
#[derive(Debug, Deserialize)]
pub(crate) struct Position {
    /// The likeliest tokens there.
    #[serde(default)]
    pub(crate) top_logprobs: Vec<Alternative>,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Alternative {
    pub(crate) token: String,
    pub(crate) logprob: f64,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
pub(crate) struct Usage {
    #[serde(default)]
    pub(crate) prompt_tokens: usize,
    #[serde(default)]
    pub(crate) completion_tokens: usize,
}

#[derive(Debug, Deserialize)]
pub(crate) struct ModelList {
    pub(crate) data: Vec<ListedModel>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct ListedModel {
    pub(crate) id: String,
    /// Tokens of prompt and answer, where the server says.
    #[serde(default)]
    pub(crate) max_model_len: Option<usize>,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_image_comes_first_and_loses_nothing() {
        let image = RgbImage::from_fn(5, 3, |x, y| image::Rgb([x as u8 * 40, y as u8 * 70, 7]));
        let url = data_url(&image).unwrap();
        let bytes = STANDARD.decode(url.strip_prefix("data:image/png;base64,").unwrap()).unwrap();
        assert_eq!(image::load_from_memory(&bytes).unwrap().into_rgb8(), image);
        let message = serde_json::to_value(Message::user(Some(url), "Is it?".to_owned())).unwrap();
        assert_eq!(message["content"][0]["type"], "image_url");
        assert_eq!(message["content"][1], serde_json::json!({"type": "text", "text": "Is it?"}));
    }

    proptest! {
        #[test]
        fn no_answer_of_a_server_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = serde_json::from_slice::<ChatResponse>(&bytes);
            let _ = serde_json::from_slice::<ModelList>(&bytes);
        }
    }
}
