use std::path::Path;

use candle_core::{DType, Device, Result as TensorResult, Tensor, bail};
use image::RgbImage;
use serde::{Deserialize, Serialize};
use thicket_imaging::{Filter, ImagingError, MEAN, STD, resize, smart_resize};

use crate::{
    config::{ConfigError, VisionConfig, parse, read_json},
    vision::merge_block_order,
};

/// Where the settings stand.
const FILE: &str = "preprocessor_config.json";
/// Where the newest tools put them instead, under `image_processor`.
const JOINT_FILE: &str = "processor_config.json";

/// Pillow's numbers of the two supported resampling filters.
const PILLOW_BILINEAR: u8 = 2;
const PILLOW_BICUBIC: u8 = 3;

/// A `preprocessor_config.json`. A field that is absent takes the value of the published class.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ProcessorConfig {
    /// Least area of the resized image in pixels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_pixels: Option<u64>,
    /// Greatest area of the resized image in pixels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_pixels: Option<u64>,
    /// The same bounds as newer tools write them; `min_pixels` and `max_pixels` win.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<PixelBounds>,
    /// Side of a patch in pixels.
    pub patch_size: usize,
    /// Frames in a patch.
    pub temporal_patch_size: usize,
    /// Side of a merge block in patches.
    pub merge_size: usize,
    /// Mean of each colour channel, of values in 0 to 1.
    pub image_mean: [f32; 3],
    /// Standard deviation of each colour channel.
    pub image_std: [f32; 3],
    /// Factor from 8-bit values to 0 to 1.
    pub rescale_factor: f64,
    /// Pillow's number of the resampling filter: 2 bilinear, 3 bicubic.
    pub resample: u8,
    /// Whether images are resized; must be true.
    pub do_resize: bool,
    /// Whether values are rescaled; must be true.
    pub do_rescale: bool,
    /// Whether values are normalised; must be true.
    pub do_normalize: bool,
}

/// Area bounds under their newer names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PixelBounds {
    /// Least area in pixels.
    #[serde(alias = "min_pixels", skip_serializing_if = "Option::is_none")]
    pub shortest_edge: Option<u64>,
    /// Greatest area in pixels.
    #[serde(alias = "max_pixels", skip_serializing_if = "Option::is_none")]
    pub longest_edge: Option<u64>,
}

const DEFAULT_MIN_PIXELS: u64 = 56 * 56;
const DEFAULT_MAX_PIXELS: u64 = 28 * 28 * 1280;

impl Default for ProcessorConfig {
    fn default() -> Self {
        Self {
            min_pixels: None,
            max_pixels: None,
            size: None,
            patch_size: 14,
            temporal_patch_size: 2,
            merge_size: 2,
            image_mean: MEAN,
            image_std: STD,
            rescale_factor: 1.0 / 255.0,
            resample: PILLOW_BICUBIC,
            do_resize: true,
            do_rescale: true,
            do_normalize: true,
        }
    }
}

impl ProcessorConfig {
    /// Reads the settings of a model folder: `preprocessor_config.json`, else the `image_processor` of
    /// `processor_config.json`; absent files mean the defaults.
    ///
    /// # Errors
    /// [`ConfigError`] where a file is unreadable or malformed.
    pub fn from_dir(dir: &Path) -> Result<Self, ConfigError> {
        let (own, joint) = (dir.join(FILE), dir.join(JOINT_FILE));
        if own.exists() {
            return Self::from_value(read_json(&own)?, &own);
        }
        if !joint.exists() {
            return Ok(Self::default());
        }
        match read_json(&joint)?.get_mut("image_processor") {
            None => Ok(Self::default()),
            Some(settings) => Self::from_value(settings.take(), &joint),
        }
    }

    fn from_value(mut value: serde_json::Value, path: &Path) -> Result<Self, ConfigError> {
        if let Some(fields) = value.as_object_mut() {
            fields.retain(|_, value| !value.is_null());
        }
        parse(value, path)
    }
}

/// The patches of one image.
#[derive(Debug, Clone, PartialEq)]
pub struct ImagePatches {
    /// Patches x values, row-major: each patch as (channel, frame, row, column), patches in merge-block order.
    pub values: Vec<f32>,
    /// (rows, columns) of patches.
    pub grid: (usize, usize),
}

/// The image pre-processing of Qwen2-VL and Qwen2.5-VL: resize, normalise, cut into patches.
#[derive(Debug, Clone)]
pub struct Processor {
    patch_size: usize,
    frames: usize,
    merge_size: usize,
    min_pixels: u32,
    max_pixels: u32,
    filter: Filter,
    /// The normalised value of every 8-bit value of every channel.
    normalised: Box<[[f32; 256]; 3]>,
}

