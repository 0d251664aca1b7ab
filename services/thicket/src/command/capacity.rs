use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde::Serialize;
use thicket_report::{Curve, Panel};

use crate::capacity::{Inputs, Need, Point, curves, needs};
use crate::{Failure, console};

/// Most answer replicas that are simulated.
const MOST_REPLICAS: usize = 4_096;
const LARGEST_GALLERY: f64 = 1e12;

/// How many queries a second a number of GPUs answers, and how many GPUs a load needs: simulated with the schedule that the
/// coordinator runs
#[derive(Debug, clap::Args)]
pub(crate) struct CapacityArgs {
    /// Numbers of answer replicas; the largest is also the most that a load may need
    #[arg(long, value_name = "N,...", value_delimiter = ',', default_values_t = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512])]
    replicas: Vec<usize>,
    /// Vectors in the gallery
    #[arg(long, value_name = "N,...", value_delimiter = ',', default_values_t = [1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9])]
    gallery: Vec<f64>,
    /// Share of the most that replicas can do at which latencies are taken, above 0 and below 1
    #[arg(long, value_name = "P", default_value_t = 0.7)]
    load: f64,
    /// Say for these loads how many replicas they need, instead of drawing curves
    #[arg(long, value_name = "X,...", value_delimiter = ',', conflicts_with_all = ["load", "svg"])]
    queries_per_second: Vec<f64>,
    /// Time in which 99 of a hundred queries of such a load are to be answered, in seconds
    #[arg(long, value_name = "S", default_value_t = 10.0, requires = "queries_per_second")]
    p99: f64,
    /// Seed of everything that is drawn
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Draw the curves into this file
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    #[command(flatten)]
    inputs: Inputs,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

/// The result as scripts see it.
#[derive(Debug, Serialize)]
struct Document<'a> {
    inputs: &'a Inputs,
    seed: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    load: Option<f64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    points: Vec<Point>,
    #[serde(skip_serializing_if = "Option::is_none")]
    p99_s: Option<f64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    needs: Vec<Need>,
    /// What the simulation took.
    seconds: f64,
}

pub(super) fn run(args: CapacityArgs) -> Result<(), Failure> {
    let (galleries, most) = check(&args)?;
    let started = Instant::now();
    let document = |points, needs| Document {
        inputs: &args.inputs,
        seed: args.seed,
        load: args.queries_per_second.is_empty().then_some(args.load),
        points,
        p99_s: (!args.queries_per_second.is_empty()).then_some(args.p99),
        needs,
        seconds: started.elapsed().as_secs_f64(),
    };
    if args.queries_per_second.is_empty() {
        let bar = console::progress("simulated", (galleries.len() * args.replicas.len()) as u64);
        let points = curves(&args.inputs, &galleries, &args.replicas, args.load, args.seed, || bar.inc(1))?;
        bar.finish_and_clear();
        if let Some(path) = &args.svg {
            let svg = thicket_report::curves(&title(&args.inputs), &panels(&points, args.load))
                .map_err(Failure::failed)?;
            std::fs::write(path, svg)
                .map_err(|error| Failure::failed(format!("{} cannot be written: {error}", path.display())))?;
        }
        return if args.json {
            console::print_json(&document(points, Vec::new()))
        } else {
            console::print(&point_table(&points, args.load))
        };
    }
    let bar = console::progress("simulated", (galleries.len() * args.queries_per_second.len()) as u64);
    let p99 = Duration::from_secs_f64(args.p99);
    let needs =
        needs(&args.inputs, &galleries, &args.queries_per_second, most, p99, args.seed, || bar.inc(1))?;
    bar.finish_and_clear();
    if args.json {
        console::print_json(&document(Vec::new(), needs))
    } else {
        console::print(&need_table(&needs, most, args.p99))
    }
}

