use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
    sync::Arc,
};

use candle_core::{DType, Device, Tensor};
use image::RgbImage;
use thicket_engine::{
    AdapterInfo, Answerer, AnswererInfo, EngineError, Generation, Prompt, Sampling, Verdict,
};
use thicket_kernels::{Backend, Quantization};

use crate::{
    adapter::Adapter,
    config::{ConfigError, TokenIds, read_json},
    features::{FeatureCache, ImageKey, image_key},
    generation::{Decoder, MAX_PREFILL_TOKENS, Task, chunks_by_tokens, last_logits},
    model::{LoadError, QwenModel},
    processor::{ImagePatches, Processor, ProcessorConfig, batch_patches},
    prompt::{PromptEncoder, PromptError},
};

/// Most patches in one forward pass of the vision tower, unless a single image has more.
const MAX_VISION_PATCHES: usize = 8192;
/// Highest sampling temperature accepted.
const MAX_TEMPERATURE: f64 = 10.0;

const YES_WORDS: [&str; 6] = ["Yes", "yes", "YES", " Yes", " yes", " YES"];
const NO_WORDS: [&str; 6] = ["No", "no", "NO", " No", " no", " NO"];

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
        }
    }
}

/// The model that answers a prompt: the base, or the base with an adapter beside its weights.
#[derive(Debug, Clone)]
struct View {
    model: Arc<QwenModel>,
    /// Digest of an adapter that changes the vision tower; empty without one.
    eyes: String,
}

/// A Qwen2-VL or Qwen2.5-VL folder as an [`Answerer`].
///
/// Equal prompts get equal answers whatever they are batched with, up to the rounding of matrix products of
/// different heights. With a temperature, every prompt of a call starts from the same seed.
#[derive(Debug)]
pub struct QwenAnswerer {
    info: AnswererInfo,
    base: View,
    adapted: BTreeMap<String, View>,
    processor: Processor,
    encoder: PromptEncoder,
    features: FeatureCache,
    /// Tokens that end an answer.
    stops: Vec<u32>,
    yes: Vec<u32>,
    no: Vec<u32>,
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
        let (yes, no) = (encoder.single_tokens(&YES_WORDS), encoder.single_tokens(&NO_WORDS));
        let base = View { model: Arc::new(model), eyes: String::new() };
        let (adapted, features) = (BTreeMap::new(), FeatureCache::new());
        Ok(Self { info, base, adapted, processor, encoder, features, stops, yes, no })
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

    /// Has `answer` answer the prompts of each adapter together, and puts the answers in the order of the prompts.
    fn by_adapter<T>(
        &mut self,
        prompts: &[Prompt],
        mut answer: impl FnMut(&mut Self, &View, &[(usize, &Prompt)]) -> HashMap<usize, Result<T, EngineError>>,
    ) -> Vec<Result<T, EngineError>> {
        let mut groups: BTreeMap<Option<&str>, Vec<(usize, &Prompt)>> = BTreeMap::new();
        for (index, prompt) in prompts.iter().enumerate() {
            groups.entry(prompt.adapter.as_deref()).or_default().push((index, prompt));
        }
        let mut results = HashMap::with_capacity(prompts.len());
        for (adapter, group) in groups {
            match self.view(adapter) {
                Ok(view) => results.extend(answer(self, &view, &group)),
                Err(error) => results.extend(group.iter().map(|(index, _)| (*index, Err(error.clone())))),
            }
        }
        let lost = || Err(EngineError::internal("answering", "the prompt's result was lost"));
        (0..prompts.len()).map(|index| results.remove(&index).unwrap_or_else(lost)).collect()
    }

    /// The chat template behind it.
    #[must_use]
    pub fn encoder(&self) -> &PromptEncoder {
        &self.encoder
    }

    /// The image pre-processing behind it.
    #[must_use]
    pub fn processor(&self) -> &Processor {
        &self.processor
    }

