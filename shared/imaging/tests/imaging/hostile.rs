//! Damaged, oversized and made-up input: always a typed refusal, never a panic.

use std::io::Cursor;

use image::{DynamicImage, ImageFormat, Luma, Rgb};
use proptest::prelude::*;
use thicket_imaging::{ImagingError, Limits, RgbImage, decode};

fn encoded(image: &DynamicImage, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    image.write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

fn sample() -> DynamicImage {
    RgbImage::from_fn(33, 21, |x, y| Rgb([(x * 7) as u8, (y * 11) as u8, (x * y) as u8])).into()
}

/// A PNG header that promises `width` x `height` pixels of `channels` 8-bit samples, with nothing behind it.
fn png_header(width: u32, height: u32) -> Vec<u8> {
    let mut header = b"IHDR".to_vec();
    header.extend(width.to_be_bytes());
    header.extend(height.to_be_bytes());
    header.extend([8, 2, 0, 0, 0]);
    let mut bytes = b"\x89PNG\r\n\x1a\n\0\0\0\x0d".to_vec();
    bytes.extend(&header);
    bytes.extend(crc32(&header).to_be_bytes());
    bytes.extend(b"\0\0\0\0IDAT");
    bytes.extend(crc32(b"IDAT").to_be_bytes());
    bytes
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0_u32, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 * (crc & 1)))
    })
}

#[test]
fn no_bytes_are_refused() {
    assert!(matches!(decode(&[], &Limits::default()), Err(ImagingError::Empty)));
}

#[test]
fn one_pixel_is_an_image() {
    let bytes = encoded(&RgbImage::from_pixel(1, 1, Rgb([9, 8, 7])).into(), ImageFormat::Png);
    assert_eq!(decode(&bytes, &Limits::default()).unwrap().as_raw(), &[9, 8, 7]);
}

#[test]
fn too_many_encoded_bytes_are_refused_with_limit_and_actual_value() {
    let bytes = encoded(&sample(), ImageFormat::Png);
    let limits = Limits { encoded_bytes: bytes.len() - 1, ..Limits::default() };
    let error = decode(&bytes, &limits).unwrap_err();
    assert!(
        matches!(error, ImagingError::EncodedSize { limit, actual } if limit + 1 == actual && actual == bytes.len()),
        "{error}"
    );
    assert!(decode(&bytes, &Limits { encoded_bytes: bytes.len(), ..limits }).is_ok());
}

#[test]
fn a_header_of_20000_by_20000_is_refused_before_any_pixel() {
    let error = decode(&png_header(20_000, 20_000), &Limits::default()).unwrap_err();
    let expected = "the image is 20000x20000 pixels, the limit is 4096x4096";
    assert_eq!(error.to_string(), expected);
}

#[test]
fn one_side_over_its_own_limit_is_enough() {
    let bytes = encoded(&sample(), ImageFormat::Jpeg);
    for (width, height, ok) in [(33, 21, true), (32, 21, false), (33, 20, false)] {
        let result = decode(&bytes, &Limits { width, height, ..Limits::default() });
        assert_eq!(result.is_ok(), ok, "{width}x{height}: {result:?}");
    }
}

#[test]
fn pixels_that_would_not_fit_in_memory_are_refused_with_both_sizes() {
    let bytes = encoded(&sample(), ImageFormat::Png);
    let error = decode(&bytes, &Limits { decoded_bytes: 2000, ..Limits::default() }).unwrap_err();
    assert!(matches!(error, ImagingError::DecodedSize { limit: 2000, actual: 2079 }), "{error}");
}

#[test]
fn a_zero_area_png_says_which_side() {
    let error = decode(&png_header(0, 7), &Limits::default()).unwrap_err();
    assert!(matches!(error, ImagingError::ZeroArea { width: 0, height: 7 }), "{error}");
}

#[test]
fn a_truncated_png_is_refused_with_its_reason() {
    let bytes = encoded(&sample(), ImageFormat::Png);
    for cut in [20, 40, bytes.len() / 2, bytes.len() - 20] {
        let error = decode(&bytes[..cut], &Limits::default()).unwrap_err();
        assert!(
            matches!(&error, ImagingError::Undecodable { format: "PNG", reason } if !reason.is_empty()),
            "cut at {cut}: {error}"
        );
    }
}

#[test]
fn a_text_file_called_an_image_is_told_apart_from_noise() {
    let text = decode("hello, I am not a picture\n".as_bytes(), &Limits::default()).unwrap_err();
    assert!(matches!(&text, ImagingError::Format { found } if found == "a text file"), "{text}");
    let noise = decode(&[0, 159, 3, 200, 17, 90], &Limits::default()).unwrap_err();
    assert!(matches!(&noise, ImagingError::Format { found } if found == "an unknown format"), "{noise}");
}

#[test]
fn sixteen_bit_colours_keep_their_high_byte() {
    let colour = image::ImageBuffer::from_pixel(1, 1, Rgb([0x12ff_u16, 0x1300, 0xff00]));
    let bytes = encoded(&DynamicImage::ImageRgb16(colour), ImageFormat::Png);
    assert_eq!(decode(&bytes, &Limits::default()).unwrap().as_raw(), &[0x12, 0x13, 0xff]);
}

#[test]
fn sixteen_bit_grey_is_clipped() {
    let grey = image::ImageBuffer::from_fn(2, 1, |x, _| Luma([[254_u16, 256][x as usize]]));
    let bytes = encoded(&DynamicImage::ImageLuma16(grey), ImageFormat::Png);
    assert_eq!(decode(&bytes, &Limits::default()).unwrap().as_raw(), &[254, 254, 254, 255, 255, 255]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), magic in 0_usize..4) {
        let start: &[u8] = [&b""[..], b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF\x20\0\0\0WEBP"][magic];
        let _ = decode(&[start, &bytes].concat(), &Limits::default());
    }

    #[test]
    fn a_damaged_file_never_panics(
        format in prop::sample::select(vec![ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::WebP]),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12),
        keep in any::<prop::sample::Index>(),
    ) {
        let mut bytes = encoded(&sample(), format);
        for (at, value) in damage {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        bytes.truncate(1 + keep.index(bytes.len()));
        let limits = Limits { width: 512, height: 512, ..Limits::default() };
        let _ = decode(&bytes, &limits);
    }
}
