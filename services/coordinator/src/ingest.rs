//! Images in, stored items out: embed in batches, store in order.

use std::collections::VecDeque;
use std::time::Duration;

use prost::Message;
use thicket_proto::v1::vector_index::Kind;
use thicket_proto::v1::{
    CreateCollectionRequest, EmbedImageRequest, IngestRequest, IngestResponse, ItemError, UpsertRequest,
    UpsertResponse, VectorIndex, embed_image_result, ingest_response, upsert_response,
};
use thicket_runtime::{Call, Fault, MAX_MESSAGE_BYTES, Right, Role};
use thicket_telemetry::{instruments, names};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tonic::{Status, Streaming};
use tracing::{Instrument, info_span};

use thicket_upstream::{broken, fault_of};

use crate::clients::CallClients;
use crate::driven::Outlet;
use crate::input;
use crate::spans::number;

/// Most images embedded together.
const BATCH_IMAGES: usize = 32;
/// Most bytes of images embedded together, but for a single image that is larger.
const BATCH_BYTES: usize = 8 * 1024 * 1024;
/// How long a batch that is not full waits for more. A caller that waits for each result loses no more than this.
const LINGER: Duration = Duration::from_millis(5);

/// One stream of images.
#[derive(Debug)]
pub(crate) struct Ingest {
    call: Call,
    clients: CallClients,
    outlet: Outlet<IngestResponse>,
}

/// An item on its way to the gallery, or why it does not get there.
#[derive(Debug)]
enum Prepared {
    Item(Box<UpsertRequest>),
    Refused { id: String, error: ItemError },
}

impl Ingest {
    pub(crate) fn new(call: Call, clients: CallClients, outlet: Outlet<IngestResponse>) -> Self {
        Self { call, clients, outlet }
    }

    /// Takes the stream to its end. One batch is embedded while the one before it is stored.
    pub(crate) async fn run(self, requests: Streaming<IngestRequest>) -> Result<(), Fault> {
        let mut batches = Batches::new(requests);
        let Some(first) = batches.next().await? else { return Ok(()) };
        let collection = first[0].collection.clone();
        input::collection("collection", &collection)?;
        self.call.require(Right::Write, Some(&collection))?;
        let index = first[0].index;
        self.ensure_collection(&collection, index).await?;

        let (prepared, stored) = mpsc::channel(1);
        // Where storing fails there is no point in reading on, or in waiting for a caller who says nothing.
        tokio::try_join!(self.embed(&collection, first, batches, prepared), self.store(stored),)?;
        Ok(())
    }

    /// Embeds every batch and hands it on. A failure is handed on too: behind the batches before it, whose results still
    /// go out.
    async fn embed(
        &self,
        collection: &str,
        first: Vec<IngestRequest>,
        mut batches: Batches<Streaming<IngestRequest>>,
        prepared: mpsc::Sender<Result<Vec<Prepared>, Fault>>,
    ) -> Result<(), Fault> {
        let mut next = Ok(Some(first));
        loop {
            let done = match next {
                Ok(Some(batch)) => {
                    let span = info_span!("embed_batch", images = number(batch.len()));
                    self.prepare(collection, batch).instrument(span).await
                }
                Ok(None) => return Ok(()),
                Err(fault) => Err(fault),
            };
            let failed = done.is_err();
            if prepared.send(done).await.is_err() || failed {
                return Ok(());
            }
            next = batches.next().await;
        }
    }

    /// Makes the collection if there is none, where the caller may, and refuses one of another model or another index than
    /// the one asked for.
    async fn ensure_collection(&self, name: &str, index: Option<VectorIndex>) -> Result<(), Fault> {
        let model = self.clients.model().await?;
        let existing = || async {
            let all = self.clients.collections().await?;
            Ok::<_, Fault>(all.into_iter().find(|collection| collection.name == name))
        };
        let mut found = existing().await?;
        if found.is_none() {
            self.call.require(Right::Admin, Some(name))?;
            let request = CreateCollectionRequest {
                name: name.to_owned(),
                model_fingerprint: model.fingerprint.clone(),
                dimension: model.dimension,
                similarity: model.similarity,
                index,
            };
            match self.clients.create_collection(request).await {
                // Someone else was faster; the collection may be of another model.
                Err(Fault::AlreadyExists { .. }) => found = existing().await?,
                Err(Fault::InvalidInput { field, reason, message }) if field == "name" => {
                    return Err(Fault::InvalidInput { field: "collection".into(), reason, message });
                }
                other => other?,
            }
        }
        match found {
            Some(found) if found.model_fingerprint != model.fingerprint => {
                let message = format!(
                    "collection `{name}` holds vectors of model {}, the embedding role serves {}",
                    found.model_fingerprint, model.fingerprint
                );
                Err(Fault::failed_precondition("MODEL_MISMATCH", message))
            }
            Some(found) if index.is_some_and(|index| !agrees(index, found.index)) => {
                let message = format!("collection `{name}` has another index than the one asked for");
                Err(Fault::failed_precondition("INDEX_MISMATCH", message))
            }
            _ => Ok(()),
        }
    }