    /// Encodes prompts and computes the image tokens they need. `new_tokens` is the least room an answer needs.
    fn prepare(
        &mut self,
        view: &View,
        prompts: &[(usize, &Prompt)],
        new_tokens: usize,
    ) -> (Vec<Task>, Vec<(usize, EngineError)>) {
        let mut tasks = Vec::with_capacity(prompts.len());
        let mut failures = Vec::new();
        let mut needed = Vec::new();
        for &(index, prompt) in prompts {
            match self.encode(prompt, new_tokens) {
                Ok(encoded) => {
                    needed.extend(prompt.image.as_ref().map(|image| (index, image)));
                    tasks.push(Task { index, prompt: encoded, image: None });
                }
                Err(error) => failures.push((index, error)),
            }
        }
        let mut images: HashMap<usize, Result<Tensor, EngineError>> =
            self.image_tokens(view, &needed).into_iter().collect();
        tasks.retain_mut(|task| match images.remove(&task.index) {
            None => true,
            Some(Ok(tokens)) => {
                task.image = Some(tokens);
                true
            }
            Some(Err(error)) => {
                failures.push((task.index, error));
                false
            }
        });
        (tasks, failures)
    }

    fn encode(&self, prompt: &Prompt, new_tokens: usize) -> Result<crate::EncodedPrompt, EngineError> {
        let grid = match &prompt.image {
            None => None,
            Some(image) => Some(
                self.processor
                    .token_grid(image.width(), image.height())
                    .map_err(|cause| EngineError::invalid("image", cause.to_string()))?,
            ),
        };
        let encoded = self
            .encoder
            .encode(&prompt.text, grid)
            .map_err(|cause| EngineError::invalid("text", cause.to_string()))?;
        let (length, limit) = (encoded.tokens.len(), self.info.context_length);
        if length + new_tokens > limit {
            let image_tokens = grid.map_or(0, |(rows, columns)| rows * columns);
            return Err(EngineError::invalid(
                "text",
                format!(
                    "the prompt has {length} tokens ({image_tokens} of them the image), at most {} fit the context of {limit}",
                    limit.saturating_sub(new_tokens)
                ),
            ));
        }
        Ok(encoded)
    }

    /// The image tokens of prompts, each distinct image computed once and remembered.
    fn image_tokens(
        &mut self,
        view: &View,
        needed: &[(usize, &Arc<RgbImage>)],
    ) -> Vec<(usize, Result<Tensor, EngineError>)> {
        let mut keys: HashMap<*const RgbImage, ImageKey> = HashMap::new();
        let mut found: HashMap<ImageKey, Result<Tensor, String>> = HashMap::new();
        let mut missing: Vec<(ImageKey, &RgbImage)> = Vec::new();
        for (_, image) in needed {
            let key = *keys.entry(Arc::as_ptr(image)).or_insert_with(|| image_key(image, &view.eyes));
            if found.contains_key(&key) || missing.iter().any(|(known, _)| *known == key) {
                continue;
            }
            match self.features.get(&key) {
                Some(tokens) => _ = found.insert(key, Ok(tokens)),
                None => missing.push((key, image)),
            }
        }
        // Images of one size stand together, so that the tower runs them as one batch.
        missing.sort_by_key(|(_, image)| image.dimensions());
        let mut pending: Vec<(ImageKey, ImagePatches)> = Vec::new();
        let mut patches = 0;
        for (key, image) in missing {
            match self.processor.patches(image) {
                Err(cause) => _ = found.insert(key, Err(cause.to_string())),
                Ok(cut) => {
                    let count = cut.grid.0 * cut.grid.1;
                    if !pending.is_empty() && patches + count > MAX_VISION_PATCHES {
                        self.see(view, std::mem::take(&mut pending), &mut found);
                        patches = 0;
                    }
                    patches += count;
                    pending.push((key, cut));
                }
            }
        }
        self.see(view, pending, &mut found);
        needed
            .iter()
            .map(|(index, image)| {
                let tokens = match found.get(&keys[&Arc::as_ptr(image)]) {
                    Some(Ok(tokens)) => Ok(tokens.clone()),
                    Some(Err(reason)) => Err(EngineError::internal("image forward pass", reason)),
                    None => Err(EngineError::internal("image forward pass", "no result")),
                };
                (*index, tokens)
            })
            .collect()
    }

    /// Runs the vision tower over some images.
    fn see(
        &mut self,
        view: &View,
        images: Vec<(ImageKey, ImagePatches)>,
        found: &mut HashMap<ImageKey, Result<Tensor, String>>,
    ) {
        if images.is_empty() {
            return;
        }
        let patches: Vec<&ImagePatches> = images.iter().map(|(_, patches)| patches).collect();
        let language = &view.model.language;
        let tokens = batch_patches(&patches, language.dtype(), language.device())
            .and_then(|(patches, grids)| view.model.vision.forward(&patches, &grids));
        let per_token = view.model.config().vision_config.patches_per_token();
        let mut start = 0;
        for (key, patches) in &images {
            let count = patches.grid.0 * patches.grid.1 / per_token;
            let own = match &tokens {
                // A copy of its own, so that the batch's memory does not outlive the call.
                Ok(tokens) => tokens.narrow(0, start, count).and_then(|tokens| tokens.force_contiguous()),
                Err(cause) => Err(candle_core::Error::Msg(cause.to_string())),
            };
            start += count;
            if let Ok(tokens) = &own {
                self.features.insert(*key, tokens.clone());
            }
            found.insert(*key, own.map_err(|cause| cause.to_string()));
        }
    }

