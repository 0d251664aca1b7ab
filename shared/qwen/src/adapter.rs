//! LoRA adapters in the form PEFT saves them, merged into the weights as they are read.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    marker::PhantomData,
    path::{Path, PathBuf},
    sync::Arc,
};

use candle_core::{DType, Device, Error, Result, Shape, Tensor, bail};
use candle_nn::{Init, VarBuilder, var_builder::SimpleBackend};
use parking_lot::Mutex;
use regex::Regex;
use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};
use serde_json::Value;
use thicket_checkpoint::{Checkpoint, CheckpointError};

use crate::model::published_name;

const CONFIG_FILE: &str = "adapter_config.json";
const WEIGHTS_FILE: &str = "adapter_model.safetensors";
/// What PEFT puts before the names of the base model's modules.
const KEY_PREFIX: &str = "base_model.model.";

/// Why an adapter cannot be merged.
#[derive(Debug, thiserror::Error)]
pub enum AdapterError {
    /// `adapter_config.json` cannot be read or asks for something that is not supported.
    #[error("{}: {reason}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// The field, its value and what is expected.
        reason: String,
    },
    /// The weight file.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A tensor of the adapter that is not one half of a low-rank pair, or does not fit its other half or the
    /// configured rank.
    #[error("adapter tensor {name}: {reason}")]
    Tensor {
        /// The tensor's name in the file.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Modules that the model does not have: the adapter would apply in part, or not at all.
    #[error(
        "{count} modules of the adapter are not in the model, the first is {first}: it belongs to another base"
    )]
    Unmatched {
        /// How many.
        count: usize,
        /// The first in name order.
        first: String,
    },
}

/// The fields of `adapter_config.json` that matter when serving.
#[derive(Debug, Deserialize)]
struct AdapterConfig {
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
            let expression = Regex::new(&whole).map_err(|cause| {
                let last = cause.to_string().lines().last().unwrap_or_default().trim().to_string();
                format!("pattern `{pattern}`: {last}")
            })?;
            if expression.is_match(module) {
                return Ok(Some(*value));
            }
        }
        Ok(None)
    }
}

impl AdapterConfig {
    /// The file's fields and its text.
    fn read(path: &Path) -> std::result::Result<(Self, String), AdapterError> {
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
    fn rank_and_scale(&self, module: &str) -> std::result::Result<(usize, f64), String> {
        let rank = self.rank_pattern.as_ref().map_or(Ok(None), |patterns| patterns.find(module))?;
        let alpha = self.alpha_pattern.as_ref().map_or(Ok(None), |patterns| patterns.find(module))?;
        let (rank, alpha) = (rank.unwrap_or(self.r), alpha.unwrap_or(self.lora_alpha));
        let divisor = if self.use_rslora { (rank as f64).sqrt() } else { rank as f64 };
        Ok((rank, alpha / divisor))
    }

    /// The listed module names; empty where the targets are one expression, which need not be evaluated to merge.
    fn listed_targets(&self) -> Vec<&str> {
        self.target_modules
            .as_ref()
            .and_then(Value::as_array)
            .map(|names| names.iter().filter_map(Value::as_str).collect())
            .unwrap_or_default()
    }
}

/// `scale * b a`, what an adapter adds to one weight.
#[derive(Debug, Clone)]
struct Delta {
    /// f32 `[rank, in]`
    a: Tensor,
    /// f32 `[out, rank]`
    b: Tensor,
    scale: f64,
}

/// A PEFT folder with a LoRA adapter: `adapter_config.json` and `adapter_model.safetensors`.
///
/// Merging follows PEFT: `W' = W + s B A` with `s = alpha / r`, or `alpha / sqrt(r)` for rank-stabilised adapters, where
/// `rank_pattern` and `alpha_pattern` may set both for single modules. The sum is computed in f32 and rounded once, to
/// the type the model is loaded in.
#[derive(Debug)]
pub(crate) struct Adapter {
    /// By the name of the module in the published spelling.
    deltas: BTreeMap<String, Delta>,
    fingerprint: String,
}

impl Adapter {
    /// Reads a folder.
    ///
    /// # Errors
    /// [`AdapterError`]: nothing in the folder is ignored.
    pub(crate) fn open(dir: &Path) -> std::result::Result<Self, AdapterError> {
        let config_path = dir.join(CONFIG_FILE);
        let (config, config_text) = AdapterConfig::read(&config_path)?;
        let weights = Checkpoint::open_file(&dir.join(WEIGHTS_FILE))?;
        let modules = modules(&weights)?;
        for target in config.listed_targets() {
            let hit = |module: &String| module == target || module.ends_with(&format!(".{target}"));
            if !modules.iter().any(hit) {
                let reason = format!("target_modules: {target} has no tensors in {WEIGHTS_FILE}");
                return Err(AdapterError::Config { path: config_path, reason });
            }
        }
        let builder = weights.var_builder(DType::F32, &Device::Cpu);
        let mut deltas = BTreeMap::new();
        for module in modules {
            let (rank, scale) = config
                .rank_and_scale(&module)
                .map_err(|reason| AdapterError::Config { path: config_path.clone(), reason })?;
            let half = |letter: char| {
                let name = format!("{KEY_PREFIX}{module}.lora_{letter}.weight");
                let tensor = builder
                    .get_unchecked(&name)
                    .and_then(|tensor| tensor.dims2().map(|dims| (tensor, dims)))
                    .map_err(|cause| AdapterError::Tensor {
                        name: name.clone(),
                        reason: cause.to_string().lines().next().unwrap_or_default().to_string(),
                    })?;
                Ok::<_, AdapterError>((name, tensor))
            };
            let (a_name, (a, (a_rank, _))) = half('A')?;
            let (b_name, (b, (_, b_rank))) = half('B')?;
            for (name, actual) in [(a_name, a_rank), (b_name, b_rank)] {
                if actual != rank {
                    let reason = format!("its rank is {actual}, the configuration says {rank}");
                    return Err(AdapterError::Tensor { name, reason });
                }
            }
            let name = published_name(&module);
            if deltas.insert(name.clone(), Delta { a, b, scale }).is_some() {
                // One module under both spellings: only one of the two would apply.
                return Err(CheckpointError::Duplicate { name }.into());
            }
        }
        let mut hasher = blake3::Hasher::new();
        hasher.update(weights.fingerprint().as_bytes()).update(config_text.as_bytes());
        Ok(Self { deltas, fingerprint: hasher.finalize().to_hex().to_string() })
    }

