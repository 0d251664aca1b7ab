use std::{path::Path, sync::Arc};

use candle_core::{DType, Device, Tensor};
use thicket_checkpoint::{Checkpoint, CheckpointError};
use thicket_engine::{
    Embedder, EmbedderInfo, EngineError, PreparedImage, PreparedText, Preprocessor, Similarity,
};
use thicket_kernels::Backend;

use crate::{
    ClipError, ClipTokenizer, Config, RunOptions, TwoTower, encoder::TextEncoder, error::first_line,
    folder::Layout, hugging_face, inputs::Inputs, names, preprocessing::Preprocessing,
};

/// Texts in one forward pass.
const TEXT_CHUNK: usize = 64;
/// Images in one forward pass.
const IMAGE_CHUNK: usize = 32;
/// Weights of a published run folder, an archive of `torch.save`.
const PUBLISHED_WEIGHTS: &str = "best.pth";
/// Entry of that archive that holds the weights.
const PUBLISHED_WEIGHTS_KEY: &str = "model";

/// How a checkpoint is loaded.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// Name the model is served under.
    pub name: String,
    /// Type in which the network computes; vectors are normalised and returned in f32. Weights are converted to it, except
    /// that in f32 on the CPU matrices stay in a 16-bit type they are stored in; that changes no result.
    pub dtype: DType,
    /// Where the network computes.
    pub device: Device,
    /// What multiplies on the CPU.
    pub backend: Backend,
}

impl LoadOptions {
    /// f32 on the CPU, the reference.
    #[must_use]
    pub fn reference(name: impl Into<String>) -> Self {
        Self { name: name.into(), dtype: DType::F32, device: Device::Cpu, backend: Backend::Plain }
    }
}

/// A two-tower checkpoint as an [`Embedder`].
#[derive(Debug)]
pub struct ClipEmbedder {
    info: EmbedderInfo,
    model: TwoTower,
    inputs: Arc<Inputs>,
    device: Device,
}

/// What a folder is read to, before it is served under a name.
struct Parts {
    config: Config,
    model: TwoTower,
    text: TextEncoder,
    preprocessing: Preprocessing,
    /// Hex digest of the weight files.
    weights: String,
}

impl ClipEmbedder {
    /// Loads a checkpoint folder. Which of two layouts it has is told by its settings file:
    ///
    /// - `configs.yaml`: a run folder of RDE or IRRA as published, or one that Thicket's trainer wrote. Weights are
    ///   `model.safetensors` (single or sharded) or else `best.pth`; the vocabulary is `bpe_simple_vocab.txt` or else
    ///   the published one.
    /// - `config.json`: a CLIP model as Hugging Face's transformers saves it, of any size. Weights are
    ///   `model.safetensors` (single or sharded); images are prepared as `preprocessor_config.json` says; the
    ///   tokeniser is `tokenizer.json`, or else `vocab.json` with `merges.txt`, or else OpenAI's own.
    ///
    /// # Errors
    /// [`ClipError`]; a folder with neither or both of the settings files is refused, and a missing, left-over,
    /// mis-shaped or non-finite tensor is named.
    pub fn load(dir: &Path, options: LoadOptions) -> Result<Self, ClipError> {
        let parts = match Layout::of(dir)? {
            Layout::Run => Self::read_run(dir, &options)?,
            Layout::HuggingFace => Self::read_hugging_face(dir, &options)?,
        };
        let fingerprint = parts.fingerprint();
        let Parts { config, mut model, text, preprocessing, .. } = parts;
        model.prepare(options.backend).map_err(|cause| ClipError::weights(&cause))?;
        let info = EmbedderInfo {
            name: options.name,
            fingerprint,
            dimension: config.dimension(),
            similarity: match config.tse {
                Some(_) => Similarity::MeanOfTwoCosines,
                None => Similarity::Cosine,
            },
            image_size: (config.image_size.0 as u32, config.image_size.1 as u32),
            text_length: config.text_length,
            image_tokens: config.image_tokens(),
        };
        let inputs = Arc::new(Inputs::new(text, preprocessing, config.text_length));
        Ok(Self { info, model, inputs, device: options.device })
    }

