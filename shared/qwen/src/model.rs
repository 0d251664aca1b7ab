use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Result, Tensor, bail};
use candle_nn::VarBuilder;
use thicket_checkpoint::{Checkpoint, CheckpointError};
use thicket_kernels::{Backend, Quantization};

use crate::{
    adapter::{Adapter, AdapterError},
    config::{Config, ConfigError},
    language::{LanguageModel, Preparation},
    prompt::PromptError,
    vision::VisionTower,
};

/// Linear maps of a decoder layer.
const MAPS_PER_LAYER: usize = 7;

/// Why a model folder could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A configuration file.
    #[error("{}: {source}", dir.display())]
    Config {
        /// The model folder.
        dir: PathBuf,
        /// What is wrong.
        source: ConfigError,
    },
    /// The weight files.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The adapter.
    #[error("{}: {source}", dir.display())]
    Adapter {
        /// The adapter's folder.
        dir: PathBuf,
        /// What is wrong.
        source: AdapterError,
    },
    /// A tensor that is missing, has another shape or holds a value that is not finite.
    #[error("{}: {reason}", dir.display())]
    Weights {
        /// The model folder.
        dir: PathBuf,
        /// The tensor and what is wrong with it.
        reason: String,
    },
    /// Budgets that no question could be worked on within.
    #[error("budgets: {0}")]
    Budgets(#[from] thicket_engine::schedule::LimitsError),
    /// The tokenizer.
    #[error("{}: {source}", dir.display())]
    Tokenizer {
        /// The model folder.
        dir: PathBuf,
        /// What is wrong.
        source: PromptError,
    },
}

/// The whole model: vision tower and language model.
#[derive(Debug, Clone)]
pub struct QwenModel {
    /// Images to tokens.
    pub vision: VisionTower,
    /// Tokens to tokens.
    pub language: LanguageModel,
    config: Config,
}

impl QwenModel {
    /// Builds the model from tensors under their published names (`visual.*`, `model.*`, `lm_head.weight`).
    ///
    /// A builder over a `VarMap` draws what it does not hold yet: normal weights with the configuration's
    /// `initializer_range`, zero biases, unit norms.
    ///
    /// # Errors
    /// A tensor that is missing or has another shape.
    pub fn new(config: &Config, vb: &VarBuilder<'_>) -> Result<Self> {
        Self::prepared(config, vb, Preparation::default()).map(|(model, _)| model)
    }

    fn prepared(
        config: &Config,
        vb: &VarBuilder<'_>,
        preparation: Preparation,
    ) -> Result<(Self, Vec<String>)> {
        let mut vision = VisionTower::new(&config.vision_config, &vb.pp("visual"))?;
        if let Some(backend) = preparation.backend {
            vision.prepare(vb.dtype(), backend)?;
        }
        let (language, kept) = LanguageModel::prepared(config, vb, preparation)?;
        Ok((Self { vision, language, config: config.clone() }, kept))
    }

    /// Loads `config.json` and the weights of a folder, with the LoRA adapter of another folder merged in where one is
    /// given. The linear maps of the language model's layers are quantized where that is asked for. Returns the model and
    /// the digest of the weights.
    ///
    /// In f32 on the CPU, matrices stay in a 16-bit type they are stored in and are widened as they are used; nothing is
    /// rounded. `backend` multiplies there; the model has no gradients. Both spellings of tensor names in use are read. Every tensor must be there, and every tensor that is
    /// there must be used, except an `lm_head.weight` beside a tied head.
    ///
    /// # Errors
    /// [`LoadError`], in one line that names the file, the field or the tensor.
    pub fn load(
        dir: &Path,
        adapter: Option<&Path>,
        quantization: Option<Quantization>,
        dtype: DType,
        device: &Device,
        backend: Backend,
    ) -> std::result::Result<(Self, String), LoadError> {
        let config = Config::from_file(&dir.join("config.json"))
            .map_err(|source| LoadError::Config { dir: dir.to_path_buf(), source })?;
        let mut checkpoint = Checkpoint::open(dir)?;
        checkpoint.rename(published_name)?;
        config
            .check_weights(
                &checkpoint.names().filter_map(|name| Some((name, checkpoint.shape(name)?))).collect(),
            )
            .map_err(|source| LoadError::Config { dir: dir.to_path_buf(), source })?;
        let weights_error = |cause: candle_core::Error| {
            let reason = cause.to_string().lines().next().unwrap_or_default().to_string();
            LoadError::Weights { dir: dir.to_path_buf(), reason }
        };
        let base = checkpoint.compact_var_builder(dtype, device);
        let preparation = Preparation { quantization, backend: Some(backend) };
        let mut fingerprint = checkpoint.fingerprint();
        let (model, kept) = match adapter {
            None => Self::prepared(&config, &base, preparation).map_err(weights_error)?,
            Some(folder) => {
                let adapter_error =
                    |source: AdapterError| LoadError::Adapter { dir: folder.to_path_buf(), source };
                let adapter = Adapter::open(folder).map_err(adapter_error)?;
                fingerprint.push_str(adapter.fingerprint());
                let merging = adapter.merge_into(base);
                let built = Self::prepared(&config, &merging.var_builder(), preparation);
                let built = built.map_err(weights_error)?;
                merging.finish().map_err(adapter_error)?;
                built
            }
        };
        if let Some(quantization) = quantization {
            model.report_quantization(dir, quantization, &kept)?;
        }
        let tied = config.tie_word_embeddings == Some(true);
        checkpoint.finish(|name| tied && name == "lm_head.weight")?;
        Ok((model, fingerprint))
    }

