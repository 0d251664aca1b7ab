//! What the model is worth on people it has never seen, and the settings that suit it.

use std::{collections::BTreeMap, fs, path::Path, sync::Arc};

use candle_core::{Device, Tensor};
use image::RgbImage;
use rand::{SeedableRng, rngs::StdRng};
use thicket_engine::{Answerer, Embedder, Prompt, Sampling};
use thicket_evaluation::{Metrics, QueryResult};
use thicket_qwen::{LoadOptions, Processor, QwenAnswerer, QwenModel};
use thicket_synth::{SLOT_COUNT, parse_answers};
use thicket_thi::{
    Settings, decide_all,
    prompts::{PromptSet, describe::sentences, usable_refinement},
};

use super::{
    rows::{Batch, Row},
    tasks::Writer,
    tutor::Tutor,
    vision::image_tokens,
};
use crate::{
    TrainingError, mining,
    run::{Journal, Mean},
    sample::Sample,
};

const ROUNDS: usize = 5;
/// No setting with a threshold below this is considered, so less probable candidates need no description.
const LEAST_THRESHOLD: f64 = 0.3;
const BATCH: usize = 64;
const LAMBDAS: [f32; 6] = [0.4, 0.5, 0.6, 0.7, 0.8, 0.9];
const LONGEST_ANSWER: usize = 256;

/// How well a model judges captions.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Judgement {
    /// Probability that it finds a caption more fitting for its own person than for a look-alike; 0.5 is chance.
    pub(crate) captions: f32,
    /// The same of single phrases that fit the image and that do not, half-way through the model.
    pub(crate) phrases: f32,
    /// Share of the attributes named by phrases that it tells as the image shows them, half-way through the model.
    pub(crate) seen: f32,
}

/// Lets the model judge captions of the person and of a look-alike over a part of the split.
pub(crate) fn judge(
    (model, tutor): (&QwenModel, &Tutor),
    processor: &Processor,
    writer: &Writer<'_>,
    sample: &Sample,
    image_token: u32,
) -> Result<Judgement, TrainingError> {
    const IMAGES: usize = 128;
    let mut rng = StdRng::seed_from_u64(11);
    let stride = (sample.len() / IMAGES).max(1);
    let views: Vec<usize> = (0..sample.len()).step_by(stride).take(IMAGES).collect();
    let (mut own, mut other) = (Vec::new(), Vec::new());
    let (mut fitting, mut wrong) = (Vec::new(), Vec::new());
    let mut seen = Mean::default();
    for views in views.chunks(32) {
        let mut rows = Vec::with_capacity(views.len());
        for &view in views {
            let mut row: Row = writer.image_row();
            let shown = sample.appearance(view);
            let same = sample.any_view(sample.person_of(view), &mut rng);
            let alike = sample.look_alike(view, &mut rng).unwrap_or((view + 1) % sample.len());
            for (view, is_same) in [(same, true), (alike, false)] {
                row.sections.push(writer.locate(&sample.views[view].captions[0].1, &shown, is_same)?);
            }
            rows.push(row);
        }
        let pictures: Vec<&RgbImage> = views.iter().map(|&view| &sample.images[view]).collect();
        let tokens = image_tokens(&model.vision, processor, &pictures)?.detach();
        let images: Vec<_> =
            (0..views.len()).map(|index| tokens.get(index)).collect::<candle_core::Result<_>>()?;
        let images: Vec<&Tensor> = images.iter().collect();
        let margins = Batch::new(&rows, image_token)?.margins(model, tutor, &images, writer.words())?;
        // Every image has been asked about its own person first.
        for pair in margins.judgements.chunks(2) {
            own.extend(pair.first());
            other.extend(pair.get(1));
        }
        for (margin, fits) in margins.phrases {
            match fits {
                Some(true) => fitting.push(margin),
                Some(false) => wrong.push(margin),
                None => {}
            }
        }
        seen.add(margins.seen);
    }
    Ok(Judgement { captions: auc(&own, &other), phrases: auc(&fitting, &wrong), seen: seen.take() })
}

