//! The report of a run.

use std::collections::BTreeMap;

use thicket_proto::v1;
use thicket_report::{Example, Exchange, Fact, Image, Questions, Ranked, Report, Stage};
use thicket_synth::{HEIGHT, WIDTH};
use thicket_thi::{Answer, Outcome, Settings};

use super::Options;
use super::measure::Measured;
use super::queries::Searched;
use super::sample::Sample;
use crate::Failure;

/// Results shown of each ranking.
pub(super) const RESULTS_SHOWN: usize = 10;

/// Everything there is to report.
#[derive(Debug)]
pub(super) struct Run<'a> {
    pub(super) sample: &'a Sample,
    pub(super) baseline: &'a [Searched],
    pub(super) thi: &'a [Searched],
    pub(super) measured: &'a Measured,
    pub(super) settings: Settings,
    pub(super) options: &'a Options,
    pub(super) seconds: &'a [(&'static str, f64)],
}

/// Renders the page.
///
/// # Errors
/// [`Failure`] where an image cannot be read or the page cannot be made.
pub(super) fn render(run: &Run<'_>) -> Result<String, Failure> {
    let Run { sample, measured, thi, options, .. } = run;
    let chosen = choose(run);
    let examples: Vec<Example> =
        chosen.iter().map(|(query, heading)| example(run, *query, heading.clone())).collect();
    let mut images = BTreeMap::new();
    for key in examples.iter().flat_map(keys) {
        if let (false, Some(place)) = (images.contains_key(key), sample.place(key)) {
            images.insert(key.clone(), image(sample, place)?);
        }
    }
    let mut identities = sample.gallery_ids();
    identities.sort_unstable();
    identities.dedup();

    let report = Report {
        title: match options.shuffle_answers {
            false => "Person search with interaction, on the built-in sample".to_owned(),
            true => "Control: person search with the answers of other queries".to_owned(),
        },
        data: data(options.shuffle_answers),
        command: command(options),
        queries: sample.queries.len(),
        gallery: sample.images.len(),
        identities: identities.len(),
        settings: run.settings,
        baseline: measured.baseline.metrics,
        thi: measured.thi.metrics,
        differences: measured.interval,
        control: None,
        questions: Questions {
            locate: measured.questions.locate,
            locate_round_by_round: measured.questions.round_by_round,
            describe: measured.questions.describe,
            aggregate: measured.questions.aggregate,
            unusable: unusable(thi),
        },
        outcomes: outcomes(thi),
        seconds: run
            .seconds
            .iter()
            .map(|(name, seconds)| Stage { name: (*name).to_owned(), seconds: *seconds })
            .collect(),
        map_by_round: measured.by_round.iter().map(|metrics| metrics.map).collect(),
        top1_right: measured.right.clone(),
        top1_wrong: measured.wrong.clone(),
        examples,
        images,
        facts: facts(options),
    };
    thicket_report::render(&report).map_err(Failure::failed)
}

fn data(shuffled: bool) -> String {
    let data = "Rendered pedestrians, none of them real, in families of look-alikes; each image has one description by a \
                simulated witness. No person in it was used to train the models or to choose the settings.";
    match shuffled {
        false => data.to_owned(),
        true => format!(
            "{data} In this control every answer, yes or no and attributes, is about another query's image, so no gain \
             is left to be expected."
        ),
    }
}

fn command(options: &Options) -> String {
    let queries = options.most_queries.map_or(String::new(), |most| format!(" --queries {most}"));
    let shuffle = if options.shuffle_answers { " --shuffle-answers" } else { "" };
    format!("thicket demo --seed {}{queries}{shuffle}", options.seed)
}

fn facts(options: &Options) -> Vec<Fact> {
    let fact = |name: &str, value: String| Fact { name: name.to_owned(), value };
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let name =
        |folder: &std::path::Path| folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
    vec![
        fact("Version", env!("CARGO_PKG_VERSION").to_owned()),
        fact("Embedding model", name(&options.models.embedding)),
        fact("Answer model", name(&options.models.answer)),
        fact("Seed", options.seed.to_string()),
        fact("Machine", format!("{cores} cores, {} {}", std::env::consts::ARCH, std::env::consts::OS)),
    ]
}

fn unusable(thi: &[Searched]) -> usize {
    thi.iter()
        .map(|query| {
            let answers =
                query.rounds.iter().filter(|round| wire_answer(round.answer) == Answer::Unusable).count();
            answers + usize::from(query.outcome == v1::Outcome::RefinementUnusable)
        })
        .sum()
}

