//! `preprocessor_config.json`: how an image becomes the network's input.

use std::path::Path;

use serde_json::Value;
use thicket_imaging::{Filter, MEAN, Normalisation, STD};

use super::json::{self, Object};
use crate::{
    ClipError,
    preprocessing::{Preprocessing, Size},
};

const FILE: &str = "preprocessor_config.json";
/// Every one of them does what the settings say, in this order and with these defaults.
const KINDS: [&str; 3] = ["CLIPImageProcessor", "CLIPImageProcessorFast", "CLIPFeatureExtractor"];
/// Steps that are followed; any other that a file switches on is refused.
const STEPS: [&str; 5] = ["do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb"];
/// Side of OpenAI's first models, the default of both sizes.
const SIDE: usize = 224;

/// Reads the settings and checks that they make images of `image_size`, `(height, width)` in pixels.
///
/// # Errors
/// [`ClipError::File`], and [`ClipError::Options`] for a setting that cannot be followed.
pub(crate) fn read(dir: &Path, image_size: (usize, usize)) -> Result<Preprocessing, ClipError> {
    let path = dir.join(FILE);
    let file = json::read(&path)?;
    refuse_foreign_steps(&file)?;
    let resize = if file.flag("do_resize", true)? { Some(resize_size(&file)?) } else { None };
    let crop = if file.flag("do_center_crop", true)? { Some(crop_size(&file)?) } else { None };
    match (crop, resize) {
        (Some(crop), _) if crop != image_size => return Err(disagrees(&file, "crop_size", crop, image_size)),
        (Some(_), _) => {}
        (None, Some(Size::Exact(height, width))) if (height, width) != image_size => {
            return Err(disagrees(&file, "size", (height, width), image_size));
        }
        (None, Some(Size::Exact(..))) => {}
        (None, _) => {
            let reason = "false leaves images of many sizes, the model takes one";
            return Err(file.refuse("do_center_crop", reason));
        }
    }
    let filter = filter(&file)?;
    Ok(Preprocessing::new(resize, filter, crop, normalisation(&file)?))
}

fn refuse_foreign_steps(file: &Object<'_>) -> Result<(), ClipError> {
    for field in ["image_processor_type", "feature_extractor_type"] {
        if let Some(kind) = file.text(field)?
            && !KINDS.contains(&kind)
        {
            return Err(file.refuse(field, format!("{kind} cannot be followed, CLIPImageProcessor can")));
        }
    }
    let foreign = |(field, value): &(&String, &Value)| {
        field.starts_with("do_")
            && !STEPS.contains(&field.as_str())
            && !matches!(value, Value::Null | Value::Bool(false))
    };
    if let Some((field, value)) = file.values.iter().find(foreign) {
        return Err(file.refuse(field, format!("{value} cannot be followed")));
    }
    if !file.flag("do_convert_rgb", true)? {
        return Err(file.refuse("do_convert_rgb", "false cannot be followed: every image is read as RGB"));
    }
    if file.flag("use_square_size", false)? {
        return Err(file.refuse("use_square_size", "true cannot be followed"));
    }
    Ok(())
}

fn resize_size(file: &Object<'_>) -> Result<Size, ClipError> {
    let Some(value) = file.get("size") else { return Ok(Size::ShortestEdge(SIDE)) };
    match value {
        Value::Number(_) => Ok(Size::ShortestEdge(file.as_count("size", value)?)),
        Value::Object(sides) => match (sides.get("shortest_edge"), sides.get("height"), sides.get("width")) {
            (Some(side), None, None) if sides.len() == 1 => {
                Ok(Size::ShortestEdge(file.as_count("size.shortest_edge", side)?))
            }
            (None, Some(height), Some(width)) if sides.len() == 2 => {
                Ok(Size::Exact(file.as_count("size.height", height)?, file.as_count("size.width", width)?))
            }
            _ => {
                Err(file
                    .refuse("size", format!("{value} is neither a shortest_edge nor a height and a width")))
            }
        },
        other => Err(file.refuse("size", format!("{other} is neither a number nor an object"))),
    }
}

fn crop_size(file: &Object<'_>) -> Result<(usize, usize), ClipError> {
    let Some(value) = file.get("crop_size") else { return Ok((SIDE, SIDE)) };
    match value {
        Value::Number(_) => file.as_count("crop_size", value).map(|side| (side, side)),
        Value::Object(sides) => match (sides.get("height"), sides.get("width")) {
            (Some(height), Some(width)) if sides.len() == 2 => {
                Ok((file.as_count("crop_size.height", height)?, file.as_count("crop_size.width", width)?))
            }
            _ => Err(file.refuse("crop_size", format!("{value} is not a height and a width"))),
        },
        other => Err(file.refuse("crop_size", format!("{other} is neither a number nor an object"))),
    }
}

fn disagrees(
    file: &Object<'_>,
    field: &str,
    (height, width): (usize, usize),
    (rows, columns): (usize, usize),
) -> ClipError {
    let reason = format!(
        "makes images of {height}x{width}, vision_config.image_size in config.json is {rows}x{columns}"
    );
    file.refuse(field, reason)
}

/// The filter by Pillow's number for it.
fn filter(file: &Object<'_>) -> Result<Filter, ClipError> {
    match file.get("resample").map(|value| (value, value.as_u64())) {
        None | Some((_, Some(3))) => Ok(Filter::Bicubic),
        Some((_, Some(2))) => Ok(Filter::Bilinear),
        Some((value, _)) => {
            Err(file
                .refuse("resample", format!("{value} cannot be followed, 2 (bilinear) and 3 (bicubic) can")))
        }
    }
}

fn normalisation(file: &Object<'_>) -> Result<Normalisation, ClipError> {
    let scale =
        if file.flag("do_rescale", true)? { file.number("rescale_factor", 1.0 / 255.0)? } else { 1.0 };
    if !file.flag("do_normalize", true)? {
        return Ok(Normalisation::new(scale, [0.0; 3], [1.0; 3]));
    }
    let mean = channels(file, "image_mean", MEAN)?;
    let std = channels(file, "image_std", STD)?;
    if let Some(zero) = std.iter().find(|&&value| value as f32 <= 0.0) {
        return Err(file.refuse("image_std", format!("{zero} is not above 0")));
    }
    Ok(Normalisation::new(scale, mean, std))
}

fn channels(file: &Object<'_>, field: &str, default: [f32; 3]) -> Result<[f64; 3], ClipError> {
    let Some(value) = file.get(field) else { return Ok(default.map(f64::from)) };
    let one = value.as_f64().map(|value| [value; 3]);
    let three = || {
        let numbers: Option<Vec<f64>> = value.as_array()?.iter().map(Value::as_f64).collect();
        numbers?.try_into().ok()
    };
    one.or_else(three)
        .ok_or_else(|| file.refuse(field, format!("{value} is not a number for each of 3 channels")))
}
