//! Training a small Qwen2-VL on the built-in sample.
//!
//! Four stages. The vision tower alone learns the attributes; then, with the tower fixed, the language model learns to
//! say them, to judge short phrases and to merge answers into a caption; then everything learns to judge whole captions
//! against hard negatives; last, the interaction's settings are chosen on the validation split.

mod rows;
mod tasks;
mod tutor;
mod validation;
mod vision;
mod vocabulary;

use std::{
    fs,
    path::{Path, PathBuf},
};

use candle_core::{IndexOp, Tensor};
use image::RgbImage;
use rand::{Rng, SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use serde::Serialize;
use thicket_clip::{ClipEmbedder, LoadOptions as EmbedderOptions};
use thicket_qwen::{
    Config, Processor, ProcessorConfig, PromptEncoder, QwenModel, RopeScaling, TokenIds, VisionConfig,
};
use thicket_synth::{Benchmark, HEIGHT, Split, WIDTH, answers, merge, numbered};
use thicket_thi::prompts::{PromptSet, python_list};

use crate::{
    TrainingError,
    mining::mine,
    optimiser::{Optimiser, Schedule},
    parameters::Parameters,
    run::{Event, Journal, Mean, Watch, require_folder},
    sample::Sample,
};
use rows::{Batch, Row};
use tasks::{Pairs, Writer, short_caption};
use tutor::Tutor;

const PROMPTS: &str = include_str!("prompts.toml");
const VOCABULARY: usize = 1_016;
/// Of the language model: two to put the words of a phrase together, one to look at the image, one to compare, one to
/// gather.
const LAYERS: usize = 5;
/// Images of other people mined for each caption, as the method's fine-tuning has it.
const NEGATIVES: usize = 10;
const REPORT_EVERY: usize = 50;
const SAVE_EVERY: usize = 250;
const IMAGES_AT_ONCE: usize = 64;

/// What to train, and for how long.
#[derive(Debug, Clone, Serialize)]
pub struct AnswerOptions {
    /// Seed of everything random in the run.
    pub seed: u64,
    /// Steps of the vision tower alone.
    pub vision_steps: usize,
    /// Images in such a step.
    pub vision_batch: usize,
    /// Highest learning rate there.
    pub vision_rate: f64,
    /// Steps of the first lessons, with the tower fixed.
    pub lesson_steps: usize,
    /// Highest learning rate there.
    pub lesson_rate: f64,
    /// Steps of judging whole captions.
    pub locate_steps: usize,
    /// Highest learning rate there.
    pub locate_rate: f64,
    /// Images in a step of the language model.
    pub batch: usize,
    /// Captions judged for each image; half as many short ones in the lessons.
    pub captions_per_image: usize,
    /// Further short captions for each image in the lessons, of which only the phrases are judged.
    pub drills_per_image: usize,
    /// Merges learnt in each step.
    pub merges: usize,
    /// Folder of an earlier model of the same sizes to go on from, with its vocabulary; `None` draws a new one.
    pub start: Option<PathBuf>,
    /// Folder of an earlier model of which only the vision tower is taken.
    pub start_vision: Option<PathBuf>,
}

impl Default for AnswerOptions {
    fn default() -> Self {
        Self {
            seed: 1,
            vision_steps: 1_500,
            vision_batch: 64,
            vision_rate: 2e-3,
            lesson_steps: 900,
            lesson_rate: 2e-3,
            locate_steps: 1_200,
            locate_rate: 1e-3,
            batch: 24,
            captions_per_image: 4,
            drills_per_image: 6,
            merges: 6,
            start: None,
            start_vision: None,
        }
    }
}

/// What a run leaves behind beside the model: its options and measurements.
#[derive(Debug, Clone, Serialize)]
pub struct AnswerCard {
    /// The options.
    pub options: AnswerOptions,
    /// Trainable values of the model.
    pub parameters: usize,
    /// Wall-clock seconds.
    pub seconds: f64,
    /// Held-out scores on the validation split, by name.
    pub validation: Vec<(String, f64)>,
    /// What was measured on the way.
    pub curve: Vec<Event>,
}

/// Trains an answer model on the sample and writes its folder.
///
/// The model in the folder `embedding` finds the hard negatives and takes part in choosing the interaction's settings:
/// it should be the one that the answer model will work with. It is loaded after the lessons, so that the two models
/// can be trained side by side, as long as this one is finished by then.
///
/// # Errors
/// [`TrainingError`]; what was saved on the way stays.
pub fn train_answer(
    benchmark: &Benchmark,
    embedding: &Path,
    options: &AnswerOptions,
    out: &Path,
    watch: &mut Watch<'_>,
) -> Result<AnswerCard, TrainingError> {
    require_folder("embedding", Some(embedding))?;
    require_folder("start", options.start.as_deref())?;
    require_folder("start_vision", options.start_vision.as_deref())?;
    fs::create_dir_all(out).map_err(TrainingError::write(out))?;
    let mut journal = Journal::new(watch);
    let train = Sample::paint(benchmark, Split::Train);
    let validation = Sample::paint(benchmark, Split::Val);
    journal.record("sample", (1, 1), &[("images", (train.len() + validation.len()) as f32)])?;

    let prompts =
        PromptSet::parse(PROMPTS).map_err(|cause| TrainingError::model("reading the prompts", cause))?;
    let parameters = Parameters::new(options.seed);
    let (config, processor, encoder) = prepare(&train, options.start.as_deref(), out)?;
    let model = QwenModel::new(&config, &parameters.builder())?;
    if let Some(start) = &options.start {
        parameters.restore(start, "")?;
    }
    if let Some(start) = &options.start_vision {
        parameters.restore(start, "visual.")?;
    }
    let grid = processor
        .token_grid(WIDTH, HEIGHT)
        .map_err(|cause| TrainingError::model("cutting an image into patches", cause))?;
    let writer = Writer::new(&encoder, &prompts, grid)?;
    let scratch = Parameters::new(options.seed ^ 4);
    let tutor = Tutor::new(config.hidden_size, config.num_hidden_layers, &scratch)?;
    let school = School {
        options,
        tutor: &tutor,
        scratch: &scratch,
        train: &train,
        validation: &validation,
        model: &model,
        processor: &processor,
        writer: &writer,
        image_token: encoder.image_token(),
    };
    let save = || parameters.save(&out.join("model.safetensors"));

    vision::train(&model.vision, &parameters, &processor, (&train, &validation), options, &mut journal)?;
    save()?;
    school.first_lessons(&parameters, &mut journal)?;
    save()?;
    let mut embedder = ClipEmbedder::load(embedding, EmbedderOptions::reference("embedding"))
        .map_err(|cause| TrainingError::model("loading the embedding model", cause))?;
    if options.locate_steps > 0 {
        let pairs = Pairs::new(&mine(&mut embedder, &train, NEGATIVES)?);
        school.whole_captions(&parameters, &pairs, &save, &mut journal)?;
        save()?;
    }
    let scores = validation::choose_settings(out, &mut embedder, &validation, &mut journal)?;
    Ok(AnswerCard {
        options: options.clone(),
        parameters: parameters.count(),
        seconds: journal.seconds(),
        validation: scores,
        curve: journal.events,
    })
}

/// Writes everything of the model's folder but the weights, and opens it as a server will.
fn prepare(
    train: &Sample,
    start: Option<&Path>,
    out: &Path,
) -> Result<(Config, Processor, PromptEncoder), TrainingError> {
    let tokenizer = match start {
        Some(folder) => vocabulary::of(folder)?,
        None => vocabulary::learn(&corpus(train), VOCABULARY)?,
    };
    let config = config(&tokenizer)?;
    let processing = ProcessorConfig {
        min_pixels: Some(u64::from(WIDTH * HEIGHT)),
        max_pixels: Some(u64::from(WIDTH * HEIGHT)),
        ..ProcessorConfig::default()
    };
    let json = |value: serde_json::Value| format!("{value:#}\n");
    let end = vocabulary::mark(&tokenizer, "<|im_end|>")?;
    let generation = serde_json::json!({ "eos_token_id": [end], "do_sample": false });
    let preprocessor = serde_json::to_value(&processing).unwrap_or_default();
    for (name, content) in [
        ("config.json", json(config.to_json())),
        ("preprocessor_config.json", json(preprocessor)),
        ("generation_config.json", json(generation)),
        ("prompts.toml", PROMPTS.to_string()),
    ] {
        let path = out.join(name);
        fs::write(&path, content).map_err(TrainingError::write(&path))?;
    }
    vocabulary::save(&tokenizer, &out.join(vocabulary::FILE))?;
    let failed = |cause| TrainingError::model("reading the new configuration", cause);
    let processor = Processor::new(&processing, &config.vision_config).map_err(failed)?;
    let encoder = PromptEncoder::new(tokenizer, &config)
        .map_err(|cause| TrainingError::model("reading the new tokenizer", cause))?;
    Ok((config, processor, encoder))
}

/// The texts the vocabulary is learnt from: what the model will read and write.
fn corpus(train: &Sample) -> Vec<String> {
    let mut texts: Vec<String> = train
        .views
        .par_iter()
        .step_by(4)
        .flat_map_iter(|view| {
            let (_, caption) = &view.captions[0];
            let said = answers(&view.appearance);
            let list = python_list(&[&[caption.text.clone()][..], &said].concat());
            [list, caption.text.clone(), numbered(&said), merge(caption, &view.appearance)]
        })
        .collect();
    texts.extend(std::iter::repeat_n("Yes".to_string(), 100));
    texts.extend(std::iter::repeat_n("No".to_string(), 100));
    texts.extend(std::iter::repeat_n(PROMPTS.to_string(), 20));
    texts.extend(std::iter::repeat_n(
        "system\nYou are a helpful assistant.\nuser\nassistant\n".to_string(),
        20,
    ));
    texts
}

fn config(tokenizer: &tokenizers::Tokenizer) -> Result<Config, TrainingError> {
    let mark = |name| vocabulary::mark(tokenizer, name);
    let width = 128;
    let config = Config {
        vocab_size: tokenizer.get_vocab_size(true).next_multiple_of(64),
        hidden_size: width,
        intermediate_size: 3 * width,
        num_hidden_layers: LAYERS,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        hidden_act: "silu".to_string(),
        max_position_embeddings: 4_096,
        rms_norm_eps: 1e-6,
        // As published: with less, most channels of a query turn too fast to find an image by what it shows.
        rope_theta: 1_000_000.0,
        rope_scaling: RopeScaling { kind: "mrope".to_string(), mrope_section: vec![4, 6, 6] },
        tie_word_embeddings: Some(true),
        initializer_range: 0.04,
        use_sliding_window: false,
        eos_token_id: Some(TokenIds::One(mark("<|im_end|>")?)),
        image_token_id: mark("<|image_pad|>")?,
        vision_start_token_id: mark("<|vision_start|>")?,
        vision_end_token_id: mark("<|vision_end|>")?,
        vision_config: VisionConfig {
            depth: 4,
            embed_dim: width,
            num_heads: 4,
            hidden_size: width,
            initializer_range: 0.04,
            ..VisionConfig::default()
        },
    };
    config.validate().map_err(|cause| TrainingError::model("choosing the sizes", cause))?;
    Ok(config)
}

/// What the stages of the language model share.
struct School<'a> {
    options: &'a AnswerOptions,
    tutor: &'a Tutor,
    /// What the tutor's heads learn; thrown away with them.
    scratch: &'a Parameters,
    train: &'a Sample,
    validation: &'a Sample,
    model: &'a QwenModel,
    processor: &'a Processor,
    writer: &'a Writer<'a>,
    image_token: u32,
}

