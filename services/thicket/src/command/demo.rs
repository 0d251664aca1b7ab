use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use serde::Serialize;
use thicket_device::ComputeArgs;
use thicket_evaluation::{Differences, Metric, Metrics};
use thicket_thi::Settings;

use super::SAMPLE_SEED;
use crate::demo::{self, Demonstrated, Questions};
use crate::models::ModelArgs;
use crate::scratch::Scratch;
use crate::{Failure, console};

/// Folder of the report where none is given.
const DEFAULT_OUT: &str = "thicket-demo";
/// The report's name in it.
const REPORT: &str = "report.html";

/// The main job on the built-in sample: the whole cluster in this process, every query without and with interaction
#[derive(Debug, clap::Args)]
pub(crate) struct DemoArgs {
    /// Folder that `report.html` is written to
    #[arg(long, value_name = "DIR", default_value = DEFAULT_OUT)]
    out: PathBuf,
    /// Seed of the sample; the models were trained without the people of the default's test split
    #[arg(long, value_name = "N", default_value_t = SAMPLE_SEED)]
    seed: u64,
    /// Run at most so many queries, spread over all people
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    queries: Option<u64>,
    /// Control: let every answer be about another query's image; no gain should be left
    #[arg(long)]
    shuffle_answers: bool,
    #[command(flatten)]
    models: ModelArgs,
    #[command(flatten)]
    compute: ComputeArgs,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

/// The result as scripts see it.
#[derive(Debug, Serialize)]
struct Document {
    queries: usize,
    gallery: usize,
    baseline: Metrics,
    thi: Metrics,
    /// thi minus baseline with 95 % bootstrap intervals over identities.
    interval: Differences,
    questions: Questions,
    seconds: BTreeMap<&'static str, f64>,
    settings: Settings,
    shuffled_answers: bool,
    seed: u64,
    report: String,
}

pub(super) async fn run(args: DemoArgs, scratch: Arc<Scratch>) -> Result<(), Failure> {
    let options = demo::Options {
        models: args.models.find()?,
        compute: args.compute,
        seed: args.seed,
        most_queries: args.queries.map(|most| usize::try_from(most).unwrap_or(usize::MAX)),
        shuffle_answers: args.shuffle_answers,
    };
    std::fs::create_dir_all(&args.out).map_err(|error| {
        Failure::bad_input(format!("out: {} cannot be made: {error}", args.out.display()))
    })?;
    let found = demo::run(options, scratch).await?;
    let report = args.out.join(REPORT);
    std::fs::write(&report, &found.report)
        .map_err(|error| Failure::failed(format!("{} cannot be written: {error}", report.display())))?;

    let report = report.display().to_string();
    if !args.json {
        return console::print(&format!("{}\nreport: {report}", table(&found)));
    }
    console::print_json(&Document {
        queries: found.queries,
        gallery: found.gallery,
        baseline: found.measured.baseline.metrics,
        thi: found.measured.thi.metrics,
        interval: found.measured.interval,
        questions: found.measured.questions,
        seconds: demo::by_stage(&found.seconds),
        settings: found.settings,
        shuffled_answers: args.shuffle_answers,
        seed: args.seed,
        report,
    })
}

/// Both rows, the difference and what it took.
fn table(found: &Demonstrated) -> String {
    let measured = &found.measured;
    let row = |name: &str, metrics: &Metrics| {
        let values: String = Metric::ALL.map(|metric| format!("{:>9.2}", metrics.get(metric))).concat();
        format!("{name:<20}{values}")
    };
    let difference = |name: &str, value: &dyn Fn(Metric) -> f64| {
        let values: String = Metric::ALL.map(|metric| format!("{:>+9.2}", value(metric))).concat();
        format!("{name:<20}{values}")
    };
    let interval = &measured.interval;
    let questions = &measured.questions;
    let seconds: Vec<String> =
        found.seconds.iter().map(|(stage, seconds)| format!("{stage} {seconds:.1}")).collect();
    [
        format!("{} queries, {} gallery images", found.queries, found.gallery),
        format!("{:<20}{:>9}{:>9}{:>9}{:>9}{:>9}", "", "Rank-1", "Rank-5", "Rank-10", "mAP", "mINP"),
        row("without interaction", &measured.baseline.metrics),
        row("with interaction", &measured.thi.metrics),
        difference("difference", &|metric| interval.get(metric).mean),
        difference("  95 % from", &|metric| interval.get(metric).low),
        difference("  95 % to", &|metric| interval.get(metric).high),
        format!(
            "questions: {} asked, {} by a round-by-round script; {} descriptions, {} rewrites",
            questions.asked, questions.round_by_round, questions.describe, questions.aggregate
        ),
        format!("seconds: {}", seconds.join(", ")),
    ]
    .join("\n")
}
