use std::path::PathBuf;
use std::time::Instant;

use serde::Serialize;
use thicket_synth::{Benchmark, Sizes, Split, WriteError};

use super::SAMPLE_SEED;
use crate::{Failure, console};

/// Renders the built-in benchmark: pedestrians, several views of each, and what witnesses say of them
///
/// The output has the CUHK-PEDES layout. The same seed and sizes give the same bytes.
#[derive(Debug, clap::Args)]
pub(crate) struct SynthArgs {
    /// Folder to write to; `CUHK-PEDES` in it must be empty or not there
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Seed of everything that is drawn
    #[arg(long, value_name = "N", default_value_t = SAMPLE_SEED)]
    seed: u64,
    /// Splits to write
    #[arg(long, value_name = "SPLIT", value_delimiter = ',', default_value = "train,val,test")]
    split: Vec<SplitName>,
    /// Families of look-alikes in training, validation and test
    #[arg(long, value_name = "TRAIN,VAL,TEST", value_parser = parse_families, default_value = "800,50,76")]
    families: Families,
    /// Look-alikes in a family, 1 to 8
    #[arg(long, value_name = "N", default_value_t = Sizes::default().identities)]
    identities: usize,
    /// Images of each identity, 1 to 64
    #[arg(long, value_name = "N", default_value_t = Sizes::default().views)]
    views: usize,
    /// Captions of each image, 1 to 16
    #[arg(long, value_name = "N", default_value_t = Sizes::default().captions)]
    captions: usize,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

/// A split as it is called on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum SplitName {
    Train,
    Val,
    Test,
}

impl From<SplitName> for Split {
    fn from(name: SplitName) -> Self {
        match name {
            SplitName::Train => Self::Train,
            SplitName::Val => Self::Val,
            SplitName::Test => Self::Test,
        }
    }
}

/// Families of the three splits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Families {
    train: usize,
    val: usize,
    test: usize,
}

fn parse_families(text: &str) -> Result<Families, String> {
    let counts: Result<Vec<usize>, _> = text.split(',').map(|count| count.trim().parse()).collect();
    match counts.as_deref() {
        Ok(&[train, val, test]) => Ok(Families { train, val, test }),
        _ => Err("three whole numbers expected, as in 800,50,76".to_owned()),
    }
}

/// The result as scripts see it.
#[derive(Debug, Serialize)]
struct Document {
    out: String,
    seed: u64,
    splits: Vec<SplitDocument>,
    seconds: f64,
}

#[derive(Debug, Serialize)]
struct SplitDocument {
    split: &'static str,
    families: usize,
    identities: usize,
    images: usize,
    captions: usize,
}

pub(super) fn run(args: SynthArgs) -> Result<(), Failure> {
    let started = Instant::now();
    let Families { train, val, test } = args.families;
    let sizes =
        Sizes { train, val, test, identities: args.identities, views: args.views, captions: args.captions };
    let benchmark = Benchmark::new(args.seed, sizes).map_err(Failure::bad_input)?;
    let splits: Vec<Split> = Split::ALL
        .into_iter()
        .filter(|split| args.split.iter().any(|name| Split::from(*name) == *split))
        .collect();

    let images: usize = splits.iter().map(|split| sizes.images(*split)).sum();
    let bar = console::progress("rendering", images as u64);
    thicket_synth::write(&args.out, &benchmark, &splits, &|_| bar.inc(1)).map_err(|error| match error {
        WriteError::NotEmpty { .. } => Failure::bad_input(format!("out: {error}")),
        error => Failure::failed(console::with_causes(&error)),
    })?;
    bar.finish_and_clear();

    let document = Document {
        out: args.out.join("CUHK-PEDES").display().to_string(),
        seed: args.seed,
        splits: splits
            .into_iter()
            .map(|split| SplitDocument {
                split: split.name(),
                families: sizes.families(split),
                identities: sizes.families(split) * sizes.identities,
                images: sizes.images(split),
                captions: sizes.images(split) * sizes.captions,
            })
            .collect(),
        seconds: started.elapsed().as_secs_f64(),
    };
    if args.json {
        return console::print_json(&document);
    }
    let mut lines = vec![format!("{} (seed {}, {:.1} s)", document.out, document.seed, document.seconds)];
    lines.extend(document.splits.iter().map(|split| {
        format!(
            "{:>5}: {} families, {} identities, {} images, {} captions",
            split.split, split.families, split.identities, split.images, split.captions
        )
    }));
    console::print(&lines.join("\n"))
}