    /// Embeds a batch. One result an item, in order.
    async fn prepare(&self, collection: &str, batch: Vec<IngestRequest>) -> Result<Vec<Prepared>, Fault> {
        instruments()
            .batch_size
            .record(batch.len() as u64, &[opentelemetry::KeyValue::new(names::STAGE, "ingest")]);
        let refusals: Vec<Option<ItemError>> = batch.iter().map(|item| refusal(collection, item)).collect();
        let images: Vec<_> = batch
            .iter()
            .zip(&refusals)
            .filter(|(_, refusal)| refusal.is_none())
            .map(|(item, _)| item.image.clone())
            .collect();
        let (mut results, fingerprint) = if images.is_empty() {
            (VecDeque::new(), String::new())
        } else {
            let response = self.clients.embed_images(EmbedImageRequest { images }).await?;
            (VecDeque::from(response.results), response.model_fingerprint)
        };

        let mut prepared = Vec::with_capacity(batch.len());
        for (item, refusal) in batch.into_iter().zip(refusals) {
            let embedded = match refusal {
                Some(error) => Err(error),
                None => match results.pop_front().and_then(|result| result.result) {
                    Some(embed_image_result::Result::Vector(vector)) => Ok(vector),
                    Some(embed_image_result::Result::Error(error)) => Err(error),
                    None => return Err(broken(Role::Embedding, "an image has neither vector nor error")),
                },
            };
            prepared.push(match embedded {
                Ok(vector) => sendable(UpsertRequest {
                    collection: collection.to_owned(),
                    id: item.id,
                    vector: Some(vector),
                    image: item.image,
                    metadata: item.metadata,
                    model_fingerprint: fingerprint.clone(),
                }),
                Err(error) => Prepared::Refused { id: item.id, error },
            });
        }
        Ok(prepared)
    }

    /// Stores what was prepared and reports on every item in order.
    async fn store(&self, mut batches: mpsc::Receiver<Result<Vec<Prepared>, Fault>>) -> Result<(), Fault> {
        let mut upload: Option<Upload> = None;
        while let Some(batch) = batches.recv().await {
            let mut items = Vec::new();
            let mut outcomes = Vec::new();
            for prepared in batch? {
                match prepared {
                    Prepared::Item(item) => {
                        outcomes.push((item.id.clone(), None));
                        items.push(*item);
                    }
                    Prepared::Refused { id, error } => outcomes.push((id, Some(error))),
                }
            }
            if !items.is_empty() {
                match &upload {
                    Some(upload) => upload.send(items).await,
                    None => upload = Some(Upload::open(&self.clients, items).await?),
                }
            }
            for (id, refused) in outcomes {
                let (result, unused_image_hash) = match (refused, &mut upload) {
                    (Some(error), _) => (ingest_response::Result::Error(error), String::new()),
                    (None, Some(upload)) => upload.result().await?,
                    (None, None) => return Err(Fault::internal("an item was never sent")),
                };
                self.outlet.send(IngestResponse { id, result: Some(result), unused_image_hash }).await?;
            }
        }
        Ok(())
    }
}

/// The open stream to the gallery.
#[derive(Debug)]
struct Upload {
    items: mpsc::Sender<UpsertRequest>,
    results: Streaming<UpsertResponse>,
}

impl Upload {
    /// Opens it with the first items in it already: a server may wait for one before it answers at all.
    async fn open(clients: &CallClients, first: Vec<UpsertRequest>) -> Result<Self, Fault> {
        // Results of a batch are read before the next one is sent, so that a batch always finds room.
        let (items, queue) = mpsc::channel(BATCH_IMAGES);
        for item in first {
            let _ = items.send(item).await;
        }
        let results = clients.upsert(ReceiverStream::new(queue)).await?;
        Ok(Self { items, results })
    }