/// Probability that a value of `above` is larger than one of `below`, ties counting half.
fn auc(above: &[f32], below: &[f32]) -> f32 {
    let mut won = 0f64;
    for a in above {
        for b in below {
            won += if a > b {
                1.0
            } else if a == b {
                0.5
            } else {
                0.0
            };
        }
    }
    (won / (above.len() * below.len()).max(1) as f64) as f32
}

/// Everything the settings are chosen from: one query for each image of the split.
struct Trial {
    /// Row-major (queries, gallery).
    similarity: Vec<f32>,
    gallery: usize,
    people: Vec<usize>,
    /// Best candidates of each query.
    candidates: Vec<Vec<usize>>,
    /// p(Yes) of each candidate.
    p_yes: Vec<Vec<f64>>,
    /// Row-major similarities of the refined query of (query, round), where there is one.
    refined: BTreeMap<(usize, usize), Vec<f32>>,
}

/// Runs the written folder over the validation split as a server would, chooses xi, lambda and the threshold on p(Yes)
/// there, and writes them to `thi.json`. Returns the scores.
pub(crate) fn choose_settings(
    out: &Path,
    embedder: &mut dyn Embedder,
    sample: &Sample,
    journal: &mut Journal<'_, '_>,
) -> Result<Vec<(String, f64)>, TrainingError> {
    const STAGE: &str = "settings";
    let mut answerer = QwenAnswerer::load(out, LoadOptions::reference("sample-answer"))
        .map_err(|cause| TrainingError::model("loading the new answer model", cause))?;
    let prompts = fs::read_to_string(out.join("prompts.toml")).map_err(TrainingError::write(out))?;
    let prompts =
        PromptSet::parse(&prompts).map_err(|cause| TrainingError::model("reading the prompts", cause))?;
    let mut scores = Vec::new();
    let trial = run_trial(&mut answerer, &prompts, embedder, sample, &mut scores, journal)?;
    let (best, settings) = trial.best()?;
    let baseline = trial.baseline()?;
    for (name, metrics) in [("without interaction", baseline), ("with interaction", best)] {
        scores.push((format!("rank-1 {name}"), metrics.rank1));
        scores.push((format!("mAP {name}"), metrics.map));
    }
    let path = out.join("thi.json");
    let text = serde_json::to_string_pretty(&settings).unwrap_or_default();
    fs::write(&path, text + "\n").map_err(TrainingError::write(&path))?;
    let figures = [("rank1", best.rank1 as f32), ("map", best.map as f32)];
    journal.record(STAGE, (1, 1), &figures)?;
    Ok(scores)
}

