use std::path::PathBuf;

use serde::Serialize;
use thicket_thi::fusion::{self, Forced};

use crate::{Failure, console, npy};

/// Re-ranks offline (Eq. 6 of the ICL paper, CVPR 2025): mixes S(q, v) with S(q', v) and lifts the anchor
#[derive(Debug, clap::Args)]
pub(crate) struct RerankArgs {
    /// S(q, v): similarity of every query (row) to every gallery image (column), float32 or float64
    #[arg(long, value_name = "S.npy")]
    similarity: PathBuf,
    /// S(q', v): the same for the rewritten queries; rows of queries without an anchor are ignored
    #[arg(long, value_name = "R.npy")]
    refined: PathBuf,
    /// Gallery index of every query's anchor, int64 or int32; -1 where the query was not refined
    #[arg(long, value_name = "A.npy")]
    anchors: PathBuf,
    /// Weight of the original query, 0 to 1
    #[arg(long, value_name = "L", allow_negative_numbers = true)]
    lambda: f64,
    /// Where to write the mixed similarity, float32 [queries, gallery]
    #[arg(long, value_name = "O.npy")]
    out: PathBuf,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

/// The result as scripts see it.
#[derive(Debug, Serialize)]
struct Document {
    out: String,
    queries: usize,
    gallery: usize,
    refined: usize,
}

pub(super) fn run(args: RerankArgs) -> Result<(), Failure> {
    if !(0.0..=1.0).contains(&args.lambda) {
        return Err(Failure::bad_input(format!("lambda must be 0 to 1, not {}", args.lambda)));
    }
    let similarity = npy::read_floats("similarity", &args.similarity).map_err(Failure::bad_input)?;
    let refined = npy::read_floats("refined", &args.refined).map_err(Failure::bad_input)?;
    let anchors = npy::read_integers("anchors", &args.anchors).map_err(Failure::bad_input)?;
    let (queries, gallery) = (similarity.rows, similarity.columns);
    if (refined.rows, refined.columns) != (queries, gallery) {
        return Err(Failure::bad_input(format!(
            "refined: {} has shape [{}, {}], but similarity {} has [{queries}, {gallery}]",
            args.refined.display(),
            refined.rows,
            refined.columns,
            args.similarity.display()
        )));
    }
    if anchors.len() != queries {
        return Err(Failure::bad_input(format!(
            "anchors: {} has {} values, but similarity {} has {queries} rows",
            args.anchors.display(),
            anchors.len(),
            args.similarity.display()
        )));
    }
    let anchors = anchors
        .into_iter()
        .enumerate()
        .map(|(query, anchor)| match usize::try_from(anchor) {
            Ok(anchor) if anchor < gallery => Ok(Some(anchor)),
            _ if anchor == -1 => Ok(None),
            _ => Err(Failure::bad_input(format!(
                "anchors: {} has at [{query}] the value {anchor}, -1 to {} expected",
                args.anchors.display(),
                gallery as i64 - 1
            ))),
        })
        .collect::<Result<Vec<_>, _>>()?;
    refuse_non_finite("similarity", &args.similarity, &similarity, |_| true)?;
    refuse_non_finite("refined", &args.refined, &refined, |query| anchors[query].is_some())?;

    let values =
        fusion::rerank(&similarity.values, &refined.values, gallery, &anchors, args.lambda, Forced::Anchor)
            .map_err(Failure::bad_input)?;
    npy::write_floats(&args.out, &npy::Matrix { rows: queries, columns: gallery, values }).map_err(
        |error| Failure::failed(format!("out: {} cannot be written: {error}", args.out.display())),
    )?;

    let refined = anchors.iter().flatten().count();
    let document = Document { out: args.out.display().to_string(), queries, gallery, refined };
    if args.json {
        return console::print_json(&document);
    }
    console::print(&format!(
        "{}: {queries} queries, {gallery} gallery images, {refined} queries re-ranked",
        document.out
    ))
}

/// Refuses NaN and infinity in the rows that are used: a mix with either is no score.
fn refuse_non_finite(
    field: &str,
    path: &std::path::Path,
    matrix: &npy::Matrix<f32>,
    used: impl Fn(usize) -> bool,
) -> Result<(), Failure> {
    let bad = matrix
        .values
        .iter()
        .enumerate()
        .find(|(place, value)| !value.is_finite() && used(place / matrix.columns));
    match bad {
        None => Ok(()),
        Some((place, value)) => Err(Failure::bad_input(format!(
            "{field}: {} has at [{}, {}] the value {value}, a finite number expected",
            path.display(),
            place / matrix.columns,
            place % matrix.columns
        ))),
    }
}