impl Processor {
    /// Checks a configuration against the tower that it feeds.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`], naming the field.
    pub fn new(config: &ProcessorConfig, vision: &VisionConfig) -> Result<Self, ConfigError> {
        for (field, value, expected) in [
            ("patch_size", config.patch_size, vision.patch_size),
            ("temporal_patch_size", config.temporal_patch_size, vision.temporal_patch_size),
            ("merge_size", config.merge_size, vision.spatial_merge_size),
        ] {
            if value != expected {
                let reason = format!("the vision tower has {expected}, the pre-processing {value}");
                return Err(ConfigError::Invalid { file: FILE, field, reason });
            }
        }
        for (field, set) in [
            ("do_resize", config.do_resize),
            ("do_rescale", config.do_rescale),
            ("do_normalize", config.do_normalize),
        ] {
            if !set {
                return Err(ConfigError::Invalid { file: FILE, field, reason: "must be true".to_string() });
            }
        }
        let filter = match config.resample {
            PILLOW_BILINEAR => Filter::Bilinear,
            PILLOW_BICUBIC => Filter::Bicubic,
            other => {
                let reason = format!("2 (bilinear) or 3 (bicubic) expected, got {other}");
                return Err(ConfigError::Invalid { file: FILE, field: "resample", reason });
            }
        };
        let min_pixels = config.min_pixels.or(config.size.and_then(|size| size.shortest_edge));
        let max_pixels = config.max_pixels.or(config.size.and_then(|size| size.longest_edge));
        let (min_pixels, max_pixels) =
            (min_pixels.unwrap_or(DEFAULT_MIN_PIXELS), max_pixels.unwrap_or(DEFAULT_MAX_PIXELS));
        let block_area = ((config.patch_size * config.merge_size) as u64).pow(2);
        if min_pixels == 0 || min_pixels > max_pixels || max_pixels < block_area {
            let reason = format!(
                "at least 1 and at most max_pixels, itself at least {block_area}, expected; got {min_pixels} and {max_pixels}"
            );
            return Err(ConfigError::Invalid { file: FILE, field: "min_pixels", reason });
        }
        let std_usable = |std: &f32| std.is_finite() && *std > 0.0;
        if !config.image_std.iter().all(std_usable) || !config.image_mean.iter().all(|mean| mean.is_finite())
        {
            let reason = "finite means and positive deviations expected".to_string();
            return Err(ConfigError::Invalid { file: FILE, field: "image_std", reason });
        }
        let normalised = std::array::from_fn(|channel| {
            std::array::from_fn(|value| {
                let rescaled = (value as f64 * config.rescale_factor) as f32;
                (rescaled - config.image_mean[channel]) / config.image_std[channel]
            })
        });
        Ok(Self {
            patch_size: config.patch_size,
            frames: config.temporal_patch_size,
            merge_size: config.merge_size,
            min_pixels: u32::try_from(min_pixels).unwrap_or(u32::MAX),
            max_pixels: u32::try_from(max_pixels).unwrap_or(u32::MAX),
            filter,
            normalised: Box::new(normalised),
        })
    }

    /// (rows, columns) of patches of an image of `width` x `height` pixels.
    ///
    /// # Errors
    /// An image without area, or with one side more than 200 times the other.
    pub fn patch_grid(&self, width: u32, height: u32) -> Result<(usize, usize), ImagingError> {
        let factor = (self.patch_size * self.merge_size) as u32;
        let (height, width) = smart_resize(height, width, factor, self.min_pixels, self.max_pixels)?;
        Ok((height as usize / self.patch_size, width as usize / self.patch_size))
    }

    /// (rows, columns) of the language-model tokens of an image of `width` x `height` pixels.
    ///
    /// # Errors
    /// As [`Self::patch_grid`].
    pub fn token_grid(&self, width: u32, height: u32) -> Result<(usize, usize), ImagingError> {
        let (rows, columns) = self.patch_grid(width, height)?;
        Ok((rows / self.merge_size, columns / self.merge_size))
    }

