use serde::{
    Deserialize, Deserializer, Serialize,
    de::{DeserializeOwned, Error},
};
use serde_json::{Map, Value};

use super::error::{ConfigError, MAX_SIZE, divides, invalid, positive_number, size};

/// Sizes of a vision tower. A field that is absent from the file takes the value of the published models, except the
/// two widths of Qwen2.5-VL, on whose values tools disagree.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(into = "VisionFile")]
pub struct VisionConfig {
    /// Number of transformer blocks.
    pub depth: usize,
    /// Width of a patch token: `embed_dim` in the file of a Qwen2-VL, `hidden_size` in that of a Qwen2.5-VL.
    pub embed_dim: usize,
    /// Attention heads; `embed_dim / num_heads` is a multiple of 4.
    pub num_heads: usize,
    /// Colour channels; 3.
    pub in_channels: usize,
    /// Side of a patch in pixels.
    pub patch_size: usize,
    /// Frames in a patch; a still image is repeated.
    pub temporal_patch_size: usize,
    /// Side, in patches, of the square that the merger joins into one token.
    pub spatial_merge_size: usize,
    /// Width of a merged token, the language model's `hidden_size`: `hidden_size` in the file of a Qwen2-VL,
    /// `out_hidden_size` in that of a Qwen2.5-VL.
    pub hidden_size: usize,
    /// Standard deviation of freshly drawn weights; used by training only.
    pub initializer_range: f64,
    /// What the blocks are made of.
    pub family: VisionFamily,
}

/// What the blocks of a vision tower are made of.
#[derive(Debug, Clone, PartialEq)]
pub enum VisionFamily {
    /// Layer norms, an MLP with QuickGELU, and every patch of an image attends to all of it.
    Qwen2 {
        /// Hidden width of a block's MLP, as a multiple of the width of a patch token.
        mlp_ratio: f64,
    },
    /// RMS norms, a gated MLP with SiLU, and attention inside windows in most blocks.
    Qwen2_5 {
        /// Hidden width of a block's MLP.
        intermediate_size: usize,
        /// Side of a window in pixels; counts in whole merge blocks.
        window_size: usize,
        /// Blocks, from 0, in which every patch attends to its whole image.
        fullatt_block_indexes: Vec<usize>,
    },
}

impl VisionFamily {
    /// The `model_type` of the model around the tower.
    #[must_use]
    pub fn model_type(&self) -> &'static str {
        match self {
            Self::Qwen2 { .. } => VisionConfig::QWEN2,
            Self::Qwen2_5 { .. } => VisionConfig::QWEN2_5,
        }
    }

    /// The entry of `architectures` that other tools look for.
    #[must_use]
    pub fn architecture(&self) -> &'static str {
        match self {
            Self::Qwen2 { .. } => "Qwen2VLForConditionalGeneration",
            Self::Qwen2_5 { .. } => "Qwen2_5_VLForConditionalGeneration",
        }
    }
}

impl Default for VisionConfig {
    fn default() -> Self {
        Qwen2File::default().into()
    }
}

impl VisionConfig {
    /// The `model_type` of Qwen2-VL.
    pub(super) const QWEN2: &'static str = "qwen2_vl";
    /// The `model_type` of Qwen2.5-VL.
    pub(super) const QWEN2_5: &'static str = "qwen2_5_vl";

    /// Values in one flattened patch: channels x frames x rows x columns.
    #[must_use]
    pub fn patch_values(&self) -> usize {
        self.in_channels * self.temporal_patch_size * self.patch_size * self.patch_size
    }

    /// Width of one attention head.
    #[must_use]
    pub fn head_dim(&self) -> usize {
        self.embed_dim / self.num_heads
    }

    /// Hidden width of a block's MLP.
    #[must_use]
    pub fn mlp_size(&self) -> usize {
        match &self.family {
            VisionFamily::Qwen2 { mlp_ratio } => (self.embed_dim as f64 * mlp_ratio) as usize,
            VisionFamily::Qwen2_5 { intermediate_size, .. } => *intermediate_size,
        }
    }

    /// Patches that the merger joins into one token.
    #[must_use]
    pub fn patches_per_token(&self) -> usize {
        self.spatial_merge_size * self.spatial_merge_size
    }

    /// Side of an attention window in merge blocks; `None` where there are no windows.
    #[must_use]
    pub fn window_side(&self) -> Option<usize> {
        match &self.family {
            VisionFamily::Qwen2 { .. } => None,
            VisionFamily::Qwen2_5 { window_size, .. } => {
                Some(window_size / self.spatial_merge_size / self.patch_size)
            }
        }
    }

    /// Whether the patches of a block attend to their whole image.
    #[must_use]
    pub fn attends_fully(&self, block: usize) -> bool {
        match &self.family {
            VisionFamily::Qwen2 { .. } => true,
            VisionFamily::Qwen2_5 { fullatt_block_indexes, .. } => fullatt_block_indexes.contains(&block),
        }
    }

