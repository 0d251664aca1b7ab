use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use thicket_runtime::{Failure, Role, Stop, StopHandle};
use tokio::task::JoinHandle;
use tonic::transport::Channel;

/// The folder of reference data.
pub fn goldens() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden")
}

/// What a cluster is made of.
#[derive(Debug, Clone)]
pub struct ClusterOptions {
    /// Checkpoint folder of the embedding model. Default: the tiny random one of the goldens.
    pub embedding_model: PathBuf,
    /// Checkpoint folder of the answer model. Default: the tiny random one of the goldens.
    pub answer_model: PathBuf,
    /// Longest answer in tokens: random weights seldom stop by themselves. Default: 24.
    pub max_output_tokens: usize,
    /// Folder of the gallery.
    pub data: PathBuf,
}

impl ClusterOptions {
    /// The tiny models, with the gallery in `data`.
    pub fn tiny(data: impl Into<PathBuf>) -> Self {
        Self {
            embedding_model: goldens().join("clip/trained"),
            answer_model: goldens().join("qwen/tied"),
            max_output_tokens: 24,
            data: data.into(),
        }
    }
}

/// The four roles in this process, each on a free loopback port, ready to be called. They talk through gRPC alone.
#[derive(Debug)]
pub struct Cluster {
    addresses: [(Role, SocketAddr); 4],
    stop: StopHandle,
    running: Vec<JoinHandle<Result<(), Failure>>>,
}

impl Cluster {
    /// Starts the roles and waits until each is ready.
    ///
    /// # Errors
    /// [`Failure`] of the first role that cannot start.
    pub async fn start(options: ClusterOptions) -> Result<Self, Failure> {
        let embedding_config = thicket_embedding::Config::in_process(options.embedding_model);
        let embedding = thicket_embedding::App::build(embedding_config).await?;
        let gallery = thicket_gallery::App::build(thicket_gallery::Config::in_process(options.data)).await?;
        let mut answer_config = thicket_answer::Config::in_process(options.answer_model);
        answer_config.max_output_tokens = options.max_output_tokens;
        let answer = thicket_answer::App::build(answer_config).await?;
        let peers = thicket_coordinator::Peers {
            embedding: vec![url(embedding.grpc_addr())],
            gallery: url(gallery.grpc_addr()),
            gallery_replicas: Vec::new(),
            answer: vec![url(answer.grpc_addr())],
            token: None,
        };
        let coordinator_config = thicket_coordinator::Config::in_process(peers);
        let coordinator = thicket_coordinator::App::build(coordinator_config).await?;

        let addresses = [
            (Role::Embedding, embedding.grpc_addr()),
            (Role::Gallery, gallery.grpc_addr()),
            (Role::Answer, answer.grpc_addr()),
            (Role::Coordinator, coordinator.grpc_addr()),
        ];
        let health = [embedding.health(), gallery.health(), answer.health(), coordinator.health()];
        let (stop, stopped) = Stop::by_hand();
        let running = vec![
            tokio::spawn(embedding.run(stopped.clone())),
            tokio::spawn(gallery.run(stopped.clone())),
            tokio::spawn(answer.run(stopped.clone())),
            tokio::spawn(coordinator.run(stopped)),
        ];
        for health in health {
            health.ready().await;
        }
        Ok(Self { addresses, stop, running })
    }

    /// Where a role listens.
    pub fn address(&self, role: Role) -> SocketAddr {
        self.addresses
            .iter()
            .find(|(other, _)| *other == role)
            .map_or_else(|| role.default_listen(), |(_, address)| *address)
    }

    /// A connection to a role.
    ///
    /// # Errors
    /// Where the role does not take it.
    pub async fn connect(&self, role: Role) -> Result<Channel, tonic::transport::Error> {
        Channel::from_shared(url(self.address(role)))
            .unwrap_or_else(|error| unreachable!("an address is a target: {error}"))
            .connect()
            .await
    }

    /// Drains every role and waits for its end.
    ///
    /// # Errors
    /// [`Failure`] of the first role that did not end well.
    pub async fn stop(self) -> Result<(), Failure> {
        self.stop.stop();
        for role in self.running {
            role.await.map_err(|panic| Failure::Failed(panic.to_string()))??;
        }
        Ok(())
    }
}

pub(crate) fn url(address: SocketAddr) -> String {
    format!("http://{address}")
}
