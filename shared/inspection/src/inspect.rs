use std::path::{Path, PathBuf};

use candle_core::{DType, Device};
use thicket_clip::ClipEmbedder;
use thicket_engine::Embedder;
use thicket_kernels::Backend;
use thicket_qwen::QwenAnswerer;

use crate::kind::read_json;
use crate::{Forward, InspectError, Kind, Stored, forward};

/// Weights of an adapter.
const ADAPTER_WEIGHTS: &str = "adapter_model.safetensors";
/// Settings of an adapter.
const ADAPTER_SETTINGS: &str = "adapter_config.json";
/// Name that a model has while it is inspected.
const NAME: &str = "inspected";

/// How a folder is loaded.
#[derive(Debug, Clone)]
pub struct Options {
    /// A LoRA adapter to merge into it.
    pub adapter: Option<PathBuf>,
    /// Type of weights and arithmetic.
    pub dtype: DType,
    /// Where it computes.
    pub device: Device,
    /// What multiplies on the CPU.
    pub backend: Backend,
}

/// Bytes that a model takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// Weights where they stay as they are stored: in f32 on the CPU.
    pub weights_as_stored: u64,
    /// Weights in f32 elsewhere; half of it in f16 and bf16.
    pub weights_f32: u64,
    /// One token in the key-value cache in f32, half of it in f16 and bf16; `None` for a model without one.
    pub cache_per_token_f32: Option<u64>,
}

/// What a folder is and does.
#[derive(Debug, Clone)]
pub struct Inspection {
    /// What it is.
    pub kind: Kind,
    /// Catalogue name of the published model that it has the sizes of.
    pub sizes_of: Option<&'static str>,
    /// Its sizes, by name.
    pub sizes: Vec<(&'static str, String)>,
    /// What its weight files hold.
    pub stored: Stored,
    /// What the adapter's file holds, where one was merged.
    pub adapter: Option<Stored>,
    /// What it takes.
    pub memory: Memory,
    /// What a forward pass gave; `None` for an adapter by itself, which computes nothing.
    pub forward: Option<Forward>,
}

/// Loads a folder as a service would and runs it once.
///
/// # Errors
/// [`InspectError`] with the first thing that is wrong.
pub fn inspect(dir: &Path, options: &Options) -> Result<Inspection, InspectError> {
    let kind = Kind::of(dir)?;
    let takes_adapter = matches!(kind, Kind::Qwen2Vl | Kind::Qwen25Vl);
    if options.adapter.is_some() && !takes_adapter {
        return Err(InspectError::TakesNoAdapter { dir: dir.to_path_buf(), kind: kind.title() });
    }
    match kind {
        Kind::Run | Kind::HuggingFaceClip => inspect_embedding(dir, kind, options),
        Kind::Qwen2Vl | Kind::Qwen25Vl => inspect_answer(dir, kind, options),
        Kind::Adapter => inspect_adapter(dir),
    }
}

fn inspect_embedding(dir: &Path, kind: Kind, options: &Options) -> Result<Inspection, InspectError> {
    let load = thicket_clip::LoadOptions {
        name: NAME.to_owned(),
        dtype: options.dtype,
        device: options.device.clone(),
        backend: options.backend,
    };
    let mut embedder = ClipEmbedder::load(dir, load)
        .map_err(|source| InspectError::Embedding { dir: dir.to_path_buf(), source: Box::new(source) })?;
    let stored = Stored::of_model(dir)?;
    let info = embedder.info();
    let sizes = vec![
        ("dimension", info.dimension.to_string()),
        ("image", format!("{}x{}", info.image_size.0, info.image_size.1)),
        ("text tokens", info.text_length.to_string()),
    ];
    let forward = forward::embed(&mut embedder)
        .map_err(|reason| InspectError::Forward { dir: dir.to_path_buf(), reason })?;
    Ok(Inspection {
        kind,
        sizes_of: published(stored.parameters),
        sizes,
        memory: Memory {
            weights_as_stored: stored.bytes,
            weights_f32: 4 * stored.parameters,
            cache_per_token_f32: None,
        },
        stored,
        adapter: None,
        forward: Some(forward),
    })
}

fn inspect_answer(dir: &Path, kind: Kind, options: &Options) -> Result<Inspection, InspectError> {
    let load = thicket_qwen::LoadOptions {
        name: NAME.to_owned(),
        adapter: options.adapter.clone(),
        quantization: None,
        dtype: options.dtype,
        device: options.device.clone(),
        budgets: thicket_qwen::Budgets::default(),
        backend: options.backend,
    };
    let mut answerer = QwenAnswerer::load(dir, load)?;
    let stored = Stored::of_model(dir)?;
    let adapter = match &options.adapter {
        None => None,
        Some(folder) => Some(Stored::of_file(&folder.join(ADAPTER_WEIGHTS))?),
    };
    let config = answerer.model().config();
    let sizes = vec![
        ("layers", config.num_hidden_layers.to_string()),
        ("width", config.hidden_size.to_string()),
        ("heads", format!("{} ({} key-value)", config.num_attention_heads, config.num_key_value_heads)),
        ("vocabulary", config.vocab_size.to_string()),
        ("context", config.max_position_embeddings.to_string()),
    ];
    let language = &answerer.model().language;
    let cache_values = language.cache_bytes_per_token() / language.dtype().size_in_bytes().max(1);
    let forward = forward::judge(&mut answerer)
        .map_err(|reason| InspectError::Forward { dir: dir.to_path_buf(), reason })?;
    Ok(Inspection {
        kind,
        sizes_of: published(stored.parameters),
        sizes,
        memory: Memory {
            weights_as_stored: stored.bytes,
            weights_f32: 4 * stored.parameters,
            cache_per_token_f32: Some(4 * cache_values as u64),
        },
        stored,
        adapter,
        forward: Some(forward),
    })
}

/// An adapter without its base: its settings are read, and every value is.
fn inspect_adapter(dir: &Path) -> Result<Inspection, InspectError> {
    let settings = read_json(&dir.join(ADAPTER_SETTINGS))?;
    let shown = |field: &str| match &settings[field] {
        serde_json::Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let stored = Stored::of_file(&dir.join(ADAPTER_WEIGHTS))?;
    thicket_qwen::check_adapter(dir)
        .map_err(|source| InspectError::Adapter { dir: dir.to_path_buf(), source })?;
    Ok(Inspection {
        kind: Kind::Adapter,
        sizes_of: published(stored.parameters),
        sizes: vec![
            ("rank", shown("r")),
            ("alpha", shown("lora_alpha")),
            ("base", shown("base_model_name_or_path")),
        ],
        // It is merged into its base, which stays as large as it is.
        memory: Memory { weights_as_stored: 0, weights_f32: 0, cache_per_token_f32: None },
        stored,
        adapter: None,
        forward: None,
    })
}

/// The published model with as many parameters.
fn published(parameters: u64) -> Option<&'static str> {
    thicket_catalogue::MODELS.iter().find(|model| model.parameters == parameters).map(|model| model.name)
}
