//! From image bytes to model input: decoding within limits, resizing as Pillow does, and the arithmetic of the
//! published pre-processing.
//!
//! The published models were trained on pixels that Pillow decoded and resized, so [`resize`] reproduces its
//! antialiased filters to the last bit. Decoding treats its input as hostile: the encoded size, then the size in the
//! header, then the memory of the decoder are each checked against [`Limits`] before anything is allocated for pixels.

mod decode;
mod normalise;
mod resize;
mod smart_resize;

pub use decode::{ImagingError, Limits, decode};
pub use normalise::{MEAN, Normalisation, STD, clip_normalised};
pub use resize::{Filter, resize, resize_centre};
pub use smart_resize::smart_resize;

/// The image type of this crate's interface: 8-bit RGB, row-major.
pub use image::RgbImage;
