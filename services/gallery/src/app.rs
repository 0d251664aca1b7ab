use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use thicket_blobs::Blobs;
use thicket_discovery::{Announcement, MAX_NAMES, Member};
use thicket_proto::v1::gallery_service_server::GalleryServiceServer;
use thicket_proto::v1::replication_service_server::ReplicationServiceServer;
use thicket_runtime::{
    Check, Deadline, Failure, Health, MAX_MESSAGE_BYTES, Peer, Probe, Role, Server, Services, Stop,
};

use crate::backend::Backend;
use crate::config::{BackendConfig, Config, ImagesConfig};
use crate::embedded::Embedded;
use crate::error::OpenError;
use crate::follower::Follower;
use crate::forget::{ForgetConfig, Forgetter};
use crate::gallery::Gallery;
use crate::milvus::{Milvus, WriteOptions};
use crate::pool::Pool;
use crate::replication::Replication;
use crate::rpc::Service;

/// How often the writer is looked at.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);

/// How long what keeps the collections may take to say that it is there.
const AVAILABLE_LIMIT: Duration = Duration::from_secs(5);

/// Calls that a gallery is sent at a time.
const CAPACITY: u32 = 256;

/// A gallery that is ready to serve: data loaded, listeners open.
#[derive(Debug)]
pub struct App {
    server: Server,
    announcement: Option<Announcement>,
    service: Service,
    forget: Option<ForgetConfig>,
    /// What replicas follow; `None` where something else keeps the collections.
    gallery: Option<Arc<Gallery>>,
    /// The gallery to follow, where this one is a replica.
    writer: Option<Peer>,
}

impl From<OpenError> for Failure {
    fn from(error: OpenError) -> Self {
        if error.is_configuration() {
            Self::BadInput(error.to_string())
        } else {
            Self::Failed(error.to_string())
        }
    }
}

