use std::collections::BTreeSet;
use std::io::{BufRead, IsTerminal, Write};

use serde::Serialize;
use thicket_proto::v1::{DeleteCollectionRequest, DeleteRequest, ForgetImageRequest, GetItemRequest};
use tonic::Code;

use super::server::GalleryArgs;
use crate::client::Gallery;
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
    /// Address of the answer service, which forgets what it keeps of the deleted items' images. Without it, and with --all,
    /// answers are kept until they leave as the oldest
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
    deleted: u64,
    /// Answers about the deleted images that the answer service kept, where it was told.
    #[serde(skip_serializing_if = "Option::is_none")]
    forgotten_answers: Option<u64>,
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

    let answer = args.answer.as_deref().filter(|_| !args.all);
    // Afterwards the gallery no longer knows them.
    let images = match answer {
        Some(_) => images(&mut gallery, &args.collection, &args.ids).await?,
        None => BTreeSet::new(),
    };
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

    let forgotten_answers = match answer {
        Some(url) => Some(forget(url, args.server.token(), images).await?),
        None => None,
    };
    let document = Document { collection: args.collection, deleted, forgotten_answers };
    if args.json {
        return console::print_json(&document);
    }
    console::print(&format!("{deleted} items of collection {} deleted", document.collection))
}

/// Hashes of the items' images.
async fn images(
    gallery: &mut Gallery,
    collection: &str,
    ids: &[String],
) -> Result<BTreeSet<String>, Failure> {
    let mut images = BTreeSet::new();
    for id in ids {
        let request = GetItemRequest { collection: collection.to_owned(), id: id.clone() };
        match gallery.get_item(request).await {
            Ok(found) => images.extend(found.into_inner().item.map(|item| item.image_hash)),
            // Deleting it is no error either.
            Err(status) if status.code() == Code::NotFound => {}
            Err(status) => return Err(client::failure(&status)),
        }
    }
    images.remove("");
    Ok(images)
}

/// Has the answer service forget images. One that another item still shows is asked about anew, which changes no answer.
async fn forget(url: &str, token: Option<&str>, images: BTreeSet<String>) -> Result<u64, Failure> {
    let mut answer = client::answer(url, token)?;
    let mut forgotten = 0;
    for image_hash in images {
        let response = answer.forget_image(ForgetImageRequest { image_hash }).await.map_err(|status| {
            Failure::failed(format!(
                "the items are deleted, the answers about their images are not: {}",
                client::failure(&status)
            ))
        })?;
        forgotten += response.into_inner().answers;
    }
    Ok(forgotten)
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
