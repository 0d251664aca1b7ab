use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use candle_core::{DType, Device};
use thicket_engine::{
    AdapterInfo, Answerer, AnswererInfo, Ask, EngineError, Load, Progress, Prompt, Question, Ticket,
    schedule::{Demand, Prefix, PrefixKey},
};
use thicket_kernels::{Backend, Quantization, among_workers};

use crate::{
    adapter::Adapter,
    choosing::{self, Chooser, Words},
    config::{ConfigError, TokenIds, read_json},
    engine::{Budgets, Engine, Tools},
    features::{ImageKey, image_key},
    model::{LoadError, QwenModel},
    processor::{Processor, ProcessorConfig},
    prompt::{EncodedPrompt, PromptEncoder, PromptError},
    sequence::{Beginning, Goal, Sequence, View, Writing},
};

/// How a model folder is loaded.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// The name the model is served under.
    pub name: String,
    /// A LoRA adapter in the form PEFT saves it, merged into the weights as they are read.
    pub adapter: Option<PathBuf>,
    /// Whether the linear maps of the language model's layers are quantized as they are read.
    pub quantization: Option<Quantization>,
    /// What the model computes in. Weights are converted to it, except that in f32 on the CPU matrices stay in a 16-bit
    /// type they are stored in; that changes no result.
    pub dtype: DType,
    /// Where the model runs.
    pub device: Device,
    /// What multiplies on the CPU.
    pub backend: Backend,
    /// What the work on questions may take.
    pub budgets: Budgets,
}

impl LoadOptions {
    /// The model alone in f32 on the CPU, the reference.
    #[must_use]
    pub fn reference(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            adapter: None,
            quantization: None,
            dtype: DType::F32,
            device: Device::Cpu,
            backend: Backend::Plain,
            budgets: Budgets::default(),
        }
    }
}

/// A Qwen2-VL or Qwen2.5-VL folder as an [`Answerer`].
///
/// In f32 on the CPU the answer to a prompt is the same, bit for bit, whatever is asked beside it, in whatever chunks it
/// is run, and whether the beginning of its prompt was computed for it or kept from an earlier question. With a
/// temperature, a question's seed fixes its answer.
#[derive(Debug)]
pub struct QwenAnswerer {
    info: AnswererInfo,
    base: View,
    adapted: BTreeMap<String, View>,
    tools: Tools,
    engine: Engine,
}

impl QwenAnswerer {
    /// Loads a folder in the published format: `config.json`, `tokenizer.json`, safetensors weights, and, where there
    /// are any, `preprocessor_config.json` and `generation_config.json` (only its end tokens are used).
    ///
    /// # Errors
    /// [`LoadError`], in one line that names the file, the field or the tensor.
    pub fn load(dir: &Path, options: LoadOptions) -> Result<Self, LoadError> {
        let config_error = |source: ConfigError| LoadError::Config { dir: dir.to_path_buf(), source };
        let tokenizer_error = |source: PromptError| LoadError::Tokenizer { dir: dir.to_path_buf(), source };
        // The small files first: a folder that lacks one is refused before its weights are read.
        let config = crate::Config::from_file(&dir.join("config.json")).map_err(config_error)?;
        let encoder =
            PromptEncoder::from_file(&dir.join("tokenizer.json"), &config).map_err(tokenizer_error)?;
        let processor = ProcessorConfig::from_dir(dir)
            .and_then(|processor| Processor::new(&processor, &config.vision_config))
            .map_err(config_error)?;
        let stops = end_tokens(&dir.join("generation_config.json"))
            .map_err(config_error)?
            .or(config.eos_token_id.clone())
            .map_or_else(|| vec![encoder.end_of_turn()], |ids| ids.to_vec());
        let (model, weights) = QwenModel::load(
            dir,
            options.adapter.as_deref(),
            options.quantization,
            options.dtype,
            &options.device,
            options.backend,
        )?;
        let fingerprint = fingerprint(dir, &weights, &options);
        let info =
            AnswererInfo { name: options.name, fingerprint, context_length: config.max_position_embeddings };
        let engine = Engine::new(&model, &options.budgets)?;
        let words = Words::of(&encoder);
        let tools = Tools { processor, encoder, words, stops };
        let base = View {
            model: Arc::new(model),
            fingerprint: info.fingerprint.as_str().into(),
            eyes: String::new().into(),
        };
        Ok(Self { info, base, adapted: BTreeMap::new(), tools, engine })
    }