fn outcomes(thi: &[Searched]) -> Vec<Fact> {
    let kinds = [
        (v1::Outcome::Refined, "Query rewritten from a confirmed image and ranked again"),
        (v1::Outcome::HighRejected, "Best image much alike but rejected: ranking kept"),
        (v1::Outcome::LowConfirmedFirst, "Best image little alike but confirmed: ranking kept"),
        (v1::Outcome::NoneConfirmed, "No image confirmed: ranking kept"),
        (v1::Outcome::RefinementUnusable, "Image confirmed, nothing usable said of it: ranking kept"),
    ];
    kinds
        .into_iter()
        .map(|(outcome, name)| (name, thi.iter().filter(|query| query.outcome == outcome).count()))
        .filter(|(_, count)| *count > 0)
        .map(|(name, count)| Fact { name: name.to_owned(), value: count.to_string() })
        .collect()
}

/// The queries to show: three that gained, from different rounds where there are such, and the one that lost most.
fn choose(run: &Run<'_>) -> Vec<(usize, String)> {
    let (before, after) = (&run.measured.baseline.queries, &run.measured.thi.queries);
    let change = |query: usize| after[query].average_precision - before[query].average_precision;
    let refined: Vec<(usize, usize)> = run
        .thi
        .iter()
        .enumerate()
        .filter_map(|(query, searched)| Some((query, searched.refined_in()?)))
        .collect();

    let mut gained: Vec<(usize, usize)> = refined
        .iter()
        .copied()
        .filter(|(query, _)| before[*query].first_match > 1 && after[*query].first_match == 1)
        .collect();
    gained.sort_by(|(left, _), (right, _)| change(*right).total_cmp(&change(*left)).then(left.cmp(right)));
    let mut chosen: Vec<(usize, String)> = Vec::new();
    let mut rounds_shown = Vec::new();
    // First the best of each round, then the best of the rest.
    for repeat in [false, true] {
        for (query, round) in &gained {
            let shown = chosen.iter().any(|(other, _)| other == query);
            if chosen.len() < 3 && !shown && (repeat || !rounds_shown.contains(round)) {
                rounds_shown.push(*round);
                chosen.push((*query, format!("Found in round {round}")));
            }
        }
    }
    let lost = refined
        .iter()
        .map(|(query, round)| (*query, *round))
        .filter(|(query, _)| change(*query) < 0.0)
        .min_by(|(left, _), (right, _)| change(*left).total_cmp(&change(*right)).then(left.cmp(right)));
    chosen.extend(lost.map(|(query, round)| (query, format!("Misled in round {round}"))));
    chosen
}

fn example(run: &Run<'_>, query: usize, heading: String) -> Example {
    let (sample, searched) = (run.sample, &run.thi[query]);
    let identity = sample.queries[query].identity;
    let right = |place: usize| sample.images[place].identity == identity;
    let key = |place: usize| sample.images[place].id.clone();
    let ranked = |searched: &Searched| {
        let shown = searched.ranking.iter().zip(&searched.scores).take(RESULTS_SHOWN);
        shown.map(|(&place, &score)| Ranked { image: key(place), right: right(place), score }).collect()
    };
    Example {
        heading,
        query: sample.queries[query].text.clone(),
        exchanges: (1..)
            .zip(&searched.rounds)
            .map(|(round, asked)| Exchange {
                round,
                image: key(asked.candidate),
                right: right(asked.candidate),
                question: "Does the description fit this person?".to_owned(),
                answer: wire_answer(asked.answer),
                p_yes: asked.p_yes,
            })
            .collect(),
        outcome: outcome(searched, key),
        attributes: searched.described.iter().filter(|answer| !answer.is_empty()).cloned().collect(),
        refined: searched.refined_text.clone(),
        before: ranked(&run.baseline[query]),
        after: ranked(searched),
        first_match_before: run.measured.baseline.queries[query].first_match,
        first_match_after: run.measured.thi.queries[query].first_match,
    }
}

fn outcome(searched: &Searched, key: impl Fn(usize) -> String) -> Outcome<String> {
    match (searched.outcome, searched.anchor) {
        (v1::Outcome::Refined, Some((round, anchor))) => Outcome::Refined { round, anchor: key(anchor) },
        (v1::Outcome::RefinementUnusable, Some((round, anchor))) => {
            Outcome::RefinementUnusable { round, anchor: key(anchor) }
        }
        (v1::Outcome::HighRejected, _) => Outcome::HighRejected,
        (v1::Outcome::LowConfirmedFirst, _) => Outcome::LowAcceptedFirst,
        (v1::Outcome::NoCandidates, _) => Outcome::NoCandidates,
        _ => Outcome::Exhausted,
    }
}

fn wire_answer(answer: v1::Answer) -> Answer {
    match answer {
        v1::Answer::Yes => Answer::Yes,
        v1::Answer::No => Answer::No,
        v1::Answer::Unusable | v1::Answer::Unspecified => Answer::Unusable,
    }
}

