use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Instant;

use serde::Serialize;
use thicket_datasets::{Dataset, Format, SplitName};
use thicket_index::IndexKind;

use super::server::ServerArgs;
use crate::client::{self, DEFAULT_COLLECTION, printable};
use crate::forget::forget;
use crate::upload::{Upload, upload};
use crate::{Failure, console, disk, index, metadata};

/// Refused images that are told one by one.
const REFUSALS_SHOWN: usize = 20;

/// Embeds images and puts them into a collection of a running cluster
#[derive(Debug, clap::Args)]
pub(crate) struct IngestArgs {
    /// Image files, or folders that are searched for images; an image's id is its name, or its path in the folder
    #[arg(value_name = "PATH", required_unless_present = "dataset")]
    paths: Vec<PathBuf>,
    /// Collection, created where it does not exist
    #[arg(long, value_name = "C", default_value = DEFAULT_COLLECTION)]
    collection: String,
    /// How the collection is searched where it is created: `exact`, `ivf[:lists=N,probes=N]` or
    /// `hnsw[:links=N,ef_search=N,ef_construction=N]`; one that exists must be so [default: exact, or as it is]
    #[arg(long, value_name = "KIND")]
    index: Option<IndexKind>,
    /// Ingest a split of a data set instead: cuhk-pedes, icfg-pedes, rstpreid or ufine6926
    #[arg(long, value_name = "NAME", requires = "root", conflicts_with = "paths")]
    dataset: Option<Format>,
    /// Folder of the data set, or the folder that holds it
    #[arg(long, value_name = "DIR", requires = "dataset")]
    root: Option<PathBuf>,
    /// Split of the data set: train, val or test
    #[arg(long, value_name = "SPLIT", default_value = "test", requires = "dataset")]
    split: SplitName,
    /// Metadata of every image; several times for several pairs. `camera`, `captured_at` and `tags` can be searched by
    #[arg(long = "meta", value_name = "KEY=VALUE", value_parser = metadata::pair)]
    common: Vec<(String, String)>,
    /// Metadata of single images: a file of one JSON object a line, {"id": "a.png", "metadata": {"camera": "gate"}}
    #[arg(long, value_name = "FILE")]
    metadata: Option<PathBuf>,
    #[command(flatten)]
    server: ServerArgs,
    /// Address of the answer service, which forgets what it keeps of images that are replaced here and that no item shows
    /// any more. Without it, answers are kept until they leave as the oldest
    #[arg(long, env = "THICKET_ANSWER", value_name = "URL")]
    answer: Option<String>,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

/// The result as scripts see it.
#[derive(Debug, Serialize)]
struct Document {
    collection: String,
    stored: usize,
    refused: Vec<RefusalDocument>,
    /// Answers about replaced images that the answer service kept, where it was told.
    #[serde(skip_serializing_if = "Option::is_none")]
    forgotten_answers: Option<u64>,
    seconds: f64,
}

#[derive(Debug, Serialize)]
struct RefusalDocument {
    id: String,
    reason: String,
}

pub(super) async fn run(args: IngestArgs) -> Result<(), Failure> {
    let started = Instant::now();
    let (dataset, root, split) = (args.dataset, args.root.clone(), args.split);
    let (paths, common, by_id) = (args.paths.clone(), args.common.clone(), args.metadata.clone());
    let uploads = super::blocking(move || {
        let mut uploads = match (dataset, root) {
            (Some(format), Some(root)) => dataset_uploads(format, &root, split)?,
            _ => disk::images(&paths)?
                .into_iter()
                .map(|(id, path)| Upload { id, path, metadata: HashMap::new() })
                .collect(),
        };
        let by_id = by_id.map_or_else(|| Ok(Default::default()), |file| metadata::read(&file))?;
        metadata::add(&mut uploads, &common, by_id)?;
        Ok(uploads)
    })
    .await?;

    let total = uploads.len();
    let mut coordinator = client::coordinator(&args.server.server, args.server.token())?;
    let answer = args.answer.as_deref().map(|url| client::answer(url, args.server.token())).transpose()?;
    let bar = console::progress("ingesting", total as u64);
    let (mut stored, mut refused, mut unused_images) = (0, Vec::new(), Vec::new());
    upload(&mut coordinator, &args.collection, args.index.map(index::message), uploads, |outcome| {
        bar.inc(1);
        unused_images.extend(outcome.unused_image);
        match outcome.refused {
            None => stored += 1,
            Some(reason) => refused.push(RefusalDocument { id: outcome.id, reason }),
        }
    })
    .await?;
    bar.finish_and_clear();
    let forgotten_answers = match answer {
        Some(mut answer) => Some(forget(&mut answer, &unused_images).await?),
        None => None,
    };

    for refusal in refused.iter().take(REFUSALS_SHOWN) {
        console::note(&format!("refused {}: {}", printable(&refusal.id), printable(&refusal.reason)));
    }
    if refused.len() > REFUSALS_SHOWN {
        console::note(&format!("and {} more", refused.len() - REFUSALS_SHOWN));
    }
    let failed = refused.len();
    let document = Document {
        collection: args.collection,
        stored,
        refused,
        forgotten_answers,
        seconds: started.elapsed().as_secs_f64(),
    };
    if args.json {
        console::print_json(&document)?;
    } else {
        console::print(&format!(
            "{stored} of {total} images stored in collection {} ({:.1} s)",
            document.collection, document.seconds
        ))?;
    }
    match failed {
        0 => Ok(()),
        failed => Err(Failure::failed(format!("{failed} of {total} images were refused"))),
    }
}

/// The images of a split under their path in the data set, with their identity.
fn dataset_uploads(format: Format, root: &std::path::Path, split: SplitName) -> Result<Vec<Upload>, Failure> {
    let dataset = Dataset::load(format, root).map_err(Failure::bad_input)?;
    let images = dataset.split(split);
    if images.is_empty() {
        return Err(Failure::bad_input(format!(
            "{}: the {split} split has no image",
            dataset.annotation.display()
        )));
    }
    images.require_images().map_err(Failure::bad_input)?;
    let uploads = images.image_paths.iter().zip(&images.image_ids).map(|(path, identity)| Upload {
        id: path.strip_prefix(&dataset.folder).unwrap_or(path).to_string_lossy().into_owned(),
        path: path.clone(),
        metadata: HashMap::from([
            ("dataset".to_owned(), format.name().to_owned()),
            ("split".to_owned(), split.to_string()),
            ("identity".to_owned(), identity.to_string()),
        ]),
    });
    Ok(uploads.collect())
}