    /// The model behind it, as it was started.
    #[must_use]
    pub fn model(&self) -> &QwenModel {
        &self.base.model
    }

    fn view(&self, adapter: Option<&str>) -> Result<View, EngineError> {
        let Some(name) = adapter else { return Ok(self.base.clone()) };
        self.adapted.get(name).cloned().ok_or_else(|| {
            let loaded: Vec<&str> = self.adapted.keys().map(String::as_str).collect();
            let loaded = if loaded.is_empty() { "none".to_string() } else { loaded.join(", ") };
            EngineError::invalid("adapter", format!("`{name}` is not loaded; loaded: {loaded}"))
        })
    }

    /// The chat template behind it.
    #[must_use]
    pub fn encoder(&self) -> &PromptEncoder {
        &self.tools.encoder
    }

    /// The image pre-processing behind it.
    #[must_use]
    pub fn processor(&self) -> &Processor {
        &self.tools.processor
    }

    /// The question in the model's terms, and what it takes.
    fn sequence(&self, question: Question) -> Result<(Sequence, Demand), EngineError> {
        let Question { prompt, ask, kind, urgency } = question;
        if let Ask::Text(sampling) = &ask {
            choosing::check(sampling)?;
        }
        let view = self.view(prompt.adapter.as_deref())?;
        let (EncodedPrompt { mut tokens, mut positions }, grid) = self.encode(&prompt)?;
        let (prompt_tokens, next_position) = (tokens.len(), crate::next_position(&positions));
        let goal = match &ask {
            Ask::Judgement => Goal::Judge,
            Ask::Text(sampling) => Goal::Write(Writing {
                limit: sampling.max_tokens.min(self.info.context_length - prompt_tokens),
                tokens: Vec::new(),
                chooser: Chooser::new(sampling),
            }),
        };
        let beginning = prompt.image.zip(grid).map(|(image, grid)| {
            let own = self.tools.encoder.image_prefix(grid).len();
            let (question, question_positions) = (tokens.split_off(own), positions.split_off(own));
            let image_key = image_key(&image, &view.eyes);
            let key = prefix_key(&view.fingerprint, &image_key);
            let tokens = std::mem::replace(&mut tokens, question);
            let positions = std::mem::replace(&mut positions, question_positions);
            Beginning { key, image, image_key, tokens, positions }
        });
        let patches_per_token = view.model.config().vision_config.patches_per_token();
        let prefix = beginning.as_ref().zip(grid).map(|(beginning, (rows, columns))| Prefix {
            key: beginning.key,
            tokens: beginning.tokens.len(),
            patches: rows * columns * patches_per_token,
        });
        let sequence = Sequence {
            view,
            prefix: beginning.as_ref().map(|beginning| beginning.key),
            beginning,
            tokens,
            positions,
            prompt_tokens,
            next_position,
            goal,
            cache: None,
        };
        let (tokens, new_tokens) = (sequence.tokens.len(), sequence.new_tokens());
        Ok((sequence, Demand { kind, urgency, prefix, tokens, new_tokens }))
    }

    /// The tokens of a prompt that leaves room for an answer, and the (rows, columns) of its image's.
    fn encode(&self, prompt: &Prompt) -> Result<(EncodedPrompt, Option<(usize, usize)>), EngineError> {
        let grid = match &prompt.image {
            None => None,
            Some(image) => Some(
                self.tools
                    .processor
                    .token_grid(image.width(), image.height())
                    .map_err(|cause| EngineError::invalid("image", cause.to_string()))?,
            ),
        };
        let encoded = self
            .tools
            .encoder
            .encode(&prompt.text, grid)
            .map_err(|cause| EngineError::invalid("text", cause.to_string()))?;
        let (length, limit) = (encoded.tokens.len(), self.info.context_length);
        if length >= limit {
            let image_tokens = grid.map_or(0, |(rows, columns)| rows * columns);
            return Err(EngineError::invalid(
                "text",
                format!(
                    "the prompt has {length} tokens ({image_tokens} of them the image), at most {} fit the context of {limit}",
                    limit.saturating_sub(1)
                ),
            ));
        }
        Ok((encoded, grid))
    }
}

