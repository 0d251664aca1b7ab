use std::io::{BufRead, IsTerminal, Write};

use serde::Serialize;
use thicket_proto::v1::{DeleteCollectionRequest, DeleteRequest};

use super::server::GalleryArgs;
use crate::{Failure, client, console};

/// Ids in one call, the most that the gallery takes.
const IDS_PER_CALL: usize = 10_000;

/// Deletes items of a collection, or a collection with everything in it; asks first
#[derive(Debug, clap::Args)]
pub(crate) struct DeleteArgs {
    /// Collection
    #[arg(long, value_name = "C")]
    collection: String,
    /// Ids of the items; unknown ones are ignored and not counted
    #[arg(value_name = "ID", required_unless_present = "all")]
    ids: Vec<String>,
    /// Delete the whole collection
    #[arg(long, conflicts_with = "ids")]
    all: bool,
    /// Do not ask
    #[arg(long, short = 'y')]
    yes: bool,
    #[command(flatten)]
    server: GalleryArgs,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

/// The result as scripts see it.
#[derive(Debug, Serialize)]
struct Document {
    collection: String,
    deleted: u64,
}

pub(super) async fn run(args: DeleteArgs) -> Result<(), Failure> {
    let mut gallery = client::gallery(&args.server.gallery, args.server.token())?;
    if !args.yes {
        let what = match args.all {
            true => format!("collection {} and everything in it", args.collection),
            false => format!("{} items of collection {}", args.ids.len(), args.collection),
        };
        confirm(format!("delete {what}? [y/N] ")).await?;
    }

    let mut deleted = 0;
    if args.all {
        let request = DeleteCollectionRequest { name: args.collection.clone() };
        let response = gallery.delete_collection(request).await.map_err(|status| client::failure(&status))?;
        deleted = response.into_inner().deleted_items;
    }
    for ids in args.ids.chunks(IDS_PER_CALL) {
        let request = DeleteRequest { collection: args.collection.clone(), ids: ids.to_vec() };
        let response = gallery.delete(request).await.map_err(|status| client::failure(&status))?;
        deleted += response.into_inner().deleted;
    }

    let document = Document { collection: args.collection, deleted };
    if args.json {
        return console::print_json(&document);
    }
    console::print(&format!("{deleted} items of collection {} deleted", document.collection))
}

/// Asks on stderr and reads the answer from stdin.
///
/// # Errors
/// [`Failure::BadInput`] where nobody can be asked, [`Failure::Failed`] where the answer is not yes.
async fn confirm(question: String) -> Result<(), Failure> {
    if !std::io::stdin().is_terminal() {
        return Err(Failure::bad_input("yes: --yes is needed where nobody can be asked"));
    }
    // A thread of its own: a signal must not wait for a line that never comes.
    let (sender, answer) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let mut stderr = std::io::stderr();
        let _ = stderr.write_all(question.as_bytes()).and_then(|()| stderr.flush());
        let mut line = String::new();
        let _ = std::io::stdin().lock().read_line(&mut line);
        let _ = sender.send(line);
    });
    let line = answer.await.unwrap_or_default();
    match line.trim().to_ascii_lowercase().as_str() {
        "y" | "yes" => Ok(()),
        _ => Err(Failure::failed("nothing was deleted")),
    }
}
