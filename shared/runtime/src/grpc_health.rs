use std::pin::Pin;
use std::sync::Arc;

use tokio_stream::wrappers::WatchStream;
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_server::Health as HealthService;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

use crate::Fault;
use crate::health::Health;

/// `grpc.health.v1.Health` over the checks of a role. Written here because the ready-made one refuses to watch a name
/// that it does not know, where the protocol wants the answer SERVICE_UNKNOWN.
#[derive(Debug)]
pub(crate) struct GrpcHealth {
    pub(crate) health: Health,
    /// The names that share the role's state; `""` is one of them.
    pub(crate) names: Arc<[&'static str]>,
}

fn response(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse { status: status.into() }
}

fn serving(ready: bool) -> ServingStatus {
    if ready { ServingStatus::Serving } else { ServingStatus::NotServing }
}

#[tonic::async_trait]
impl HealthService for GrpcHealth {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        let name = request.into_inner().service;
        if !self.names.contains(&name.as_str()) {
            return Err(Fault::not_found("service", name).into());
        }
        Ok(Response::new(response(serving(self.health.snapshot().ready))))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let known = self.names.contains(&request.get_ref().service.as_str());
        let mut last = None;
        let changes = WatchStream::new(self.health.subscribe()).filter_map(move |now| {
            let status = if known { serving(now.ready) } else { ServingStatus::ServiceUnknown };
            (last.replace(status) != Some(status)).then(|| Ok(response(status)))
        });
        Ok(Response::new(Box::pin(changes)))
    }
}