    /// Resizes, normalises and cuts one image.
    ///
    /// # Errors
    /// As [`Self::patch_grid`].
    pub fn patches(&self, image: &RgbImage) -> Result<ImagePatches, ImagingError> {
        let grid = self.patch_grid(image.width(), image.height())?;
        let side = self.patch_size;
        let (height, width) = (grid.0 * side, grid.1 * side);
        let resized = resize(image, height as u32, width as u32, self.filter);
        let pixels = resized.as_raw();
        let mut values = Vec::with_capacity(3 * self.frames * height * width);
        for (patch_row, patch_column) in merge_block_order(grid, self.merge_size) {
            for (channel, normalised) in self.normalised.iter().enumerate() {
                let plane = values.len();
                for row in patch_row * side..(patch_row + 1) * side {
                    let start = 3 * (row * width + patch_column * side);
                    let row = &pixels[start..start + 3 * side];
                    values.extend(row.chunks_exact(3).map(|pixel| normalised[pixel[channel] as usize]));
                }
                // A still image fills every frame.
                for _ in 1..self.frames {
                    values.extend_from_within(plane..plane + side * side);
                }
            }
        }
        Ok(ImagePatches { values, grid })
    }
}

/// Joins images into the input of a vision tower: patches (all patches, values of a patch) and grids.
///
/// # Errors
/// Images whose patches have different sizes, or none at all.
pub fn batch_patches(
    images: &[&ImagePatches],
    dtype: DType,
    device: &Device,
) -> TensorResult<(Tensor, Vec<(usize, usize)>)> {
    let grids: Vec<_> = images.iter().map(|image| image.grid).collect();
    let patches: usize = grids.iter().map(|(rows, columns)| rows * columns).sum();
    let values: Vec<f32> = images.iter().flat_map(|image| image.values.iter().copied()).collect();
    if patches == 0 || !values.len().is_multiple_of(patches) {
        bail!("{} values do not make {patches} patches", values.len());
    }
    let width = values.len() / patches;
    Ok((Tensor::from_vec(values, (patches, width), device)?.to_dtype(dtype)?, grids))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn processor(change: impl FnOnce(&mut ProcessorConfig)) -> Result<Processor, ConfigError> {
        let mut config = ProcessorConfig::default();
        change(&mut config);
        Processor::new(&config, &VisionConfig::default())
    }

    #[test]
    fn a_patch_lists_channels_then_frames_then_rows() {
        let processor = processor(|config| {
            config.image_mean = [0.0; 3];
            config.image_std = [1.0; 3];
            config.min_pixels = Some(28 * 56);
        })
        .unwrap();
        let image = RgbImage::from_fn(56, 28, |x, y| image::Rgb([x as u8, y as u8, (x + y) as u8]));
        let patches = processor.patches(&image).unwrap();
        assert_eq!(patches.grid, (2, 4));
        let value = |patch: usize, channel: usize, frame: usize, row: usize, column: usize| {
            let index = (((patch * 3 + channel) * 2 + frame) * 14 + row) * 14 + column;
            (patches.values[index] * 255.0).round() as u8
        };
        // Patches 0, 1 are the top row of the first merge block, 2, 3 its bottom row, 4 starts the second block.
        for (patch, top, left) in [(0, 0, 0), (1, 0, 14), (2, 14, 0), (4, 0, 28), (7, 14, 42)] {
            for frame in 0..2 {
                assert_eq!(value(patch, 0, frame, 3, 5), left + 5);
                assert_eq!(value(patch, 1, frame, 3, 5), top + 3);
                assert_eq!(value(patch, 2, frame, 3, 5), left + 5 + top + 3);
            }
        }
    }

    #[test]
    fn the_bounds_are_read_under_both_names() {
        let newer = PixelBounds { shortest_edge: Some(784), longest_edge: Some(784) };
        let by_size = processor(|config| config.size = Some(newer)).unwrap();
        assert_eq!(by_size.patch_grid(300, 300).unwrap(), (2, 2));
        let both = processor(|config| {
            config.size = Some(newer);
            (config.min_pixels, config.max_pixels) = (Some(3136), Some(4000));
        });
        assert_eq!(both.unwrap().patch_grid(300, 300).unwrap(), (4, 4));
    }

    #[test]
    fn a_setting_that_cannot_be_followed_names_its_field() {
        let field = |change: fn(&mut ProcessorConfig)| match processor(change) {
            Err(ConfigError::Invalid { field, .. }) => field,
            other => panic!("{other:?}"),
        };
        assert_eq!(field(|config| config.patch_size = 16), "patch_size");
        assert_eq!(field(|config| config.do_resize = false), "do_resize");
        assert_eq!(field(|config| config.resample = 0), "resample");
        assert_eq!(field(|config| config.min_pixels = Some(u64::MAX)), "min_pixels");
        assert_eq!(field(|config| config.image_std = [0.0; 3]), "image_std");
    }

    #[test]
    fn a_ribbon_of_more_than_200_to_1_is_refused() {
        assert!(processor(|_| ()).unwrap().patch_grid(201, 1).is_err());
    }
}