impl School<'_> {
    /// Stage 2: attribute answers, short captions and merges; the tower is fixed, so its tokens are computed once.
    fn first_lessons(
        &self,
        parameters: &Parameters,
        journal: &mut Journal<'_, '_>,
    ) -> Result<(), TrainingError> {
        const STAGE: &str = "lessons";
        let mut rng = ChaCha8Rng::seed_from_u64(self.options.seed ^ 2);
        let steps = self.options.lesson_steps;
        if steps == 0 {
            return Ok(());
        }
        let schedule = Schedule { peak: self.options.lesson_rate, warmup: 50.min(steps), steps };
        let mut variables = parameters.select(|name| !name.starts_with("visual."));
        variables.extend(self.scratch.select(|_| true));
        let mut optimiser = Optimiser::new(variables, schedule, 0.01, 1.0)?;
        let tokens = self.all_image_tokens()?;
        let mut mean = Mean::default();
        for step in 0..steps {
            let views: Vec<usize> =
                (0..self.options.batch).map(|_| rng.random_range(0..self.train.len())).collect();
            let mut rows = Vec::with_capacity(views.len());
            for &view in &views {
                let mut row = self.writer.image_row();
                let shown = self.train.appearance(view);
                if rng.random_bool(0.4) {
                    row.sections.push(self.writer.describe(&shown)?);
                }
                for _ in 0..self.options.drills_per_image {
                    let caption = short_caption(self.train, view, &mut rng);
                    row.sections.push(self.writer.drill(&caption, &shown)?);
                }
                for _ in 0..self.options.captions_per_image / 2 {
                    let caption = short_caption(self.train, view, &mut rng);
                    row.sections.push(self.writer.locate(&caption, &shown, caption.fits(&shown))?);
                }
                rows.push(row);
            }
            let images: Vec<Tensor> =
                views.iter().map(|&view| tokens.i(view)).collect::<candle_core::Result<_>>()?;
            let loss = self.loss(&rows, &images, &mut rng)?;
            mean.add(optimiser.descend(&loss)?);
            self.report(STAGE, (step + 1, steps), &mut mean, journal)?;
        }
        Ok(())
    }

    /// Stage 3: whole captions against hard negatives, everything trainable.
    fn whole_captions(
        &self,
        parameters: &Parameters,
        pairs: &Pairs,
        save: &dyn Fn() -> candle_core::Result<()>,
        journal: &mut Journal<'_, '_>,
    ) -> Result<(), TrainingError> {
        const STAGE: &str = "locate";
        let mut rng = ChaCha8Rng::seed_from_u64(self.options.seed ^ 3);
        let steps = self.options.locate_steps;
        let schedule = Schedule { peak: self.options.locate_rate, warmup: 100.min(steps), steps };
        let mut variables = parameters.select(|_| true);
        variables.extend(self.scratch.select(|_| true));
        let mut optimiser = Optimiser::new(variables, schedule, 0.01, 1.0)?;
        let mut order: Vec<usize> = (0..self.train.len()).collect();
        order.shuffle(&mut rng);
        let mut next = order.iter().copied().cycle();
        let mut mean = Mean::default();
        for step in 0..steps {
            let views: Vec<usize> = next.by_ref().take(self.options.batch).collect();
            let mut rows = Vec::with_capacity(views.len());
            for &view in &views {
                let mut row = self.writer.image_row();
                let shown = self.train.appearance(view);
                if rng.random_bool(0.3) {
                    row.sections.push(self.writer.describe(&shown)?);
                }
                for _ in 0..self.options.captions_per_image {
                    let (caption, same) = pairs.draw(self.train, view, &mut rng);
                    row.sections.push(self.writer.locate(&caption, &shown, same)?);
                }
                rows.push(row);
            }
            let pictures: Vec<&RgbImage> = views.iter().map(|&view| &self.train.images[view]).collect();
            let tokens = vision::image_tokens(&self.model.vision, self.processor, &pictures)?;
            let images: Vec<Tensor> =
                (0..views.len()).map(|index| tokens.i(index)).collect::<candle_core::Result<_>>()?;
            let loss = self.loss(&rows, &images, &mut rng)?;
            mean.add(optimiser.descend(&loss)?);
            if (step + 1) % SAVE_EVERY == 0 {
                save()?;
            }
            self.report(STAGE, (step + 1, steps), &mut mean, journal)?;
        }
        Ok(())
    }

    /// The loss of some rows about images and of some merges.
    fn loss(&self, rows: &[Row], images: &[Tensor], rng: &mut ChaCha8Rng) -> Result<Tensor, TrainingError> {
        let about_images = Batch::new(rows, self.image_token)?.loss(
            self.model,
            self.tutor,
            &images.iter().collect::<Vec<_>>(),
        )?;
        if self.options.merges == 0 {
            return Ok(about_images);
        }
        let mut merges = Vec::with_capacity(self.options.merges);
        for _ in 0..self.options.merges {
            let view = rng.random_range(0..self.train.len());
            // An anchor may be a look-alike: the caption is of any member of the family.
            let other = if rng.random_bool(0.5) { self.train.look_alike(view, rng) } else { None };
            let other = other.unwrap_or_else(|| self.train.any_view(self.train.person_of(view), rng));
            let caption = self.train.fresh_caption(other, rng);
            let section = self.writer.aggregate(&caption, &self.train.appearance(view))?;
            merges.push(Row { sections: vec![section], ..Row::default() });
        }
        let merging = Batch::new(&merges, self.image_token)?.loss(self.model, self.tutor, &[])?;
        Ok((about_images + merging)?)
    }

    /// Tokens of all training images under the tower as it is: (images, tokens, hidden).
    fn all_image_tokens(&self) -> Result<Tensor, TrainingError> {
        let mut parts = Vec::new();
        for images in self.train.images.chunks(IMAGES_AT_ONCE) {
            let images: Vec<&RgbImage> = images.iter().collect();
            parts.push(vision::image_tokens(&self.model.vision, self.processor, &images)?.detach());
        }
        Ok(Tensor::cat(&parts, 0)?)
    }

    fn report(
        &self,
        stage: &'static str,
        (step, steps): (usize, usize),
        mean: &mut Mean,
        journal: &mut Journal<'_, '_>,
    ) -> Result<(), TrainingError> {
        if step % REPORT_EVERY != 0 && step != steps {
            return journal.record(stage, (step, steps), &[]);
        }
        let judged = validation::judge(
            (self.model, self.tutor),
            self.processor,
            self.writer,
            self.validation,
            self.image_token,
        )?;
        let figures = [
            ("loss", mean.take()),
            ("captions_auc", judged.captions),
            ("phrases_auc", judged.phrases),
            ("seen", judged.seen),
        ];
        journal.record(stage, (step, steps), &figures)
    }
}
