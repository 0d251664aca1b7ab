//! Hard negatives: the training images of other people that an embedding model takes for the described person.

use candle_core::{Device, Tensor};
use rayon::prelude::*;
use thicket_engine::Embedder;

use crate::{TrainingError, sample::Sample};

/// Captions compared at a time.
const ROWS: usize = 512;

/// The vectors of all first captions and all images of a split, one row each.
pub(crate) fn embed(embedder: &mut dyn Embedder, sample: &Sample) -> Result<(Tensor, Tensor), TrainingError> {
    let failed = |cause| TrainingError::model("embedding the sample", cause);
    let captions: Vec<String> = sample.views.iter().map(|view| view.captions[0].1.text.clone()).collect();
    let texts = embedder.embed_texts(&captions).map_err(failed)?;
    let images = embedder.embed_images(&sample.images).map_err(failed)?;
    Ok((Tensor::new(texts, &Device::Cpu)?, Tensor::new(images, &Device::Cpu)?))
}

/// For the caption of each image, the `count` most similar images of other people, best first.
pub(crate) fn mine(
    embedder: &mut dyn Embedder,
    sample: &Sample,
    count: usize,
) -> Result<Vec<Vec<u32>>, TrainingError> {
    let (texts, images) = embed(embedder, sample)?;
    let images = images.t()?.contiguous()?;
    let mut rankings = Vec::with_capacity(sample.len());
    for start in (0..sample.len()).step_by(ROWS) {
        let rows = ROWS.min(sample.len() - start);
        let scores = texts.narrow(0, start, rows)?.matmul(&images)?.to_vec2::<f32>()?;
        rankings.par_extend(scores.into_par_iter().enumerate().map(|(row, scores)| {
            let person = sample.person_of(start + row);
            let mut others: Vec<u32> =
                (0..sample.len() as u32).filter(|&view| sample.person_of(view as usize) != person).collect();
            let better =
                |a: &u32, b: &u32| scores[*b as usize].total_cmp(&scores[*a as usize]).then_with(|| a.cmp(b));
            let count = count.min(others.len());
            if count < others.len() {
                others.select_nth_unstable_by(count, better);
            }
            others.truncate(count);
            others.sort_unstable_by(better);
            others
        }));
    }
    Ok(rankings)
}
