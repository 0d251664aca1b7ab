//! The steps from an image to the network's input.

use image::RgbImage;
use thicket_imaging::{Filter, Normalisation, clip_normalised, resize, resize_centre};

/// The size that an image is brought to, in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Size {
    /// This height and width, the aspect ratio not kept.
    Exact(usize, usize),
    /// The shorter side this long and the other in proportion.
    ShortestEdge(usize),
}

/// How an image becomes the network's input.
#[derive(Debug, Clone)]
pub(crate) enum Preprocessing {
    /// Stretched to this height and width by a bilinear filter and normalised as CLIP does: a run folder.
    Stretch(u32, u32),
    /// The steps of an image processor's settings.
    Steps {
        resize: Option<Size>,
        filter: Filter,
        /// Height and width of the middle that is cut out.
        crop: Option<(u32, u32)>,
        normalisation: Normalisation,
    },
}

impl Preprocessing {
    /// Each side is at most 2^24 pixels.
    pub(crate) fn new(
        resize: Option<Size>,
        filter: Filter,
        crop: Option<(usize, usize)>,
        normalisation: Normalisation,
    ) -> Self {
        let crop = crop.map(|(height, width)| (height as u32, width as u32));
        Self::Steps { resize, filter, crop, normalisation }
    }

    /// `3 * height * width` values in channel, row, column order.
    pub(crate) fn pixels(&self, image: &RgbImage) -> Vec<f32> {
        match self {
            &Self::Stretch(height, width) => clip_normalised(&resize(image, height, width, Filter::Bilinear)),
            Self::Steps { resize, filter, crop, normalisation } => {
                let size = resized(image.dimensions(), *resize);
                normalisation.apply(&resize_centre(image, size, crop.unwrap_or(size), *filter))
            }
        }
    }

    /// All that the result depends on, as a line.
    pub(crate) fn description(&self) -> String {
        match self {
            Self::Stretch(height, width) => format!("stretch {height}x{width}"),
            Self::Steps { .. } => format!("{self:?}"),
        }
    }
}

/// Height and width after resizing.
fn resized((width, height): (u32, u32), size: Option<Size>) -> (u32, u32) {
    match size {
        None => (height, width),
        Some(Size::Exact(height, width)) => (height as u32, width as u32),
        Some(Size::ShortestEdge(edge)) => {
            let edge = edge as u32;
            if width <= height {
                (in_proportion(edge, height, width), edge)
            } else {
                (edge, in_proportion(edge, width, height))
            }
        }
    }
}

/// Python's `int(edge * long / short)`.
fn in_proportion(edge: u32, long: u32, short: u32) -> u32 {
    (f64::from(edge) * f64::from(long) / f64::from(short.max(1))) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longer_side_is_rounded_down() {
        let edge = Some(Size::ShortestEdge(30));
        assert_eq!(resized((50, 90), edge), (54, 30));
        assert_eq!(resized((90, 50), edge), (30, 54));
        assert_eq!(resized((7, 13), edge), (55, 30));
        assert_eq!(resized((8, 8), edge), (30, 30));
        assert_eq!(resized((8, 9), None), (9, 8));
    }
}
