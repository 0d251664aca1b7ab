use std::net::SocketAddr;

use thicket_proto::v1::coordinator_service_server::CoordinatorServiceServer;
use thicket_runtime::{Failure, Health, MAX_MESSAGE_BYTES, Role, Server, Services, Stop};

use crate::Config;
use crate::clients::Clients;
use crate::service::Service;

/// A coordinator that is ready to serve: its listeners are open, its peers are connected when first called.
#[derive(Debug)]
pub struct App {
    server: Server,
    service: Service,
}

impl App {
    /// Checks the peers' addresses, then opens the listeners.
    ///
    /// # Errors
    /// [`Failure::BadInput`] for a malformed address or token, or an address that cannot be listened on. No port stays
    /// open.
    pub async fn build(config: Config) -> Result<Self, Failure> {
        let clients = Clients::lazy(&config.peers).map_err(|error| Failure::BadInput(error.to_string()))?;
        let server = Server::bind(Role::Coordinator, &config.role).await?;
        let service = Service::new(clients, config.interaction, config.max_calls);
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
    /// [`Failure::Failed`] where the drain limit cut calls off.
    pub async fn run(self, stop: Stop) -> Result<(), Failure> {
        let grpc = CoordinatorServiceServer::new(self.service)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        self.server.serve(Services::new().with(grpc), stop.requested()).await?.into_result()
    }
}
