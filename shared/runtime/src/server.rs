use std::convert::Infallible;
use std::hash::{BuildHasher, RandomState};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};
use tonic::body::Body;
use tonic::server::NamedService;
use tonic::service::Routes;
use tonic::transport::server::TcpIncoming;
use tonic_health::pb::health_server::HealthServer;

use crate::audit::AuditLog;
use crate::auth::{Authenticator, TokensError};
use crate::grpc_health::GrpcHealth;
use crate::health::{Health, State};
use crate::layer::{CallLayer, Shared};
use crate::role::{Role, RoleConfig};
use crate::{Failure, admin, clock};

/// Largest message in either direction, in bytes. tonic has no limit on what it sends and 4 MiB on what it takes: set
/// both on every server and client (`max_decoding_message_size`, `max_encoding_message_size`).
pub const MAX_MESSAGE_BYTES: usize = 16 * 1024 * 1024;
/// Calls at a time on one connection.
pub const MAX_CONCURRENT_STREAMS: u32 = 256;
/// How often a connection with calls on it is pinged.
pub const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(60);
/// How long a ping may go unanswered.
pub const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// Age at which a connection is asked to close, so that load spreads again; up to a tenth more by chance.
pub const MAX_CONNECTION_AGE: Duration = Duration::from_secs(30 * 60);

/// How long the last frames may take to leave once no call is in flight.
const LINGER: Duration = Duration::from_millis(500);

/// Why a role cannot start. Each is bad configuration or bad input: exit status 2.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The tokens file cannot be used.
    #[error(transparent)]
    Tokens(#[from] TokensError),
    /// An open API on an address that others can reach.
    #[error("{address} can be reached by others: give a tokens file, or listen on loopback")]
    Open {
        /// The address.
        address: SocketAddr,
    },
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The cause.
        source: std::io::Error,
    },
    /// The audit log cannot be written.
    #[error("audit log {path} cannot be opened: {source}")]
    Audit {
        /// The file.
        path: std::path::PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The compiled contract cannot be reflected.
    #[error("reflection cannot be set up: {reason}")]
    Reflection {
        /// The cause.
        reason: String,
    },
}

impl From<StartError> for Failure {
    fn from(error: StartError) -> Self {
        Self::BadInput(error.to_string())
    }
}

/// How a role stopped serving.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Drained {
    /// Every call was answered.
    Clean,
    /// The time limit cut this many calls off.
    CutOff(usize),
}

impl Drained {
    /// Nothing to report after a clean drain, exit status 1 after any other.
    ///
    /// # Errors
    /// [`Failure::Failed`] where calls were cut off.
    pub fn into_result(self) -> Result<(), Failure> {
        match self {
            Self::Clean => Ok(()),
            Self::CutOff(calls) => Err(Failure::Failed(format!("the drain limit cut {calls} calls off"))),
        }
    }
}

/// The services that a role mounts. Health and reflection come by themselves and list these.
#[derive(Debug, Clone, Default)]
pub struct Services {
    routes: Routes,
    names: Vec<&'static str>,
}

impl Services {
    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Mounts a service; set [`MAX_MESSAGE_BYTES`] on it first.
    #[must_use]
    pub fn with<S>(mut self, service: S) -> Self
    where
        S: tower::Service<http::Request<Body>, Error = Infallible>
            + NamedService
            + Clone
            + Send
            + Sync
            + 'static,
        S::Response: axum::response::IntoResponse,
        S::Future: Send + 'static,
    {
        self.names.push(S::NAME);
        self.routes = self.routes.add_service(service);
        self
    }
}

/// The server of one role: its listeners are open, nothing is served yet.
#[derive(Debug)]
pub struct Server {
    role: Role,
    grpc: TcpListener,
    grpc_addr: SocketAddr,
    admin: Option<(TcpListener, SocketAddr)>,
    drain_delay: Duration,
    drain_timeout: Duration,
    shared: Arc<Shared>,
}

impl Server {
    /// Checks the settings, then opens the listeners.
    ///
    /// # Errors
    /// [`StartError`]; no port stays open.
    pub async fn bind(role: Role, config: &RoleConfig) -> Result<Self, StartError> {
        let auth = Authenticator::load(config.tokens_file.as_deref())?;
        if auth.is_open() && !config.listen.ip().is_loopback() {
            return Err(StartError::Open { address: config.listen });
        }
        let audit = match &config.audit_log {
            Some(path) => Some(
                AuditLog::open(role.name(), path)
                    .map_err(|source| StartError::Audit { path: path.clone(), source })?,
            ),
            None => None,
        };
        let (grpc, grpc_addr) = listen(config.listen).await?;
        let admin = match config.admin_listen {
            Some(address) => Some(listen(address).await?),
            None => None,
        };
        let shared = Shared {
            health: Health::new(),
            auth,
            audit,
            unary_deadline: config.unary_deadline,
            stream_deadline: config.stream_deadline,
            in_flight: watch::Sender::new(0),
            told_expired: parking_lot::Mutex::new(None),
        };
        Ok(Self {
            role,
            grpc,
            grpc_addr,
            admin,
            drain_delay: config.drain_delay,
            drain_timeout: config.drain_timeout,
            shared: Arc::new(shared),
        })
    }

