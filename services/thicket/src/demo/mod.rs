//! The main job on the built-in sample: the whole cluster, every query without and with interaction, the numbers.

mod measure;
mod page;
mod queries;
mod sample;
mod shuffle;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use indicatif::ProgressBar;
use thicket_coordinator::Coordination;
use thicket_device::ComputeArgs;
use thicket_runtime::{Role, RoleConfig};
use thicket_thi::Settings;

pub(crate) use measure::{Measured, Questions};

use crate::client::{self, Coordinator};
use crate::cluster::{BackendOptions, Backends, Front, Roles, url};
use crate::models::Models;
use crate::scratch::Scratch;
use crate::upload::{Upload, upload};
use crate::{Failure, console};
use sample::Sample;

/// Collection of the sample's images.
const COLLECTION: &str = "demo";

/// What the demo is given.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    pub(crate) models: Models,
    pub(crate) compute: ComputeArgs,
    /// Seed of the sample, the bootstrap and the control.
    pub(crate) seed: u64,
    /// Run at most so many queries.
    pub(crate) most_queries: Option<usize>,
    /// The control: answer about somebody else.
    pub(crate) shuffle_answers: bool,
}

/// What the demo found.
#[derive(Debug)]
pub(crate) struct Demonstrated {
    pub(crate) queries: usize,
    pub(crate) gallery: usize,
    pub(crate) measured: Measured,
    pub(crate) settings: Settings,
    /// Seconds by stage, in order.
    pub(crate) seconds: Vec<(&'static str, f64)>,
    /// The self-contained page.
    pub(crate) report: String,
}

/// Runs the demo in a temporary folder.
///
/// # Errors
/// [`Failure`] for bad options and for work that failed.
pub(crate) async fn run(options: Options, scratch: Arc<Scratch>) -> Result<Demonstrated, Failure> {
    let settings = options.models.settings()?.unwrap_or_else(|| {
        console::note("the answer model comes without chosen settings; the method's defaults are used");
        Settings::default()
    });
    let folder = scratch
        .folder()
        .map_err(|error| Failure::failed(format!("a temporary folder cannot be made: {error}")))?;
    let mut clock = Clock::new();

    let sample = Arc::new(render(&folder, &options).await?);
    clock.stage("render");
    let mut backends = Backends::start(BackendOptions {
        models: options.models.clone(),
        compute: options.compute.clone(),
        data: folder.join("data"),
        // The folder goes with the demonstration.
        keep_answers: false,
        gallery: RoleConfig::in_process().listen,
        answer: RoleConfig::in_process().listen,
        tokens: None,
    })
    .await?;
    let mut front =
        Front::start(backends.peers(None), RoleConfig::in_process(), Coordination::of(settings), None)
            .await?;
    clock.stage("start");

    let mut coordinator = client::coordinator(&url(front.address), None)?;
    let work = async {
        ingest(&mut coordinator, &sample).await?;
        clock.stage("ingest");
        let bar = console::progress("without", sample.queries.len() as u64);
        let baseline = queries::run(&coordinator, COLLECTION, &sample, None, || bar.inc(1)).await?;
        bar.finish_and_clear();
        clock.stage("baseline");
        Ok::<_, Failure>(baseline)
    };
    let baseline = tokio::select! {
        outcome = work => outcome?,
        failure = front.failed() => return Err(failure),
        failure = backends.failed() => return Err(failure),
    };

    let mut control = Roles::new();
    if options.shuffle_answers {
        let swap = draw_swap(&sample, &baseline, settings.rounds(), options.seed).await?;
        let (answer, serving) = shuffle::serve(&url(backends.answer), swap, control.stop()).await?;
        control.add(Role::Answer, serving);
        front.drain().await?;
        front = Front::start(
            backends.peers(Some(answer)),
            RoleConfig::in_process(),
            Coordination::of(settings),
            None,
        )
        .await?;
        coordinator = client::coordinator(&url(front.address), None)?;
    }
    let work = async {
        let bar = console::progress("with", sample.queries.len() as u64);
        let thi = queries::run(&coordinator, COLLECTION, &sample, Some(&settings), || bar.inc(1)).await?;
        bar.finish_and_clear();
        Ok::<_, Failure>(thi)
    };
    let thi = tokio::select! {
        outcome = work => outcome?,
        failure = front.failed() => return Err(failure),
        failure = control.failed() => return Err(failure),
        failure = backends.failed() => return Err(failure),
    };
    clock.stage("thi");
    drop(coordinator);
    front.drain().await?;
    control.drain().await?;
    backends.drain().await?;
    clock.stage("stop");

    let measured =
        measure::measure(&sample, &baseline, &thi, &settings, options.seed).map_err(Failure::failed)?;
    clock.stage("measure");
    let report = page::render(&page::Run {
        sample: &sample,
        baseline: &baseline,
        thi: &thi,
        measured: &measured,
        settings,
        options: &options,
        seconds: &clock.stages,
    })?;
    clock.stage("report");
    let (queries, gallery) = (sample.queries.len(), sample.images.len());
    let _ = tokio::task::spawn_blocking(move || scratch.clear()).await;
    clock.stage("clean");
    Ok(Demonstrated { queries, gallery, measured, settings, seconds: clock.finish(), report })
}

async fn render(folder: &Path, options: &Options) -> Result<Sample, Failure> {
    let folder = folder.join("sample");
    let (seed, most_queries) = (options.seed, options.most_queries);
    let bar = console::progress("rendering", sample::sizes().images(thicket_synth::Split::Test) as u64);
    off_the_runtime(move || {
        let sample = sample::render(&folder, seed, most_queries, &bar);
        bar.finish_and_clear();
        sample
    })
    .await
}

async fn draw_swap(
    sample: &Arc<Sample>,
    baseline: &[queries::Searched],
    rounds: usize,
    seed: u64,
) -> Result<shuffle::Swap, Failure> {
    let (sample, baseline) = (sample.clone(), baseline.to_vec());
    off_the_runtime(move || shuffle::Swap::draw(&sample, &baseline, rounds, seed)).await
}

async fn off_the_runtime<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    match tokio::task::spawn_blocking(work).await {
        Ok(outcome) => outcome,
        Err(error) => Err(Failure::failed(format!("the work stopped early: {error}"))),
    }
}