    /// Hands items over. Where the gallery has closed the stream, reading the results says why.
    async fn send(&self, items: Vec<UpsertRequest>) {
        for item in items {
            let _ = self.items.send(item).await;
        }
    }

    /// The next item's outcome, and the hash of the image that it had before, where nothing uses that any more.
    async fn result(&mut self) -> Result<(ingest_response::Result, String), Fault> {
        let response = self.results.message().await.map_err(|status| fault_of(Role::Gallery, status))?;
        let UpsertResponse { result, unused_image_hash, .. } = response.unwrap_or_default();
        let result = match result {
            Some(upsert_response::Result::Item(item)) => ingest_response::Result::Item(item),
            Some(upsert_response::Result::Error(error)) => ingest_response::Result::Error(error),
            None => return Err(broken(Role::Gallery, "an item has no result")),
        };
        Ok((result, unused_image_hash))
    }
}

/// The caller's messages, cut into batches.
#[derive(Debug)]
struct Batches<S> {
    requests: S,
    /// Read already, belongs to the next batch.
    held: Option<IngestRequest>,
    /// How the stream ended, to be told after the batch before it.
    end: Option<Result<(), Fault>>,
}

impl<S: Stream<Item = Result<IngestRequest, Status>> + Unpin> Batches<S> {
    fn new(requests: S) -> Self {
        Self { requests, held: None, end: None }
    }

    /// The next batch, never empty; `None` at the end of the stream.
    async fn next(&mut self) -> Result<Option<Vec<IngestRequest>>, Fault> {
        let first = match self.held.take() {
            Some(held) => held,
            None => match self.read().await {
                Some(request) => request,
                None => return self.end.take().unwrap_or(Ok(())).map(|()| None),
            },
        };
        let mut bytes = first.image.len();
        let mut batch = vec![first];
        let linger = tokio::time::sleep(LINGER);
        tokio::pin!(linger);
        while batch.len() < BATCH_IMAGES && bytes < BATCH_BYTES {
            let request = tokio::select! {
                biased;
                request = self.read() => request,
                () = &mut linger => break,
            };
            let Some(request) = request else { break };
            bytes += request.image.len();
            if bytes > BATCH_BYTES {
                self.held = Some(request);
                break;
            }
            batch.push(request);
        }
        Ok(Some(batch))
    }

    /// The next message; at the end it notes how the stream ended.
    async fn read(&mut self) -> Option<IngestRequest> {
        if self.end.is_some() {
            return None;
        }
        match self.requests.next().await {
            Some(Ok(request)) => return Some(request),
            Some(Err(status)) => self.end = Some(Err(Fault::from_status(&status))),
            None => self.end = Some(Ok(())),
        }
        None
    }
}

/// Why an item cannot be embedded, if so. What else may be wrong with it, the embedding and the gallery say.
fn refusal(collection: &str, item: &IngestRequest) -> Option<ItemError> {
    let fault = if !item.collection.is_empty() && item.collection != collection {
        let message = format!("this stream goes to `{collection}`, the item to `{}`", item.collection);
        Fault::invalid("collection", "COLLECTION_CHANGED", message)
    } else if item.image.is_empty() {
        Fault::invalid("image", "IMAGE_MISSING", "an encoded image, got 0 bytes")
    } else {
        return None;
    };
    Some(fault.to_item_error())
}

/// True where a collection's index is one that was asked for; a parameter of 0 leaves it to the collection.
fn agrees(wanted: VectorIndex, found: Option<VectorIndex>) -> bool {
    let same = |wanted: u32, found: u32| wanted == 0 || wanted == found;
    match (wanted.kind, found.and_then(|found| found.kind)) {
        (None | Some(Kind::Exact(_)), None | Some(Kind::Exact(_))) => true,
        (Some(Kind::Ivf(wanted)), Some(Kind::Ivf(found))) => {
            same(wanted.lists, found.lists) && same(wanted.probes, found.probes)
        }
        (Some(Kind::Hnsw(wanted)), Some(Kind::Hnsw(found))) => {
            same(wanted.links, found.links)
                && same(wanted.ef_search, found.ef_search)
                && same(wanted.ef_construction, found.ef_construction)
        }
        _ => false,
    }
}

