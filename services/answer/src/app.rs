use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, OnceLock, mpsc};

use candle_core::DType;
use thicket_catalogue::ACTIVATION_RESERVE;
use thicket_device::{Load, Need, Opened, loaded};
use thicket_discovery::{Announcement, MAX_CAPACITY, Member};
use thicket_engine::Answerer;
use thicket_proto::v1::answer_service_server::AnswerServiceServer;
use thicket_qwen::{LoadOptions, QwenAnswerer};
use thicket_runtime::{Failure, Health, ImageDecoder, MAX_MESSAGE_BYTES, Replicas, Role, Services, Stop};

use crate::adapters::{Adapters, Loaded};
use crate::archive::Archive;
use crate::config::{Config, ModelSource};
use crate::engine::Engine;
use crate::memory::Memory;
use crate::model::Model;
use crate::rpc::Service;
use crate::served;

/// How each copy of the model is loaded, by the name of its device.
type Loads = Vec<(String, Load<dyn Answerer>)>;

/// An answer role whose listeners are open; every copy of the model loads on a thread of its own.
#[derive(Debug)]
pub struct App {
    server: thicket_runtime::Server,
    announcement: Option<Announcement>,
    capacity: u32,
    service: Service,
    /// Dropped with this, which ends the wait for a server that is away.
    _running: mpsc::Sender<()>,
}

impl App {
    /// Checks the settings, reads the prompts, opens the listeners and begins to load the model. Until it is loaded and
    /// has run once, calls are UNAVAILABLE and the role is live but not started. A model that another program serves is waited
    /// for while that is away.
    ///
    /// # Errors
    /// [`Failure::BadInput`] for a bad setting or prompt file, a model folder or a device that is not there, a device
    /// without room for the model, an answer store that cannot be used, or an address that cannot be listened on; no port
    /// stays open.
    pub async fn build(config: Config) -> Result<Self, Failure> {
        let (running, ended) = mpsc::channel();
        let loads = match &config.model {
            ModelSource::Folder(folder) => from_folder(&config, folder)?,
            ModelSource::Server(server) => {
                vec![("server".to_owned(), served::load(config.name.clone(), server.clone(), ended))]
            }
        };
        Self::start(config, loads, running).await
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
        Self::start(config, loaded(answerers), mpsc::channel().0).await
    }

    async fn start(config: Config, loads: Loads, running: mpsc::Sender<()>) -> Result<Self, Failure> {
        config.validate()?;
        let prompts = Arc::new(config.read_prompts()?);
        let at_start = config.loading.check()?;
        let server = thicket_runtime::Server::bind(Role::Answer, &config.role).await?;
        let announcement = config.discovery.announcement(Role::Answer, server.grpc_addr())?;
        // What is in work, and as much again that waits, so that a step never runs dry.
        let capacity = config.budgets.sequences.saturating_mul(2 * loads.len());
        let capacity = u32::try_from(capacity).unwrap_or(MAX_CAPACITY).clamp(1, MAX_CAPACITY);
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
        Ok(Self { server, announcement, capacity, service, _running: running })
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
        let (model, capacity) = (self.service.model.clone(), self.capacity);
        let describe = move |member: &mut Member| {
            member.fingerprint = model.info().ok().map(|info| info.fingerprint.clone());
            member.adapters = model.adapters.loaded().into_iter().map(|adapter| adapter.name).collect();
            member.capacity = capacity;
        };
        let announcer = self.announcement.map(|own| own.start(&self.server.health(), describe));
        let grpc = AnswerServiceServer::new(self.service)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        let ended = tokio::select! {
            drained = self.server.serve(Services::new().with(grpc), stop.requested()) => drained?.into_result(),
            reason = workers.cannot_load() => Err(Failure::BadInput(reason)),
        };
        if let Some(announcer) = announcer {
            announcer.close().await;
        }
        ended
    }
}

/// A load of the folder's model for every device.
fn from_folder(config: &Config, folder: &Path) -> Result<Loads, Failure> {
    if !folder.is_dir() {
        return Err(Failure::BadInput(format!("model folder {} is not there", folder.display())));
    }
    let compute = config.compute.prepare(&config.name, |dtype| need(config, folder, dtype));
    let compute = compute.map_err(|error| Failure::BadInput(error.to_string()))?;
    let (name, folder, loading) = (config.name.clone(), folder.to_owned(), config.loading.clone());
    let budgets = config.budgets;
    Ok(compute.loads(move |Opened { device, dtype, backend }| {
        let options = LoadOptions {
            name: name.clone(),
            adapter: loading.adapter.clone(),
            quantization: loading.quantize,
            dtype,
            device,
            backend,
            budgets,
        };
        let answerer = QwenAnswerer::load(&folder, options)
            .map_err(|error| format!("model {}: {error}", folder.display()))?;
        Ok(Box::new(answerer) as Box<dyn Answerer>)
    }))
}

/// What a copy of the model takes.
fn need(config: &Config, folder: &Path, dtype: DType) -> Result<Need, String> {
    let weights = thicket_qwen::weight_bytes(folder, dtype, config.loading.quantize)
        .map_err(|error| format!("model {}: {error}", folder.display()))?;
    Ok(Need { weights, caches: config.budgets.cached_bytes(), work: ACTIVATION_RESERVE })
}
