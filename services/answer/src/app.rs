use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};

use candle_core::DType;
use thicket_catalogue::ACTIVATION_RESERVE;
use thicket_device::{Driver, Need, Place};
use thicket_engine::Answerer;
use thicket_proto::v1::answer_service_server::AnswerServiceServer;
use thicket_qwen::{LoadOptions, QwenAnswerer};
use thicket_runtime::{
    Failure, Health, ImageDecoder, MAX_MESSAGE_BYTES, Replicas, Role, Server, Services, Stop,
};

use crate::adapters::{Adapters, Loaded};
use crate::archive::Archive;
use crate::config::Config;
use crate::engine::Engine;
use crate::memory::Memory;
use crate::model::Model;
use crate::rpc::Service;

/// Loads a copy of the model, on the thread that will own it.
type Load = Box<dyn FnOnce() -> Result<Box<dyn Answerer>, String> + Send>;

/// An answer role whose listeners are open; every copy of the model loads on a thread of its own.
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
    /// [`Failure::BadInput`] for a bad setting or prompt file, a model folder or a device that is not there, a device
    /// without room for the model, an answer store that cannot be used, or an address that cannot be listened on; no port
    /// stays open.
    pub async fn build(config: Config) -> Result<Self, Failure> {
        if !config.model.is_dir() {
            return Err(Failure::BadInput(format!("model folder {} is not there", config.model.display())));
        }
        let chosen = config.compute.backend().map_err(|error| Failure::BadInput(error.to_string()))?;
        chosen.announce(&config.name);
        let dtype = config.compute.dtype();
        require_room(&config, dtype)?;
        let loads = config.compute.device.iter().map(|place| {
            let (name, folder, loading) = (config.name.clone(), config.model.clone(), config.loading.clone());
            let (budgets, backend) = (config.budgets, chosen.backend);
            let load: Load = Box::new(move || {
                // On the thread that computes, because a GPU's work is ordered by thread.
                let device = place.open().map_err(|error| error.to_string())?;
                let options = LoadOptions {
                    name,
                    adapter: loading.adapter,
                    quantization: loading.quantize,
                    dtype,
                    device,
                    backend,
                    budgets,
                };
                let answerer = QwenAnswerer::load(&folder, options)
                    .map_err(|error| format!("model {}: {error}", folder.display()))?;
                Ok(Box::new(answerer))
            });
            (place.to_string(), load)
        });
        let loads = loads.collect();
        Self::start(config, loads).await
    }

    /// As [`App::build`], with a model that is loaded already; `model` (but for its prompt file), `precision` and `places` of
    /// the settings are not used.
    ///
    /// # Errors
    /// As [`App::build`].
    pub async fn with_engine(config: Config, answerer: Box<dyn Answerer>) -> Result<Self, Failure> {
        Self::with_replicas(config, vec![answerer]).await
    }

    /// As [`App::with_engine`], with several copies of the model, at least one, that share the work.
    ///
    /// # Errors
    /// As [`App::build`].
    pub async fn with_replicas(config: Config, answerers: Vec<Box<dyn Answerer>>) -> Result<Self, Failure> {
        let loads = answerers.into_iter().enumerate().map(|(index, answerer)| {
            let load: Load = Box::new(move || Ok(answerer));
            (index.to_string(), load)
        });
        let loads = loads.collect();
        Self::start(config, loads).await
    }

    async fn start(config: Config, loads: Vec<(String, Load)>) -> Result<Self, Failure> {
        config.validate()?;
        let prompts = Arc::new(config.read_prompts()?);
        let at_start = config.loading.check()?;
        let server = Server::bind(Role::Answer, &config.role).await?;
        let archive = match &config.data {
            Some(folder) => Archive::open(folder, config.answer_cache_bytes, &server.health()).await?,
            None => {
                tracing::info!("answers are kept in memory only: no data folder is given");
                Archive::default()
            }
        };
        let info = Arc::new(OnceLock::new());
        let adapters = Adapters {
            loaded: Arc::new(Loaded::new(config.loading.adapter_limit)),
            folder: config.loading.adapters.clone(),
        };
        let loads = loads.into_iter().map(|(place, load)| {
            let (info, list, at_start) = (info.clone(), adapters.loaded.clone(), at_start.clone());
            let warm = move || {
                let answerer = load()?;
                // Copies of one model are alike; the first to be loaded speaks for all.
                info.get_or_init(|| answerer.info().clone());
                let mut engine = Engine::warm(answerer, list).map_err(|error| error.to_string())?;
                for (name, folder) in at_start {
                    engine.load(&name, &folder).map_err(|fault| fault.to_string())?;
                }
                Ok::<_, String>(engine)
            };
            (place, warm)
        });
        let workers = Replicas::spawn(&config.worker(), &server.health(), loads.collect())
            .map_err(|cause| Failure::Failed(format!("a thread cannot start: {cause}")))?;
        let decoder = ImageDecoder::new(config.images, config.decoded_mib);
        let service = Service {
            model: Model { workers, decoder, info, adapters },
            prompts,
            memory: Arc::new(Memory::new(config.descriptions)),
            archive,
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
        let workers = self.service.model.workers.clone();
        let grpc = AnswerServiceServer::new(self.service)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        let cannot_load = async {
            match workers.loaded().await {
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

/// Sees whether the model fits every GPU before any port is opened.
fn require_room(config: &Config, dtype: DType) -> Result<(), Failure> {
    if config.compute.device.first() == Place::Cpu {
        return Ok(());
    }
    let weights = thicket_qwen::weight_bytes(&config.model, dtype, config.loading.quantize)
        .map_err(|error| Failure::BadInput(format!("model {}: {error}", config.model.display())))?;
    let need = Need { weights, caches: config.budgets.cached_bytes(), work: ACTIVATION_RESERVE };
    let gpus = config
        .compute
        .device
        .check(dtype, &need, &Driver)
        .map_err(|error| Failure::BadInput(error.to_string()))?;
    for (place, gpu) in gpus {
        tracing::info!(
            device = %place,
            gpu = gpu.name,
            capability = %gpu.capability,
            free_bytes = gpu.free,
            needed_bytes = need.total(),
            dtype = dtype.as_str(),
            "device has room for the model"
        );
    }
    Ok(())
}
