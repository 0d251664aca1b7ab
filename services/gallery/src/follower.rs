//! The replica's side of replication: follows the writer and has every step taken over.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use parking_lot::Mutex;
use thicket_proto::v1;
use thicket_proto::v1::follow_response::Part;
use thicket_proto::v1::gallery_service_client::GalleryServiceClient;
use thicket_proto::v1::replication_service_client::ReplicationServiceClient;
use thicket_runtime::{Check, Deadline, Fault, MAX_DEADLINE, MAX_MESSAGE_BYTES, Peer, request_by};
use thicket_telemetry::instruments;
use tokio::sync::mpsc;
use tonic::{Code, Status};

use crate::error::GalleryError;
use crate::gallery::Gallery;
use crate::pool::Pool;
use crate::record::{ImageHash, ItemRecord};
use crate::source::Position;
use crate::store::FORMAT;
use crate::takeover::{Begin, broken};
use crate::writer::StepPart;

/// The writer says something once a second; one that is silent for so long is lost.
const SILENCE: Duration = Duration::from_secs(10);
/// Pauses before the writer is called again.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// How long an image may take.
const IMAGE_TIME: Duration = Duration::from_secs(30);
/// Images that are fetched at a time.
const IMAGES_AT_ONCE: usize = 8;
/// Parts of a step that wait for the thread that writes.
const WINDOW: usize = 2;
/// How often the lag is measured.
const TICK: Duration = Duration::from_secs(1);

/// How far a replica is behind its writer. Shared by the follower, which sets it, and whoever asks.
#[derive(Debug)]
pub(crate) struct Lag {
    writer: String,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// Last transaction of the writer that was heard of.
    heard: u64,
    connected: bool,
    /// When the replica was last known to be level with the writer; at first, when it began.
    level: Instant,
}

/// [`Lag`] at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Behind {
    pub(crate) writer_transaction: u64,
    pub(crate) transactions: u64,
    pub(crate) time: Duration,
    pub(crate) connected: bool,
}

impl Lag {
    pub(crate) fn new(writer: String) -> Self {
        let inner = Inner { heard: 0, connected: false, level: Instant::now() };
        Self { writer, inner: Mutex::new(inner) }
    }

    /// Address of the writer.
    pub(crate) fn writer(&self) -> &str {
        &self.writer
    }

    /// The writer is at a transaction, the replica at another; true where they are level.
    fn heard(&self, writer: u64, own: u64) -> bool {
        let mut inner = self.inner.lock();
        (inner.heard, inner.connected) = (writer, true);
        let level = own >= writer;
        if level {
            inner.level = Instant::now();
        }
        level
    }

    /// Whether the replica was level with the writer at that moment or later.
    fn was_level_since(&self, moment: Instant) -> bool {
        self.inner.lock().level >= moment
    }

    fn lost(&self) {
        self.inner.lock().connected = false;
    }

    /// How far a replica at a transaction is behind.
    pub(crate) fn of(&self, own: u64) -> Behind {
        let inner = self.inner.lock();
        let transactions = inner.heard.saturating_sub(own);
        let time = inner.level.elapsed();
        // The writer is heard of once a second; what is younger than two of those is no lag.
        let time =
            if inner.connected && transactions == 0 && time < 2 * TICK { Duration::ZERO } else { time };
        Behind { writer_transaction: inner.heard, transactions, time, connected: inner.connected }
    }

    /// The same as callers see it.
    pub(crate) fn describe(&self, own: u64) -> v1::Replication {
        let behind = self.of(own);
        v1::Replication {
            writer: self.writer.clone(),
            transaction: own,
            writer_transaction: behind.writer_transaction,
            behind_ms: u64::try_from(behind.time.as_millis()).unwrap_or(u64::MAX),
            connected: behind.connected,
        }
    }
}

/// Follows the writer for one replica.
#[derive(Debug)]
pub(crate) struct Follower {
    pub(crate) gallery: Arc<Gallery>,
    pub(crate) pool: Arc<Pool>,
    pub(crate) writer: Peer,
    pub(crate) lag: Arc<Lag>,
    /// Passes once the replica has been level with the writer.
    pub(crate) caught_up: Check,
    /// Says how far behind it is.
    pub(crate) shown: Check,
}

