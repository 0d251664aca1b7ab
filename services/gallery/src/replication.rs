//! The writer's side of replication: tells replicas, as a gRPC service, what they lack.

use std::sync::Arc;
use std::time::Duration;

use thicket_proto::v1;
use thicket_proto::v1::follow_response::Part;
use thicket_proto::v1::replication_service_server::ReplicationService;
use thicket_runtime::{Call, Fault, Health, Right, Snapshot, State};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::error::GalleryError;
use crate::gallery::Gallery;
use crate::pool::Pool;
use crate::source::Position;
use crate::store::FORMAT;

/// Replicas that follow one writer at most.
const REPLICAS: usize = 16;
/// How often a replica is told at least how far the writer is.
const BEAT: Duration = Duration::from_secs(1);
/// Messages that wait for a slow replica; each has about a mebibyte at most.
const WINDOW: usize = 4;

/// The service.
#[derive(Debug, Clone)]
pub(crate) struct Replication {
    gallery: Arc<Gallery>,
    pool: Arc<Pool>,
    health: Health,
    places: Arc<Semaphore>,
}

type Answers = mpsc::Sender<Result<v1::FollowResponse, Status>>;

impl Replication {
    pub(crate) fn new(gallery: Arc<Gallery>, pool: Arc<Pool>, health: Health) -> Self {
        Self { gallery, pool, health, places: Arc::new(Semaphore::new(REPLICAS)) }
    }

    fn admit(&self, request: &v1::FollowRequest) -> Result<(Position, OwnedSemaphorePermit), GalleryError> {
        if let Some(writer) = self.gallery.writer() {
            return Err(GalleryError::ReadReplica { writer: writer.to_owned() });
        }
        if request.format != FORMAT {
            return Err(GalleryError::OtherFormat { expected: FORMAT, actual: request.format });
        }
        let from = match &request.position {
            None => Position::default(),
            Some(position) => Position::try_from(position.clone())
                .map_err(|rule| GalleryError::invalid("position.version", "POSITION_INVALID", rule))?,
        };
        let place = self.places.clone().try_acquire_owned();
        Ok((from, place.map_err(|_| GalleryError::QueueFull { queue: "replica", limit: REPLICAS })?))
    }

    /// Sends steps until the replica goes, the call's time is over or the gallery stops.
    async fn tell(self, mut at: Position, answers: Answers) {
        let mut moved = self.gallery.subscribe();
        let mut health = self.health.subscribe();
        loop {
            moved.mark_unchanged();
            match self.step(&mut at, &answers).await {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => {
                    let _ = answers.send(Err(Fault::from(error).into_status())).await;
                    return;
                }
            }
            let state = Part::State(v1::WriterState { transaction: self.gallery.position().transaction });
            if !send(&answers, state).await {
                return;
            }
            let stops =
                |now: &Snapshot| matches!(now.state, State::Draining | State::Closing | State::Closed);
            let stopping = tokio::select! {
                // Nothing more can come where it fails: the gallery has gone.
                changed = moved.changed() => changed.is_err(),
                () = tokio::time::sleep(BEAT) => false,
                () = answers.closed() => return,
                _ = health.wait_for(stops) => true,
            };
            if stopping {
                let _ = answers.send(Err(Fault::from(GalleryError::Stopping).into_status())).await;
                return;
            }
        }
    }

    /// Sends what leads to the present state, if anything does; false where the replica has gone.
    async fn step(&self, at: &mut Position, answers: &Answers) -> Result<bool, GalleryError> {
        let (source, from) = (self.gallery.source(), *at);
        let begun = self.pool.run_patiently(move || {
            let Some(reader) = source.step(from)? else { return Ok(None) };
            let begin = reader.begin()?;
            Ok(Some((reader, begin)))
        });
        let Some((mut reader, begin)) = begun.await? else { return Ok(true) };
        *at = reader.to();
        if !send(answers, Part::Begin(begin)).await {
            return Ok(false);
        }
        loop {
            let (same, items) = self
                .pool
                .run_patiently(move || {
                    let items = reader.items()?;
                    Ok((reader, items))
                })
                .await?;
            reader = same;
            if items.is_empty() {
                return Ok(send(answers, Part::End(v1::StepEnd {})).await);
            }
            if !send(answers, Part::Items(v1::StepItems { items })).await {
                return Ok(false);
            }
        }
    }
}

async fn send(answers: &Answers, part: Part) -> bool {
    answers.send(Ok(v1::FollowResponse { part: Some(part) })).await.is_ok()
}

#[tonic::async_trait]
impl ReplicationService for Replication {
    type FollowStream = ReceiverStream<Result<v1::FollowResponse, Status>>;

    async fn follow(
        &self,
        request: Request<v1::FollowRequest>,
    ) -> Result<Response<Self::FollowStream>, Status> {
        let call = Call::of(&request);
        call.require(Right::Admin, None)?;
        if !call.caller().is_everywhere() || !call.caller().may(Right::Read, None) {
            let message = "a replica reads every collection, later ones too".into();
            return Err(Fault::PermissionDenied { message }.into());
        }
        let (from, place) = self.admit(request.get_ref()).map_err(Fault::from)?;
        tracing::info!(transaction = from.transaction, caller = call.caller().name, "a replica follows");
        let (answers, stream) = mpsc::channel(WINDOW);
        let replication = self.clone();
        tokio::spawn(async move {
            replication.tell(from, answers).await;
            drop(place);
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}
