//! Sending images to the coordinator, with one outcome an image.

use std::collections::HashMap;
use std::path::PathBuf;

use thicket_imaging::Limits;
use thicket_proto::v1::ingest_response::Result as IngestOutcome;
use thicket_proto::v1::{IngestRequest, IngestResponse, VectorIndex};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::client::{self, Coordinator};
use crate::{Failure, disk};

/// Images sent over one call: a call has a deadline, a data set has not.
const IMAGES_PER_CALL: usize = 512;
/// Images read ahead.
const READ_AHEAD: usize = 8;

/// An image to send.
#[derive(Debug, Clone)]
pub(crate) struct Upload {
    pub(crate) id: String,
    /// The file; it is read when its turn comes.
    pub(crate) path: PathBuf,
    pub(crate) metadata: HashMap<String, String>,
}

/// What became of one image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) id: String,
    /// Why it was refused; `None` where it is stored.
    pub(crate) refused: Option<String>,
    /// Hash of the image that the item had before, where no item shows it any more.
    pub(crate) unused_image: Option<String>,
}

/// Sends all images into a collection, which is created with `index` where it does not exist; `report` hears of each once. An image that cannot be read or is refused fails alone.
///
/// # Errors
/// [`Failure`] where a call as a whole fails.
pub(crate) async fn upload(
    coordinator: &mut Coordinator,
    collection: &str,
    index: Option<VectorIndex>,
    uploads: Vec<Upload>,
    mut report: impl FnMut(Outcome),
) -> Result<(), Failure> {
    let collection = collection.to_owned();
    let (sender, mut images) = mpsc::channel(READ_AHEAD);
    tokio::task::spawn_blocking(move || {
        for upload in uploads {
            // A receiver that is gone means that the call failed, which is told there.
            if sender.blocking_send(read(upload, &collection, index)).is_err() {
                break;
            }
        }
    });
    while let Some(first) = images.recv().await {
        let (call, requests) = mpsc::channel(1);
        let feed = feed(first, &mut images, call);
        let receive = async {
            let mut responses = coordinator
                .ingest(ReceiverStream::new(requests))
                .await
                .map_err(|status| client::failure(&status))?;
            let responses = responses.get_mut();
            while let Some(response) = responses.message().await.map_err(|status| client::failure(&status))? {
                report(outcome(response));
            }
            Ok::<(), Failure>(())
        };
        let (refused, received) = tokio::join!(feed, receive);
        received?;
        refused.into_iter().for_each(&mut report);
    }
    Ok(())
}

/// Passes the images of one call on; returns those that could not be read.
async fn feed(
    first: Result<IngestRequest, Outcome>,
    images: &mut mpsc::Receiver<Result<IngestRequest, Outcome>>,
    call: mpsc::Sender<IngestRequest>,
) -> Vec<Outcome> {
    let mut refused = Vec::new();
    let mut next = Some(first);
    for sent in 1..=IMAGES_PER_CALL {
        match next {
            Some(Ok(request)) => {
                if call.send(request).await.is_err() {
                    break;
                }
            }
            Some(Err(outcome)) => refused.push(outcome),
            None => break,
        }
        next = if sent < IMAGES_PER_CALL { images.recv().await } else { None };
    }
    refused
}

fn read(upload: Upload, collection: &str, index: Option<VectorIndex>) -> Result<IngestRequest, Outcome> {
    let Upload { id, path, metadata } = upload;
    match disk::read_at_most(&path, Limits::default().encoded_bytes) {
        Ok(image) => {
            Ok(IngestRequest { collection: collection.to_owned(), id, image: image.into(), metadata, index })
        }
        Err(reason) => {
            let refused = Some(format!("{}: {reason}", path.display()));
            Err(Outcome { id, refused, unused_image: None })
        }
    }
}

fn outcome(response: IngestResponse) -> Outcome {
    let refused = match response.result {
        Some(IngestOutcome::Item(_)) => None,
        Some(IngestOutcome::Error(error)) => Some(format!("{}: {}", error.reason, error.message)),
        None => Some("the server gave no outcome".to_owned()),
    };
    let unused_image = Some(response.unused_image_hash).filter(|hash| !hash.is_empty());
    Outcome { id: response.id, refused, unused_image }
}
