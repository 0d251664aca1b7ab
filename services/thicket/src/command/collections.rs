use serde::Serialize;
use thicket_proto::v1::{Collection, ListCollectionsRequest, Similarity};

use super::server::GalleryArgs;
use crate::client;
use crate::{Failure, console};

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
}

#[derive(Debug, Serialize)]
struct CollectionDocument {
    name: String,
    items: u64,
    dimension: u32,
    similarity: &'static str,
    model_fingerprint: String,
    created_unix_ms: i64,
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
        }
    }
}

pub(super) async fn run(args: CollectionsArgs) -> Result<(), Failure> {
    let mut gallery = client::gallery(&args.server.gallery, args.server.token())?;
    let listed = gallery
        .list_collections(ListCollectionsRequest {})
        .await
        .map_err(|status| client::failure(&status))?
        .into_inner();
    let collections: Vec<CollectionDocument> = listed.collections.into_iter().map(Into::into).collect();
    if args.json {
        return console::print_json(&Document { collections });
    }
    if collections.is_empty() {
        return console::print("there is no collection");
    }
    let lines: Vec<String> = collections
        .iter()
        .map(|collection| {
            let model: String = collection.model_fingerprint.chars().take(12).collect();
            format!(
                "{:<32} {:>9} items  {} dimensions  model {}",
                client::printable(&collection.name),
                collection.items,
                collection.dimension,
                client::printable(&model)
            )
        })
        .collect();
    console::print(&lines.join("\n"))
}
