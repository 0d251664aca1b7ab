use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;
use thicket_proto::v1::{Collection, ListCollectionsRequest, Recall, Replication, Similarity};

use super::server::GalleryArgs;
use crate::client;
use crate::{Failure, console, index};

/// Lists the collections of a running cluster
#[derive(Debug, clap::Args)]
pub(crate) struct CollectionsArgs {
    #[command(flatten)]
    server: GalleryArgs,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

/// The result as scripts see it.
#[derive(Debug, Serialize)]
struct Document {
    collections: Vec<CollectionDocument>,
    /// Absent where the gallery asked takes writes itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    replication: Option<ReplicationDocument>,
}

#[derive(Debug, Serialize)]
struct ReplicationDocument {
    writer: String,
    transaction: u64,
    writer_transaction: u64,
    behind_ms: u64,
    connected: bool,
}

impl From<Replication> for ReplicationDocument {
    fn from(replication: Replication) -> Self {
        let Replication { writer, transaction, writer_transaction, behind_ms, connected } = replication;
        Self { writer, transaction, writer_transaction, behind_ms, connected }
    }
}

#[derive(Debug, Serialize)]
struct CollectionDocument {
    name: String,
    items: u64,
    dimension: u32,
    similarity: &'static str,
    model_fingerprint: String,
    created_unix_ms: i64,
    /// As `--index` of `thicket ingest` takes it.
    index: String,
    /// True while not every vector is compared.
    approximate: bool,
    /// Absent where nothing is approximate or nothing has been measured yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    recall: Option<RecallDocument>,
}

#[derive(Debug, Serialize)]
struct RecallDocument {
    at_10: f64,
    at_100: f64,
    queries: u32,
    items: u64,
    measured_unix_ms: i64,
}

impl From<Recall> for RecallDocument {
    fn from(recall: Recall) -> Self {
        let Recall { at_10, at_100, queries, items, measured_unix_ms } = recall;
        Self { at_10, at_100, queries, items, measured_unix_ms }
    }
}

impl From<Collection> for CollectionDocument {
    fn from(collection: Collection) -> Self {
        let similarity = match collection.similarity() {
            Similarity::Unspecified => "unspecified",
            Similarity::Cosine => "cosine",
            Similarity::MeanOfTwoCosines => "mean_of_two_cosines",
        };
        Self {
            name: collection.name,
            items: collection.items,
            dimension: collection.dimension,
            similarity,
            model_fingerprint: collection.model_fingerprint,
            created_unix_ms: collection.created_unix_ms,
            index: index::kind(collection.index).to_string(),
            approximate: collection.approximate,
            recall: collection.recall.map(Into::into),
        }
    }
}

/// How a collection is searched, in words.
fn searched(collection: &CollectionDocument, now_unix_ms: i64) -> String {
    let index = &collection.index;
    match &collection.recall {
        Some(recall) => format!(
            "{index}, recall@10 {:.1} %, @100 {:.1} % over {} items {} ago",
            100.0 * recall.at_10,
            100.0 * recall.at_100,
            recall.items,
            age(now_unix_ms.saturating_sub(recall.measured_unix_ms))
        ),
        None if collection.approximate => format!("{index}, recall not measured yet"),
        None if index == "exact" => "exact".to_owned(),
        None => format!("{index}, exact until it is built"),
    }
}

/// How a replica follows its writer, in words.
fn following(replication: &ReplicationDocument) -> String {
    let ReplicationDocument { writer, transaction, writer_transaction, behind_ms, connected } = replication;
    let writer = client::printable(writer);
    let lacks = writer_transaction.saturating_sub(*transaction);
    if *connected && lacks == 0 && *behind_ms == 0 {
        return format!("a read replica, level with {writer}");
    }
    let how = if *connected { "connected" } else { "not connected" };
    let seconds = *behind_ms as f64 / 1000.0;
    format!("a read replica, {lacks} transactions and {seconds:.1} s behind {writer}, {how}")
}

/// A time that has passed, to its largest unit.
fn age(ms: i64) -> String {
    let seconds = ms.max(0) / 1000;
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

fn now_unix_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as i64
}

pub(super) async fn run(args: CollectionsArgs) -> Result<(), Failure> {
    let mut gallery = client::gallery(&args.server.gallery, args.server.token())?;
    let listed = gallery
        .list_collections(ListCollectionsRequest {})
        .await
        .map_err(|status| client::failure(&status))?
        .into_inner();
    let collections: Vec<CollectionDocument> = listed.collections.into_iter().map(Into::into).collect();
    let replication: Option<ReplicationDocument> = listed.replication.map(Into::into);
    if args.json {
        return console::print_json(&Document { collections, replication });
    }
    if let Some(replication) = &replication {
        console::note(&following(replication));
    }
    if collections.is_empty() {
        return console::print("there is no collection");
    }
    let lines: Vec<String> = collections
        .iter()
        .map(|collection| {
            let model: String = collection.model_fingerprint.chars().take(12).collect();
            format!(
                "{:<32} {:>9} items  {} dimensions  model {}  {}",
                client::printable(&collection.name),
                collection.items,
                collection.dimension,
                client::printable(&model),
                searched(collection, now_unix_ms())
            )
        })
        .collect();
    console::print(&lines.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_collection_says_how_it_is_searched_and_what_that_finds() {
        let mut collection = CollectionDocument::from(Collection {
            index: Some(index::message(thicket_index::IndexKind::IVF)),
            ..Default::default()
        });
        assert_eq!(searched(&collection, 0), "ivf:lists=1024,probes=32, exact until it is built");
        collection.approximate = true;
        assert_eq!(searched(&collection, 0), "ivf:lists=1024,probes=32, recall not measured yet");
        let recall = Recall { at_10: 0.996, at_100: 0.95, queries: 64, items: 5000, measured_unix_ms: 1000 };
        collection.recall = Some(recall.into());
        assert_eq!(
            searched(&collection, 601_000),
            "ivf:lists=1024,probes=32, recall@10 99.6 %, @100 95.0 % over 5000 items 10 min ago"
        );
        assert_eq!(searched(&Collection::default().into(), 0), "exact");
    }

    #[test]
    fn a_replica_says_how_far_it_is_behind() {
        let mut replication = ReplicationDocument {
            writer: "http://a:7702".to_owned(),
            transaction: 5,
            writer_transaction: 5,
            behind_ms: 0,
            connected: true,
        };
        assert_eq!(following(&replication), "a read replica, level with http://a:7702");
        (replication.writer_transaction, replication.behind_ms, replication.connected) = (9, 2500, false);
        assert_eq!(
            following(&replication),
            "a read replica, 4 transactions and 2.5 s behind http://a:7702, not connected"
        );
    }

    #[test]
    fn an_age_is_told_to_its_largest_unit() {
        let ages = [-5, 119_999, 120_000, 7_200_000, 172_800_000].map(age);
        assert_eq!(ages, ["0 s", "119 s", "2 min", "2 h", "2 d"]);
    }
}
