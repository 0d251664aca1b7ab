use std::io::{BufRead, IsTerminal, Write};

use serde::Serialize;
use thicket_proto::v1::{CompactRequest, DeleteCollectionRequest, DeleteRequest};
use thicket_runtime::{Deadline, request_by};

use super::server::GalleryArgs;
use crate::client::{Answer, Gallery};
use crate::forget::{REWRITING_LIMIT, forget};
use crate::{Failure, client, console};

/// Ids in one call, the most that the gallery takes.
const IDS_PER_CALL: usize = 10_000;
/// Items of a collection that go in one call, so that the hashes of their images fit the response.
const ITEMS_PER_CALL: u32 = 20_000;

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
    /// Address of the answer service, which forgets what it keeps of images that no item shows any more. Without it,
    /// answers are kept until they leave as the oldest
    #[arg(long, env = "THICKET_ANSWER", value_name = "URL")]
    answer: Option<String>,
    /// Then have the gallery rewrite its files without what was deleted, instead of some minutes later by itself
    #[arg(long)]
    compact: bool,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

/// The result as scripts see it.
#[derive(Debug, Serialize)]
struct Document {
    collection: String,
    deleted: u64,
    /// Images that no item shows any more.
    unused_images: usize,
    /// Answers about them that the answer service kept, where it was told.
    #[serde(skip_serializing_if = "Option::is_none")]
    forgotten_answers: Option<u64>,
    /// The gallery's files were rewritten.
    compacted: bool,
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

    let mut gone = Gone::told_to(args.answer.as_deref(), args.server.token())?;
    match args.all {
        true => delete_collection(&mut gallery, &args.collection, &mut gone).await?,
        false => delete_items(&mut gallery, &args.collection, &args.ids, &mut gone).await?,
    }
    if args.compact {
        let request = request_by(CompactRequest {}, Deadline::after(REWRITING_LIMIT));
        gallery.compact(request).await.map_err(|status| {
            Failure::failed(format!(
                "the items are deleted, the gallery's files are not rewritten yet: {}",
                client::failure(&status)
            ))
        })?;
    }
    let Gone { deleted, unused_images, forgotten_answers, .. } = gone;
    let document = Document {
        collection: args.collection,
        deleted,
        unused_images,
        forgotten_answers,
        compacted: args.compact,
    };
    if args.json {
        return console::print_json(&document);
    }
    console::print(&format!("{deleted} items of collection {} deleted", document.collection))
}

async fn delete_items(
    gallery: &mut Gallery,
    collection: &str,
    ids: &[String],
    gone: &mut Gone,
) -> Result<(), Failure> {
    for ids in ids.chunks(IDS_PER_CALL) {
        let request = DeleteRequest { collection: collection.to_owned(), ids: ids.to_vec() };
        let response = gallery.delete(request).await.map_err(|status| client::failure(&status))?.into_inner();
        gone.add(response.deleted, response.unused_image_hashes).await?;
    }
    Ok(())
}

async fn delete_collection(gallery: &mut Gallery, collection: &str, gone: &mut Gone) -> Result<(), Failure> {
    loop {
        let request =
            DeleteCollectionRequest { name: collection.to_owned(), max_items: Some(ITEMS_PER_CALL) };
        let response = gallery.delete_collection(request).await.map_err(|status| client::failure(&status))?;
        let response = response.into_inner();
        gone.add(response.deleted_items, response.unused_image_hashes).await?;
        if !response.remains {
            return Ok(());
        }
    }
}

/// What the calls so far have deleted.
#[derive(Debug)]
struct Gone {
    deleted: u64,
    unused_images: usize,
    forgotten_answers: Option<u64>,
    /// The answer service, where it is to be told.
    answer: Option<Answer>,
}

impl Gone {
    fn told_to(answer: Option<&str>, token: Option<&str>) -> Result<Self, Failure> {
        let answer = answer.map(|url| client::answer(url, token)).transpose()?;
        Ok(Self { deleted: 0, unused_images: 0, forgotten_answers: answer.as_ref().map(|_| 0), answer })
    }

    /// Counts deleted items, and has the answer service forget the images that no item shows any more: after each call,
    /// as the gallery does not name them again.
    async fn add(&mut self, deleted: u64, images: Vec<String>) -> Result<(), Failure> {
        self.deleted += deleted;
        self.unused_images += images.len();
        let Some(answer) = &mut self.answer else { return Ok(()) };
        *self.forgotten_answers.get_or_insert(0) += forget(answer, &images).await?;
        Ok(())
    }
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
