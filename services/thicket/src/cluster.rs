//! The whole cluster in this process: every role behind a loopback listener of its own, every call through gRPC.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use tempfile::NamedTempFile;
use thicket_coordinator::{Coordination, JobConfig, Peers};
use thicket_device::ComputeArgs;
use thicket_discovery::{Address, StaticPeer};
use thicket_gallery::{ForgetConfig, Told};
use thicket_runtime::{Failure as RoleFailure, Health, Role, RoleConfig, Stop, StopHandle};
use tokio::sync::watch;
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::Failure;
use crate::models::Models;

/// The roles behind the coordinator: embedding, gallery and answer, ready to be called.
#[derive(Debug)]
pub(crate) struct Backends {
    pub(crate) embedding: SocketAddr,
    pub(crate) gallery: SocketAddr,
    pub(crate) answer: SocketAddr,
    tokens: Option<OwnToken>,
    /// Who is to forget what the gallery no longer shows.
    forgetful: watch::Sender<Vec<StaticPeer>>,
    roles: Roles,
}

/// What the roles behind the coordinator are given.
#[derive(Debug)]
pub(crate) struct BackendOptions {
    pub(crate) models: Models,
    /// Where the models compute.
    pub(crate) compute: ComputeArgs,
    /// Folder of everything that is kept.
    pub(crate) data: PathBuf,
    /// Whether the answer model's answers are among it.
    pub(crate) keep_answers: bool,
    /// Where the gallery listens.
    pub(crate) gallery: SocketAddr,
    /// Where the answer service listens; the embedding service takes a free loopback port.
    pub(crate) answer: SocketAddr,
    /// Tokens that may call the roles; `None` leaves them open to this machine.
    pub(crate) tokens: Option<OwnToken>,
}

/// The callers' tokens, and one more that the roles of this process call each other with.
#[derive(Debug)]
pub(crate) struct OwnToken {
    /// The tokens file with the entry for [`OwnToken::token`]; gone when this is dropped.
    file: NamedTempFile,
    token: String,
}

impl OwnToken {
    /// Adds a fresh token to a tokens file.
    ///
    /// # Errors
    /// [`Failure::BadInput`] for a file that cannot be read, [`Failure::Failed`] where the new one cannot be written.
    pub(crate) fn add_to(tokens: &Path) -> Result<Self, Failure> {
        let refuse = |reason: String| {
            Failure::bad_input(format!("tokens file {} cannot be used: {reason}", tokens.display()))
        };
        let text = std::fs::read(tokens).map_err(|error| refuse(error.to_string()))?;
        let mut entries: Vec<serde_json::Value> =
            serde_json::from_slice(&text).map_err(|error| refuse(error.to_string()))?;
        let token = format!("{}{}", Uuid::new_v4().simple(), Uuid::new_v4().simple());
        let digest: String = Sha256::digest(&token).iter().map(|byte| format!("{byte:02x}")).collect();
        entries.push(serde_json::json!({
            "name": "thicket-up",
            "sha256": digest,
            "rights": ["read", "write", "admin"],
        }));
        let file = NamedTempFile::new().and_then(|mut file| {
            file.write_all(serde_json::Value::from(entries).to_string().as_bytes())?;
            Ok(file)
        });
        let file = file.map_err(|error| Failure::failed(format!("a token cannot be written: {error}")))?;
        Ok(Self { file, token })
    }
}

/// Roles that run until they are told to stop.
#[derive(Debug)]
pub(crate) struct Roles {
    running: JoinSet<(Role, Result<(), RoleFailure>)>,
    stop: StopHandle,
    stopped: Stop,
}

impl Roles {
    pub(crate) fn new() -> Self {
        let (stop, stopped) = Stop::by_hand();
        Self { running: JoinSet::new(), stop, stopped }
    }

    /// When these roles stop.
    pub(crate) fn stop(&self) -> Stop {
        self.stopped.clone()
    }

    /// Runs a role.
    pub(crate) fn add(
        &mut self,
        role: Role,
        running: impl Future<Output = Result<(), RoleFailure>> + Send + 'static,
    ) {
        self.running.spawn(async move { (role, running.await) });
    }

    /// Waits until a role ends without being told to.
    pub(crate) async fn failed(&mut self) -> Failure {
        match self.running.join_next().await {
            None => std::future::pending().await,
            Some(Ok((role, Ok(())))) => Failure::failed(format!("the {role} role ended by itself")),
            Some(Ok((role, Err(failure)))) => role_failure(role, &failure),
            Some(Err(error)) => Failure::failed(format!("a role stopped early: {error}")),
        }
    }

    /// Tells the roles to stop and waits until they have drained.
    ///
    /// # Errors
    /// [`Failure`] of the first role that did not end well.
    pub(crate) async fn drain(mut self) -> Result<(), Failure> {
        self.stop.stop();
        let mut outcome = Ok(());
        while let Some(ended) = self.running.join_next().await {
            let failure = match ended {
                Ok((_, Ok(()))) => continue,
                Ok((role, Err(failure))) => role_failure(role, &failure),
                Err(error) => Failure::failed(format!("a role stopped early: {error}")),
            };
            outcome = outcome.and(Err(failure));
        }
        outcome
    }
}