impl App {
    /// Checks the settings, opens the data folder (building indexes where their snapshots do not serve), then opens the
    /// listeners.
    ///
    /// # Errors
    /// [`Failure::BadInput`] for a bad setting, a data folder that another gallery works on or a newer version wrote, or
    /// an address that cannot be listened on; [`Failure::Failed`] where the data cannot be read. No port stays open.
    pub async fn build(config: Config) -> Result<Self, Failure> {
        config.validate()?;
        let (role, discovery) = (config.role.clone(), config.discovery.clone());
        let (images, forget) = (config.images, config.forget.clone());
        let writer = writer(&config)?;
        let pool = Pool::start(config.readers, config.read_queue_limit)
            .map_err(|cause| Failure::Failed(format!("reader threads cannot start: {cause}")))?;
        let pool = Arc::new(pool);
        let (backend, gallery) = open(config, pool.clone()).await?;
        let service = Service { backend, pool, images };
        let bound = Server::bind(Role::Gallery, &role).await.map_err(Failure::from).and_then(|server| {
            let announcement = discovery.announcement(Role::Gallery, server.grpc_addr())?;
            Ok((server, announcement))
        });
        match bound {
            Ok((server, announcement)) => Ok(Self { server, announcement, service, forget, gallery, writer }),
            Err(failure) => {
                close(service).await;
                Err(failure)
            }
        }
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

    /// Serves until `stop`, drains, finishes what is queued, saves snapshots and gives the data folder free.
    ///
    /// # Errors
    /// [`Failure::Failed`] where the drain limit cut calls off.
    pub async fn run(self, stop: Stop) -> Result<(), Failure> {
        let live = self.server.health().check("writer", Probe::Live);
        let ready = self.server.health().check("backend", Probe::Ready);
        let watch = tokio::spawn(watch(self.service.backend.clone(), live, ready));
        let grpc = GalleryServiceServer::new(self.service.clone())
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        let backend = self.service.backend.clone();
        let (gallery, pool, health) = (self.gallery, self.service.pool.clone(), self.server.health());
        let lag = gallery.as_ref().and_then(|gallery| gallery.lag());
        let follower = gallery.clone().zip(self.writer).zip(lag).map(|((gallery, writer), lag)| {
            let caught_up = health.check("caught up", Probe::Startup);
            let shown = health.check("replication", Probe::Ready);
            let pool = pool.clone();
            tokio::spawn(Follower { gallery, pool, writer, lag, caught_up, shown }.run())
        });
        let replication = gallery.map(|gallery| {
            ReplicationServiceServer::new(Replication::new(gallery, pool, health))
                .max_decoding_message_size(MAX_MESSAGE_BYTES)
                .max_encoding_message_size(MAX_MESSAGE_BYTES)
        });
        let writable = follower.is_none();
        let describe = move |member: &mut Member| {
            member.collections = backend.names();
            member.collections.truncate(MAX_NAMES);
            member.capacity = CAPACITY;
            member.writable = writable;
        };
        let forgetter = self.forget.map(|config| Forgetter::new(self.service.backend.clone(), config));
        let forgetter = forgetter.map(|forgetter| tokio::spawn(forgetter.run()));
        let announcer = self.announcement.map(|own| own.start(&self.server.health(), describe));
        let mut services = Services::new().with(grpc);
        if let Some(replication) = replication {
            services = services.with(replication);
        }
        let drained = self.server.serve(services, stop.requested()).await;
        watch.abort();
        if let Some(forgetter) = forgetter {
            forgetter.abort();
        }
        if let Some(follower) = follower {
            follower.abort();
            // The step that it is at is cut off with it.
            let _ = follower.await;
        }
        if let Some(announcer) = announcer {
            announcer.close().await;
        }
        close(self.service).await;
        drained?.into_result()
    }
}

/// Opens what keeps the collections, and says which gallery that is where it is on this machine.
async fn open(config: Config, pool: Arc<Pool>) -> Result<(Arc<dyn Backend>, Option<Arc<Gallery>>), Failure> {
    let BackendConfig::Milvus(milvus) = config.backend.clone() else {
        let gallery = off_the_runtime("gallery-open", move || Gallery::open(&config)).await??;
        let gallery = Arc::new(gallery);
        return Ok((Arc::new(Embedded { gallery: gallery.clone(), pool }), Some(gallery)));
    };
    let ImagesConfig { url, settings } =
        config.image_store.ok_or_else(|| OpenError::missing("images", "milvus keeps no images"))?;
    let blobs = Blobs::open(&url, settings).map_err(OpenError::from)?;
    let options = WriteOptions {
        queue: config.queue_limit,
        bytes: config.upsert_bytes,
        batch: config.batch_limit,
        forgets: config.forget.is_some(),
    };
    Ok((Arc::new(Milvus::start(milvus, blobs, pool, options).await?), None))
}

/// Fails the live check when the writer is lost, which only a restart brings back, and the ready check while the collections
/// cannot be read.
async fn watch(backend: Arc<dyn Backend>, live: Check, ready: Check) {
    while backend.writes().is_open() {
        match backend.available(Deadline::after(AVAILABLE_LIMIT)).await {
            Ok(()) => ready.pass(),
            Err(error) => ready.fail(error.to_string()),
        }
        tokio::time::sleep(WATCH_INTERVAL).await;
    }
    live.fail("the writer is gone");
}

/// The gallery to follow, if there is one.
fn writer(config: &Config) -> Result<Option<Peer>, Failure> {
    let Some(address) = &config.follow else { return Ok(None) };
    let token = config.follow_token_file.as_deref().map(|file| {
        let refuse = |reason: &dyn std::fmt::Display| {
            Failure::BadInput(format!("follow-token-file: {}: {reason}", file.display()))
        };
        let text = std::fs::read_to_string(file).map_err(|error| refuse(&error))?;
        match text.trim() {
            "" => Err(refuse(&"it is empty")),
            token => Ok(token.to_owned()),
        }
    });
    let peer = Peer::lazy(&address.to_string(), token.transpose()?.as_deref());
    peer.map(Some).map_err(|error| Failure::BadInput(format!("follow: {error}")))
}

async fn close(service: Service) {
    let closed = off_the_runtime("gallery-close", move || service.backend.close()).await;
    if let Err(failure) = closed {
        tracing::error!(%failure, "the gallery was not closed in order");
    }
}

/// Runs blocking work on a thread of its own.
async fn off_the_runtime<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Failure> {
    let (done, result) = tokio::sync::oneshot::channel();
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || {
            let _ = done.send(work());
        })
        .map_err(|cause| Failure::Failed(format!("a thread cannot start: {cause}")))?;
    result.await.map_err(|_| Failure::Failed(format!("{name} panicked")))
}