fn run_trial(
    answerer: &mut QwenAnswerer,
    prompts: &PromptSet,
    embedder: &mut dyn Embedder,
    sample: &Sample,
    scores: &mut Vec<(String, f64)>,
    journal: &mut Journal<'_, '_>,
) -> Result<Trial, TrainingError> {
    let failed = |cause| TrainingError::model("answering on the validation split", cause);
    let wording = |cause| TrainingError::model("writing a prompt", cause);
    let gallery = sample.len();
    let (texts, images) = mining::embed(embedder, sample)?;
    let images = images.t()?.contiguous()?;
    let similarity = texts.matmul(&images)?.flatten_all()?.to_vec1::<f32>()?;
    let people: Vec<usize> = (0..gallery).map(|view| sample.person_of(view)).collect();
    let candidates: Vec<Vec<usize>> = similarity
        .chunks(gallery)
        .map(|row| {
            let mut order: Vec<usize> = (0..gallery).collect();
            order.sort_by(|&a, &b| row[b].total_cmp(&row[a]).then(a.cmp(&b)));
            order.truncate(ROUNDS);
            order
        })
        .collect();
    let pictures: Vec<Arc<RgbImage>> = sample.images.iter().cloned().map(Arc::new).collect();
    let caption = |query: usize| &sample.views[query].captions[0].1;

    // Questions about one image together, so that it is computed once.
    let mut questions: Vec<(usize, usize, usize)> = (0..gallery)
        .flat_map(|query| {
            candidates[query].iter().enumerate().map(move |(round, &image)| (image, query, round))
        })
        .collect();
    questions.sort_unstable();
    let mut p_yes = vec![vec![0f64; ROUNDS]; gallery];
    for (index, batch) in questions.chunks(BATCH).enumerate() {
        let mut asked = Vec::with_capacity(batch.len());
        for &(image, query, _) in batch {
            let text = prompts.locate(&caption(query).text).map_err(wording)?;
            asked.push(Prompt::new(Some(Arc::clone(&pictures[image])), text));
        }
        for (&(_, query, round), verdict) in batch.iter().zip(answerer.judge(&asked)) {
            p_yes[query][round] = verdict.map_err(failed)?.p_yes;
        }
        journal.record("validation: locate", ((index + 1) * BATCH, questions.len()), &[])?;
    }
    scores.push(("locate accuracy at 0.5, %".to_string(), locate_accuracy(&candidates, &p_yes, &people)));

    let mut pairs: Vec<(usize, usize, usize)> = questions;
    pairs.retain(|&(_, query, round)| p_yes[query][round] > LEAST_THRESHOLD);
    let mut wanted: Vec<usize> = pairs.iter().map(|&(image, _, _)| image).collect();
    wanted.dedup();
    let greedy = Sampling { max_tokens: LONGEST_ANSWER, temperature: 0.0, seed: 0 };
    let mut descriptions = BTreeMap::new();
    let (mut right, mut told) = (0usize, 0usize);
    for (index, batch) in wanted.chunks(BATCH).enumerate() {
        let text = prompts.describe().map_err(wording)?;
        let asked: Vec<Prompt> = batch
            .iter()
            .map(|&image| Prompt::new(Some(Arc::clone(&pictures[image])), text.clone()))
            .collect();
        for (&image, answer) in batch.iter().zip(answerer.generate(&asked, &greedy)) {
            let answer = answer.map_err(failed)?.text;
            let truth = sample.appearance(image);
            let read = parse_answers(&answer);
            told += (0..SLOT_COUNT).filter(|&slot| truth.is_visible(slot)).count();
            right += (0..SLOT_COUNT)
                .filter(|&slot| truth.is_visible(slot) && read[slot] == truth.seen(slot))
                .count();
            descriptions.insert(image, sentences(&answer));
        }
        journal.record("validation: describe", ((index + 1) * BATCH, wanted.len()), &[])?;
    }
    scores.push(("attribute accuracy, %".to_string(), 100.0 * right as f64 / told.max(1) as f64));

    let mut refined_texts = Vec::with_capacity(pairs.len());
    for (index, batch) in pairs.chunks(BATCH).enumerate() {
        let mut asked = Vec::with_capacity(batch.len());
        for &(image, query, _) in batch {
            let parts = [&[caption(query).text.clone()][..], &descriptions[&image]].concat();
            asked.push(Prompt::new(None, prompts.aggregate(&parts).map_err(wording)?));
        }
        for answer in answerer.generate(&asked, &greedy) {
            refined_texts.push(answer.map_err(failed)?.text);
        }
        journal.record("validation: aggregate", ((index + 1) * BATCH, pairs.len()), &[])?;
    }
    let usable: Vec<usize> =
        (0..pairs.len()).filter(|&index| usable_refinement(&refined_texts[index])).collect();
    let mut refined = BTreeMap::new();
    for batch in usable.chunks(BATCH) {
        let texts: Vec<String> = batch.iter().map(|&index| refined_texts[index].clone()).collect();
        let vectors = embedder.embed_texts(&texts).map_err(failed)?;
        let rows = Tensor::new(vectors, &Device::Cpu)?.matmul(&images)?.to_vec2::<f32>()?;
        for (&index, row) in batch.iter().zip(rows) {
            let (_, query, round) = pairs[index];
            refined.insert((query, round), row);
        }
    }
    Ok(Trial { similarity, gallery, people, candidates, p_yes, refined })
}

