use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use candle_core::DType;
use thicket_catalogue::ACTIVATION_RESERVE;
use thicket_clip::{ClipEmbedder, LoadOptions};
use thicket_device::{Load, Need, Opened, loaded};
use thicket_discovery::{Announcement, Member};
use thicket_engine::Embedder;
use thicket_proto::v1::embedding_service_server::EmbeddingServiceServer;
use thicket_runtime::{
    Batches, CpuWork, Failure, Health, ImageDecoder, MAX_MESSAGE_BYTES, Replicas, Role, Server, Services,
    Stop,
};

use crate::config::Config;
use crate::engine::Engine;
use crate::rpc::{Loaded, Service};

/// Calls that a copy of the model is sent at a time: what is in a batch, and what waits for the next.
const CAPACITY: u32 = 64;

/// An embedding role whose listeners are open; every copy of the model loads on a thread of its own.
#[derive(Debug)]
pub struct App {
    server: Server,
    announcement: Option<Announcement>,
    service: Service,
}

impl App {
    /// Checks the settings, opens the listeners and begins to load the model. Until it is loaded and has run once, calls
    /// are UNAVAILABLE and the role is live but not started.
    ///
    /// # Errors
    /// [`Failure::BadInput`] for a bad setting, a model folder or a device that is not there, a device without room for the
    /// model, or an address that cannot be listened on; no port stays open.
    pub async fn build(config: Config) -> Result<Self, Failure> {
        if !config.model.is_dir() {
            return Err(Failure::BadInput(format!("model folder {} is not there", config.model.display())));
        }
        let compute = config.compute.prepare(&config.name, |dtype| need(&config.model, dtype));
        let compute = compute.map_err(|error| Failure::BadInput(error.to_string()))?;
        let (name, folder) = (config.name.clone(), config.model.clone());
        let loads = compute.loads(move |Opened { device, dtype, backend }| {
            let options = LoadOptions { name: name.clone(), dtype, device, backend };
            let embedder = ClipEmbedder::load(&folder, options)
                .map_err(|error| format!("model {}: {error}", folder.display()))?;
            Ok(Box::new(embedder) as Box<dyn Embedder>)
        });
        Self::start(config, loads).await
    }

    /// As [`App::build`], with a model that is loaded already; `model`, `precision` and `places` of the settings are not
    /// used.
    ///
    /// # Errors
    /// As [`App::build`].
    pub async fn with_engine(config: Config, embedder: Box<dyn Embedder>) -> Result<Self, Failure> {
        Self::with_replicas(config, vec![embedder]).await
    }

    /// As [`App::with_engine`], with several copies of the model, at least one, that share the work.
    ///
    /// # Errors
    /// As [`App::build`].
    pub async fn with_replicas(config: Config, embedders: Vec<Box<dyn Embedder>>) -> Result<Self, Failure> {
        Self::start(config, loaded(embedders)).await
    }

    async fn start(config: Config, loads: Vec<(String, Load<dyn Embedder>)>) -> Result<Self, Failure> {
        config.validate()?;
        let server = Server::bind(Role::Embedding, &config.role).await?;
        let announcement = config.discovery.announcement(Role::Embedding, server.grpc_addr())?;
        let model = Arc::new(OnceLock::new());
        let budget = config.batch_tokens;
        let loads = loads.into_iter().map(|(place, load)| {
            let model = model.clone();
            let warm = move || {
                let embedder = load()?;
                // Copies of one model are alike; the first to be loaded speaks for all.
                model.get_or_init(|| Loaded {
                    info: embedder.info().clone(),
                    preprocessor: embedder.preprocessor(),
                });
                Engine::warm(embedder, budget).map(Batches::of).map_err(|error| error.to_string())
            };
            (place, warm)
        });
        let workers = Replicas::spawn(&config.worker(), &server.health(), loads.collect())
            .map_err(|cause| Failure::Failed(format!("a thread cannot start: {cause}")))?;
        let decoder = ImageDecoder::new(config.images, config.decoded_mib);
        let service = Service { workers, decoder, texts: CpuWork::default(), model, budget };
        Ok(Self { server, announcement, service })
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
        let workers = self.service.workers.clone();
        let model = self.service.model.clone();
        let describe = move |member: &mut Member| {
            member.fingerprint = model.get().map(|model| model.info.fingerprint.clone());
            member.capacity = CAPACITY;
        };
        let announcer = self.announcement.map(|own| own.start(&self.server.health(), describe));
        let grpc = EmbeddingServiceServer::new(self.service)
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

/// What a copy of the model takes.
fn need(folder: &Path, dtype: DType) -> Result<Need, String> {
    let values = thicket_clip::stored_values(folder)
        .map_err(|error| format!("model {}: {error}", folder.display()))?;
    let weights = values.saturating_mul(dtype.size_in_bytes() as u64);
    Ok(Need { weights, caches: 0, work: ACTIVATION_RESERVE })
}
