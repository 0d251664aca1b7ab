use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Largest value accepted for any size; keeps products of sizes far from overflow.
const MAX_SIZE: usize = 1 << 24;

/// Why a `config.json` (or a file beside it) was refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {}: {reason}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The cause.
        reason: String,
    },
    /// The file is not the JSON that was expected.
    #[error("{} is malformed: {reason}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// The cause, with the field where it is known.
        reason: String,
    },
    /// A field has a value that no such model can have.
    #[error("{field}: {reason}")]
    Invalid {
        /// The field, as a path into the file.
        field: &'static str,
        /// The rule and the actual value.
        reason: String,
    },
}

/// The rotary section of a configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RopeScaling {
    /// How many of the `head_dim / 2` frequencies follow the time, height and width position, in this order.
    pub mrope_section: Vec<usize>,
    /// `default` or `mrope`; both mean the same.
    #[serde(rename = "type", alias = "rope_type", default = "defaults::rope_kind")]
    pub kind: String,
}

/// One token id or several, as generation settings spell it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum TokenIds {
    /// One id.
    One(u32),
    /// Several ids, any of them.
    Many(Vec<u32>),
}

impl TokenIds {
    /// The ids as a list.
    #[must_use]
    pub fn to_vec(&self) -> Vec<u32> {
        match self {
            Self::One(id) => vec![*id],
            Self::Many(ids) => ids.clone(),
        }
    }
}

/// Sizes of a vision tower. A field that is absent from the file takes the value of the published models.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct VisionConfig {
    /// Number of transformer blocks.
    pub depth: usize,
    /// Width of a patch token.
    pub embed_dim: usize,
    /// Attention heads; `embed_dim / num_heads` is a multiple of 4.
    pub num_heads: usize,
    /// Hidden width of a block's MLP, as a multiple of `embed_dim`.
    pub mlp_ratio: f64,
    /// Colour channels; 3.
    pub in_channels: usize,
    /// Side of a patch in pixels.
    pub patch_size: usize,
    /// Frames in a patch; a still image is repeated.
    pub temporal_patch_size: usize,
    /// Side, in patches, of the square that the merger joins into one token.
    pub spatial_merge_size: usize,
    /// Width of a merged token; the language model's `hidden_size`.
    pub hidden_size: usize,
    /// Activation of the MLP: `quick_gelu`.
    pub hidden_act: String,
    /// Standard deviation of freshly drawn weights; used by training only.
    pub initializer_range: f64,
}

impl Default for VisionConfig {
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
            initializer_range: defaults::initializer_range(),
        }
    }
}

impl VisionConfig {
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
        (self.embed_dim as f64 * self.mlp_ratio) as usize
    }

    /// Patches that the merger joins into one token.
    #[must_use]
    pub fn patches_per_token(&self) -> usize {
        self.spatial_merge_size * self.spatial_merge_size
    }
}

/// A Qwen2-VL `config.json`.
///
/// Read from both layouts in use: all language fields at the top level, or inside `text_config`. Written in the first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Config {
    /// Rows of the embedding table.
    pub vocab_size: usize,
    /// Width of the language model.
    pub hidden_size: usize,
    /// Hidden width of a layer's SwiGLU.
    pub intermediate_size: usize,
    /// Decoder layers.
    pub num_hidden_layers: usize,
    /// Query heads; divides `hidden_size`.
    pub num_attention_heads: usize,
    /// Key and value heads; divides `num_attention_heads`.
    pub num_key_value_heads: usize,
    /// Activation of the SwiGLU: `silu`.
    #[serde(default = "defaults::hidden_act")]
    pub hidden_act: String,
    /// Most tokens of prompt and answer together.
    pub max_position_embeddings: usize,
    /// Epsilon of the RMS norms.
    pub rms_norm_eps: f64,
    /// Base of the rotary frequencies.
    #[serde(default = "defaults::rope_theta")]
    pub rope_theta: f64,
    /// Sections of the multimodal rotary embedding.
    pub rope_scaling: RopeScaling,
    /// Whether the output head is the embedding table. Where the file does not say, the head is tied exactly when the
    /// weights hold no `lm_head.weight`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tie_word_embeddings: Option<bool>,
    /// Standard deviation of freshly drawn weights; used by training only.
    #[serde(default = "defaults::initializer_range")]
    pub initializer_range: f64,
    /// Sliding-window attention; not supported, so `false`.
    #[serde(default)]
    pub use_sliding_window: bool,
    /// Tokens that end an answer, unless `generation_config.json` names others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eos_token_id: Option<TokenIds>,
    /// The placeholder that merged image tokens replace.
    #[serde(default = "defaults::image_token_id")]
    pub image_token_id: u32,
    /// The mark before an image.
    #[serde(default = "defaults::vision_start_token_id")]
    pub vision_start_token_id: u32,
    /// The mark after an image.
    #[serde(default = "defaults::vision_end_token_id")]
    pub vision_end_token_id: u32,
    /// The vision tower.
    #[serde(default)]
    pub vision_config: VisionConfig,
}