async fn ingest(coordinator: &mut Coordinator, sample: &Sample) -> Result<(), Failure> {
    let uploads: Vec<Upload> = sample
        .images
        .iter()
        .map(|image| Upload { id: image.id.clone(), path: image.path.clone(), metadata: Default::default() })
        .collect();
    let bar: ProgressBar = console::progress("ingesting", uploads.len() as u64);
    let mut refused = None;
    upload(coordinator, COLLECTION, None, uploads, |outcome| {
        bar.inc(1);
        if let Some(reason) = outcome.refused {
            refused.get_or_insert(format!("{}: {reason}", outcome.id));
        }
    })
    .await?;
    bar.finish_and_clear();
    refused.map_or(Ok(()), |reason| {
        Err(Failure::failed(format!("an image of the sample was refused: {reason}")))
    })
}

/// Where the time went.
#[derive(Debug)]
struct Clock {
    started: Instant,
    stage: Instant,
    stages: Vec<(&'static str, f64)>,
}

impl Clock {
    fn new() -> Self {
        let now = Instant::now();
        Self { started: now, stage: now, stages: Vec::new() }
    }

    /// Ends a stage and says so.
    fn stage(&mut self, name: &'static str) {
        let seconds = self.stage.elapsed().as_secs_f64();
        self.stage = Instant::now();
        self.stages.push((name, seconds));
        console::note(&format!("{name:<10} {seconds:6.1} s"));
    }

    fn finish(mut self) -> Vec<(&'static str, f64)> {
        self.stages.push(("total", self.started.elapsed().as_secs_f64()));
        self.stages
    }
}

/// Seconds by stage as a map for JSON.
pub(crate) fn by_stage(seconds: &[(&'static str, f64)]) -> BTreeMap<&'static str, f64> {
    seconds.iter().copied().collect()
}
