//! LoRA adapters in the form PEFT saves them: merged into the weights as they are read, or kept beside them.

mod config;
mod merging;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use candle_core::{DType, Device};
use candle_nn::VarBuilder;
use thicket_checkpoint::{Checkpoint, CheckpointError};

use crate::{
    linear::{Linear, LowRank},
    model::published_name,
};
use config::AdapterConfig;
pub(crate) use merging::Merging;

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

/// A PEFT folder with a LoRA adapter: `adapter_config.json` and `adapter_model.safetensors`.
///
/// It stands for `W' = W + s B A` with `s = alpha / r`, or `alpha / sqrt(r)` for rank-stabilised adapters, where
/// `rank_pattern` and `alpha_pattern` may set both for single modules. Merged, the sum is computed in f32 and rounded to
/// the type the weight is held in, as PEFT does; kept apart, `y = W x + s B (A x)` and the base is shared.
#[derive(Debug)]
pub(crate) struct Adapter {
    /// By the name of the module in the published spelling; on the CPU, in f32.
    parts: BTreeMap<String, LowRank>,
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
        config
            .check_targets(&modules)
            .map_err(|reason| AdapterError::Config { path: config_path.clone(), reason })?;
        let builder = weights.var_builder(DType::F32, &Device::Cpu);
        let mut parts = BTreeMap::new();
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
                        reason: first_line(&cause),
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
            if parts.insert(name.clone(), LowRank { a, b, scale }).is_some() {
                // One module under both spellings: only one of the two would apply.
                return Err(CheckpointError::Duplicate { name }.into());
            }
        }
        let mut hasher = blake3::Hasher::new();
        hasher.update(weights.fingerprint().as_bytes()).update(config_text.as_bytes());
        Ok(Self { parts, fingerprint: hasher.finalize().to_hex().to_string() })
    }

    /// Hex BLAKE3 digest of both files.
    pub(crate) fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// A builder that hands out the tensors of `base` with this adapter merged in.
    pub(crate) fn merge_into(self, base: VarBuilder<'static>) -> Merging {
        Merging::new(base, self.parts)
    }

    /// True where a part belongs to the vision tower.
    pub(crate) fn sees(&self) -> bool {
        self.parts.keys().any(|module| module.starts_with("visual."))
    }

    /// Puts the parts beside the weights of their modules, on `device`, converted to `dtype`.
    ///
    /// # Errors
    /// A module that is not among `maps`, or one of other sizes; then some of the maps may have received their part.
    pub(crate) fn attach<'a>(
        &self,
        maps: impl Iterator<Item = &'a mut Linear>,
        dtype: DType,
        device: &Device,
    ) -> std::result::Result<(), AdapterError> {
        let mut left: BTreeSet<&String> = self.parts.keys().collect();
        for map in maps {
            let Some((module, part)) = self.parts.get_key_value(map.name()) else { continue };
            let failed = |reason: String| AdapterError::Tensor { name: module.clone(), reason };
            let on_device = |tensor: &candle_core::Tensor| tensor.to_device(device)?.to_dtype(dtype);
            let fitted = (|| {
                let fits = (part.b.dim(0)?, part.a.dim(1)?);
                let sizes = map.sizes()?;
                if fits != sizes {
                    return Ok(Err(format!("its part has shape {fits:?}, the base {sizes:?}")));
                }
                let (a, b) = (on_device(&part.a)?, on_device(&part.b)?);
                candle_core::Result::Ok(Ok(LowRank { a, b, scale: part.scale }))
            })();
            let part = fitted.map_err(|cause| failed(first_line(&cause)))?.map_err(failed)?;
            map.adapt(part);
            left.remove(module);
        }
        unmatched(left.into_iter())
    }
}

/// Reads a LoRA adapter's folder as far as that can be done without its base: every field and every value.
///
/// # Errors
/// [`AdapterError`], as when it is loaded for a model.
pub fn check_adapter(dir: &Path) -> std::result::Result<(), AdapterError> {
    Adapter::open(dir).map(|_| ())
}

/// Refuses modules that were not found in the model.
fn unmatched<'a>(mut left: impl Iterator<Item = &'a String>) -> std::result::Result<(), AdapterError> {
    match left.next() {
        None => Ok(()),
        Some(first) => Err(AdapterError::Unmatched { first: first.clone(), count: 1 + left.count() }),
    }
}

/// candle's errors may carry a backtrace behind their first line.
fn first_line(cause: &candle_core::Error) -> String {
    cause.to_string().lines().next().unwrap_or_default().to_string()
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