impl Config {
    /// Reads and checks a `config.json`.
    ///
    /// # Errors
    /// [`ConfigError`], naming the file or the field.
    pub fn from_file(path: &Path) -> Result<Self, ConfigError> {
        let value = read_json(path)?;
        let Value::Object(fields) = value else {
            return Err(ConfigError::Malformed {
                path: path.to_path_buf(),
                reason: "not a JSON object".to_string(),
            });
        };
        let config: Self = serde_json::from_value(Value::Object(flattened(fields))).map_err(|cause| {
            ConfigError::Malformed { path: path.to_path_buf(), reason: cause.to_string() }
        })?;
        config.validate()?;
        Ok(config)
    }

    /// The file content in the published layout, as other tools read it.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let mut value = serde_json::to_value(self).unwrap_or_default();
        if let Some(fields) = value.as_object_mut() {
            fields.insert("architectures".to_string(), Value::from(vec!["Qwen2VLForConditionalGeneration"]));
            fields.insert("model_type".to_string(), Value::from("qwen2_vl"));
        }
        value
    }

    /// Width of one attention head of the language model.
    #[must_use]
    pub fn head_dim(&self) -> usize {
        self.hidden_size / self.num_attention_heads
    }

    /// Checks the rules that tie fields together.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`], naming the first field that breaks a rule.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.validate_sizes()?;
        let heads = self.num_attention_heads;
        divides("num_attention_heads", heads, "hidden_size", self.hidden_size)?;
        divides("num_key_value_heads", self.num_key_value_heads, "num_attention_heads", heads)?;
        let sections = &self.rope_scaling.mrope_section;
        if sections.len() != 3 || sections.iter().any(|&section| section > MAX_SIZE) {
            return invalid(
                "rope_scaling.mrope_section",
                format!("three section sizes expected, got {sections:?}"),
            );
        }
        let frequencies: usize = sections.iter().sum();
        if 2 * frequencies != self.head_dim() {
            return invalid(
                "rope_scaling.mrope_section",
                format!(
                    "the sections must sum to half the head width {}, they sum to {frequencies}",
                    self.head_dim()
                ),
            );
        }
        if !["default", "mrope"].contains(&self.rope_scaling.kind.as_str()) {
            return invalid(
                "rope_scaling.type",
                format!("`default` or `mrope` expected, got `{}`", self.rope_scaling.kind),
            );
        }
        positive_number("rms_norm_eps", self.rms_norm_eps)?;
        positive_number("rope_theta", self.rope_theta)?;
        if self.hidden_act != "silu" {
            return invalid("hidden_act", format!("`silu` expected, got `{}`", self.hidden_act));
        }
        if self.use_sliding_window {
            return invalid("use_sliding_window", "sliding-window attention is not supported".to_string());
        }
        for (field, id) in [
            ("image_token_id", self.image_token_id),
            ("vision_start_token_id", self.vision_start_token_id),
            ("vision_end_token_id", self.vision_end_token_id),
        ] {
            if id as usize >= self.vocab_size {
                return invalid(field, format!("{id} is outside the vocabulary of {}", self.vocab_size));
            }
        }
        self.validate_vision()
    }

    fn validate_sizes(&self) -> Result<(), ConfigError> {
        let vision = &self.vision_config;
        for (field, value) in [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", self.num_attention_heads),
            ("num_key_value_heads", self.num_key_value_heads),
            ("max_position_embeddings", self.max_position_embeddings),
            ("vision_config.depth", vision.depth),
            ("vision_config.embed_dim", vision.embed_dim),
            ("vision_config.num_heads", vision.num_heads),
            ("vision_config.in_channels", vision.in_channels),
            ("vision_config.patch_size", vision.patch_size),
            ("vision_config.temporal_patch_size", vision.temporal_patch_size),
            ("vision_config.spatial_merge_size", vision.spatial_merge_size),
            ("vision_config.hidden_size", vision.hidden_size),
        ] {
            if value == 0 || value > MAX_SIZE {
                return invalid(field, format!("1 to {MAX_SIZE} expected, got {value}"));
            }
        }
        Ok(())
    }

    fn validate_vision(&self) -> Result<(), ConfigError> {
        let vision = &self.vision_config;
        divides("vision_config.num_heads", vision.num_heads, "vision_config.embed_dim", vision.embed_dim)?;
        if !vision.head_dim().is_multiple_of(4) {
            return invalid(
                "vision_config.num_heads",
                format!("the head width must be a multiple of 4, it is {}", vision.head_dim()),
            );
        }
        if vision.in_channels != 3 {
            return invalid("vision_config.in_channels", format!("3 expected, got {}", vision.in_channels));
        }
        if vision.hidden_act != "quick_gelu" {
            return invalid(
                "vision_config.hidden_act",
                format!("`quick_gelu` expected, got `{}`", vision.hidden_act),
            );
        }
        positive_number("vision_config.mlp_ratio", vision.mlp_ratio)?;
        if vision.mlp_size() == 0 || vision.mlp_size() > MAX_SIZE {
            return invalid(
                "vision_config.mlp_ratio",
                format!("gives an MLP of {}, outside 1 to {MAX_SIZE}", vision.mlp_size()),
            );
        }
        if vision.hidden_size != self.hidden_size {
            return invalid(
                "vision_config.hidden_size",
                format!("must equal hidden_size {}, got {}", self.hidden_size, vision.hidden_size),
            );
        }
        Ok(())
    }
}

