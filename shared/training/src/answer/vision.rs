//! Stage 1: the vision tower alone learns to tell the attributes.
//!
//! Learnt together with the language model from scratch, the tower stays near chance for as long as this whole stage
//! takes. Two heads look at the merged tokens and are thrown away afterwards: one over all tokens in place, and one that
//! picks tokens by attention, as the language model will.

use candle_core::{Module, Result, Tensor};
use candle_nn::{Init, VarBuilder};
use image::RgbImage;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use thicket_kernels::{Linear, softmax};
use thicket_qwen::{ImagePatches, Processor, VisionTower, batch_patches};
use thicket_synth::{Appearance, SLOT_COUNT};

use super::AnswerOptions;
use crate::{
    TrainingError,
    attributes::{SLOT_WIDTH, Targets},
    optimiser::{Optimiser, Schedule},
    parameters::Parameters,
    run::{Journal, Mean},
    sample::Sample,
};

/// The name of the stage.
const STAGE: &str = "vision";
const REPORT_EVERY: usize = 50;

/// Attribute logits from merged image tokens.
struct Heads {
    flat: Linear,
    queries: Tensor,
    values: Tensor,
}

impl Heads {
    fn new(tokens: usize, hidden: usize, vb: &VarBuilder<'_>) -> Result<Self> {
        let std = Init::Randn { mean: 0.0, stdev: 0.02 };
        Ok(Self {
            flat: Linear::new(tokens * hidden, SLOT_COUNT * SLOT_WIDTH, true, vb.pp("flat"))?,
            queries: vb.get_with_hints((SLOT_COUNT, hidden), "queries", std)?,
            values: vb.get_with_hints((SLOT_COUNT, hidden, SLOT_WIDTH), "values", std)?,
        })
    }

    /// (batch, tokens, hidden) to two times (batch, slots, [`SLOT_WIDTH`]).
    fn forward(&self, tokens: &Tensor) -> Result<(Tensor, Tensor)> {
        let batch = tokens.dim(0)?;
        let flat = self.flat.forward(&tokens.flatten_from(1)?)?.reshape((batch, SLOT_COUNT, SLOT_WIDTH))?;
        let scores = tokens.broadcast_matmul(&self.queries.t()?)?.transpose(1, 2)?.contiguous()?;
        // (batch, slots, hidden) -> (slots, batch, hidden)
        let picked = softmax(&scores)?.matmul(tokens)?.transpose(0, 1)?.contiguous()?;
        Ok((flat, picked.matmul(&self.values)?.transpose(0, 1)?.contiguous()?))
    }
}

/// The patches of images, computed in parallel.
pub(crate) fn patches(
    processor: &Processor,
    images: &[&RgbImage],
) -> std::result::Result<Vec<ImagePatches>, TrainingError> {
    images
        .par_iter()
        .map(|image| {
            processor
                .patches(image)
                .map_err(|cause| TrainingError::model("cutting an image into patches", cause))
        })
        .collect()
}

/// Image tokens of images of equal size: (images, tokens, hidden).
pub(crate) fn image_tokens(
    tower: &VisionTower,
    processor: &Processor,
    images: &[&RgbImage],
) -> std::result::Result<Tensor, TrainingError> {
    let patches = patches(processor, images)?;
    let (values, grids) = batch_patches(
        &patches.iter().collect::<Vec<_>>(),
        candle_core::DType::F32,
        &candle_core::Device::Cpu,
    )?;
    let tokens = tower.forward(&values, &grids)?;
    let (all, hidden) = tokens.dims2()?;
    Ok(tokens.reshape((images.len(), all / images.len(), hidden))?)
}

/// Trains the tower whose tensors are in `parameters` under `visual.`.
pub(crate) fn train(
    tower: &VisionTower,
    parameters: &Parameters,
    processor: &Processor,
    (train, validation): (&Sample, &Sample),
    options: &AnswerOptions,
    journal: &mut Journal<'_, '_>,
) -> std::result::Result<(), TrainingError> {
    let mut rng = ChaCha8Rng::seed_from_u64(options.seed);
    let scratch = Parameters::new(options.seed ^ 1);
    let (tokens, hidden) = {
        let (_, tokens, hidden) = image_tokens(tower, processor, &[&train.images[0]])?.dims3()?;
        (tokens, hidden)
    };
    let heads = Heads::new(tokens, hidden, &scratch.builder())?;
    let mut variables = parameters.select(|name| name.starts_with("visual."));
    variables.extend(scratch.select(|_| true));
    let steps = options.vision_steps;
    let schedule = Schedule { peak: options.vision_rate, warmup: 50.min(steps), steps };
    let mut optimiser = Optimiser::new(variables, schedule, 0.01, 1.0)?;
    let mut mean = Mean::default();
    for step in 0..steps {
        let batch: Vec<usize> = (0..options.vision_batch).map(|_| rng.random_range(0..train.len())).collect();
        let images: Vec<&RgbImage> = batch.iter().map(|&view| &train.images[view]).collect();
        let appearances: Vec<Appearance> = batch.iter().map(|&view| train.appearance(view)).collect();
        let (flat, picked) = heads.forward(&image_tokens(tower, processor, &images)?)?;
        let targets = Targets::new(&appearances)?;
        mean.add(optimiser.descend(&(targets.loss(&flat)? + targets.loss(&picked)?)?)?);
        if (step + 1) % REPORT_EVERY == 0 || step + 1 == steps {
            let accuracy = accuracy(tower, &heads, processor, validation)?;
            journal.record(STAGE, (step + 1, steps), &[("loss", mean.take()), ("accuracy", accuracy)])?;
        } else {
            journal.record(STAGE, (step + 1, steps), &[])?;
        }
    }
    Ok(())
}

/// Attribute accuracy of the picking head on the first images of a split, 0 to 1.
fn accuracy(
    tower: &VisionTower,
    heads: &Heads,
    processor: &Processor,
    sample: &Sample,
) -> std::result::Result<f32, TrainingError> {
    let count = sample.len().min(192);
    let images: Vec<&RgbImage> = sample.images[..count].iter().collect();
    let appearances: Vec<Appearance> = (0..count).map(|view| sample.appearance(view)).collect();
    let (_, picked) = heads.forward(&image_tokens(tower, processor, &images)?.detach())?;
    Ok(Targets::new(&appearances)?.accuracy(&picked)?)
}
