use std::sync::Arc;

use image::{Rgb, RgbImage};
use thicket_engine::{Answerer, Embedder, Prompt};

/// Size of the drawn picture, the shape of a person's.
const PICTURE: (u32, u32) = (64, 128);
const TEXT: &str = "a woman in a red coat";
const QUESTION: &str = "Is there a person in the image? Answer Yes or No.";

/// What one forward pass gave; every value is finite.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Forward {
    /// A text and an image were embedded.
    Embedded {
        /// Length of a vector.
        dimension: usize,
        /// Inner product of the text and the image, -1 to 1.
        similarity: f64,
    },
    /// A question about an image was judged.
    Judged {
        /// Probability of Yes, given Yes or No.
        p_yes: f64,
        /// Probability that the answer begins with Yes or No at all.
        mass: f64,
        /// Tokens of the prompt, those of the image included.
        prompt_tokens: usize,
    },
}

/// Embeds a text and a drawn picture.
pub(crate) fn embed(embedder: &mut dyn Embedder) -> Result<Forward, String> {
    let texts = embedder.embed_texts(&[TEXT.to_owned()]).map_err(|error| error.to_string())?;
    let images = embedder.embed_images(&[picture()]).map_err(|error| error.to_string())?;
    let (Some(text), Some(image)) = (texts.first(), images.first()) else {
        return Err("no vector came back".to_owned());
    };
    let dimension = embedder.info().dimension;
    for (what, vector) in [("text", text), ("image", image)] {
        if vector.len() != dimension {
            return Err(format!("the {what}'s vector has {} values, {dimension} are expected", vector.len()));
        }
        if let Some(place) = vector.iter().position(|value| !value.is_finite()) {
            return Err(format!("value {place} of the {what}'s vector is {}", vector[place]));
        }
    }
    let similarity = text.iter().zip(image).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
    Ok(Forward::Embedded { dimension, similarity })
}

/// Judges a question about a drawn picture.
pub(crate) fn judge(answerer: &mut dyn Answerer) -> Result<Forward, String> {
    let prompt = Prompt::new(Some(Arc::new(picture())), QUESTION);
    let verdict = match answerer.judge(&[prompt]).pop() {
        Some(verdict) => verdict.map_err(|error| error.to_string())?,
        None => return Err("no verdict came back".to_owned()),
    };
    if !(verdict.p_yes.is_finite() && verdict.mass.is_finite()) {
        return Err(format!("p(Yes) is {} of a mass of {}", verdict.p_yes, verdict.mass));
    }
    Ok(Forward::Judged { p_yes: verdict.p_yes, mass: verdict.mass, prompt_tokens: verdict.prompt_tokens })
}

/// A picture with all colours in it, so that no channel is constant.
fn picture() -> RgbImage {
    let (width, height) = PICTURE;
    RgbImage::from_fn(width, height, |x, y| {
        Rgb([(x * 255 / width) as u8, (y * 255 / height) as u8, ((x + y) % 256) as u8])
    })
}