    fn verdict(&self, logits: &[f32], prompt_tokens: usize) -> Result<Verdict, EngineError> {
        let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let weight = |logit: f32| f64::from(logit - largest).exp();
        let total: f64 = logits.iter().map(|&logit| weight(logit)).sum();
        if !total.is_finite() {
            return Err(EngineError::internal("judging", "the logits are not numbers"));
        }
        let share = |words: &[u32]| words.iter().map(|&word| weight(logits[word as usize])).sum::<f64>();
        let (yes, no) = (share(&self.yes), share(&self.no));
        let p_yes = if yes + no > 0.0 { yes / (yes + no) } else { 0.0 };
        Ok(Verdict { p_yes, mass: ((yes + no) / total).min(1.0), prompt_tokens })
    }

    fn judge_chunk(&self, view: &View, tasks: &[Task]) -> Vec<Result<Verdict, EngineError>> {
        let logits = last_logits(&view.model, tasks).and_then(|logits| logits.to_vec2::<f32>());
        match logits {
            Ok(rows) => tasks
                .iter()
                .zip(&rows)
                .map(|(task, row)| self.verdict(row, task.prompt.tokens.len()))
                .collect(),
            Err(cause) => tasks.iter().map(|_| Err(EngineError::internal("judging", &cause))).collect(),
        }
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
        let eyes = if adapter.sees() { fingerprint.clone() } else { String::new() };
        self.adapted.insert(name.to_string(), View { model: Arc::new(model), eyes });
        Ok(AdapterInfo { name: name.to_string(), fingerprint })
    }

    fn unload_adapter(&mut self, name: &str) -> bool {
        self.adapted.remove(name).is_some()
    }

    fn judge(&mut self, prompts: &[Prompt]) -> Vec<Result<Verdict, EngineError>> {
        self.by_adapter(prompts, |answerer, view, group| {
            let (tasks, failures) = answerer.prepare(view, group, 1);
            let mut results: HashMap<_, _> =
                failures.into_iter().map(|(index, error)| (index, Err(error))).collect();
            for chunk in chunks_by_tokens(tasks, MAX_PREFILL_TOKENS) {
                let verdicts = answerer.judge_chunk(view, &chunk);
                results.extend(chunk.iter().map(|task| task.index).zip(verdicts));
            }
            results
        })
    }

    fn generate(&mut self, prompts: &[Prompt], sampling: &Sampling) -> Vec<Result<Generation, EngineError>> {
        if let Err((field, reason)) = check(sampling) {
            return prompts.iter().map(|_| Err(EngineError::invalid(field, reason.clone()))).collect();
        }
        self.by_adapter(prompts, |answerer, view, group| {
            let (tasks, failures) = answerer.prepare(view, group, 1);
            let mut results: HashMap<_, _> =
                failures.into_iter().map(|(index, error)| (index, Err(error))).collect();
            for (index, outcome) in Decoder::new(&view.model, sampling, &answerer.stops).run(tasks) {
                let generation = outcome.and_then(|done| {
                    let text = answerer
                        .encoder
                        .decode(&done.tokens)
                        .map_err(|cause| EngineError::internal("detokenizing", cause))?;
                    let (prompt_tokens, finish) = (done.prompt_tokens, done.finish);
                    Ok(Generation { text, tokens: done.tokens, prompt_tokens, finish })
                });
                results.insert(index, generation);
            }
            results
        })
    }
}

fn check(sampling: &Sampling) -> Result<(), (&'static str, String)> {
    if sampling.max_tokens == 0 {
        return Err(("max_tokens", "at least 1 expected, got 0".to_string()));
    }
    let temperature = sampling.temperature;
    if !(0.0..=MAX_TEMPERATURE).contains(&temperature) {
        return Err(("temperature", format!("0 to {MAX_TEMPERATURE} expected, got {temperature}")));
    }
    Ok(())
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
