//! From what happened to the queries to the numbers.

use serde::Serialize;
use thicket_evaluation::{
    DEFAULT_RESAMPLES, Differences, Evaluation, EvaluationError, Histogram, Metrics, bootstrap_differences,
    evaluate_rankings, histograms, metrics_by_round,
};
use thicket_thi::Settings;
use thicket_thi::plain::{self, PlainQuery};

use super::queries::Searched;
use super::sample::Sample;

/// Bins of the similarity histogram.
const HISTOGRAM_BINS: usize = 40;

/// What the demo found.
#[derive(Debug)]
pub(crate) struct Measured {
    pub(crate) baseline: Evaluation,
    pub(crate) thi: Evaluation,
    pub(crate) interval: Differences,
    pub(crate) questions: Questions,
    /// Metrics before any round and after each.
    pub(crate) by_round: Vec<Metrics>,
    /// Best similarity of the queries that the first ranking got right, and of those that it got wrong.
    pub(crate) right: Histogram,
    pub(crate) wrong: Histogram,
}

/// Questions asked of the answer model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) struct Questions {
    /// Localisation questions asked.
    pub(crate) asked: usize,
    /// Localisation questions that the round-by-round script would ask for the same result.
    pub(crate) round_by_round: usize,
    pub(crate) locate: usize,
    pub(crate) describe: usize,
    pub(crate) aggregate: usize,
}

/// Computes everything.
///
/// # Errors
/// [`EvaluationError`] where the rankings are not orders of the gallery.
pub(crate) fn measure(
    sample: &Sample,
    baseline: &[Searched],
    thi: &[Searched],
    settings: &Settings,
    seed: u64,
) -> Result<Measured, EvaluationError> {
    let (query_ids, gallery_ids) = (sample.query_ids(), sample.gallery_ids());
    let evaluate = |searched: &[Searched]| {
        let rankings: Vec<&[usize]> = searched.iter().map(|query| query.ranking.as_slice()).collect();
        evaluate_rankings(&rankings, &query_ids, &gallery_ids)
    };
    let (before, after) = (evaluate(baseline)?, evaluate(thi)?);
    let interval =
        bootstrap_differences(&before.queries, &after.queries, &query_ids, DEFAULT_RESAMPLES, seed)?;
    let refined_in: Vec<Option<usize>> = thi.iter().map(Searched::refined_in).collect();
    let by_round = metrics_by_round(&before.queries, &after.queries, &refined_in, settings.rounds())?;

    let similarities = |right: bool| -> Vec<f32> {
        let matching = before.queries.iter().zip(thi).filter(|(query, _)| (query.first_match == 1) == right);
        matching.map(|(_, searched)| searched.best_similarity).collect()
    };
    let [right, wrong] = histograms([&similarities(true), &similarities(false)], HISTOGRAM_BINS)?;
    let questions = count_questions(sample, thi, settings);
    Ok(Measured { baseline: before, thi: after, interval, questions, by_round, right, wrong })
}

fn count_questions(sample: &Sample, thi: &[Searched], settings: &Settings) -> Questions {
    let total = |count: fn(&Searched) -> u32| thi.iter().map(|query| count(query) as usize).sum();
    let plain_queries: Vec<PlainQuery> = thi
        .iter()
        .zip(&sample.queries)
        .map(|(searched, query)| PlainQuery {
            best: searched.best_similarity,
            candidates: settings.rounds().min(sample.images.len()),
            echo: searched.refined_text.as_ref() == Some(&query.text),
        })
        .collect();
    // Answers that were never asked for cannot change what the script asks: it asks every unrefined query anyway.
    let script = plain::run(&plain_queries, settings.rounds(), settings.xi(), |query, round| {
        thi[query].anchor.is_some_and(|(confirmed, _)| confirmed == round)
    });
    let locate = total(|query| query.questions.locate);
    Questions {
        asked: locate,
        round_by_round: script.questions,
        locate,
        describe: total(|query| query.questions.describe),
        aggregate: total(|query| query.questions.aggregate),
    }
}
