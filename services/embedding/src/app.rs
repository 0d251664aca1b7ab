use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};

use thicket_clip::{ClipEmbedder, LoadOptions};
use thicket_device::ComputeArgs;
use thicket_engine::Embedder;
use thicket_proto::v1::embedding_service_server::EmbeddingServiceServer;
use thicket_runtime::{
    Failure, Health, ImageDecoder, MAX_MESSAGE_BYTES, Role, Server, Services, Stop, Worker,
};

use crate::config::Config;
use crate::engine::Engine;
use crate::rpc::Service;

/// An embedding role whose listeners are open; the model loads on its own thread.
#[derive(Debug)]
pub struct App {
    server: Server,
    service: Service,
}

impl App {
    /// Checks the settings, opens the listeners and begins to load the model. Until it is loaded and has run once, calls
    /// are UNAVAILABLE and the role is live but not started.
    ///
    /// # Errors
    /// [`Failure::BadInput`] for a bad setting, a model folder or a device that is not there, or an address that cannot be
    /// listened on; no port stays open.
    pub async fn build(config: Config) -> Result<Self, Failure> {
        if !config.model.is_dir() {
            return Err(Failure::BadInput(format!("model folder {} is not there", config.model.display())));
        }
        let device = config.place.open().map_err(|error| Failure::BadInput(error.to_string()))?;
        let compute =
            ComputeArgs { dtype: config.precision, device: config.place, cpu_backend: config.cpu_backend };
        let chosen = compute.backend().map_err(|error| Failure::BadInput(error.to_string()))?;
        chosen.announce(&config.name);
        let options = LoadOptions {
            name: config.name.clone(),
            dtype: config.precision.dtype(),
            device,
            backend: chosen.backend,
        };
        let folder = config.model.clone();
        Self::start(config, move || {
            let embedder = ClipEmbedder::load(&folder, options)
                .map_err(|error| format!("model {}: {error}", folder.display()))?;
            Ok(Box::new(embedder))
        })
        .await
    }

    /// As [`App::build`], with a model that is loaded already; `model`, `precision` and `place` of the settings are not used.
    ///
    /// # Errors
    /// As [`App::build`].
    pub async fn with_engine(config: Config, embedder: Box<dyn Embedder>) -> Result<Self, Failure> {
        Self::start(config, move || Ok(embedder)).await
    }

    async fn start(
        config: Config,
        load: impl FnOnce() -> Result<Box<dyn Embedder>, String> + Send + 'static,
    ) -> Result<Self, Failure> {
        config.validate()?;
        let server = Server::bind(Role::Embedding, &config.role).await?;
        let info = Arc::new(OnceLock::new());
        let loaded = info.clone();
        let worker = Worker::spawn(config.worker(), &server.health(), move || {
            let embedder = load()?;
            let _ = loaded.set(embedder.info().clone());
            Engine::warm(embedder).map_err(|error| error.to_string())
        })
        .map_err(|cause| Failure::Failed(format!("a thread cannot start: {cause}")))?;
        let decoder = ImageDecoder::new(config.images, config.decoded_mib);
        Ok(Self { server, service: Service { worker, decoder, info } })
    }

    /// Where the API listens.
    pub fn grpc_addr(&self) -> SocketAddr {
        self.server.grpc_addr()
    }

    /// Where the admin pages are, if anywhere.
    pub fn admin_addr(&self) -> Option<SocketAddr> {
        self.server.admin_addr()
    }

    /// The role's health.
    pub fn health(&self) -> Health {
        self.server.health()
    }

    /// Serves until `stop`, then drains.
    ///
    /// # Errors
    /// [`Failure::BadInput`] where the model cannot be loaded, [`Failure::Failed`] where the drain limit cut calls off.
    pub async fn run(self, stop: Stop) -> Result<(), Failure> {
        let worker = self.service.worker.clone();
        let grpc = EmbeddingServiceServer::new(self.service)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        let cannot_load = async {
            match worker.loaded().await {
                Ok(()) => std::future::pending().await,
                Err(reason) => reason,
            }
        };
        tokio::select! {
            drained = self.server.serve(Services::new().with(grpc), stop.requested()) => drained?.into_result(),
            reason = cannot_load => Err(Failure::BadInput(reason)),
        }
    }
}