/// Share of the judgements at 0.5 that are right, in percent.
fn locate_accuracy(candidates: &[Vec<usize>], p_yes: &[Vec<f64>], people: &[usize]) -> f64 {
    let mut right = 0usize;
    let mut all = 0usize;
    for (query, candidates) in candidates.iter().enumerate() {
        for (round, &image) in candidates.iter().enumerate() {
            right += usize::from((p_yes[query][round] > 0.5) == (people[image] == people[query]));
            all += 1;
        }
    }
    100.0 * right as f64 / all.max(1) as f64
}

impl Trial {
    fn result(&self, query: usize, scores: &[f32]) -> Result<QueryResult, TrainingError> {
        let mut order: Vec<usize> = (0..self.gallery).collect();
        order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]).then(a.cmp(&b)));
        let places: Vec<usize> = order
            .iter()
            .enumerate()
            .filter(|&(_, &image)| self.people[image] == self.people[query])
            .map(|(place, _)| place + 1)
            .collect();
        QueryResult::from_places(&places)
            .ok_or_else(|| TrainingError::model("scoring the validation split", "a query without a match"))
    }

    fn row(&self, query: usize) -> &[f32] {
        &self.similarity[query * self.gallery..(query + 1) * self.gallery]
    }

    fn baseline_results(&self) -> Result<Vec<QueryResult>, TrainingError> {
        (0..self.gallery).map(|query| self.result(query, self.row(query))).collect()
    }

    fn baseline(&self) -> Result<Metrics, TrainingError> {
        Ok(Metrics::mean(&self.baseline_results()?))
    }

    /// The settings with the largest sum of Rank-1 and mAP, and their metrics. Ties go to the first in the order of
    /// the search.
    fn best(&self) -> Result<(Metrics, Settings), TrainingError> {
        let baseline = self.baseline_results()?;
        let mut top: Vec<f32> =
            (0..self.gallery).map(|query| self.row(query)[self.candidates[query][0]]).collect();
        top.sort_by(f32::total_cmp);
        let xis: Vec<f32> = (0..=20).map(|part| top[part * (top.len() - 1) / 20]).collect();
        let thresholds: Vec<f64> = (6..20).map(|part| f64::from(part) / 20.0).collect();
        let mut best: Option<(f64, Metrics, Settings)> = None;
        for lambda in LAMBDAS {
            let mut refined = BTreeMap::new();
            for (&(query, round), row) in &self.refined {
                let anchor = self.candidates[query][round];
                let mut scores: Vec<f32> =
                    self.row(query).iter().zip(row).map(|(s, r)| lambda * s + (1.0 - lambda) * r).collect();
                scores[anchor] = lambda * self.row(query)[anchor] + (1.0 - lambda);
                refined.insert((query, round), self.result(query, &scores)?);
            }
            for &xi in &xis {
                for &yes_threshold in &thresholds {
                    let settings = Settings::new(ROUNDS, xi, lambda, yes_threshold)
                        .map_err(|cause| TrainingError::model("choosing the settings", cause))?;
                    let answers: Vec<u8> =
                        self.p_yes.iter().flatten().map(|&p| u8::from(p > yes_threshold)).collect();
                    let decided =
                        decide_all(&self.similarity, self.gallery, self.gallery, &answers, &settings)
                            .map_err(|cause| TrainingError::model("choosing the settings", cause))?;
                    let results: Vec<QueryResult> = (0..self.gallery)
                        .map(|query| {
                            let round = decided.rounds[query].map(|round| (query, round - 1));
                            *round.and_then(|key| refined.get(&key)).unwrap_or(&baseline[query])
                        })
                        .collect();
                    let metrics = Metrics::mean(&results);
                    let score = metrics.rank1 + metrics.map;
                    if best.as_ref().is_none_or(|(best, _, _)| score > *best) {
                        best = Some((score, metrics, settings));
                    }
                }
            }
        }
        best.map(|(_, metrics, settings)| (metrics, settings))
            .ok_or_else(|| TrainingError::model("choosing the settings", "no settings to choose from"))
    }
}