impl Follower {
    /// Follows for ever; ends by being dropped.
    pub(crate) async fn run(self) {
        let following = async {
            let mut pause = PAUSE.0;
            let mut last = String::new();
            loop {
                let from = self.gallery.position();
                let began = Instant::now();
                let Err(error) = self.session().await;
                // However long it tried: a disk that is full is found to be so after some time only.
                if self.gallery.position() != from || self.lag.was_level_since(began) {
                    pause = PAUSE.0;
                    last.clear();
                }
                self.lag.lost();
                let reason = error.to_string();
                if reason != last {
                    tracing::warn!(
                        writer = self.lag.writer(),
                        error = reason,
                        "the writer is not followed, trying again"
                    );
                    last = reason;
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(PAUSE.1);
            }
        };
        tokio::join!(following, self.report());
    }

    /// Shows the lag, for ever.
    async fn report(&self) {
        loop {
            let behind = self.lag.of(self.gallery.position().transaction);
            instruments().replication_lag.record(behind.transactions, &[]);
            instruments().replication_lag_time.record(behind.time.as_secs_f64(), &[]);
            let Behind { transactions, time, connected, .. } = behind;
            let seconds = time.as_secs_f64();
            let how = if connected { "connected" } else { "not connected" };
            self.shown.pass_with(format!(
                "{transactions} transactions, {seconds:.1} s behind {}, {how}",
                self.lag.writer()
            ));
            tokio::time::sleep(TICK).await;
        }
    }

    /// One call to the writer, to its end.
    async fn session(&self) -> Result<std::convert::Infallible, GalleryError> {
        let position = self.gallery.position();
        let request = v1::FollowRequest { format: FORMAT, position: Some(position.into()) };
        let request = request_by(request, Deadline::after(MAX_DEADLINE));
        let mut client = ReplicationServiceClient::new(self.writer.clone())
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        let opened = tokio::time::timeout(SILENCE, client.follow(request)).await;
        let mut parts = opened.map_err(|_| silent())?.map_err(lost)?.into_inner();
        loop {
            match next(&mut parts).await? {
                Part::State(state) => {
                    let own = self.gallery.position().transaction;
                    if self.lag.heard(state.transaction, own) {
                        self.caught_up.pass();
                    }
                }
                Part::Begin(begin) => self.step(begin.try_into()?, &mut parts).await?,
                Part::Items(_) | Part::End(_) => return Err(broken("a part of no step")),
            }
        }
    }

    /// Has one step taken over while it comes in.
    async fn step(
        &self,
        begin: Begin,
        parts: &mut tonic::Streaming<v1::FollowResponse>,
    ) -> Result<(), GalleryError> {
        let names = self.names(&begin);
        let (whole, to) = (begin.whole, begin.to);
        let (sender, receiver) = mpsc::channel(WINDOW);
        let done = self.gallery.writes().take_over(begin, receiver).await?;
        let feed = async {
            loop {
                let items = match next(parts).await? {
                    Part::Items(v1::StepItems { items }) => items,
                    Part::End(_) => {
                        let _ = sender.send(StepPart::End).await;
                        return Ok::<_, GalleryError>(());
                    }
                    Part::Begin(_) | Part::State(_) => return Err(broken("a step in a step")),
                };
                self.images(&items, &names, &sender).await?;
                if sender.send(StepPart::Items(items)).await.is_err() {
                    // The thread that writes has given the step up, and says why.
                    return Ok(());
                }
            }
        };
        let fed = feed.await;
        // Where there was no end, this cuts the step off.
        drop(sender);
        let done = done.await;
        fed?;
        done?;
        self.finished(whole, to);
        Ok(())
    }

    fn finished(&self, whole: bool, to: Position) {
        let kind = if whole { "whole" } else { "changes" };
        instruments()
            .replication_steps
            .add(1, &[opentelemetry::KeyValue::new(thicket_telemetry::names::KIND, kind)]);
        if whole {
            tracing::info!(
                transaction = to.transaction,
                writer = self.lag.writer(),
                "took everything over from the writer"
            );
        }
    }

    /// Names of the collections that a step may be about, by number.
    fn names(&self, begin: &Begin) -> HashMap<u64, String> {
        let mut names = if begin.whole { HashMap::new() } else { self.gallery.numbers() };
        names.extend(begin.collections.iter().map(|(name, record)| (record.number, name.clone())));
        names
    }

    /// Fetches the images of items that are not here yet and hands them on before the items.
    async fn images(
        &self,
        items: &[v1::StoredItem],
        names: &HashMap<u64, String>,
        sender: &mpsc::Sender<StepPart>,
    ) -> Result<(), GalleryError> {
        let mut wanted: HashMap<ImageHash, &str> = HashMap::new();
        for item in items.iter().filter(|item| !item.record.is_empty()) {
            let record: ItemRecord = serde_json::from_slice(&item.record).map_err(broken)?;
            let name = names.get(&item.collection).ok_or_else(|| broken("an item of no collection"))?;
            if let Some(image) = record.image {
                wanted.insert(image.hash, name);
            }
        }
        let (gallery, hashes) = (self.gallery.clone(), wanted.keys().copied().collect::<Vec<_>>());
        let missing = self.pool.run_patiently(move || Ok(gallery.missing_images(hashes))).await?;
        let fetched = missing.into_iter().map(|hash| self.image(wanted[&hash], hash));
        let mut fetched = futures::stream::iter(fetched).buffer_unordered(IMAGES_AT_ONCE);
        while let Some(image) = fetched.next().await {
            // One that is gone at the writer goes here with the next step.
            if let Some((hash, bytes)) = image?
                && sender.send(StepPart::Image(hash, bytes)).await.is_err()
            {
                return Ok(());
            }
        }
        Ok(())
    }

    async fn image(
        &self,
        collection: &str,
        hash: ImageHash,
    ) -> Result<Option<(ImageHash, bytes::Bytes)>, GalleryError> {
        let by = Some(v1::get_image_request::By::ImageHash(hash.to_string()));
        let request = v1::GetImageRequest { collection: collection.to_owned(), by, min_transaction: 0 };
        let request = request_by(request, Deadline::after(IMAGE_TIME));
        let mut client = GalleryServiceClient::new(self.writer.clone())
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        match client.get_image(request).await {
            Ok(response) => Ok(Some((hash, response.into_inner().image))),
            Err(status) if status.code() == Code::NotFound => Ok(None),
            // Lost at the writer, it is lost here, and no reason to stay behind.
            Err(status) if status.code() == Code::DataLoss => Ok(None),
            Err(status) => Err(lost(status)),
        }
    }
}

async fn next(parts: &mut tonic::Streaming<v1::FollowResponse>) -> Result<Part, GalleryError> {
    let message = tokio::time::timeout(SILENCE, parts.message()).await.map_err(|_| silent())?;
    let message = message.map_err(lost)?.ok_or_else(|| following("the writer ended the call"))?;
    message.part.ok_or_else(|| broken("an empty message"))
}

fn silent() -> GalleryError {
    following(format!("nothing was heard for {SILENCE:?}"))
}

fn lost(status: Status) -> GalleryError {
    following(Fault::from_status(&status))
}

fn following(cause: impl std::fmt::Display) -> GalleryError {
    GalleryError::internal("following the writer", cause)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replica_is_level_when_it_has_the_writers_last_transaction() {
        let lag = Lag::new("http://writer:7702".to_owned());
        assert!(!lag.of(0).connected);
        assert!(!lag.heard(7, 5));
        assert_eq!((lag.of(5).transactions, lag.of(5).writer_transaction), (2, 7));
        assert!(lag.heard(7, 7));
        assert_eq!(
            lag.of(7),
            Behind { writer_transaction: 7, transactions: 0, time: Duration::ZERO, connected: true }
        );
        lag.lost();
        assert!(!lag.of(7).connected);
    }
}