    fn read_run(dir: &Path, options: &LoadOptions) -> Result<Parts, ClipError> {
        let run = RunOptions::read(dir)?;
        let checkpoint = open(dir)?;
        let config = Config::infer(&checkpoint, &run)?;
        let tokenizer = ClipTokenizer::from_folder(dir, config.vocab_size)?;
        let builder = checkpoint.compact_var_builder(options.dtype, &options.device);
        let model = TwoTower::new(&config, builder).map_err(|cause| ClipError::weights(&cause))?;
        checkpoint.finish(names::is_known_unused)?;
        let (height, width) = config.image_size;
        Ok(Parts {
            config,
            model,
            text: TextEncoder::Clip(Box::new(tokenizer)),
            preprocessing: Preprocessing::Stretch(height as u32, width as u32),
            weights: checkpoint.fingerprint(),
        })
    }

    fn read_hugging_face(dir: &Path, options: &LoadOptions) -> Result<Parts, ClipError> {
        let weights = hugging_face::Weights::open(dir)?;
        let config = hugging_face::read_config(dir, &weights)?;
        let preprocessing = hugging_face::read_preprocessing(dir, config.image_size)?;
        let text = match hugging_face::read_tokenizer(dir, &config)? {
            Some(tokenizer) => TextEncoder::HuggingFace(Box::new(tokenizer)),
            None => TextEncoder::Clip(Box::new(ClipTokenizer::openai(&config)?)),
        };
        let builder = weights.var_builder(options.dtype, &options.device);
        let model = TwoTower::new(&config, builder).map_err(|cause| ClipError::weights(&cause))?;
        weights.finish()?;
        Ok(Parts { config, model, text, preprocessing, weights: weights.fingerprint() })
    }

    /// The network.
    #[must_use]
    pub fn model(&self) -> &TwoTower {
        &self.model
    }

    /// The ids that the text tower sees of a text: as many as the model takes, marks included and zeros behind.
    ///
    /// # Errors
    /// [`EngineError::InvalidInput`] for a text without a word.
    pub fn text_ids(&self, text: &str) -> Result<Vec<u32>, EngineError> {
        let mut ids = self.inputs.text(text)?.ids;
        ids.resize(self.info.text_length, 0);
        Ok(ids)
    }

    /// The network's input for an image: CLIP-normalised pixels, f32 `[3, height, width]` in this order.
    #[must_use]
    pub fn pixels(&self, image: &image::RgbImage) -> Vec<f32> {
        self.inputs.image(image).pixels
    }

    fn embed_text_chunk(&self, texts: &[&PreparedText]) -> candle_core::Result<Vec<Vec<f32>>> {
        let length = texts.iter().map(|text| text.ids.len()).max().unwrap_or(0);
        let mut flat = Vec::with_capacity(texts.len() * length);
        for text in texts {
            flat.extend_from_slice(&text.ids);
            flat.resize(flat.len() + length - text.ids.len(), 0);
        }
        let ids = Tensor::from_vec(flat, (texts.len(), length), &self.device)?;
        let features = self.model.encode_text(&ids)?;
        stored_vectors(&features.bge, features.tse.as_ref())
    }

    fn embed_image_chunk(&self, images: &[PreparedImage]) -> candle_core::Result<Vec<Vec<f32>>> {
        let (height, width) = self.info.image_size;
        let pixels: Vec<f32> = images.iter().flat_map(|image| &image.pixels).copied().collect();
        let shape = (images.len(), 3, height as usize, width as usize);
        let (bge, tse) = self.model.embed_image(&Tensor::from_vec(pixels, shape, &self.device)?)?;
        stored_vectors(&bge, tse.as_ref())
    }
}

impl Embedder for ClipEmbedder {
    fn info(&self) -> &EmbedderInfo {
        &self.info
    }

    fn preprocessor(&self) -> Arc<dyn Preprocessor> {
        self.inputs.clone()
    }