fn keys(example: &Example) -> impl Iterator<Item = &String> {
    let results = example.before.iter().chain(&example.after).map(|ranked| &ranked.image);
    results.chain(example.exchanges.iter().map(|exchange| &exchange.image))
}

fn image(sample: &Sample, place: usize) -> Result<Image, Failure> {
    let image = &sample.images[place];
    let bytes = std::fs::read(&image.path)
        .map_err(|error| Failure::failed(format!("{}: {error}", image.path.display())))?;
    Ok(Image { bytes, width: WIDTH, height: HEIGHT, alt: format!("person {}", image.identity) })
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::super::measure::measure;
    use super::super::queries::Round;
    use super::super::sample::{Image as SampleImage, Query};
    use super::*;
    use crate::models::Models;

    /// Two people with two images each, and a query for each of them.
    fn sample(folder: &std::path::Path) -> Sample {
        let images = [7, 7, 8, 8].into_iter().enumerate().map(|(place, identity)| {
            let path = folder.join(format!("{place}.png"));
            std::fs::write(&path, b"\x89PNG\r\n\x1a\n").unwrap();
            SampleImage { id: format!("{place}.png"), path, identity }
        });
        let query = |text: &str, identity| Query { text: text.to_owned(), identity };
        Sample::new(images.collect(), vec![query("a man in red", 7), query("a <b>bold</b> woman", 8)])
    }

    fn searched(ranking: [usize; 4], anchor: Option<(usize, usize)>) -> Searched {
        let rounds = anchor.map_or(Vec::new(), |(round, candidate)| {
            vec![Round { candidate, p_yes: 0.75, answer: v1::Answer::Yes }; round]
        });
        Searched {
            ranking: ranking.to_vec(),
            scores: vec![0.9, 0.8, 0.7, 0.6],
            best_similarity: 0.6,
            outcome: if anchor.is_some() { v1::Outcome::Refined } else { v1::Outcome::HighRejected },
            anchor,
            refined_text: anchor.map(|_| "a man in a red coat".to_owned()),
            described: vec!["A red coat.".to_owned(), String::new()],
            questions: v1::QuestionCount { locate: rounds.len() as u32, describe: 1, aggregate: 1 },
            rounds,
        }
    }

    fn page(baseline: &[Searched], thi: &[Searched]) -> (String, Measured) {
        let folder = tempfile::tempdir().unwrap();
        let sample = sample(folder.path());
        let settings = Settings::new(5, 0.5, 0.8, 0.5).unwrap();
        let measured = measure(&sample, baseline, thi, &settings, 1).unwrap();
        let options = Options {
            models: Models {
                embedding: PathBuf::from("e"),
                answer: PathBuf::from("a"),
                loading: thicket_answer::LoadingArgs::default(),
                server: None,
            },
            compute: Default::default(),
            seed: 1,
            most_queries: None,
            shuffle_answers: false,
        };
        let run = Run {
            sample: &sample,
            baseline,
            thi,
            measured: &measured,
            settings,
            options: &options,
            seconds: &[],
        };
        (render(&run).unwrap(), measured)
    }

    #[test]
    fn a_query_that_gained_and_one_that_lost_are_shown_with_their_dialogue() {
        let baseline = [searched([2, 0, 1, 3], None), searched([2, 3, 0, 1], None)];
        let thi = [searched([0, 1, 2, 3], Some((1, 0))), searched([0, 2, 3, 1], Some((1, 0)))];
        let (page, measured) = page(&baseline, &thi);
        assert!(page.contains("Found in round 1") && page.contains("Misled in round 1"));
        assert!(page.contains("A red coat.") && page.contains("a man in a red coat"));
        assert!(!page.contains("<b>bold</b>"), "a description is text and not markup");
        assert_eq!(measured.by_round.len(), 6);
        assert_eq!((measured.by_round[0].rank1, measured.thi.metrics.rank1), (50.0, 50.0));
        assert_eq!((measured.questions.asked, measured.questions.round_by_round), (2, 2));
    }

    #[test]
    fn a_run_that_changed_nothing_has_a_page_too() {
        let same = [searched([0, 1, 2, 3], None), searched([2, 3, 0, 1], None)];
        let (page, measured) = page(&same, &same);
        assert!(!page.contains("Found in round") && !page.contains("Misled in round"));
        // The script asks a rejected query again in every round; four images make four rounds.
        assert_eq!(measured.questions.round_by_round, 8);
        assert_eq!(
            (measured.right.counts.iter().sum::<usize>(), measured.wrong.counts.iter().sum::<usize>()),
            (2, 0)
        );
    }
}