    /// Where the API listens.
    pub fn grpc_addr(&self) -> SocketAddr {
        self.grpc_addr
    }

    /// Where the admin pages are, if anywhere.
    pub fn admin_addr(&self) -> Option<SocketAddr> {
        self.admin.as_ref().map(|(_, address)| *address)
    }

    /// The role's health, to add checks to.
    pub fn health(&self) -> Health {
        self.shared.health.clone()
    }

    /// Serves until `shutdown` resolves, then drains: not ready, still serving for the drain delay; new calls refused
    /// and clients told to go away; calls in flight awaited up to the drain timeout, then cut off with UNAVAILABLE.
    ///
    /// # Errors
    /// [`StartError::Reflection`] only.
    pub async fn serve(
        self,
        services: Services,
        shutdown: impl Future<Output = ()>,
    ) -> Result<Drained, StartError> {
        let routes = self.routes(services)?;
        let health = self.health();
        let admin = self.admin.map(|(listener, address)| {
            tracing::info!(role = %self.role, %address, "admin pages");
            let router = admin::router(self.role, health.clone());
            tokio::spawn(async move { axum::serve(listener, router).await })
        });
        let clocks = tokio::spawn(clock::watch());
        let (go_away, told) = oneshot::channel::<()>();
        let grpc = tokio::spawn(
            tonic::transport::Server::builder()
                .max_concurrent_streams(MAX_CONCURRENT_STREAMS)
                .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
                .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
                .max_connection_age(MAX_CONNECTION_AGE + jitter(MAX_CONNECTION_AGE / 10))
                .layer(CallLayer(self.shared.clone()))
                .serve_with_incoming_shutdown(
                    routes.prepare(),
                    TcpIncoming::from(self.grpc).with_nodelay(Some(true)),
                    async move {
                        let _ = told.await;
                    },
                ),
        );
        tracing::info!(role = %self.role, address = %self.grpc_addr, "serving");
        shutdown.await;

        tracing::info!(role = %self.role, delay = ?self.drain_delay, limit = ?self.drain_timeout, "draining");
        health.stop(State::Draining);
        tokio::time::sleep(self.drain_delay).await;
        health.stop(State::Closing);
        let _ = go_away.send(());

        let mut in_flight = self.shared.in_flight.subscribe();
        let idle = in_flight.wait_for(|calls| *calls == 0);
        let finished = tokio::time::timeout(self.drain_timeout, idle).await.is_ok();
        let cut_off = if finished { 0 } else { *self.shared.in_flight.borrow() };
        health.stop(State::Closed);
        // tonic waits for every connection, and a silent client may hold one for an hour: the limit is ours.
        let abort = grpc.abort_handle();
        let _ = tokio::time::timeout(LINGER, grpc).await;
        abort.abort();
        clocks.abort();
        if let Some(admin) = admin {
            admin.abort();
        }
        tracing::info!(role = %self.role, cut_off, "stopped");
        Ok(if cut_off == 0 { Drained::Clean } else { Drained::CutOff(cut_off) })
    }

    fn routes(&self, services: Services) -> Result<Routes, StartError> {
        let reflection =
            |error: tonic_reflection::server::Error| StartError::Reflection { reason: format!("{error:?}") };
        let builder = || {
            services.names.iter().fold(
                tonic_reflection::server::Builder::configure()
                    .register_encoded_file_descriptor_set(thicket_proto::v1::FILE_DESCRIPTOR_SET)
                    .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET),
                |builder, name| builder.with_service_name(*name),
            )
        };
        let v1 = builder().build_v1().map_err(reflection)?;
        let v1alpha = builder().build_v1alpha().map_err(reflection)?;
        let names = [""].into_iter().chain(services.names.iter().copied()).collect();
        let health = GrpcHealth { health: self.health(), names };
        Ok(services
            .routes
            .clone()
            .add_service(HealthServer::new(health))
            .add_service(v1)
            .add_service(v1alpha))
    }
}

async fn listen(address: SocketAddr) -> Result<(TcpListener, SocketAddr), StartError> {
    let failed = |source| StartError::Listen { address, source };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    Ok((listener, bound))
}

/// A random share of `most`, so that replicas started together do not drop their connections together.
fn jitter(most: Duration) -> Duration {
    let random = RandomState::new().hash_one(0_u8);
    most.mul_f64(random as f64 / u64::MAX as f64)
}
