//! Training a small RDE-style two-tower on the built-in sample.
//!
//! First the image tower alone learns to tell the attributes, then both towers learn to bring a person's captions and
//! images together, against batches that hold whole families of look-alikes.

mod loss;
mod pictures;
mod positions;
mod vocabulary;

use std::{
    fs,
    path::{Path, PathBuf},
};

use candle_core::{Device, Module, Result as TensorResult, Tensor};
use rand::{Rng, SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;
use thicket_clip::{
    ClipEmbedder, ClipTokenizer, Config, EndMark, LoadOptions, RunOptions, TowerConfig, TseConfig, TwoTower,
    VOCABULARY_FILE,
};
use thicket_evaluation::{Metrics, QueryResult};
use thicket_kernels::{Linear, linear};
use thicket_synth::{Appearance, Benchmark, Caption, SLOT_COUNT, Split, describe, merge};

use crate::{
    TrainingError,
    attributes::{SLOT_WIDTH, Targets},
    mining,
    optimiser::{Optimiser, Schedule},
    parameters::Parameters,
    run::{Event, Journal, Mean, Watch, require_folder},
    sample::Sample,
};
use loss::{batch_rank1, normalised, same_person, softmax_contrast, triplet_alignment};
use pictures::Pictures;

const MERGES: usize = 800;
const HEAD_WIDTH: usize = 16;
const REPORT_EVERY: usize = 50;
const CHECK_EVERY: usize = 250;
/// Scale of the softmax contrast.
const CONTRAST_SCALE: f64 = 25.0;
const TEXT_ATTRIBUTES: f64 = 0.5;

/// What to train, and for how long.
#[derive(Debug, Clone, Serialize)]
pub struct EmbeddingOptions {
    /// Seed of everything random in the run.
    pub seed: u64,
    /// Steps of the image tower alone.
    pub attribute_steps: usize,
    /// Highest learning rate there.
    pub attribute_rate: f64,
    /// Steps of both towers.
    pub contrast_steps: usize,
    /// Highest learning rate there.
    pub contrast_rate: f64,
    /// People in a batch; two thirds of them in whole families.
    pub batch: usize,
    /// Folder of an earlier model of the same sizes to go on from, with its vocabulary; `None` draws a new one.
    pub start: Option<PathBuf>,
}

impl Default for EmbeddingOptions {
    fn default() -> Self {
        Self {
            seed: 1,
            attribute_steps: 600,
            attribute_rate: 1.5e-3,
            contrast_steps: 1_000,
            contrast_rate: 1e-3,
            batch: 128,
            start: None,
        }
    }
}

/// What a run leaves behind beside the model: its options and measurements.
#[derive(Debug, Clone, Serialize)]
pub struct EmbeddingCard {
    /// The options.
    pub options: EmbeddingOptions,
    /// Trainable values of the model.
    pub parameters: usize,
    /// Wall-clock seconds.
    pub seconds: f64,
    /// Held-out scores on the validation split, in percent.
    pub validation: Metrics,
    /// What was measured on the way.
    pub curve: Vec<Event>,
}

/// Trains an embedding model on the sample and writes its folder.
///
/// # Errors
/// [`TrainingError`]; what was saved on the way stays.
pub fn train_embedding(
    benchmark: &Benchmark,
    options: &EmbeddingOptions,
    out: &Path,
    watch: &mut Watch<'_>,
) -> Result<EmbeddingCard, TrainingError> {
    if options.batch < 8 {
        return Err(TrainingError::Option {
            field: "batch",
            actual: options.batch.to_string(),
            allowed: "8 or more",
        });
    }
    require_folder("start", options.start.as_deref())?;
    fs::create_dir_all(out).map_err(TrainingError::write(out))?;
    let mut journal = Journal::new(watch);
    let train = Sample::paint(benchmark, Split::Train);
    let validation = Sample::paint(benchmark, Split::Val);
    journal.record("sample", (1, 1), &[("images", (train.len() + validation.len()) as f32)])?;

    let (config, tokenizer) = prepare(&train, options.start.as_deref(), out)?;
    let parameters = Parameters::new(options.seed);
    let model = TwoTower::new(&config, parameters.builder())?;
    match &options.start {
        Some(start) => parameters.restore(start, "")?,
        None => positions::draw(&parameters, &config)?,
    }
    let pictures = Pictures::new(&train, config.image_size);
    let course = Course { options, train: &train, model: &model, tokenizer: &tokenizer, pictures: &pictures };
    let heads = Heads::new(&config, &Parameters::new(options.seed ^ 1))?;
    let save = || parameters.save(&out.join("model.safetensors"));
    let check = || -> Result<Metrics, TrainingError> {
        save()?;
        score(out, &validation)
    };
    course.attributes(&parameters, &heads, &mut journal)?;
    save()?;
    course.contrast(&parameters, &heads, &check, &mut journal)?;
    Ok(EmbeddingCard {
        options: options.clone(),
        parameters: parameters.count(),
        validation: check()?,
        seconds: journal.seconds(),
        curve: journal.events,
    })
}

/// Writes everything of the model's folder but the weights.
fn prepare(
    train: &Sample,
    start: Option<&Path>,
    out: &Path,
) -> Result<(Config, ClipTokenizer), TrainingError> {
    let texts = train.views.iter().flat_map(|view| {
        let (_, caption) = &view.captions[0];
        [caption.text.clone(), describe(&view.appearance).text]
    });
    let vocabulary = match start {
        Some(folder) => vocabulary::of(folder)?,
        None => vocabulary::learn(texts, MERGES)?,
    };
    let path = out.join(VOCABULARY_FILE);
    fs::write(&path, &vocabulary.file).map_err(TrainingError::write(&path))?;
    let config = Config {
        embed_dim: 128,
        image_size: (192, 96),
        patch: 16,
        stride: 16,
        vision: TowerConfig::published(128, 4, HEAD_WIDTH),
        vocab_size: vocabulary.size,
        text_length: 77,
        text: TowerConfig::published(128, 3, HEAD_WIDTH),
        end_mark: EndMark::Largest,
        tse: Some(TseConfig { dim: 256, hidden: 128, ratio: 1.0 }),
    };
    let run = RunOptions {
        image_size: config.image_size,
        stride: Some(config.stride),
        head_width: Some(HEAD_WIDTH),
        text_length: Some(config.text_length),
        select_ratio: config.tse.map_or(1.0, |tse| tse.ratio),
    };
    run.write(out).map_err(|cause| TrainingError::model("writing the options", cause))?;
    let tokenizer = ClipTokenizer::from_folder(out, config.vocab_size)
        .map_err(|cause| TrainingError::model("reading the new vocabulary", cause))?;
    Ok((config, tokenizer))
}

/// Scores the written folder on a split, as a server would load it.
fn score(out: &Path, sample: &Sample) -> Result<Metrics, TrainingError> {
    let mut embedder = ClipEmbedder::load(out, LoadOptions::reference("sample-embedding"))
        .map_err(|cause| TrainingError::model("loading the new embedding model", cause))?;
    let (texts, images) = mining::embed(&mut embedder, sample)?;
    let rows = texts.matmul(&images.t()?.contiguous()?)?.to_vec2::<f32>()?;
    let results: Option<Vec<QueryResult>> = rows
        .iter()
        .enumerate()
        .map(|(query, row)| {
            let mut order: Vec<usize> = (0..row.len()).collect();
            order.sort_by(|&a, &b| row[b].total_cmp(&row[a]).then(a.cmp(&b)));
            let same = |&(_, &view): &(usize, &usize)| sample.person_of(view) == sample.person_of(query);
            let places: Vec<usize> =
                order.iter().enumerate().filter(same).map(|(place, _)| place + 1).collect();
            QueryResult::from_places(&places)
        })
        .collect();
    let results = results.ok_or_else(|| TrainingError::model("scoring", "a query without a match"))?;
    Ok(Metrics::mean(&results))
}

/// Attribute heads, thrown away after training: one over all image tokens in place, one over the embedding, which the
/// texts share.
struct Heads {
    tokens: Linear,
    embedding: Linear,
    scratch: Parameters,
}

impl Heads {
    fn new(config: &Config, scratch: &Parameters) -> TensorResult<Self> {
        let logits = SLOT_COUNT * SLOT_WIDTH;
        let vb = scratch.builder();
        Ok(Self {
            tokens: Linear::new(config.image_tokens() * config.embed_dim, logits, true, vb.pp("tokens"))?,
            embedding: Linear::new(config.dimension(), logits, true, vb.pp("embedding"))?,
            scratch: scratch.clone(),
        })
    }

    fn logits(head: &Linear, x: &Tensor) -> TensorResult<Tensor> {
        head.forward(x)?.reshape(((), SLOT_COUNT, SLOT_WIDTH))
    }
}

/// Both embeddings of a batch, normalised.
struct Embedded {
    bge: Tensor,
    tse: Tensor,
}

impl Embedded {
    fn new(bge: &Tensor, tse: Option<&Tensor>) -> TensorResult<Self> {
        let bge = normalised(bge)?;
        let tse = tse.map_or_else(|| Ok(bge.clone()), normalised)?;
        Ok(Self { bge, tse })
    }

    /// Both embeddings side by side, every channel of mean 0 and variance 1 over the batch.
    ///
    /// What fresh towers make of two images differs little beside what they make of all, and heads that saw it as it is
    /// would learn nothing for hundreds of steps. (Luo et al., 2019, put such a neck between a person embedding and its
    /// classifier for a like reason.)
    fn standardised(&self) -> TensorResult<Tensor> {
        let x = Tensor::cat(&[&self.bge, &self.tse], 1)?;
        let x = x.broadcast_sub(&x.mean_keepdim(0)?)?;
        x.broadcast_div(&x.sqr()?.mean_keepdim(0)?.affine(1.0, 1e-6)?.sqrt()?)
    }
}

struct Course<'a> {
    options: &'a EmbeddingOptions,
    train: &'a Sample,
    model: &'a TwoTower,
    tokenizer: &'a ClipTokenizer,
    pictures: &'a Pictures,
}

