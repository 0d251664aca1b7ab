//! A small role to test the runtime with, and ways to look at it.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use thicket_proto::v1::coordinator_service_client::CoordinatorServiceClient;
use thicket_proto::v1::coordinator_service_server::{CoordinatorService, CoordinatorServiceServer};
use thicket_proto::v1::embedding_service_client::EmbeddingServiceClient;
use thicket_proto::v1::embedding_service_server::{EmbeddingService, EmbeddingServiceServer};
use thicket_proto::v1::*;
use thicket_runtime::{
    Batches, Call, DEFAULT_STUCK_AFTER, Deadline, Drained, Fault, Health, Peer, Right, RoleConfig, Server,
    Services, StartError, Stop, StopHandle, Work, Worker, WorkerOptions,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};

/// Answers each text with its length; some texts have other effects.
pub(crate) struct Engine {
    pub(crate) hold: Arc<std::sync::Barrier>,
}

impl Work for Engine {
    type Job = String;
    type Output = usize;

    fn run(&mut self, jobs: Vec<String>) -> Vec<Result<usize, Fault>> {
        assert!(!jobs.iter().any(|job| job == "panic"), "told to");
        if jobs.iter().any(|job| job == "hold") {
            // Once to say that the engine is busy, once to be let go.
            self.hold.wait();
            self.hold.wait();
        }
        jobs.iter().map(|job| Ok(job.len())).collect()
    }
}

/// The handlers under test.
#[derive(Clone)]
pub(crate) struct Handlers {
    pub(crate) worker: Worker<Batches<Engine>>,
    pub(crate) entered: Arc<Notify>,
    pub(crate) release: Arc<Notify>,
}

#[tonic::async_trait]
impl EmbeddingService for Handlers {
    async fn get_model(
        &self,
        request: Request<GetModelRequest>,
    ) -> Result<Response<GetModelResponse>, Status> {
        // Tells the caller how many milliseconds its budget still had.
        let call = Call::of(&request);
        call.require(Right::Admin, Some("lobby"))?;
        let left = call.deadline().remaining().unwrap_or_default().as_millis();
        let model =
            EmbeddingModel { dimension: u32::try_from(left).unwrap_or(u32::MAX), ..Default::default() };
        Ok(Response::new(GetModelResponse { model: Some(model) }))
    }

    async fn embed_text(
        &self,
        request: Request<EmbedTextRequest>,
    ) -> Result<Response<EmbedTextResponse>, Status> {
        let call = Call::of(&request);
        call.require(Right::Read, None)?;
        let text = request.into_inner().texts.concat();
        if text == "handler panic" {
            panic!("told to");
        }
        let done = self.worker.submit(text, call.deadline()).await?;
        let vector = Vector { values: vec![done.output as f32] };
        Ok(Response::new(EmbedTextResponse { vectors: vec![vector], ..Default::default() }))
    }

    async fn embed_image(
        &self,
        request: Request<EmbedImageRequest>,
    ) -> Result<Response<EmbedImageResponse>, Status> {
        Call::of(&request).require(Right::Write, Some("lobby"))?;
        self.entered.notify_one();
        self.release.notified().await;
        Ok(Response::new(EmbedImageResponse::default()))
    }
}

#[tonic::async_trait]
impl CoordinatorService for Handlers {
    type SearchPersonStream = Pin<Box<dyn Stream<Item = Result<SearchPersonResponse, Status>> + Send>>;
    type IngestStream = Pin<Box<dyn Stream<Item = Result<IngestResponse, Status>> + Send>>;

    async fn search_person(
        &self,
        request: Request<SearchPersonRequest>,
    ) -> Result<Response<Self::SearchPersonStream>, Status> {
        Call::of(&request).require(Right::Read, None)?;
        let one = tokio_stream::once(Ok(SearchPersonResponse::default()));
        Ok(Response::new(Box::pin(one.chain(tokio_stream::pending()))))
    }

    async fn ingest(
        &self,
        _request: Request<Streaming<IngestRequest>>,
    ) -> Result<Response<Self::IngestStream>, Status> {
        Ok(Response::new(Box::pin(tokio_stream::empty())))
    }
}

/// A running role.
pub(crate) struct Running {
    pub(crate) grpc: SocketAddr,
    pub(crate) admin: SocketAddr,
    pub(crate) health: Health,
    pub(crate) stop: StopHandle,
    pub(crate) served: JoinHandle<Result<Drained, StartError>>,
    pub(crate) handlers: Handlers,
    pub(crate) hold: Arc<std::sync::Barrier>,
}

/// A worker that waits for nobody.
pub(crate) fn worker_options(queue_limit: usize, max_batch: usize) -> WorkerOptions {
    WorkerOptions {
        name: "model",
        queue_limit,
        max_batch,
        max_delay: Duration::ZERO,
        stuck_after: DEFAULT_STUCK_AFTER,
    }
}

pub(crate) fn config() -> RoleConfig {
    RoleConfig { admin_listen: Some(([127, 0, 0, 1], 0).into()), ..RoleConfig::in_process() }
}

pub(crate) async fn start(config: &RoleConfig) -> Running {
    let server = Server::bind(thicket_runtime::Role::Embedding, config).await.expect("bound");
    let (grpc, admin) = (server.grpc_addr(), server.admin_addr().expect("asked for"));
    let health = server.health();
    let hold = Arc::new(std::sync::Barrier::new(2));
    let engine = Engine { hold: hold.clone() };
    let options = worker_options(1, 1);
    let worker =
        Worker::spawn(options, &health, move || Ok::<_, String>(Batches::of(engine))).expect("a thread");
    worker.loaded().await.expect("loaded");
    let handlers = Handlers { worker, entered: Arc::default(), release: Arc::default() };
    let services = Services::new()
        .with(EmbeddingServiceServer::new(handlers.clone()))
        .with(CoordinatorServiceServer::new(handlers.clone()));
    let (stop, stopped) = Stop::by_hand();
    let served = tokio::spawn(server.serve(services, stopped.requested()));
    health.ready().await;
    Running { grpc, admin, health, stop, served, handlers, hold }
}

impl Running {
    pub(crate) fn peer(&self, token: Option<&str>) -> Peer {
        Peer::lazy(&format!("http://{}", self.grpc), token).expect("a valid address")
    }

    pub(crate) fn client(&self) -> EmbeddingServiceClient<Peer> {
        EmbeddingServiceClient::new(self.peer(None))
    }

    pub(crate) fn search_client(&self) -> CoordinatorServiceClient<Peer> {
        CoordinatorServiceClient::new(self.peer(None))
    }

    pub(crate) async fn get(&self, path: &str) -> (u16, String) {
        get(self.admin, path).await
    }

    /// Waits until the running batch is over.
    pub(crate) async fn meet(&self) {
        let hold = self.hold.clone();
        tokio::task::spawn_blocking(move || {
            hold.wait();
        })
        .await
        .expect("no panic");
    }
}

pub(crate) fn text(text: &str) -> EmbedTextRequest {
    EmbedTextRequest { texts: vec![text.to_owned()] }
}

pub(crate) fn soon() -> Deadline {
    Deadline::after(Duration::from_secs(20))
}

/// Status and body of an admin page.
pub(crate) async fn get(address: SocketAddr, path: &str) -> (u16, String) {
    let mut stream = tokio::net::TcpStream::connect(address).await.expect("connected");
    let request = format!("GET {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("received");
    let status = answer.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status line");
    let body = answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default();
    (status, body)
}