    /// Hex BLAKE3 digest of both files.
    pub(crate) fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// A builder that hands out the tensors of `base` with this adapter merged in.
    pub(crate) fn merge_into(self, base: VarBuilder<'static>) -> Merging {
        Merging { base, deltas: Arc::new(self.deltas), merged: Arc::default() }
    }
}

/// The module paths of an adapter file, as it spells them.
fn modules(weights: &Checkpoint) -> std::result::Result<BTreeSet<String>, AdapterError> {
    let module = |name: &str| {
        let path = name.strip_prefix(KEY_PREFIX)?;
        path.strip_suffix(".lora_A.weight")
            .or_else(|| path.strip_suffix(".lora_B.weight"))
            .map(str::to_string)
    };
    weights
        .names()
        .map(|name| {
            module(name).ok_or_else(|| AdapterError::Tensor {
                name: name.to_string(),
                reason: format!("{KEY_PREFIX}MODULE.lora_A.weight or .lora_B.weight expected"),
            })
        })
        .collect()
}

/// A base and an adapter while a model is built from them.
#[derive(Clone)]
pub(crate) struct Merging {
    base: VarBuilder<'static>,
    deltas: Arc<BTreeMap<String, Delta>>,
    merged: Arc<Mutex<BTreeSet<String>>>,
}

impl Merging {
    /// Hands out merged tensors.
    pub(crate) fn var_builder(&self) -> VarBuilder<'static> {
        let (dtype, device) = (self.base.dtype(), self.base.device().clone());
        VarBuilder::from_backend(Box::new(self.clone()), dtype, device)
    }

    /// Refuses an adapter of which a part was not merged.
    ///
    /// # Errors
    /// [`AdapterError::Unmatched`].
    pub(crate) fn finish(&self) -> std::result::Result<(), AdapterError> {
        let merged = self.merged.lock();
        let mut left = self.deltas.keys().filter(|module| !merged.contains(*module));
        match left.next() {
            None => Ok(()),
            Some(first) => Err(AdapterError::Unmatched { first: first.clone(), count: 1 + left.count() }),
        }
    }
}

impl SimpleBackend for Merging {
    fn get(&self, shape: Shape, name: &str, init: Init, dtype: DType, _: &Device) -> Result<Tensor> {
        let Some((module, delta)) =
            name.strip_suffix(".weight").and_then(|module| self.deltas.get_key_value(module))
        else {
            return self.base.get_with_hints_dtype(shape, name, init, dtype);
        };
        let weight = self.base.get_with_hints_dtype(shape, name, init, DType::F32)?;
        let fits = [delta.b.dim(0)?, delta.a.dim(1)?];
        if weight.dims() != fits {
            bail!("the adapter's part for {name} has shape {fits:?}, the base {:?}", weight.dims());
        }
        let change = (delta.b.matmul(&delta.a)? * delta.scale)?.to_device(weight.device())?;
        self.merged.lock().insert(module.clone());
        (weight + change)?.to_dtype(dtype)
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> Result<Tensor> {
        // The model asks for every tensor with its shape.
        Err(Error::Msg(format!("tensor {name} is asked for without a shape")))
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.base.contains_tensor(name)
    }
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
