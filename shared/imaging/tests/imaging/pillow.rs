//! Decoding and resizing against files that Pillow made (tests/golden/clip).

use std::{fs, path::PathBuf};

use serde_json::Value;
use thicket_imaging::{Filter, ImagingError, Limits, RgbImage, decode, resize, smart_resize};

fn goldens() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/clip")
}

fn read(name: &str) -> RgbImage {
    decode(&fs::read(goldens().join(name)).unwrap(), &Limits::default())
        .unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn cases(folder: &str) -> Vec<Value> {
    let text = fs::read_to_string(goldens().join(folder).join("cases.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn text<'a>(case: &'a Value, key: &str) -> &'a str {
    case[key].as_str().unwrap()
}

#[test]
fn every_resized_pixel_is_pillows() {
    let cases = cases("resize");
    assert!(cases.len() >= 16, "only {} cases", cases.len());
    for case in cases {
        let source = read(&format!("resize/{}", text(&case, "source")));
        let expected = read(&format!("resize/{}", text(&case, "result")));
        let filter = match text(&case, "filter") {
            "bilinear" => Filter::Bilinear,
            "bicubic" => Filter::Bicubic,
            other => panic!("filter {other}"),
        };
        let side = |key: &str| u32::try_from(case[key].as_u64().unwrap()).unwrap();
        let resized = resize(&source, side("height"), side("width"), filter);
        assert!(resized == expected, "{} differs from Pillow's", text(&case, "result"));
    }
}

#[test]
fn every_still_image_decodes_to_pillows_rgb() {
    let cases = cases("decode");
    assert!(cases.len() >= 16, "only {} cases", cases.len());
    for case in cases {
        let name = text(&case, "file");
        let image = read(&format!("decode/{name}"));
        let expected = read(&format!("decode/{}", text(&case, "expected")));
        assert_eq!(image.dimensions(), expected.dimensions(), "{name}");
        let total: f64 =
            image.as_raw().iter().zip(expected.as_raw()).map(|(&a, &b)| f64::from(a.abs_diff(b))).sum();
        let mean = total / image.as_raw().len() as f64;
        let allowed = case["mean_difference"].as_f64().unwrap();
        assert!(mean <= allowed, "{name}: mean difference {mean}, allowed {allowed}");
    }
}

#[test]
fn animated_and_foreign_formats_are_refused_by_name() {
    let refusal = |name: &str| {
        decode(&fs::read(goldens().join("decode").join(name)).unwrap(), &Limits::default()).unwrap_err()
    };
    let gif = refusal("animated.gif");
    assert!(matches!(&gif, ImagingError::Format { found } if found.contains("Gif")), "{gif}");
    assert!(matches!(refusal("animated.webp"), ImagingError::Animated { format: "WebP" }));
    let bmp = refusal("still.bmp");
    assert!(matches!(&bmp, ImagingError::Format { found } if found.contains("Bmp")), "{bmp}");
}

#[test]
fn smart_resize_chooses_the_sizes_of_the_published_processor() {
    let text = fs::read_to_string(goldens().join("smart_resize.json")).unwrap();
    let cases: Vec<[u32; 6]> = serde_json::from_str(&text).unwrap();
    assert!(cases.len() >= 300);
    for [height, width, min_pixels, max_pixels, new_height, new_width] in cases {
        let chosen = smart_resize(height, width, 28, min_pixels, max_pixels).unwrap();
        assert_eq!(chosen, (new_height, new_width), "{height}x{width} between {min_pixels} and {max_pixels}");
    }
}
