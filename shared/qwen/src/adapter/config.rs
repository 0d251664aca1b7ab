use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    marker::PhantomData,
    path::Path,
};

use regex::Regex;
use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};
use serde_json::Value;

use super::{AdapterError, WEIGHTS_FILE};

/// The word with which PEFT means every linear map.
const ALL_LINEAR: &str = "all-linear";

/// The fields of `adapter_config.json` that matter when serving.
#[derive(Debug, Deserialize)]
pub(super) struct AdapterConfig {
    peft_type: String,
    r: usize,
    lora_alpha: f64,
    #[serde(default)]
    use_rslora: bool,
    bias: Option<String>,
    rank_pattern: Option<Patterns<usize>>,
    alpha_pattern: Option<Patterns<f64>>,
    target_modules: Option<Value>,
    #[serde(flatten)]
    others: BTreeMap<String, Value>,
}

/// Variants of the method that compute something else; none of these fields may be set.
const UNSUPPORTED: [&str; 9] = [
    "use_dora",
    "use_qalora",
    "use_bdlora",
    "lora_bias",
    "fan_in_fan_out",
    "modules_to_save",
    "layer_replication",
    "alora_invocation_tokens",
    "trainable_token_indices",
];

/// A JSON object in file order: of several patterns that match, the first counts.
#[derive(Debug)]
struct Patterns<T>(Vec<(String, T)>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Patterns<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct InOrder<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for InOrder<T> {
            type Value = Vec<(String, T)>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of patterns")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Self::Value, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(entries)
            }
        }
        deserializer.deserialize_map(InOrder(PhantomData)).map(Self)
    }
}

impl<T: Copy> Patterns<T> {
    /// The value of the first pattern that matches a whole module path or its end, as PEFT has it.
    fn find(&self, module: &str) -> std::result::Result<Option<T>, String> {
        for (pattern, value) in &self.0 {
            let whole = format!("^(?:.*\\.)?(?:{pattern})$");
            let expression =
                Regex::new(&whole).map_err(|cause| format!("pattern `{pattern}`: {}", one_line(&cause)))?;
            if expression.is_match(module) {
                return Ok(Some(*value));
            }
        }
        Ok(None)
    }
}

impl AdapterConfig {
    /// The file's fields and its text.
    pub(super) fn read(path: &Path) -> std::result::Result<(Self, String), AdapterError> {
        let failed = |reason: String| AdapterError::Config { path: path.to_path_buf(), reason };
        let text = std::fs::read_to_string(path).map_err(|cause| failed(cause.to_string()))?;
        let config: Self = serde_json::from_str(&text).map_err(|cause| failed(cause.to_string()))?;
        config.check().map_err(failed)?;
        Ok((config, text))
    }

    /// Refuses what would change the result if it were left out.
    fn check(&self) -> std::result::Result<(), String> {
        if self.peft_type != "LORA" {
            return Err(format!("peft_type: LORA expected, got {}", self.peft_type));
        }
        if self.r == 0 || !self.lora_alpha.is_finite() {
            return Err(format!(
                "r and lora_alpha: a rank of at least 1 and a finite number expected, got {} and {}",
                self.r, self.lora_alpha
            ));
        }
        match self.bias.as_deref() {
            None | Some("none") => {}
            Some(bias) => {
                return Err(format!("bias: none expected, got {bias}; trained biases are not supported"));
            }
        }
        let is_unset = |value: &Value| match value {
            Value::Null | Value::Bool(false) => true,
            Value::Array(items) => items.is_empty(),
            _ => false,
        };
        for field in UNSUPPORTED {
            if let Some(value) = self.others.get(field).filter(|value| !is_unset(value)) {
                return Err(format!("{field}: {value} is not supported"));
            }
        }
        Ok(())
    }