    /// The fields, in `config.json`, of the width of a patch token, of the MLP and of a merged token.
    pub(super) fn width_fields(&self) -> [&'static str; 3] {
        match self.family {
            VisionFamily::Qwen2 { .. } => {
                ["vision_config.embed_dim", "vision_config.mlp_ratio", "vision_config.hidden_size"]
            }
            VisionFamily::Qwen2_5 { .. } => [
                "vision_config.hidden_size",
                "vision_config.intermediate_size",
                "vision_config.out_hidden_size",
            ],
        }
    }

    /// Checks the rules that tie fields together; `hidden_size` is the width of the language model.
    pub(super) fn validate(&self, hidden_size: usize) -> Result<(), ConfigError> {
        let [width, mlp, output] = self.width_fields();
        for (field, value) in [
            ("vision_config.depth", self.depth),
            (width, self.embed_dim),
            ("vision_config.num_heads", self.num_heads),
            ("vision_config.in_channels", self.in_channels),
            ("vision_config.patch_size", self.patch_size),
            ("vision_config.temporal_patch_size", self.temporal_patch_size),
            ("vision_config.spatial_merge_size", self.spatial_merge_size),
            (output, self.hidden_size),
        ] {
            size(field, value)?;
        }
        divides("vision_config.num_heads", self.num_heads, width, self.embed_dim)?;
        if !self.head_dim().is_multiple_of(4) {
            return invalid(
                "vision_config.num_heads",
                format!("the head width must be a multiple of 4, it is {}", self.head_dim()),
            );
        }
        if self.in_channels != 3 {
            return invalid("vision_config.in_channels", format!("3 expected, got {}", self.in_channels));
        }
        if let VisionFamily::Qwen2 { mlp_ratio } = self.family {
            positive_number(mlp, mlp_ratio)?;
        }
        if !(1..=MAX_SIZE).contains(&self.mlp_size()) {
            return invalid(mlp, format!("gives an MLP of {}, outside 1 to {MAX_SIZE}", self.mlp_size()));
        }
        if self.hidden_size != hidden_size {
            return invalid(
                output,
                format!("must equal hidden_size {hidden_size}, got {}", self.hidden_size),
            );
        }
        self.validate_windows()
    }

    fn validate_windows(&self) -> Result<(), ConfigError> {
        let VisionFamily::Qwen2_5 { window_size, fullatt_block_indexes, .. } = &self.family else {
            return Ok(());
        };
        if self.window_side() == Some(0) {
            let block = self.spatial_merge_size * self.patch_size;
            return invalid(
                "vision_config.window_size",
                format!("at least the {block} pixels of a merge block expected, got {window_size}"),
            );
        }
        if let Some(index) = fullatt_block_indexes.iter().find(|&&index| index >= self.depth) {
            return invalid(
                "vision_config.fullatt_block_indexes",
                format!("{index} is outside the {} blocks", self.depth),
            );
        }
        Ok(())
    }
}

/// `vision_config` as it stands in a file.
#[derive(Serialize)]
#[serde(tag = "model_type")]
enum VisionFile {
    #[serde(rename = "qwen2_vl")]
    Qwen2(Qwen2File),
    #[serde(rename = "qwen2_5_vl")]
    Qwen2_5(Qwen2_5File),
}

#[derive(Serialize, Deserialize)]
#[serde(default)]
struct Qwen2File {
    depth: usize,
    embed_dim: usize,
    num_heads: usize,
    #[serde(serialize_with = "whole_where_it_is")]
    mlp_ratio: f64,
    in_channels: usize,
    patch_size: usize,
    temporal_patch_size: usize,
    spatial_merge_size: usize,
    hidden_size: usize,
    hidden_act: String,
    initializer_range: f64,
}

/// A ratio that is a whole number is written as one: transformers 5 refuses 4.0 where it expects an integer.
#[allow(clippy::trivially_copy_pass_by_ref)] // serde hands it over so
fn whole_where_it_is<S: serde::Serializer>(ratio: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    let whole = *ratio as u32;
    if f64::from(whole) == *ratio {
        serializer.serialize_u32(whole)
    } else {
        serializer.serialize_f64(*ratio)
    }
}

impl Default for Qwen2File {
    fn default() -> Self {
        Self {
            depth: 32,
            embed_dim: 1280,
            num_heads: 16,
            mlp_ratio: 4.0,
            in_channels: 3,
            patch_size: 14,
            temporal_patch_size: 2,
            spatial_merge_size: 2,
            hidden_size: 3584,
            hidden_act: "quick_gelu".to_string(),
            initializer_range: super::defaults::initializer_range(),
        }
    }
}

#[derive(Serialize, Deserialize)]
struct Qwen2_5File {
    #[serde(default = "published::depth")]
    depth: usize,
    hidden_size: usize,
    #[serde(default = "published::num_heads")]
    num_heads: usize,
    #[serde(default = "published::intermediate_size")]
    intermediate_size: usize,
    #[serde(default = "published::in_channels")]
    in_channels: usize,
    #[serde(default = "published::patch_size")]
    patch_size: usize,
    #[serde(default = "published::temporal_patch_size")]
    temporal_patch_size: usize,
    #[serde(default = "published::spatial_merge_size")]
    spatial_merge_size: usize,
    #[serde(default = "published::window_size")]
    window_size: usize,
    #[serde(default = "published::fullatt_block_indexes")]
    fullatt_block_indexes: Vec<usize>,
    out_hidden_size: usize,
    #[serde(default = "super::defaults::hidden_act")]
    hidden_act: String,
    #[serde(default = "super::defaults::initializer_range")]
    initializer_range: f64,
}