    fn embed_prepared_texts(&mut self, texts: &[PreparedText]) -> Result<Vec<Vec<f32>>, EngineError> {
        // Texts of like length share a pass, because a pass is as long as its longest text.
        let mut order: Vec<usize> = (0..texts.len()).collect();
        order.sort_by_key(|&index| texts[index].ids.len());
        let mut vectors = vec![Vec::new(); texts.len()];
        for chunk in order.chunks(TEXT_CHUNK) {
            let chosen: Vec<&PreparedText> = chunk.iter().map(|&index| &texts[index]).collect();
            let embedded =
                self.embed_text_chunk(&chosen).map_err(|cause| failed("text forward pass", &cause))?;
            for (&index, vector) in chunk.iter().zip(embedded) {
                vectors[index] = vector;
            }
        }
        Ok(vectors)
    }

    fn embed_prepared_images(&mut self, images: &[PreparedImage]) -> Result<Vec<Vec<f32>>, EngineError> {
        let mut vectors = Vec::with_capacity(images.len());
        for chunk in images.chunks(IMAGE_CHUNK) {
            let embedded =
                self.embed_image_chunk(chunk).map_err(|cause| failed("image forward pass", &cause))?;
            vectors.extend(embedded);
        }
        Ok(vectors)
    }
}

/// Values of a checkpoint folder's weights, told from the files' headers.
///
/// # Errors
/// [`ClipError`] where there are no weights or a file is damaged.
pub fn stored_values(dir: &Path) -> Result<u64, ClipError> {
    let published = dir.join(PUBLISHED_WEIGHTS);
    let tensors = match thicket_checkpoint::survey(dir) {
        Err(CheckpointError::NoWeights { .. }) if published.is_file() => {
            thicket_checkpoint::survey_pth(&published, Some(PUBLISHED_WEIGHTS_KEY))?
        }
        other => other?,
    };
    Ok(tensors.iter().map(thicket_checkpoint::Surveyed::values).sum())
}

fn open(dir: &Path) -> Result<Checkpoint, ClipError> {
    let published = dir.join(PUBLISHED_WEIGHTS);
    let mut checkpoint = match Checkpoint::open(dir) {
        Err(CheckpointError::NoWeights { .. }) if published.is_file() => {
            Checkpoint::open_pth(&published, Some(PUBLISHED_WEIGHTS_KEY))?
        }
        other => other?,
    };
    checkpoint.rename(names::without_parallel_prefix)?;
    Ok(checkpoint)
}

impl Parts {
    /// Hex digest of all that a vector depends on.
    fn fingerprint(&self) -> String {
        let parts = [
            &self.weights,
            &format!("{:?}", self.config),
            self.text.fingerprint(),
            &self.preprocessing.description(),
        ];
        blake3::hash(parts.join("\n").as_bytes()).to_hex().to_string()
    }
}

/// Unit vectors of a batch: the global embedding alone, or both embeddings as halves of equal weight, so that the
/// inner product of two vectors is the mean of the two cosines.
fn stored_vectors(bge: &Tensor, tse: Option<&Tensor>) -> candle_core::Result<Vec<Vec<f32>>> {
    let mut vectors = bge.to_vec2::<f32>()?;
    match tse {
        None => vectors.iter_mut().try_for_each(|vector| scale_to(vector, 1.0))?,
        Some(tse) => {
            let half = std::f64::consts::FRAC_1_SQRT_2;
            for (vector, mut selected) in vectors.iter_mut().zip(tse.to_vec2::<f32>()?) {
                scale_to(vector, half)?;
                scale_to(&mut selected, half)?;
                vector.append(&mut selected);
            }
        }
    }
    Ok(vectors)
}

fn scale_to(vector: &mut [f32], length: f64) -> candle_core::Result<()> {
    let norm = vector.iter().map(|&value| f64::from(value).powi(2)).sum::<f64>().sqrt();
    if !norm.is_finite() || norm == 0.0 {
        return Err(candle_core::Error::Msg(format!("an embedding of length {norm}")));
    }
    vector.iter_mut().for_each(|value| *value = (f64::from(*value) * length / norm) as f32);
    Ok(())
}

fn failed(operation: &'static str, cause: &candle_core::Error) -> EngineError {
    EngineError::internal(operation, first_line(cause))
}
