use std::io::Cursor;

use image::codecs::jpeg::JpegDecoder;
use image::codecs::png::PngDecoder;
use image::codecs::webp::WebPDecoder;
use image::{DynamicImage, ImageBuffer, ImageDecoder, ImageFormat, RgbImage};

/// Bounds on an image that is to be decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Most encoded bytes. Default: 16 MiB.
    pub encoded_bytes: usize,
    /// Most pixels in a row. Default: 4,096.
    pub width: u32,
    /// Most rows. Default: 4,096.
    pub height: u32,
    /// Most bytes of the decoded pixels, in the file's own depth and channels; the decoder may use as much again
    /// while it works. Default: 64 MiB.
    pub decoded_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { encoded_bytes: 16 << 20, width: 4096, height: 4096, decoded_bytes: 64 << 20 }
    }
}

/// Why an image was refused.
#[derive(Debug, thiserror::Error)]
pub enum ImagingError {
    /// No bytes at all.
    #[error("the image is empty")]
    Empty,
    /// More encoded bytes than [`Limits::encoded_bytes`].
    #[error("the encoded image has {actual} bytes, the limit is {limit}")]
    EncodedSize {
        /// The limit in bytes.
        limit: usize,
        /// The size in bytes.
        actual: usize,
    },
    /// The bytes are no image, or an image of a format that is not read.
    #[error("{found} is not read, JPEG, PNG and WebP are")]
    Format {
        /// What the first bytes look like.
        found: String,
    },
    /// A moving picture.
    #[error("the image is an animated {format}, one still image is expected")]
    Animated {
        /// The file format.
        format: &'static str,
    },
    /// A side of length zero.
    #[error("the image is {width}x{height} pixels and has no area")]
    ZeroArea {
        /// Pixels in a row.
        width: u32,
        /// Rows.
        height: u32,
    },
    /// More pixels along a side than [`Limits::width`] or [`Limits::height`].
    #[error("the image is {width}x{height} pixels, the limit is {max_width}x{max_height}")]
    Dimensions {
        /// Pixels in a row.
        width: u32,
        /// Rows.
        height: u32,
        /// Most pixels in a row.
        max_width: u32,
        /// Most rows.
        max_height: u32,
    },
    /// The pixels would take more memory than [`Limits::decoded_bytes`].
    #[error("the decoded image would take {actual} bytes, the limit is {limit}")]
    DecodedSize {
        /// The limit in bytes.
        limit: u64,
        /// The size in bytes.
        actual: u64,
    },
    /// A damaged or cut file, or a feature of the format that is not read.
    #[error("the {format} image cannot be decoded: {reason}")]
    Undecodable {
        /// The file format.
        format: &'static str,
        /// What the decoder found.
        reason: String,
    },
    /// One side is too many times longer than the other to be resized for the model.
    #[error("the image is {width}x{height} pixels, more than {limit} to 1")]
    AspectRatio {
        /// Pixels in a row.
        width: u32,
        /// Rows.
        height: u32,
        /// Most times that one side may be longer than the other.
        limit: u32,
    },
    /// The bounds of a resize leave no size to choose.
    #[error("no multiple of {factor} pixels fits an area from {min_pixels} to {max_pixels}")]
    PixelBounds {
        /// Both sides are multiples of this.
        factor: u32,
        /// Least area in pixels.
        min_pixels: u32,
        /// Greatest area in pixels.
        max_pixels: u32,
    },
}

/// Decodes a JPEG (grey, RGB, CMYK), PNG (any colour type and depth) or WebP still image to 8-bit RGB.
///
/// The format is told by content. Everything is as Pillow's `convert("RGB")` has it: alpha is dropped without blending,
/// 16-bit samples keep their high byte, but those of a 16-bit grey PNG without an alpha channel are clipped at 255, which
/// leaves little of most such images. The EXIF orientation is not applied. Of an animated PNG the still image is read.
///
/// # Errors
/// Every variant of [`ImagingError`] but the last two; each states the limit and the actual value.
pub fn decode(bytes: &[u8], limits: &Limits) -> Result<RgbImage, ImagingError> {
    if bytes.is_empty() {
        return Err(ImagingError::Empty);
    }
    if bytes.len() > limits.encoded_bytes {
        return Err(ImagingError::EncodedSize { limit: limits.encoded_bytes, actual: bytes.len() });
    }
    match image::guess_format(bytes) {
        Ok(ImageFormat::Jpeg) => {
            let decoder =
                JpegDecoder::new(Cursor::new(bytes)).map_err(|error| undecodable("JPEG", &error))?;
            Ok(to_rgb(pixels("JPEG", decoder, limits)?))
        }
        Ok(ImageFormat::Png) => {
            refuse_png_without_area(bytes)?;
            let decoder = PngDecoder::with_limits(Cursor::new(bytes), working_memory(limits))
                .map_err(|error| undecodable("PNG", &error))?;
            let image = pixels("PNG", decoder, limits)?;
            Ok(if is_16_bit_grey_png(bytes) {
                clipped_grey(&image.into_luma_alpha16())
            } else {
                to_rgb(image)
            })
        }
        Ok(ImageFormat::WebP) => {
            let decoder =
                WebPDecoder::new(Cursor::new(bytes)).map_err(|error| undecodable("WebP", &error))?;
            if decoder.has_animation() {
                return Err(ImagingError::Animated { format: "WebP" });
            }
            Ok(to_rgb(pixels("WebP", decoder, limits)?))
        }
        Ok(other) => Err(ImagingError::Format { found: format!("the format {other:?}") }),
        Err(_) if looks_like_text(bytes) => Err(ImagingError::Format { found: "a text file".to_owned() }),
        Err(_) => Err(ImagingError::Format { found: "an unknown format".to_owned() }),
    }
}

