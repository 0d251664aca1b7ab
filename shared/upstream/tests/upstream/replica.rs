use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use thicket_proto::v1::embedding_service_server::{EmbeddingService, EmbeddingServiceServer};
use thicket_proto::v1::{
    EmbedImageRequest, EmbedImageResponse, EmbedTextRequest, EmbedTextResponse, GetModelRequest,
    GetModelResponse,
};
use thicket_runtime::{Fault, Role, RoleConfig, Server, Services, Stop, StopHandle};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;
use tonic::{Request, Response, Status};

/// What a replica does with a call.
#[derive(Debug, Clone)]
pub(crate) enum Does {
    Answers,
    Fails(Fault),
    Hangs,
    /// Answers once it is released.
    Waits,
    /// The same, and its whole process does nothing else until then.
    Blocks,
}

#[derive(Debug, Clone)]
struct Handlers {
    name: String,
    does: Arc<Mutex<Does>>,
    calls: Arc<AtomicUsize>,
    released: watch::Receiver<bool>,
}

/// A server that answers with its name, in a runtime of its own, which can be killed with all its connections.
pub(crate) struct Replica {
    pub(crate) name: String,
    pub(crate) address: SocketAddr,
    handlers: Handlers,
    release: watch::Sender<bool>,
    stop: StopHandle,
    runtime: Mutex<Option<Runtime>>,
}

impl Replica {
    pub(crate) async fn start(name: &str) -> Self {
        Self::start_at(name, ([127, 0, 0, 1], 0).into()).await
    }

    pub(crate) async fn start_at(name: &str, listen: SocketAddr) -> Self {
        let (release, released) = watch::channel(false);
        let handlers = Handlers {
            name: name.to_owned(),
            does: Arc::new(Mutex::new(Does::Answers)),
            calls: Arc::default(),
            released,
        };
        let (stop, stopped) = Stop::by_hand();
        let (tell, address) = tokio::sync::oneshot::channel();
        let services = Services::new().with(EmbeddingServiceServer::new(handlers.clone()));
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        runtime.spawn(async move {
            // A draining role serves on for a while, as behind a load balancer.
            let config =
                RoleConfig { listen, drain_delay: Duration::from_secs(3600), ..RoleConfig::in_process() };
            let server = Server::bind(Role::Embedding, &config).await.unwrap();
            tell.send(server.grpc_addr()).unwrap();
            let _ = server.serve(services, stopped.requested()).await;
        });
        let address = address.await.unwrap();
        let runtime = Mutex::new(Some(runtime));
        Self { name: name.to_owned(), address, handlers, release, stop, runtime }
    }

    pub(crate) fn does(&self, does: Does) {
        *self.handlers.does.lock() = does;
    }

    pub(crate) fn calls(&self) -> usize {
        self.handlers.calls.load(Ordering::SeqCst)
    }

    pub(crate) fn release(&self) {
        self.release.send_replace(true);
    }

    pub(crate) fn drain(&self) {
        self.stop.stop();
    }

    /// Breaks every connection.
    pub(crate) fn kill(&self) {
        if let Some(runtime) = self.runtime.lock().take() {
            runtime.shutdown_background();
        }
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        self.kill();
    }
}

#[tonic::async_trait]
impl EmbeddingService for Handlers {
    async fn get_model(&self, _: Request<GetModelRequest>) -> Result<Response<GetModelResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }

    async fn embed_text(&self, _: Request<EmbedTextRequest>) -> Result<Response<EmbedTextResponse>, Status> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        let does = self.does.lock().clone();
        match does {
            Does::Answers => {}
            Does::Fails(fault) => return Err(fault.into()),
            Does::Hangs => std::future::pending().await,
            Does::Blocks => {
                // Until it is released or gone.
                while !*self.released.borrow() && self.released.has_changed().is_ok() {
                    std::thread::sleep(Duration::from_millis(5));
                }
            }
            Does::Waits => _ = self.released.clone().wait_for(|released| *released).await,
        }
        Ok(Response::new(EmbedTextResponse { model_fingerprint: self.name.clone(), ..Default::default() }))
    }

    async fn embed_image(
        &self,
        _: Request<EmbedImageRequest>,
    ) -> Result<Response<EmbedImageResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }
}
