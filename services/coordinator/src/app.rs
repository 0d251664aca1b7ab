use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use thicket_discovery::{Announcement, Directory, Source};
use thicket_proto::v1::coordinator_service_server::CoordinatorServiceServer;
use thicket_proto::v1::job_service_server::JobServiceServer;
use thicket_runtime::{Failure, Health, MAX_MESSAGE_BYTES, Role, Server, Services, Stop};
use tokio::task::JoinSet;

use crate::Config;
use crate::admission::Admission;
use crate::clients::Clients;
use crate::jobs::{self, Jobs, Runner, Share};
use crate::service::Service;

/// Longest wait for the work on jobs to end, which begins to when the process begins to drain.
const JOBS_LIMIT: Duration = Duration::from_secs(10);

/// A coordinator that is ready to serve: its listeners are open, its peers are connected when first called.
#[derive(Debug)]
pub struct App {
    server: Server,
    announcement: Option<Announcement>,
    service: Service,
    job_service: jobs::Service,
    runner: Option<Runner>,
    directory: Directory,
}

impl App {
    /// Checks the peers' addresses, then opens the listeners.
    ///
    /// # Errors
    /// [`Failure::BadInput`] for a malformed address or token, or an address that cannot be listened on. No port stays
    /// open.
    pub async fn build(config: Config) -> Result<Self, Failure> {
        let etcd = config.discovery.etcd()?;
        let source = match &etcd {
            Some(etcd) => Source::Etcd(Box::new(etcd.clone())),
            None => Source::Static(config.peers.list()?),
        };
        let kept = match &config.jobs {
            Some(jobs) => Some((jobs.open(etcd.as_ref(), config.discovery.instance.clone())?, jobs.queries)),
            None => None,
        };
        let server = Server::bind(Role::Coordinator, &config.role).await?;
        let announcement = config.discovery.announcement(Role::Coordinator, server.grpc_addr())?;
        let refuse = |error: &dyn std::fmt::Display| Failure::BadInput(error.to_string());
        let directory = Directory::start(source).map_err(|error| refuse(&error))?;
        let settings = config.calling.upstream(config.peers.token);
        let clients = Clients::follow(&directory, &settings).map_err(|error| refuse(&error))?;
        let (jobs, runner): (Option<Arc<Jobs>>, Option<Runner>) = kept
            .map(|((store, objects), queries)| {
                let share = Share { queries, attempt: config.role.stream_deadline };
                Jobs::new(store, objects, clients.clone(), config.interaction, share)
            })
            .unzip();
        let job_service = jobs::Service::new(jobs, Admission::new(config.max_calls));
        let admission = Admission::new(config.max_calls);
        let service = Service::new(clients, config.interaction, config.calling.ask_ahead, admission);
        Ok(Self { server, announcement, service, job_service, runner, directory })
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
    /// [`Failure::Failed`] where the drain limit cut calls off.
    pub async fn run(self, stop: Stop) -> Result<(), Failure> {
        let grpc = CoordinatorServiceServer::new(self.service)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        let jobs = JobServiceServer::new(self.job_service)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        let mut working = JoinSet::new();
        if let Some(runner) = self.runner {
            working.spawn(runner.run(stop.clone()));
        }
        let announcer = self.announcement.map(|own| own.start(&self.server.health(), |_| ()));
        let drained = self.server.serve(Services::new().with(grpc).with(jobs), stop.requested()).await;
        let worked = async { while working.join_next().await.is_some() {} };
        if tokio::time::timeout(JOBS_LIMIT, worked).await.is_err() {
            tracing::warn!("work on jobs did not end in time");
        }
        if let Some(announcer) = announcer {
            announcer.close().await;
        }
        drop(self.directory);
        drained?.into_result()
    }
}