/// The PNG decoder reports a zero side as a broken header; the header is plain enough to say which side it is.
fn refuse_png_without_area(bytes: &[u8]) -> Result<(), ImagingError> {
    let side = |at: usize| bytes.get(at..at + 4)?.try_into().ok().map(u32::from_be_bytes);
    if bytes.get(12..16) == Some(b"IHDR")
        && let (Some(width), Some(height)) = (side(16), side(20))
        && (width == 0 || height == 0)
    {
        return Err(ImagingError::ZeroArea { width, height });
    }
    Ok(())
}

fn working_memory(limits: &Limits) -> image::Limits {
    let mut memory = image::Limits::no_limits();
    memory.max_alloc = Some(limits.decoded_bytes);
    memory
}

fn pixels(
    format: &'static str,
    mut decoder: impl ImageDecoder,
    limits: &Limits,
) -> Result<DynamicImage, ImagingError> {
    let (width, height) = decoder.dimensions();
    if width == 0 || height == 0 {
        return Err(ImagingError::ZeroArea { width, height });
    }
    if width > limits.width || height > limits.height {
        let (max_width, max_height) = (limits.width, limits.height);
        return Err(ImagingError::Dimensions { width, height, max_width, max_height });
    }
    let decoded_bytes = decoder.total_bytes();
    if decoded_bytes > limits.decoded_bytes {
        return Err(ImagingError::DecodedSize { limit: limits.decoded_bytes, actual: decoded_bytes });
    }
    let mut decoder_limits = working_memory(limits);
    decoder_limits.max_image_width = Some(limits.width);
    decoder_limits.max_image_height = Some(limits.height);
    decoder.set_limits(decoder_limits).map_err(|error| undecodable(format, &error))?;
    DynamicImage::from_decoder(decoder).map_err(|error| undecodable(format, &error))
}

/// The decoded image does not say it: a transparent value gives grey an alpha channel that the file lacks.
fn is_16_bit_grey_png(bytes: &[u8]) -> bool {
    const DEPTH_AND_COLOUR_TYPE: std::ops::Range<usize> = 24..26;
    bytes.get(DEPTH_AND_COLOUR_TYPE) == Some(&[16, 0])
}

fn clipped_grey(samples: &ImageBuffer<image::LumaA<u16>, Vec<u16>>) -> RgbImage {
    RgbImage::from_fn(samples.width(), samples.height(), |x, y| {
        image::Rgb([samples.get_pixel(x, y)[0].min(255) as u8; 3])
    })
}

fn to_rgb(image: DynamicImage) -> RgbImage {
    match image {
        DynamicImage::ImageLumaA16(samples) => high_bytes(&samples, |grey| [grey[0]; 3]),
        DynamicImage::ImageRgb16(samples) => high_bytes(&samples, |rgb| [rgb[0], rgb[1], rgb[2]]),
        DynamicImage::ImageRgba16(samples) => high_bytes(&samples, |rgb| [rgb[0], rgb[1], rgb[2]]),
        other => other.into_rgb8(),
    }
}

fn high_bytes<P: image::Pixel<Subpixel = u16>>(
    samples: &ImageBuffer<P, Vec<u16>>,
    colour: impl Fn(&[u16]) -> [u16; 3],
) -> RgbImage {
    RgbImage::from_fn(samples.width(), samples.height(), |x, y| {
        image::Rgb(colour(samples.get_pixel(x, y).channels()).map(|sample| (sample >> 8) as u8))
    })
}

fn looks_like_text(bytes: &[u8]) -> bool {
    let head = &bytes[..bytes.len().min(512)];
    let valid = match std::str::from_utf8(head) {
        Ok(_) => true,
        // A character cut by the window is no sign of a binary file.
        Err(error) => error.error_len().is_none(),
    };
    valid && !head.iter().any(|&byte| byte < 0x20 && !matches!(byte, b'\t' | b'\n' | b'\r' | 0x0c))
}

fn undecodable(format: &'static str, error: &image::ImageError) -> ImagingError {
    ImagingError::Undecodable { format, reason: error.to_string() }
}