    /// Says which maps could not be quantized, and refuses a model of which none could.
    fn report_quantization(
        &self,
        dir: &Path,
        quantization: Quantization,
        kept: &[String],
    ) -> std::result::Result<(), LoadError> {
        let Some(first) = kept.first() else { return Ok(()) };
        let (block, count) = (Quantization::BLOCK, kept.len());
        if count == MAPS_PER_LAYER * self.config.num_hidden_layers {
            let reason = format!(
                "no matrix can be quantized to {quantization}: rows of a multiple of {block} values expected"
            );
            return Err(LoadError::Weights { dir: dir.to_path_buf(), reason });
        }
        tracing::warn!(count, first, %quantization, block, "matrices stay as stored: their rows do not divide into blocks");
        Ok(())
    }

    /// This model with an adapter beside its weights, which both share.
    ///
    /// # Errors
    /// An adapter with a part that the model has no place for.
    pub(crate) fn adapted(&self, adapter: &Adapter) -> std::result::Result<Self, AdapterError> {
        let mut model = self.clone();
        let (dtype, device) = (self.language.dtype(), self.language.device().clone());
        adapter.attach(model.vision.linears().chain(model.language.linears()), dtype, &device)?;
        Ok(model)
    }

    /// What the model was built from.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Embeddings of tokens, with image placeholders replaced by image tokens: (tokens, hidden). Differentiable.
    ///
    /// `images` are outputs of [`VisionTower::forward`], (image tokens, hidden) each, in the order of the placeholders.
    ///
    /// # Errors
    /// An id outside the vocabulary, or placeholders that do not match the image tokens.
    pub fn embed(&self, tokens: &[u32], images: &[&Tensor]) -> Result<Tensor> {
        let image_token = self.config.image_token_id;
        let placeholders = tokens.iter().filter(|&&token| token == image_token).count();
        let mut available = 0;
        for image in images {
            available += image.dim(0)?;
        }
        if placeholders != available {
            bail!("{placeholders} image placeholders for {available} image tokens");
        }
        if placeholders == 0 {
            return self.language.embed_ids(tokens);
        }
        let text: Vec<u32> = tokens.iter().copied().filter(|&token| token != image_token).collect();
        let mut parts = Vec::with_capacity(images.len() + 1);
        let (mut next_text, mut next_image) = (0, text.len() as u32);
        if !text.is_empty() {
            parts.push(self.language.embed_ids(&text)?);
        }
        parts.extend(images.iter().map(|&image| image.clone()));
        // The row of each token in the text embeddings followed by the image tokens.
        let rows: Vec<u32> = tokens
            .iter()
            .map(|&token| {
                let next = if token == image_token { &mut next_image } else { &mut next_text };
                *next += 1;
                *next - 1
            })
            .collect();
        Tensor::cat(&parts, 0)?.index_select(&Tensor::new(rows, self.language.device())?, 0)
    }
}

/// Newer tools save `model.visual.*` and `model.language_model.*`.
pub(crate) fn published_name(name: &str) -> String {
    if let Some(rest) = name.strip_prefix("model.language_model.") {
        format!("model.{rest}")
    } else if let Some(rest) = name.strip_prefix("model.visual.") {
        format!("visual.{rest}")
    } else {
        name.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_spellings_of_a_tensor_come_to_one() {
        for (stored, expected) in [
            ("model.language_model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.weight"),
            ("model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.weight"),
            ("model.visual.merger.ln_q.bias", "visual.merger.ln_q.bias"),
            ("visual.merger.ln_q.bias", "visual.merger.ln_q.bias"),
            ("lm_head.weight", "lm_head.weight"),
        ] {
            assert_eq!(published_name(stored), expected);
        }
    }
}