impl Backends {
    /// Loads the models, opens the data and waits until every role is ready.
    ///
    /// # Errors
    /// [`Failure`] where a role cannot start.
    pub(crate) async fn start(options: BackendOptions) -> Result<Self, Failure> {
        let BackendOptions { models, compute, data, keep_answers, gallery, answer: answer_listen, tokens } =
            options;
        let mut roles = Roles::new();
        let tokens_file = tokens.as_ref().map(|own| own.file.path().to_owned());
        let role = RoleConfig { tokens_file, ..RoleConfig::in_process() };

        let mut embedding = thicket_embedding::Config::in_process(models.embedding);
        embedding.role = role.clone();
        embedding.compute = compute.clone();
        let mut answer = thicket_answer::Config::in_process(models.answer);
        answer.loading = models.loading;
        if let Some(server) = models.server {
            answer = answer.served_by(server);
        }
        answer.data = keep_answers.then(|| data.join("answer"));
        answer.role = RoleConfig { listen: answer_listen, ..role.clone() };
        answer.compute = compute;
        let mut store = thicket_gallery::Config::in_process(data.join("gallery"));
        // Where answers outlive their images, these are told when an image goes.
        let (forgetful, told) = Told::later();
        let token = tokens.as_ref().map(|own| own.token.clone());
        store.forget = keep_answers.then_some(ForgetConfig { told, token });
        store.role = RoleConfig { listen: gallery, ..role };
        let (embedding, gallery, answer) = tokio::try_join!(
            named(Role::Embedding, thicket_embedding::App::build(embedding)),
            named(Role::Gallery, thicket_gallery::App::build(store)),
            named(Role::Answer, thicket_answer::App::build(answer)),
        )?;
        let health = [embedding.health(), gallery.health(), answer.health()];
        let backends = (embedding.grpc_addr(), gallery.grpc_addr(), answer.grpc_addr());
        roles.add(Role::Embedding, embedding.run(roles.stop()));
        roles.add(Role::Gallery, gallery.run(roles.stop()));
        roles.add(Role::Answer, answer.run(roles.stop()));
        ready(&mut roles, &health).await?;
        let (embedding, gallery, answer) = backends;
        Ok(Self { embedding, gallery, answer, tokens, forgetful, roles })
    }

    /// Has the answer service, and the coordinator at an address, forget the images that the gallery no longer shows.
    pub(crate) fn forget_with(&self, coordinator: SocketAddr) {
        let [answers, coordinators] = [self.answer, coordinator].map(|address| {
            Address::of_ip(reachable(address.ip()), address.port()).into_iter().collect::<Vec<_>>()
        });
        self.forgetful.send_replace(Told::peers(&answers, &coordinators));
    }

    /// Where the coordinator finds them. `answer` names another answer service to use instead.
    pub(crate) fn peers(&self, answer: Option<String>) -> Peers {
        Peers {
            embedding: vec![url(self.embedding)],
            gallery: url(self.gallery),
            gallery_replicas: Vec::new(),
            answer: vec![answer.unwrap_or_else(|| url(self.answer))],
            token: self.tokens.as_ref().map(|own| own.token.clone()),
        }
    }

    /// Waits until a role ends without being told to.
    pub(crate) async fn failed(&mut self) -> Failure {
        self.roles.failed().await
    }

    /// Stops the roles in order.
    ///
    /// # Errors
    /// [`Failure`] of the first role that did not end well.
    pub(crate) async fn drain(self) -> Result<(), Failure> {
        self.roles.drain().await
    }
}

/// A coordinator in front of the backends.
#[derive(Debug)]
pub(crate) struct Front {
    pub(crate) address: SocketAddr,
    pub(crate) admin: Option<SocketAddr>,
    roles: Roles,
}

impl Front {
    /// Starts a coordinator and waits until it is ready; without `jobs` it keeps none.
    ///
    /// # Errors
    /// [`Failure`] where it cannot start.
    pub(crate) async fn start(
        peers: Peers,
        role: RoleConfig,
        coordination: Coordination,
        jobs: Option<JobConfig>,
    ) -> Result<Self, Failure> {
        let Coordination { interaction, calling, job_queries, max_calls } = coordination;
        let jobs = jobs.map(|jobs| JobConfig { queries: job_queries, ..jobs });
        let config = thicket_coordinator::Config {
            role,
            interaction,
            calling,
            jobs,
            max_calls,
            ..thicket_coordinator::Config::in_process(peers)
        };
        let app = named(Role::Coordinator, thicket_coordinator::App::build(config)).await?;
        let (address, admin, health) = (app.grpc_addr(), app.admin_addr(), app.health());
        let mut roles = Roles::new();
        roles.add(Role::Coordinator, app.run(roles.stop()));
        ready(&mut roles, &[health]).await?;
        Ok(Self { address, admin, roles })
    }

    /// Waits until the coordinator ends without being told to.
    pub(crate) async fn failed(&mut self) -> Failure {
        self.roles.failed().await
    }

    /// Drains the coordinator.
    ///
    /// # Errors
    /// [`Failure`] where calls were cut off.
    pub(crate) async fn drain(self) -> Result<(), Failure> {
        self.roles.drain().await
    }
}

/// Where this process reaches a listener of its own.
fn reachable(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    }
}

/// An address as clients write it.
pub(crate) fn url(address: SocketAddr) -> String {
    format!("http://{address}")
}

async fn ready(roles: &mut Roles, health: &[Health]) -> Result<(), Failure> {
    let all = async {
        for health in health {
            health.ready().await;
        }
    };
    tokio::select! {
        () = all => Ok(()),
        failure = roles.failed() => Err(failure),
    }
}

async fn named<T>(role: Role, starting: impl Future<Output = Result<T, RoleFailure>>) -> Result<T, Failure> {
    starting.await.map_err(|failure| role_failure(role, &failure))
}

fn role_failure(role: Role, failure: &RoleFailure) -> Failure {
    match failure {
        RoleFailure::BadInput(reason) => Failure::bad_input(format!("{role}: {reason}")),
        RoleFailure::Failed(reason) => Failure::failed(format!("{role}: {reason}")),
    }
}