impl Course<'_> {
    /// The image tower alone.
    fn attributes(
        &self,
        parameters: &Parameters,
        heads: &Heads,
        journal: &mut Journal<'_, '_>,
    ) -> Result<(), TrainingError> {
        const STAGE: &str = "attributes";
        let mut rng = ChaCha8Rng::seed_from_u64(self.options.seed ^ 2);
        let steps = self.options.attribute_steps;
        let schedule = Schedule { peak: self.options.attribute_rate, warmup: 50.min(steps), steps };
        let mut variables = parameters
            .select(|name| is_trainable(name) && (name.contains(".visual.") || name.starts_with("visul")));
        variables.extend(heads.scratch.select(|_| true));
        let mut optimiser = Optimiser::new(variables, schedule, 0.01, 1.0)?;
        let (mut mean, mut accuracy) = (Mean::default(), [Mean::default(), Mean::default()]);
        for step in 0..steps {
            let views: Vec<usize> =
                (0..self.options.batch).map(|_| rng.random_range(0..self.train.len())).collect();
            let features = self.model.encode_image(&self.pictures.varied(&views, &mut rng)?)?;
            let targets = self.targets(&views)?;
            let embedded = Embedded::new(&features.bge, features.tse.as_ref())?;
            let from_tokens = Heads::logits(&heads.tokens, &features.tokens.flatten_from(1)?)?;
            let from_embedding = Heads::logits(&heads.embedding, &embedded.standardised()?)?;
            accuracy[0].add(targets.accuracy(&from_embedding)?);
            accuracy[1].add(targets.accuracy(&from_tokens)?);
            let loss = (targets.loss(&from_tokens)? + targets.loss(&from_embedding)?)?;
            mean.add(optimiser.descend(&loss)?);
            if (step + 1) % REPORT_EVERY == 0 {
                let [embedding, tokens] = accuracy.each_mut().map(Mean::take);
                let figures = [("loss", mean.take()), ("accuracy", embedding), ("token_accuracy", tokens)];
                journal.record(STAGE, (step + 1, steps), &figures)?;
            } else {
                journal.record(STAGE, (step + 1, steps), &[])?;
            }
        }
        Ok(())
    }

    /// Both towers.
    fn contrast(
        &self,
        parameters: &Parameters,
        heads: &Heads,
        check: &dyn Fn() -> Result<Metrics, TrainingError>,
        journal: &mut Journal<'_, '_>,
    ) -> Result<(), TrainingError> {
        const STAGE: &str = "contrast";
        let mut rng = ChaCha8Rng::seed_from_u64(self.options.seed ^ 3);
        let steps = self.options.contrast_steps;
        let schedule = Schedule { peak: self.options.contrast_rate, warmup: 100.min(steps), steps };
        let mut variables = parameters.select(is_trainable);
        variables.extend(heads.scratch.select(|name| name.starts_with("embedding")));
        let mut optimiser = Optimiser::new(variables, schedule, 0.01, 1.0)?;
        let (mut mean, mut rank1) = (Mean::default(), Mean::default());
        for step in 0..steps {
            let people = self.draw_people(&mut rng);
            let views: Vec<usize> =
                people.iter().map(|&person| self.train.any_view(person, &mut rng)).collect();
            let captions: Vec<Caption> =
                people.iter().map(|&person| self.draw_caption(person, &mut rng)).collect();
            let image = self.model.encode_image(&self.pictures.varied(&views, &mut rng)?)?;
            let image = Embedded::new(&image.bge, image.tse.as_ref())?;
            let text = self.model.encode_text(&self.token_ids(&captions)?)?;
            let text = Embedded::new(&text.bge, text.tse.as_ref())?;

            let same = same_person(&people)?;
            let global = linear(&text.bge, &image.bge, None)?;
            let local = linear(&text.tse, &image.tse, None)?;
            rank1.add(batch_rank1(&((&global + &local)? * 0.5)?, &same)?);
            let mut loss = (triplet_alignment(&global, &same)? + triplet_alignment(&local, &same)?)?;
            loss = (loss + softmax_contrast(&global, &same, CONTRAST_SCALE)?)?;
            loss = (loss + softmax_contrast(&local, &same, CONTRAST_SCALE)?)?;
            let seen =
                self.targets(&views)?.loss(&Heads::logits(&heads.embedding, &image.standardised()?)?)?;
            let said = said(&captions)?.loss(&Heads::logits(&heads.embedding, &text.standardised()?)?)?;
            loss = (loss + (seen + (said * TEXT_ATTRIBUTES)?)?)?;
            mean.add(optimiser.descend(&loss)?);

            if (step + 1) % CHECK_EVERY == 0 {
                let metrics = check()?;
                let figures = [("rank1", metrics.rank1 as f32), ("map", metrics.map as f32)];
                journal.record(STAGE, (step + 1, steps), &figures)?;
            }
            if (step + 1) % REPORT_EVERY == 0 {
                let figures = [("loss", mean.take()), ("batch_rank1", rank1.take())];
                journal.record(STAGE, (step + 1, steps), &figures)?;
            } else {
                journal.record(STAGE, (step + 1, steps), &[])?;
            }
        }
        Ok(())
    }

    fn targets(&self, views: &[usize]) -> TensorResult<Targets> {
        Targets::new(&views.iter().map(|&view| self.train.appearance(view)).collect::<Vec<_>>())
    }

    fn token_ids(&self, captions: &[Caption]) -> TensorResult<Tensor> {
        let length = self.model.config().text_length;
        let ids: Vec<u32> =
            captions.iter().flat_map(|caption| self.tokenizer.encode(&caption.text, length)).collect();
        Tensor::from_vec(ids, (captions.len(), length), &Device::Cpu)
    }

    /// Distinct people: two thirds in whole families, the rest anyone.
    fn draw_people(&self, rng: &mut ChaCha8Rng) -> Vec<usize> {
        let wanted = self.options.batch.min(self.train.people());
        let mut taken = vec![false; self.train.people()];
        let mut people = Vec::with_capacity(wanted);
        while people.len() < wanted {
            let person = rng.random_range(0..self.train.people());
            let family =
                if people.len() < wanted * 2 / 3 { self.train.family_of(person) } else { person..person + 1 };
            for person in family {
                if people.len() < wanted && !std::mem::replace(&mut taken[person], true) {
                    people.push(person);
                }
            }
        }
        people.shuffle(rng);
        people
    }

    /// What is said of a person: four times in five a witness's words, else everything, as a refined query has it.
    fn draw_caption(&self, person: usize, rng: &mut ChaCha8Rng) -> Caption {
        let view = self.train.any_view(person, rng);
        let caption = self.train.fresh_caption(view, rng);
        if rng.random_bool(0.8) {
            return caption;
        }
        let shown = self.train.appearance(self.train.any_view(person, rng));
        Caption { text: merge(&caption, &shown), claims: describe(&shown).claims }
    }
}

/// The attributes that captions state without vagueness, as targets.
fn said(captions: &[Caption]) -> TensorResult<Targets> {
    let stated: Vec<Appearance> = captions
        .iter()
        .map(|caption| {
            let mut stated = Appearance { values: [0; SLOT_COUNT], visible: 0 };
            for claim in caption.claims.iter().flat_map(|claim| &claim.slots) {
                if claim.mask.count_ones() == 1 {
                    stated.values[claim.slot] = claim.mask.trailing_zeros() as u8;
                    stated.visible |= 1 << claim.slot;
                }
            }
            stated
        })
        .collect();
    Targets::new(&stated)
}

/// Running statistics of batch normalisation are not learnt: RDE keeps them as they start.
fn is_trainable(name: &str) -> bool {
    !name.contains("running_")
}