/// Brings the nested layout, and the spelling of the rotary fields that goes with it, to the flat one.
fn flattened(mut fields: Map<String, Value>) -> Map<String, Value> {
    if let Some(Value::Object(text)) = fields.remove("text_config") {
        fields.extend(text);
    }
    if let Some(Value::Object(rope)) = fields.remove("rope_parameters") {
        if let Some(theta) = rope.get("rope_theta") {
            fields.insert("rope_theta".to_string(), theta.clone());
        }
        fields.insert("rope_scaling".to_string(), Value::Object(rope));
    }
    if let Some(Value::Object(rope)) = fields.get_mut("rope_scaling")
        && let Some(kind) = rope.remove("rope_type")
    {
        rope.entry("type").or_insert(kind);
    }
    // A null means "not set" in these files.
    fields.retain(|_, value| !value.is_null());
    fields
}

/// Reads a JSON file.
pub(crate) fn read_json(path: &Path) -> Result<Value, ConfigError> {
    let text = std::fs::read_to_string(path)
        .map_err(|cause| ConfigError::Unreadable { path: path.to_path_buf(), reason: cause.to_string() })?;
    serde_json::from_str(&text)
        .map_err(|cause| ConfigError::Malformed { path: path.to_path_buf(), reason: cause.to_string() })
}

fn invalid<T>(field: &'static str, reason: String) -> Result<T, ConfigError> {
    Err(ConfigError::Invalid { field, reason })
}

fn divides(field: &'static str, part: usize, whole_field: &str, whole: usize) -> Result<(), ConfigError> {
    if whole.is_multiple_of(part) {
        Ok(())
    } else {
        invalid(field, format!("must divide {whole_field} {whole}, got {part}"))
    }
}