/// Reads the fields of the family that `model_type`, among them, names.
impl<'de> Deserialize<'de> for VisionConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut fields = Map::deserialize(deserializer)?;
        match fields.remove("model_type").as_ref().and_then(Value::as_str) {
            Some(Self::QWEN2) => {
                let file: Qwen2File = file(fields)?;
                require_activation(&file.hidden_act, "quick_gelu")?;
                Ok(file.into())
            }
            Some(Self::QWEN2_5) => {
                let file: Qwen2_5File = file(fields)?;
                require_activation(&file.hidden_act, "silu")?;
                Ok(file.into())
            }
            other => Err(D::Error::custom(format!("model_type: {other:?} has no known vision tower"))),
        }
    }
}

/// Names the field in an error, which an outer deserializer cannot see.
fn file<T: DeserializeOwned, E: Error>(fields: Map<String, Value>) -> Result<T, E> {
    serde_path_to_error::deserialize(Value::Object(fields)).map_err(|cause| match cause.path().to_string() {
        outside if outside == "." => E::custom(cause.into_inner()),
        field => E::custom(format!("{field}: {}", cause.into_inner())),
    })
}

fn require_activation<E: Error>(actual: &str, expected: &str) -> Result<(), E> {
    if actual == expected {
        Ok(())
    } else {
        Err(E::custom(format!("hidden_act: `{expected}` expected, got `{actual}`")))
    }
}

impl From<Qwen2File> for VisionConfig {
    fn from(file: Qwen2File) -> Self {
        Self {
            depth: file.depth,
            embed_dim: file.embed_dim,
            num_heads: file.num_heads,
            in_channels: file.in_channels,
            patch_size: file.patch_size,
            temporal_patch_size: file.temporal_patch_size,
            spatial_merge_size: file.spatial_merge_size,
            hidden_size: file.hidden_size,
            initializer_range: file.initializer_range,
            family: VisionFamily::Qwen2 { mlp_ratio: file.mlp_ratio },
        }
    }
}

impl From<Qwen2_5File> for VisionConfig {
    fn from(file: Qwen2_5File) -> Self {
        Self {
            depth: file.depth,
            embed_dim: file.hidden_size,
            num_heads: file.num_heads,
            in_channels: file.in_channels,
            patch_size: file.patch_size,
            temporal_patch_size: file.temporal_patch_size,
            spatial_merge_size: file.spatial_merge_size,
            hidden_size: file.out_hidden_size,
            initializer_range: file.initializer_range,
            family: VisionFamily::Qwen2_5 {
                intermediate_size: file.intermediate_size,
                window_size: file.window_size,
                fullatt_block_indexes: file.fullatt_block_indexes,
            },
        }
    }
}

impl From<VisionConfig> for VisionFile {
    fn from(config: VisionConfig) -> Self {
        match config.family {
            VisionFamily::Qwen2 { mlp_ratio } => Self::Qwen2(Qwen2File {
                depth: config.depth,
                embed_dim: config.embed_dim,
                num_heads: config.num_heads,
                mlp_ratio,
                in_channels: config.in_channels,
                patch_size: config.patch_size,
                temporal_patch_size: config.temporal_patch_size,
                spatial_merge_size: config.spatial_merge_size,
                hidden_size: config.hidden_size,
                hidden_act: "quick_gelu".to_string(),
                initializer_range: config.initializer_range,
            }),
            VisionFamily::Qwen2_5 { intermediate_size, window_size, fullatt_block_indexes } => {
                Self::Qwen2_5(Qwen2_5File {
                    depth: config.depth,
                    hidden_size: config.embed_dim,
                    num_heads: config.num_heads,
                    intermediate_size,
                    in_channels: config.in_channels,
                    patch_size: config.patch_size,
                    temporal_patch_size: config.temporal_patch_size,
                    spatial_merge_size: config.spatial_merge_size,
                    window_size,
                    fullatt_block_indexes,
                    out_hidden_size: config.hidden_size,
                    hidden_act: "silu".to_string(),
                    initializer_range: config.initializer_range,
                })
            }
        }
    }
}

/// What the published Qwen2.5-VL models have where a file is silent.
mod published {
    pub(super) fn depth() -> usize {
        32
    }

    pub(super) fn num_heads() -> usize {
        16
    }

    pub(super) fn intermediate_size() -> usize {
        3420
    }

    pub(super) fn in_channels() -> usize {
        3
    }

    pub(super) fn patch_size() -> usize {
        14
    }

    pub(super) fn temporal_patch_size() -> usize {
        2
    }

    pub(super) fn spatial_merge_size() -> usize {
        2
    }

    pub(super) fn window_size() -> usize {
        112
    }

    pub(super) fn fullatt_block_indexes() -> Vec<usize> {
        vec![7, 15, 23, 31]
    }
}
