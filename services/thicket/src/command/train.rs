use std::path::{Path, PathBuf};

use serde::Serialize;
use thicket_synth::{Benchmark, Sizes};
use thicket_training::{
    AnswerOptions, EmbeddingOptions, Event, TrainingError, train_answer, train_embedding,
};

use super::SAMPLE_SEED;
use crate::{Failure, console};

/// What a run measured, beside the model it wrote.
const RECORD_FILE: &str = "training.json";

/// Trains a model on the built-in sample's training split
///
/// The test split is never painted. The same seeds give the same model on the same machine.
#[derive(Debug, clap::Args)]
pub(crate) struct TrainArgs {
    #[command(subcommand)]
    model: Model,
}

#[derive(Debug, clap::Subcommand)]
enum Model {
    Embedding(EmbeddingArgs),
    Answer(AnswerArgs),
}

/// Where a run reads from and writes to.
#[derive(Debug, clap::Args)]
struct Common {
    /// Folder of the new model; files of the same name in it are replaced
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Seed of the sample
    #[arg(long, value_name = "N", default_value_t = SAMPLE_SEED)]
    sample_seed: u64,
    /// Families of look-alikes to learn from, 2 to 100,000
    #[arg(long, value_name = "N", default_value_t = Sizes::default().train, value_parser = families)]
    families: usize,
    /// Seed of the starting weights and of everything drawn on the way
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Folder of an earlier model of this kind to go on from, as after a run of fewer stages
    #[arg(long, value_name = "DIR")]
    start: Option<PathBuf>,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

/// A small RDE-style two-tower: attributes first, then captions against look-alikes
#[derive(Debug, clap::Args)]
struct EmbeddingArgs {
    #[command(flatten)]
    common: Common,
    /// Steps of the image tower alone; 0 leaves the stage out
    #[arg(long, value_name = "N", default_value_t = EmbeddingOptions::default().attribute_steps)]
    attribute_steps: usize,
    /// Steps of both towers
    #[arg(long, value_name = "N", default_value_t = EmbeddingOptions::default().contrast_steps)]
    contrast_steps: usize,
    /// People in a batch, 8 to 4,096
    #[arg(long, value_name = "N", default_value_t = EmbeddingOptions::default().batch, value_parser = batch)]
    batch: usize,
}

/// A small Qwen2-VL: attributes, then answers and short captions, then whole captions against hard negatives
#[derive(Debug, clap::Args)]
struct AnswerArgs {
    #[command(flatten)]
    common: Common,
    /// Embedding model that finds the hard negatives and that the answer model will work with. Read after the lessons
    #[arg(long, value_name = "DIR")]
    embedding: PathBuf,
    /// Folder of an earlier answer model of which only the vision tower is taken
    #[arg(long, value_name = "DIR", conflicts_with = "start")]
    start_vision: Option<PathBuf>,
    /// Steps of the vision tower alone; 0 leaves the stage out
    #[arg(long, value_name = "N", default_value_t = AnswerOptions::default().vision_steps)]
    vision_steps: usize,
    /// Steps of answers, short captions and merges; 0 leaves the stage out
    #[arg(long, value_name = "N", default_value_t = AnswerOptions::default().lesson_steps)]
    lesson_steps: usize,
    /// Steps of whole captions; 0 leaves the stage out and only chooses the interaction's settings anew
    #[arg(long, value_name = "N", default_value_t = AnswerOptions::default().locate_steps)]
    locate_steps: usize,
}

fn families(text: &str) -> Result<usize, String> {
    within(text, 2, 100_000)
}

fn batch(text: &str) -> Result<usize, String> {
    within(text, 8, 4_096)
}

fn within(text: &str, least: usize, most: usize) -> Result<usize, String> {
    match text.parse() {
        Ok(count) if (least..=most).contains(&count) => Ok(count),
        _ => Err(format!("a whole number from {least} to {most} expected")),
    }
}

pub(super) fn run(args: TrainArgs) -> Result<(), Failure> {
    match args.model {
        Model::Embedding(args) => embedding(&args),
        Model::Answer(args) => answer(&args),
    }
}

fn embedding(args: &EmbeddingArgs) -> Result<(), Failure> {
    let options = EmbeddingOptions {
        seed: args.common.seed,
        attribute_steps: args.attribute_steps,
        contrast_steps: args.contrast_steps,
        batch: args.batch,
        start: args.common.start.clone(),
        ..EmbeddingOptions::default()
    };
    let benchmark = benchmark(&args.common)?;
    let card = train_embedding(&benchmark, &options, &args.common.out, &mut tell).map_err(failure)?;
    finish(
        &args.common,
        &card,
        &format!("validation rank-1 {:.2} %, mAP {:.2} %", card.validation.rank1, card.validation.map),
    )
}

fn answer(args: &AnswerArgs) -> Result<(), Failure> {
    let options = AnswerOptions {
        seed: args.common.seed,
        vision_steps: args.vision_steps,
        lesson_steps: args.lesson_steps,
        locate_steps: args.locate_steps,
        start: args.common.start.clone(),
        start_vision: args.start_vision.clone(),
        ..AnswerOptions::default()
    };
    let benchmark = benchmark(&args.common)?;
    let card =
        train_answer(&benchmark, &args.embedding, &options, &args.common.out, &mut tell).map_err(failure)?;
    let scores: Vec<String> =
        card.validation.iter().map(|(name, value)| format!("{name} {value:.2}")).collect();
    finish(&args.common, &card, &scores.join(", "))
}

fn benchmark(common: &Common) -> Result<Benchmark, Failure> {
    let sizes = Sizes { train: common.families, ..Sizes::default() };
    Benchmark::new(common.sample_seed, sizes).map_err(Failure::bad_input)
}

/// Shows what a run measures, one line each.
fn tell(event: &Event) -> bool {
    if !event.figures.is_empty() {
        let figures: Vec<String> =
            event.figures.iter().map(|(name, value)| format!("{name} {value:.4}")).collect();
        let Event { stage, step, steps, seconds, .. } = event;
        console::note(&format!("{seconds:7.0} s  {stage} {step}/{steps}  {}", figures.join("  ")));
    }
    true
}

fn failure(error: TrainingError) -> Failure {
    match error {
        TrainingError::Option { .. } => Failure::bad_input(error),
        error => Failure::failed(console::with_causes(&error)),
    }
}

fn finish(common: &Common, card: &impl Serialize, scores: &str) -> Result<(), Failure> {
    write_record(&common.out, card)?;
    if common.json {
        return console::print_json(card);
    }
    console::print(&format!("{}: {scores}", common.out.display()))
}

fn write_record(out: &Path, card: &impl Serialize) -> Result<(), Failure> {
    let path = out.join(RECORD_FILE);
    let text = serde_json::to_string_pretty(card).map_err(Failure::failed)?;
    std::fs::write(&path, text + "\n")
        .map_err(|error| Failure::failed(format!("{}: {error}", path.display())))
}
