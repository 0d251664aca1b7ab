use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};

use thicket_device::ComputeArgs;
use thicket_engine::Answerer;
use thicket_proto::v1::answer_service_server::AnswerServiceServer;
use thicket_qwen::{LoadOptions, QwenAnswerer};
use thicket_runtime::{
    Failure, Health, ImageDecoder, MAX_MESSAGE_BYTES, Role, Server, Services, Stop, Worker,
};

use crate::adapters::{Adapters, Loaded};
use crate::config::Config;
use crate::descriptions::Descriptions;
use crate::engine::Engine;
use crate::model::Model;
use crate::rpc::Service;

/// An answer role whose listeners are open; the model loads on its own thread.
#[derive(Debug)]
pub struct App {
    server: Server,
    service: Service,
}

impl App {
    /// Checks the settings, reads the prompts, opens the listeners and begins to load the model. Until it is loaded and
    /// has run once, calls are UNAVAILABLE and the role is live but not started.
    ///
    /// # Errors
    /// [`Failure::BadInput`] for a bad setting or prompt file, a model folder or a device that is not there, or an address
    /// that cannot be listened on; no port stays open.
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
            adapter: config.loading.adapter.clone(),
            quantization: config.loading.quantize,
            dtype: config.precision.dtype(),
            device,
            backend: chosen.backend,
        };
        let folder = config.model.clone();
        Self::start(config, move || {
            let answerer = QwenAnswerer::load(&folder, options)
                .map_err(|error| format!("model {}: {error}", folder.display()))?;
            Ok(Box::new(answerer))
        })
        .await
    }

    /// As [`App::build`], with a model that is loaded already; `model` (but for its prompt file), `precision` and `place` of
    /// the settings are not used.
    ///
    /// # Errors
    /// As [`App::build`].
    pub async fn with_engine(config: Config, answerer: Box<dyn Answerer>) -> Result<Self, Failure> {
        Self::start(config, move || Ok(answerer)).await
    }

    async fn start(
        config: Config,
        load: impl FnOnce() -> Result<Box<dyn Answerer>, String> + Send + 'static,
    ) -> Result<Self, Failure> {
        config.validate()?;
        let prompts = Arc::new(config.read_prompts()?);
        let at_start = config.loading.check()?;
        let server = Server::bind(Role::Answer, &config.role).await?;
        let info = Arc::new(OnceLock::new());
        let loaded = info.clone();
        let adapters = Adapters {
            loaded: Arc::new(Loaded::new(config.loading.adapter_limit)),
            folder: config.loading.adapters.clone(),
        };
        let list = adapters.loaded.clone();
        let worker = Worker::spawn(config.worker(), &server.health(), move || {
            let answerer = load()?;
            let _ = loaded.set(answerer.info().clone());
            let mut engine = Engine::warm(answerer, list).map_err(|error| error.to_string())?;
            for (name, folder) in at_start {
                engine.load(&name, &folder).map_err(|fault| fault.to_string())?;
            }
            Ok::<_, String>(engine)
        })
        .map_err(|cause| Failure::Failed(format!("a thread cannot start: {cause}")))?;
        let decoder = ImageDecoder::new(config.images, config.decoded_mib);
        let service = Service {
            model: Model { worker, decoder, info, adapters },
            prompts,
            descriptions: Arc::new(Descriptions::new(config.descriptions)),
            max_output_tokens: config.max_output_tokens,
        };
        Ok(Self { server, service })
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
        let worker = self.service.model.worker.clone();
        let grpc = AnswerServiceServer::new(self.service)
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
