//! The test split of the built-in sample, rendered and read back like any other data set.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use indicatif::ProgressBar;
use thicket_datasets::{Dataset, Format, SplitName};
use thicket_synth::{Benchmark, Sizes, Split};

use crate::{Failure, console};

/// What the demo measures.
#[derive(Debug)]
pub(super) struct Sample {
    pub(super) images: Vec<Image>,
    pub(super) queries: Vec<Query>,
    places: HashMap<String, usize>,
}

/// A gallery image. Its place in [`Sample::images`] is its place in the gallery.
#[derive(Debug)]
pub(super) struct Image {
    pub(super) id: String,
    pub(super) path: PathBuf,
    pub(super) identity: i64,
}

/// A described person to search for.
#[derive(Debug, Clone)]
pub(super) struct Query {
    pub(super) text: String,
    pub(super) identity: i64,
}

/// Families of the rendered split.
pub(super) fn sizes() -> Sizes {
    Sizes { train: 0, val: 0, ..Sizes::default() }
}

/// Renders the test split under `folder` and reads it as a CUHK-PEDES data set. With a limit, that many queries are
/// taken at even distances, so that they still cover all people.
///
/// # Errors
/// [`Failure`] where the sample cannot be written or read.
pub(super) fn render(
    folder: &Path,
    seed: u64,
    most_queries: Option<usize>,
    bar: &ProgressBar,
) -> Result<Sample, Failure> {
    let benchmark = Benchmark::new(seed, sizes()).map_err(Failure::failed)?;
    thicket_synth::write(folder, &benchmark, &[Split::Test], &|_| bar.inc(1))
        .map_err(|error| Failure::failed(console::with_causes(&error)))?;
    let dataset = Dataset::load(Format::CuhkPedes, folder).map_err(Failure::failed)?;
    let test = dataset.split(SplitName::Test);
    let images: Vec<Image> = test
        .image_paths
        .iter()
        .zip(&test.image_ids)
        .map(|(path, identity)| Image {
            id: path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned(),
            path: path.clone(),
            identity: *identity,
        })
        .collect();
    let total = test.captions.len();
    let count = most_queries.map_or(total, |most| most.min(total));
    let queries = (0..count)
        .map(|query| query * total / count)
        .map(|place| Query { text: test.captions[place].clone(), identity: test.caption_ids[place] })
        .collect();
    Ok(Sample::new(images, queries))
}

impl Sample {
    /// Images in gallery order, and what is searched for in them.
    pub(super) fn new(images: Vec<Image>, queries: Vec<Query>) -> Self {
        let places = images.iter().enumerate().map(|(place, image)| (image.id.clone(), place)).collect();
        Self { images, queries, places }
    }

    /// The place of an image in the gallery.
    pub(super) fn place(&self, id: &str) -> Option<usize> {
        self.places.get(id).copied()
    }

    pub(super) fn query_ids(&self) -> Vec<i64> {
        self.queries.iter().map(|query| query.identity).collect()
    }

    pub(super) fn gallery_ids(&self) -> Vec<i64> {
        self.images.iter().map(|image| image.identity).collect()
    }
}