impl Answerer for QwenAnswerer {
    fn info(&self) -> &AnswererInfo {
        &self.info
    }

    fn load_adapter(&mut self, name: &str, folder: &Path) -> Result<AdapterInfo, EngineError> {
        let refused = |cause: &dyn std::fmt::Display| {
            EngineError::invalid("adapter", format!("{}: {cause}", folder.display()))
        };
        let adapter = Adapter::open(folder).map_err(|cause| refused(&cause))?;
        let model = self.base.model.adapted(&adapter).map_err(|cause| refused(&cause))?;
        let fingerprint = combined(&self.info.fingerprint, adapter.fingerprint());
        let fingerprint_of: Arc<str> = fingerprint.as_str().into();
        let eyes = if adapter.sees() { fingerprint_of.clone() } else { String::new().into() };
        let view = View { model: Arc::new(model), fingerprint: fingerprint_of, eyes };
        self.adapted.insert(name.to_string(), view);
        Ok(AdapterInfo { name: name.to_string(), fingerprint })
    }

    fn unload_adapter(&mut self, name: &str) -> bool {
        self.adapted.remove(name).is_some()
    }

    fn submit(&mut self, ticket: Ticket, question: Question) -> Result<(), EngineError> {
        let (sequence, demand) = self.sequence(question)?;
        self.engine.push(ticket, sequence, demand)
    }

    fn cancel(&mut self, ticket: Ticket) {
        self.engine.cancel(ticket);
    }

    fn step(&mut self) -> Progress {
        let device = self.base.model.language.device().clone();
        among_workers(&device, || self.engine.step(&self.tools))
    }

    fn load(&self) -> Load {
        self.engine.load()
    }
}

/// Names what an image is to a model: equal keys, equal keys and values up to the end of the image.
fn prefix_key(fingerprint: &str, image: &ImageKey) -> PrefixKey {
    let mut hasher = blake3::Hasher::new();
    hasher.update(fingerprint.as_bytes()).update(image);
    *hasher.finalize().as_bytes()
}

/// `eos_token_id` of a `generation_config.json`, where the file is there and names any.
fn end_tokens(path: &Path) -> Result<Option<TokenIds>, ConfigError> {
    if !path.exists() {
        return Ok(None);
    }
    match read_json(path)?.get("eos_token_id") {
        None | Some(serde_json::Value::Null) => Ok(None),
        Some(ids) => serde_json::from_value(ids.clone()).map(Some).map_err(|_| ConfigError::Malformed {
            path: path.to_path_buf(),
            reason: format!("eos_token_id: a token id or a list of them expected, got {ids}"),
        }),
    }
}

/// Digest of everything in the folder that an answer depends on, and of how the model computes.
fn fingerprint(dir: &Path, weights: &str, options: &LoadOptions) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update(weights.as_bytes());
    hasher.update(options.dtype.as_str().as_bytes());
    hasher.update(options.quantization.map(|to| to.to_string()).unwrap_or_default().as_bytes());
    for name in [
        "config.json",
        "tokenizer.json",
        "preprocessor_config.json",
        "processor_config.json",
        "generation_config.json",
    ] {
        // The files were read before; one that is absent counts as empty.
        let content = std::fs::read(dir.join(name)).unwrap_or_default();
        hasher.update(&(content.len() as u64).to_le_bytes());
        hasher.update(&content);
    }
    hasher.finalize().to_hex().to_string()
}

/// Digest of a base and an adapter.
fn combined(base: &str, adapter: &str) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update(base.as_bytes()).update(adapter.as_bytes());
    hasher.finalize().to_hex().to_string()
}
