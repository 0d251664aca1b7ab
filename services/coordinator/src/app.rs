use std::net::SocketAddr;

use thicket_discovery::{Announcement, Directory, Source};
use thicket_proto::v1::coordinator_service_server::CoordinatorServiceServer;
use thicket_runtime::{Failure, Health, MAX_MESSAGE_BYTES, Role, Server, Services, Stop};

use crate::Config;
use crate::clients::Clients;
use crate::service::Service;

/// A coordinator that is ready to serve: its listeners are open, its peers are connected when first called.
#[derive(Debug)]
pub struct App {
    server: Server,
    announcement: Option<Announcement>,
    service: Service,
    directory: Directory,
}

impl App {
    /// Checks the peers' addresses, then opens the listeners.
    ///
    /// # Errors
    /// [`Failure::BadInput`] for a malformed address or token, or an address that cannot be listened on. No port stays
    /// open.
    pub async fn build(config: Config) -> Result<Self, Failure> {
        let source = match config.discovery.etcd()? {
            Some(etcd) => Source::Etcd(Box::new(etcd)),
            None => Source::Static(config.peers.list()?),
        };
        let server = Server::bind(Role::Coordinator, &config.role).await?;
        let announcement = config.discovery.announcement(Role::Coordinator, server.grpc_addr())?;
        let refuse = |error: &dyn std::fmt::Display| Failure::BadInput(error.to_string());
        let directory = Directory::start(source).map_err(|error| refuse(&error))?;
        let settings = config.calling.upstream(config.peers.token);
        let clients = Clients::follow(&directory, &settings).map_err(|error| refuse(&error))?;
        let service = Service::new(clients, config.interaction, config.calling.ask_ahead, config.max_calls);
        Ok(Self { server, announcement, service, directory })
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
        let announcer = self.announcement.map(|own| own.start(&self.server.health(), |_| ()));
        let drained = self.server.serve(Services::new().with(grpc), stop.requested()).await;
        if let Some(announcer) = announcer {
            announcer.close().await;
        }
        drop(self.directory);
        drained?.into_result()
    }
}