    /// Rank and scale of a module, given its path as the adapter spells it.
    pub(super) fn rank_and_scale(&self, module: &str) -> std::result::Result<(usize, f64), String> {
        let rank = self.rank_pattern.as_ref().map_or(Ok(None), |patterns| patterns.find(module))?;
        let alpha = self.alpha_pattern.as_ref().map_or(Ok(None), |patterns| patterns.find(module))?;
        let (rank, alpha) = (rank.unwrap_or(self.r), alpha.unwrap_or(self.lora_alpha));
        let divisor = if self.use_rslora { (rank as f64).sqrt() } else { rank as f64 };
        Ok((rank, alpha / divisor))
    }

    /// Holds the targets against the modules that have tensors: of a list, every name must be the end of one; an
    /// expression must match each of them whole, as PEFT applies it.
    pub(super) fn check_targets(&self, modules: &BTreeSet<String>) -> std::result::Result<(), String> {
        match &self.target_modules {
            Some(Value::Array(names)) => {
                for target in names.iter().filter_map(Value::as_str) {
                    let hit = |module: &String| module == target || module.ends_with(&format!(".{target}"));
                    if !modules.iter().any(hit) {
                        return Err(format!("target_modules: {target} has no tensors in {WEIGHTS_FILE}"));
                    }
                }
                Ok(())
            }
            Some(Value::String(expression)) if expression != ALL_LINEAR => {
                let whole = fancy_regex::Regex::new(&format!("^(?:{expression})$"))
                    .map_err(|cause| format!("target_modules: {}", one_line(&cause)))?;
                for module in modules {
                    if !whole
                        .is_match(module)
                        .map_err(|cause| format!("target_modules: {}", one_line(&cause)))?
                    {
                        return Err(format!("target_modules does not match {module}, which has tensors"));
                    }
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

fn one_line(cause: &impl ToString) -> String {
    cause.to_string().lines().last().unwrap_or_default().trim().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(fields: &str) -> std::result::Result<AdapterConfig, String> {
        let text = format!(r#"{{"peft_type":"LORA","r":8,"lora_alpha":16{fields}}}"#);
        let config: AdapterConfig = serde_json::from_str(&text).map_err(|cause| cause.to_string())?;
        config.check().map(|()| config)
    }

    #[test]
    fn the_scale_is_alpha_over_the_rank() {
        let config = config("").unwrap();
        assert_eq!(config.rank_and_scale("model.layers.0.self_attn.q_proj"), Ok((8, 2.0)));
    }

    #[test]
    fn a_rank_stabilised_scale_is_alpha_over_the_root_of_the_rank() {
        let config = config(r#","use_rslora":true,"rank_pattern":{"q_proj":4}"#).unwrap();
        assert_eq!(config.rank_and_scale("model.layers.0.self_attn.q_proj"), Ok((4, 8.0)));
    }

    #[test]
    fn of_several_patterns_the_first_that_matches_the_end_counts() {
        let config =
            config(r#","rank_pattern":{"z_proj":3,"layers.1.+":2,"q_proj":4},"alpha_pattern":{"v_proj":1}"#)
                .unwrap();
        assert_eq!(config.rank_and_scale("model.layers.1.self_attn.q_proj"), Ok((2, 8.0)));
        assert_eq!(config.rank_and_scale("model.layers.0.self_attn.q_proj"), Ok((4, 4.0)));
        assert_eq!(config.rank_and_scale("model.layers.0.self_attn.aq_proj"), Ok((8, 2.0)));
        assert_eq!(config.rank_and_scale("model.layers.0.self_attn.v_proj"), Ok((8, 0.125)));
    }

    #[test]
    fn what_would_be_left_out_is_refused_by_field() {
        for (fields, expected) in [
            (r#","use_dora":true"#, "use_dora"),
            (r#","fan_in_fan_out":true"#, "fan_in_fan_out"),
            (r#","bias":"all""#, "bias: none expected, got all"),
            (r#","modules_to_save":["lm_head"]"#, r#"modules_to_save: ["lm_head"] is not supported"#),
        ] {
            let error = config(fields).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn a_pattern_that_is_no_expression_is_named() {
        let config = config(r#","rank_pattern":{"(":3}"#).unwrap();
        let error = config.rank_and_scale("q_proj").unwrap_err();
        assert!(error.starts_with("pattern `(`"), "{error}");
    }
}
