mod error;
mod layout;
mod vision;
mod weights;

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use self::error::{MAX_SIZE, divides, invalid, positive_number, size};
pub(crate) use self::error::{parse, read_json};
pub use self::{
    error::ConfigError,
    vision::{VisionConfig, VisionFamily},
};

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

/// The `config.json` of a Qwen2-VL or a Qwen2.5-VL; `model_type` says which.
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
        let known = [VisionConfig::QWEN2, VisionConfig::QWEN2_5];
        match fields.get("model_type") {
            Some(Value::String(model_type)) if known.contains(&model_type.as_str()) => {}
            other => {
                let actual = other.map_or_else(|| "nothing".to_string(), ToString::to_string);
                return invalid("model_type", format!("one of {known:?} expected, got {actual}"));
            }
        }
        let fields = layout::flattened(fields);
        if let Some(Value::Array(kinds)) = fields.get("layer_types")
            && let Some(other) = kinds.iter().find(|kind| *kind != "full_attention")
        {
            return invalid("layer_types", format!("only \"full_attention\" is supported, got {other}"));
        }
        let config: Self = parse(Value::Object(fields), path)?;
        config.validate()?;
        Ok(config)
    }

    /// The file content in the published layout, as other tools read it.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let mut value = serde_json::to_value(self).unwrap_or_default();
        if let Some(fields) = value.as_object_mut() {
            let family = &self.vision_config.family;
            fields.insert("architectures".to_string(), Value::from(vec![family.architecture()]));
            fields.insert("model_type".to_string(), Value::from(family.model_type()));
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
        self.vision_config.validate(self.hidden_size)
    }

    fn validate_sizes(&self) -> Result<(), ConfigError> {
        for (field, value) in [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", self.num_attention_heads),
            ("num_key_value_heads", self.num_key_value_heads),
            ("max_position_embeddings", self.max_position_embeddings),
        ] {
            size(field, value)?;
        }
        Ok(())
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
            "model_type": "qwen2_vl",
            "vocab_size": 100, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "rms_norm_eps": 1e-6,
            "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]},
            "image_token_id": 9, "vision_start_token_id": 7, "vision_end_token_id": 8,
            "vision_config": {"depth": 1, "embed_dim": 16, "num_heads": 2, "hidden_size": 32}
        })
    }

    fn small_2_5() -> Value {
        let mut config = small();
        config["model_type"] = "qwen2_5_vl".into();
        config["vision_config"] = serde_json::json!({
            "depth": 3, "hidden_size": 16, "num_heads": 2, "out_hidden_size": 32, "intermediate_size": 20,
            "fullatt_block_indexes": [1], "tokens_per_second": 2, "in_chans": 3, "spatial_patch_size": 14
        });
        config
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
        let model_type = text.insert("model_type".to_string(), "qwen2_vl_text".into());
        let nested = serde_json::json!({
            "model_type": model_type, "text_config": text, "vision_config": vision, "image_token_id": 9
        });
        let (flat, mut nested) = (read(&flat).unwrap(), read(&nested).unwrap());
        nested.rope_scaling.kind = "mrope".to_string();
        assert_eq!(nested, flat);
    }

    #[test]
    fn a_written_configuration_reads_back_equal() {
        for file in [small(), small_2_5()] {
            let config = read(&file).unwrap();
            assert_eq!(read(&config.to_json()).unwrap(), config);
        }
    }

    #[test]
    fn the_widths_of_a_2_5_tower_are_read_under_their_own_names() {
        let config = read(&small_2_5()).unwrap();
        let vision = &config.vision_config;
        assert_eq!((vision.embed_dim, vision.mlp_size(), vision.hidden_size), (16, 20, 32));
        // 112 pixels are 4 merge blocks of 28.
        assert_eq!(vision.window_side(), Some(4));
        assert_eq!([0, 1, 2].map(|block| vision.attends_fully(block)), [false, true, false]);
    }

    #[test]
    fn an_unknown_model_type_is_refused() {
        for value in [serde_json::json!("qwen3_vl"), Value::Null] {
            let mut config = small();
            config["model_type"] = value;
            let error = read(&config).unwrap_err().to_string();
            assert!(error.contains("model_type") && error.contains("qwen2_5_vl"), "{error}");
        }
    }

    #[test]
    fn a_value_of_the_wrong_type_names_its_field() {
        for (pointer, field) in
            [("/hidden_size", "hidden_size"), ("/vision_config/depth", "vision_config: depth")]
        {
            let mut config = small_2_5();
            *config.pointer_mut(pointer).unwrap() = "many".into();
            let error = read(&config).unwrap_err().to_string();
            assert!(error.contains(field) && error.contains("many"), "{error}");
        }
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
            assert_invalid(small(), pointer, value, field);
        }
        for (pointer, value, field) in [
            ("/vision_config/hidden_size", serde_json::json!(18), "vision_config.num_heads"),
            ("/vision_config/out_hidden_size", serde_json::json!(64), "vision_config.out_hidden_size"),
            ("/vision_config/intermediate_size", serde_json::json!(0), "vision_config.intermediate_size"),
            ("/vision_config/window_size", serde_json::json!(27), "vision_config.window_size"),
            (
                "/vision_config/fullatt_block_indexes",
                serde_json::json!([3]),
                "vision_config.fullatt_block_indexes",
            ),
            ("/layer_types", serde_json::json!(["full_attention", "sliding_attention"]), "layer_types"),
        ] {
            assert_invalid(small_2_5(), pointer, value, field);
        }
    }

    fn assert_invalid(mut config: Value, pointer: &str, value: Value, field: &str) {
        let (parent, name) = pointer.rsplit_once('/').unwrap();
        config.pointer_mut(parent).unwrap()[name] = value;
        match read(&config) {
            Err(ConfigError::Invalid { field: named, .. }) => assert_eq!(named, field),
            other => panic!("{pointer}: {other:?}"),
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
