use std::path::PathBuf;

use serde::Serialize;

use crate::{Failure, console, npy};

/// Metrics of any similarity matrix: Rank-1, Rank-5, Rank-10, mAP and mINP in percent
#[derive(Debug, clap::Args)]
pub(crate) struct EvalArgs {
    /// Similarity of every query (row) to every gallery image (column), float32 or float64
    #[arg(long, value_name = "S.npy")]
    similarity: PathBuf,
    /// Identity of every query, int64 or int32
    #[arg(long, value_name = "Q.npy")]
    query_ids: PathBuf,
    /// Identity of every gallery image, int64 or int32
    #[arg(long, value_name = "G.npy")]
    gallery_ids: PathBuf,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

/// The result as scripts see it.
#[derive(Debug, Serialize)]
struct Document {
    queries: usize,
    gallery: usize,
    #[serde(flatten)]
    metrics: thicket_evaluation::Metrics,
}

pub(super) fn run(args: EvalArgs) -> Result<(), Failure> {
    let similarity = npy::read_floats("similarity", &args.similarity).map_err(Failure::bad_input)?;
    let query_ids = npy::read_integers("query-ids", &args.query_ids).map_err(Failure::bad_input)?;
    let gallery_ids = npy::read_integers("gallery-ids", &args.gallery_ids).map_err(Failure::bad_input)?;
    let (queries, gallery) = (similarity.rows, similarity.columns);
    for (field, path, actual, expected, side) in [
        ("query-ids", &args.query_ids, query_ids.len(), queries, "rows"),
        ("gallery-ids", &args.gallery_ids, gallery_ids.len(), gallery, "columns"),
    ] {
        if actual != expected {
            return Err(Failure::bad_input(format!(
                "{field}: {} has {actual} ids, but similarity {} has {expected} {side}",
                path.display(),
                args.similarity.display()
            )));
        }
    }

    let evaluation = thicket_evaluation::evaluate_similarity(&similarity.values, &query_ids, &gallery_ids)
        .map_err(|error| Failure::bad_input(format!("{}: {error}", args.similarity.display())))?;
    let document = Document { queries, gallery, metrics: evaluation.metrics };
    if args.json {
        return console::print_json(&document);
    }
    let metrics = document.metrics;
    console::print(&format!(
        "{queries} queries, {gallery} gallery images\n\
         Rank-1 {:.2}  Rank-5 {:.2}  Rank-10 {:.2}  mAP {:.2}  mINP {:.2}",
        metrics.rank1, metrics.rank5, metrics.rank10, metrics.map, metrics.minp
    ))
}