fn positive_number(field: &'static str, value: f64) -> Result<(), ConfigError> {
    if value.is_finite() && value > 0.0 {
        Ok(())
    } else {
        invalid(field, format!("a positive number expected, got {value}"))
    }
}

/// What the published models have where a file is silent.
mod defaults {
    pub(super) fn rope_kind() -> String {
        "mrope".to_string()
    }

    pub(super) fn hidden_act() -> String {
        "silu".to_string()
    }

    pub(super) fn rope_theta() -> f64 {
        1_000_000.0
    }

    pub(super) fn initializer_range() -> f64 {
        0.02
    }

    pub(super) fn image_token_id() -> u32 {
        151_655
    }

    pub(super) fn vision_start_token_id() -> u32 {
        151_652
    }

    pub(super) fn vision_end_token_id() -> u32 {
        151_653
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn small() -> Value {
        serde_json::json!({
            "vocab_size": 100, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "rms_norm_eps": 1e-6,
            "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]},
            "image_token_id": 9, "vision_start_token_id": 7, "vision_end_token_id": 8,
            "vision_config": {"depth": 1, "embed_dim": 16, "num_heads": 2, "hidden_size": 32}
        })
    }

    fn read(value: &Value) -> Result<Config, ConfigError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        std::fs::write(&path, value.to_string()).unwrap();
        Config::from_file(&path)
    }

    #[test]
    fn absent_vision_fields_take_the_published_values() {
        let config = read(&small()).unwrap();
        assert_eq!(config.vision_config.patch_size, 14);
        assert_eq!(config.vision_config.patch_values(), 1176);
        assert_eq!(config.vision_config.mlp_size(), 64);
        assert_eq!(config.rope_theta, 1e6);
    }

    #[test]
    fn the_nested_layout_reads_the_same_as_the_flat_one() {
        let flat = small();
        let Value::Object(mut text) = flat.clone() else { unreachable!() };
        let vision = text.remove("vision_config").unwrap();
        text["rope_scaling"] = serde_json::json!({"rope_type": "default", "mrope_section": [1, 1, 2]});
        let nested = serde_json::json!({"text_config": text, "vision_config": vision, "image_token_id": 9});
        let (flat, mut nested) = (read(&flat).unwrap(), read(&nested).unwrap());
        nested.rope_scaling.kind = "mrope".to_string();
        assert_eq!(nested, flat);
    }

    #[test]
    fn a_written_configuration_reads_back_equal() {
        let config = read(&small()).unwrap();
        assert_eq!(read(&config.to_json()).unwrap(), config);
    }

    #[test]
    fn a_broken_rule_names_its_field() {
        for (pointer, value, field) in [
            ("/num_key_value_heads", serde_json::json!(3), "num_key_value_heads"),
            ("/num_hidden_layers", serde_json::json!(0), "num_hidden_layers"),
            ("/rope_scaling/mrope_section", serde_json::json!([2, 2, 2]), "rope_scaling.mrope_section"),
            ("/rope_scaling/mrope_section", serde_json::json!([4]), "rope_scaling.mrope_section"),
            ("/rope_scaling/type", serde_json::json!("yarn"), "rope_scaling.type"),
            ("/image_token_id", serde_json::json!(100), "image_token_id"),
            ("/vision_config/hidden_size", serde_json::json!(64), "vision_config.hidden_size"),
            ("/vision_config/num_heads", serde_json::json!(8), "vision_config.num_heads"),
            ("/rms_norm_eps", serde_json::json!(0.0), "rms_norm_eps"),
        ] {
            let mut config = small();
            *config.pointer_mut(pointer).unwrap() = value;
            match read(&config) {
                Err(ConfigError::Invalid { field: named, .. }) => assert_eq!(named, field),
                other => panic!("{pointer}: {other:?}"),
            }
        }
    }

    #[test]
    fn a_missing_size_is_named() {
        let mut config = small();
        config.as_object_mut().unwrap().remove("hidden_size");
        let error = read(&config).unwrap_err().to_string();
        assert!(error.contains("hidden_size"), "{error}");
    }
}