/// An item with its vector may be larger than what came in.
fn sendable(item: UpsertRequest) -> Prepared {
    let bytes = item.encoded_len();
    if bytes <= MAX_MESSAGE_BYTES {
        return Prepared::Item(Box::new(item));
    }
    let message = format!("at most {MAX_MESSAGE_BYTES} bytes with its vector, got {bytes}");
    let error = Fault::invalid("image", "IMAGE_TOO_LARGE", message).to_item_error();
    Prepared::Refused { id: item.id, error }
}

#[cfg(test)]
mod tests {
    use thicket_proto::v1::{ExactIndex, HnswIndex, IvfIndex};
    use tonic::Code;

    use super::*;

    #[test]
    fn an_index_agrees_where_what_was_asked_for_is_there() {
        let of = |kind| VectorIndex { kind: Some(kind) };
        let ivf = |lists, probes| of(Kind::Ivf(IvfIndex { lists, probes }));
        let hnsw = |links| of(Kind::Hnsw(HnswIndex { links, ..Default::default() }));
        let exact = of(Kind::Exact(ExactIndex {}));
        assert!(
            agrees(exact, None) && agrees(exact, Some(exact)) && agrees(VectorIndex { kind: None }, None)
        );
        assert!(agrees(ivf(0, 0), Some(ivf(64, 8))) && agrees(ivf(64, 0), Some(ivf(64, 8))));
        assert!(!agrees(ivf(63, 0), Some(ivf(64, 8))) && !agrees(ivf(0, 9), Some(ivf(64, 8))));
        assert!(agrees(hnsw(0), Some(hnsw(16))) && !agrees(hnsw(8), Some(hnsw(16))));
        assert!(!agrees(exact, Some(hnsw(16))) && !agrees(hnsw(0), Some(exact)) && !agrees(hnsw(0), None));
    }

    /// Sizes of the batches that messages with images of these sizes are cut into.
    async fn cut(images: &[usize]) -> Vec<usize> {
        let requests = images
            .iter()
            .map(|bytes| Ok(IngestRequest { image: vec![0; *bytes].into(), ..Default::default() }));
        let mut batches = Batches::new(tokio_stream::iter(requests.collect::<Vec<_>>()));
        let mut sizes = Vec::new();
        while let Some(batch) = batches.next().await.unwrap() {
            sizes.push(batch.len());
        }
        sizes
    }

    #[tokio::test]
    async fn a_batch_has_at_most_so_many_images() {
        assert_eq!(cut(&[1; 2 * BATCH_IMAGES + 1]).await, [BATCH_IMAGES, BATCH_IMAGES, 1]);
        assert!(cut(&[]).await.is_empty());
    }

    #[tokio::test]
    async fn a_batch_has_at_most_so_many_bytes_unless_one_image_has_more() {
        let third = BATCH_BYTES / 3 + 1;
        assert_eq!(cut(&[third; 5]).await, [2, 2, 1]);
        assert_eq!(cut(&[1, BATCH_BYTES + 1, 1]).await, [1, 1, 1]);
    }

    #[tokio::test]
    async fn a_stream_that_breaks_gives_the_batch_before_the_break_first() {
        let requests = vec![Ok(IngestRequest::default()), Err(Status::out_of_range("too large"))];
        let mut batches = Batches::new(tokio_stream::iter(requests));
        assert_eq!(batches.next().await.unwrap().unwrap().len(), 1);
        assert_eq!(batches.next().await.unwrap_err().code(), Code::OutOfRange);
    }

    #[tokio::test]
    async fn a_batch_does_not_wait_for_a_caller_who_waits() {
        let (sender, receiver) = mpsc::channel(2);
        sender.send(Ok(IngestRequest::default())).await.unwrap();
        let mut batches = Batches::new(ReceiverStream::new(receiver));
        assert_eq!(batches.next().await.unwrap().unwrap().len(), 1);
        drop(sender);
        assert!(batches.next().await.unwrap().is_none());
    }

    #[test]
    fn an_item_that_its_vector_makes_too_large_is_refused() {
        let fits = UpsertRequest { image: vec![0; MAX_MESSAGE_BYTES - 4096].into(), ..Default::default() };
        let mut larger = fits.clone();
        larger.vector = Some(thicket_proto::v1::Vector { values: vec![0.5; 1536] });
        assert!(matches!(sendable(fits), Prepared::Item(_)));
        let Prepared::Refused { error, .. } = sendable(larger) else { panic!("it was taken") };
        assert_eq!((error.code, error.reason.as_str()), (3, "IMAGE_TOO_LARGE"));
    }
}