/// The sizes of the galleries and the most replicas.
fn check(args: &CapacityArgs) -> Result<(Vec<usize>, usize), Failure> {
    args.inputs.check().map_err(Failure::bad_input)?;
    let refuse = |flag: &str, range: &str, actual: &dyn std::fmt::Display| {
        Err(Failure::bad_input(format!("{flag}: {range}, got {actual}")))
    };
    if let Some(bad) = args.replicas.iter().find(|count| !(1..=MOST_REPLICAS).contains(*count)) {
        return refuse("--replicas", "1 to 4096 each", bad);
    }
    if let Some(bad) = args.gallery.iter().find(|size| !(1.0..=LARGEST_GALLERY).contains(*size)) {
        return refuse("--gallery", "1 to 1e12 each", bad);
    }
    if !(args.load > 0.0 && args.load < 1.0) {
        return refuse("--load", "above 0 and below 1", &args.load);
    }
    if let Some(bad) = args.queries_per_second.iter().find(|load| !(1e-3..=1e6).contains(*load)) {
        return refuse("--queries-per-second", "0.001 to 1000000 each", bad);
    }
    if !(1e-3..=1e6).contains(&args.p99) {
        return refuse("--p99", "0.001 to 1000000", &args.p99);
    }
    let galleries = args.gallery.iter().map(|size| *size as usize).collect();
    Ok((galleries, args.replicas.iter().copied().max().unwrap_or(1)))
}

fn title(inputs: &Inputs) -> String {
    format!(
        "Simulated capacity: {} questions at a time a GPU, {} ms to see an image, {} ms to judge it",
        inputs.replica.slots, inputs.replica.image_ms, inputs.replica.locate_ms
    )
}

fn panels(points: &[Point], load: f64) -> Vec<Panel> {
    let panel = |title: String, value: fn(&Point) -> f64| {
        let mut curves: Vec<Curve> = Vec::new();
        for point in points {
            let name = format!("{} vectors", size(point.gallery));
            let place = (point.replicas as f64, value(point));
            match curves.iter_mut().find(|curve| curve.name == name) {
                Some(curve) => curve.points.push(place),
                None => curves.push(Curve { name, points: vec![place] }),
            }
        }
        Panel { title, x_label: "answer replicas (GPUs)".to_owned(), curves }
    };
    vec![
        panel("most queries a second".to_owned(), |point| point.most_per_second),
        panel(format!("p99 in seconds at {:.0} % of that", load * 100.0), |point| point.p99_s),
    ]
}

fn point_table(points: &[Point], load: f64) -> String {
    let mut lines = vec![format!(
        "{:>9} {:>8} {:>13} {:>14} | at {:.0} %: {:>10} {:>8} {:>8} {:>9}",
        "vectors",
        "replicas",
        "gallery hosts",
        "most a second",
        load * 100.0,
        "a second",
        "p50",
        "p99",
        "under way"
    )];
    lines.extend(points.iter().map(|point| {
        format!(
            "{:>9} {:>8} {:>13} {:>14.1} |         {:>10.1} {:>6.2} s {:>6.2} s {:>9.0}",
            size(point.gallery),
            point.replicas,
            point.gallery_hosts,
            point.most_per_second,
            point.per_second,
            point.p50_s,
            point.p99_s,
            point.under_way
        )
    }));
    lines.join("\n")
}

fn need_table(needs: &[Need], most: usize, p99: f64) -> String {
    let mut lines = vec![format!(
        "GPUs that answer 99 of a hundred queries within {p99} s\n{:>9} {:>9} {:>8} {:>13} {:>8} {:>8} {:>9}",
        "vectors", "a second", "replicas", "gallery hosts", "p50", "p99", "under way"
    )];
    lines.extend(needs.iter().map(|need| {
        let load = format!("{:>9} {:>9}", size(need.gallery), need.per_second);
        match (need.replicas, need.p50_s, need.p99_s, need.under_way) {
            (Some(replicas), Some(p50), Some(p99), Some(under_way)) => format!(
                "{load} {replicas:>8} {:>13} {p50:>6.2} s {p99:>6.2} s {under_way:>9.0}",
                need.gallery_hosts
            ),
            _ => format!("{load} {:>8}", format!("> {most}")),
        }
    }));
    lines.join("\n")
}

/// A power of ten as such, anything else in digits.
fn size(vectors: usize) -> String {
    let power = vectors.max(1).ilog10();
    if power >= 3 && vectors == 10usize.pow(power) { format!("1e{power}") } else { vectors.to_string() }
}
