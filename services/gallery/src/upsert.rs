//! One stream of upserts: items are checked several at a time, queued in the order in which they came, and answered in
//! that order as they become durable.

use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use prost::Message;
use thicket_proto::v1;
use thicket_proto::v1::upsert_response::Result as Outcome;
use thicket_runtime::{Call, Fault, Right};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tonic::{Status, Streaming};

use crate::backend::{Facts, Open};
use crate::check;
use crate::error::GalleryError;
use crate::fault::bad_image;
use crate::queue::Ticket;
use crate::record::{ImageFormat, ImageHash, ImageRef, ItemRecord};
use crate::rpc::Service;
use crate::write::Put;
use crate::writer::Stored;

/// Items of one stream that are queued or committed but not answered yet.
pub(crate) const WINDOW: usize = 256;
/// Items of one stream that are checked at a time.
const CHECKED_AT_ONCE: usize = 8;

type Answers = mpsc::Sender<Result<v1::UpsertResponse, Status>>;

/// An item that has passed its checks.
struct Ready {
    put: Put,
    image: Option<(ImageHash, Bytes)>,
    reserved: OwnedSemaphorePermit,
}

/// An item on its way, in the order of the stream.
enum Pending {
    Queued(String, Ticket),
    Refused(String, GalleryError),
    /// The stream as a whole is over.
    Failed(Status),
}

/// Serves one stream to its end or until the caller is gone.
pub(crate) async fn run(
    service: Service,
    call: Call,
    requests: Streaming<v1::UpsertRequest>,
    answers: Answers,
) {
    let (pending, queued) = mpsc::channel(WINDOW);
    let gone = answers.clone();
    tokio::select! {
        // A caller that went away, or ran out of time, frees its place at once.
        () = gone.closed() => {}
        ((), ()) = async { tokio::join!(take_in(&service, &call, requests, pending), give_back(queued, &answers)) } => {}
    }
}

/// Reads, checks and queues items.
async fn take_in(
    service: &Service,
    call: &Call,
    mut requests: Streaming<v1::UpsertRequest>,
    pending: mpsc::Sender<Pending>,
) {
    let first = match requests.message().await {
        Ok(Some(first)) => first,
        Ok(None) => return,
        Err(status) => return send(&pending, Pending::Failed(status)).await,
    };
    let collection = match open(service, call, &first).await {
        Ok(collection) => collection,
        Err(fault) => return send(&pending, Pending::Failed(fault.into_status())).await,
    };
    let all = futures::stream::once(async { Ok(first) }).chain(requests);
    let mut checked = all
        .map(|request| async {
            let mut request = request?;
            let id = std::mem::take(&mut request.id);
            let ready = check_item(service, collection.facts(), &id, request).await;
            Ok::<_, Status>((id, ready))
        })
        .buffered(CHECKED_AT_ONCE)
        .boxed();
    while let Some(item) = checked.next().await {
        let next = match item {
            Ok((id, Ok(Ready { put, image, reserved }))) => {
                match service.backend.writes().put(put, image, reserved).await {
                    Ok(ticket) => Pending::Queued(id, ticket),
                    Err(error) => Pending::Refused(id, error),
                }
            }
            Ok((id, Err(error))) => Pending::Refused(id, error),
            Err(status) => return send(&pending, Pending::Failed(status)).await,
        };
        send(&pending, next).await;
    }
}

/// Answers items in order, each when it is durable.
async fn give_back(mut queued: mpsc::Receiver<Pending>, answers: &Answers) {
    while let Some(pending) = queued.recv().await {
        let answer = match pending {
            Pending::Queued(id, ticket) => Ok(response(id, ticket.stored().await)),
            Pending::Refused(id, error) => Ok(response(id, Err(error))),
            Pending::Failed(status) => Err(status),
        };
        if answers.send(answer).await.is_err() {
            return;
        }
    }
}

async fn send(pending: &mpsc::Sender<Pending>, next: Pending) {
    // The receiver goes only together with this task.
    let _ = pending.send(next).await;
}

/// The first message names the collection of the whole stream.
async fn open(service: &Service, call: &Call, first: &v1::UpsertRequest) -> Result<Arc<dyn Open>, Fault> {
    call.require(Right::Write, Some(&first.collection))?;
    check::collection_name("collection", &first.collection)?;
    Ok(service.backend.open(&first.collection, call.deadline()).await?)
}

async fn check_item(
    service: &Service,
    collection: &Facts,
    id: &str,
    request: v1::UpsertRequest,
) -> Result<Ready, GalleryError> {
    if !request.collection.is_empty() && request.collection != collection.name {
        let message = format!("the stream is for {:?}, this item for another collection", collection.name);
        return Err(GalleryError::invalid("collection", "COLLECTION_CHANGED", message));
    }
    check::item_id("id", id)?;
    check::fingerprint(&request.model_fingerprint)?;
    collection.check_model(request.model_fingerprint.clone())?;
    let reserved = service.backend.writes().reserve(request.encoded_len()).await?;
    let metadata = check::metadata(request.metadata)?;
    let vector = check::item_vector(request.vector, collection.dimension)?;
    let image = match request.image {
        bytes if bytes.is_empty() => None,
        bytes => {
            let limits = service.images;
            Some(service.pool.run_patiently(move || check_image(bytes, &limits)).await?)
        }
    };
    let item = ItemRecord { id: id.to_owned(), image: image.as_ref().map(|(image, _)| *image), metadata };
    let put = Put { collection: collection.name.clone(), number: collection.number, vector, item };
    Ok(Ready { put, image: image.map(|(image, bytes)| (image.hash, bytes)), reserved })
}

/// Decodes an image, so that nothing is stored that no model can read.
fn check_image(bytes: Bytes, limits: &thicket_imaging::Limits) -> Result<(ImageRef, Bytes), GalleryError> {
    thicket_imaging::decode(&bytes, limits).map_err(|error| bad_image(&error))?;
    let format = ImageFormat::of(&bytes).ok_or_else(|| {
        GalleryError::invalid("image", "IMAGE_FORMAT_UNKNOWN", "JPEG, PNG or WebP expected")
    })?;
    Ok((ImageRef { hash: ImageHash::of(&bytes), format }, bytes))
}

fn response(id: String, result: Result<Stored, GalleryError>) -> v1::UpsertResponse {
    let (result, unused, transaction) = match result {
        Ok(Stored { item, unused, transaction }) => (Outcome::Item(item), unused, transaction),
        Err(error) => (Outcome::Error(Fault::from(error).to_item_error()), None, 0),
    };
    // An id that is refused for its length is not sent back at that length.
    let id = if id.len() <= check::ID_BYTES { id } else { String::new() };
    let unused_image_hash = unused.map(|hash| hash.to_string()).unwrap_or_default();
    v1::UpsertResponse { id, result: Some(result), unused_image_hash, transaction }
}
