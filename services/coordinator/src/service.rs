use std::sync::Arc;
use std::time::Duration;

use opentelemetry::KeyValue;
use thicket_dispatch::Urgency;
use thicket_proto::v1::coordinator_service_server::CoordinatorService;
use thicket_proto::v1::{IngestRequest, IngestResponse, Priority, SearchPersonRequest, SearchPersonResponse};
use thicket_runtime::{Call, Fault, Right};
use thicket_telemetry::{instruments, names};
use thicket_thi::Settings;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::{Request, Response, Status, Streaming};

use crate::clients::Clients;
use crate::driven::Driven;
use crate::ingest::Ingest;
use crate::input::SearchInput;
use crate::search::Search;

/// When a caller should come back to a coordinator with too many calls.
const BUSY_PAUSE: Duration = Duration::from_millis(500);

/// The coordinator's part of the contract.
#[derive(Debug)]
pub(crate) struct Service {
    clients: Clients,
    defaults: Settings,
    ask_ahead: usize,
    max_calls: usize,
    calls: Arc<Semaphore>,
}

impl Service {
    pub(crate) fn new(clients: Clients, defaults: Settings, ask_ahead: usize, max_calls: usize) -> Self {
        Self { clients, defaults, ask_ahead, max_calls, calls: Arc::new(Semaphore::new(max_calls)) }
    }

    /// A place among the calls, given back when dropped.
    fn admit(&self) -> Result<OwnedSemaphorePermit, Fault> {
        self.calls.clone().try_acquire_owned().map_err(|_| {
            instruments().admission_rejected.add(1, &[KeyValue::new(names::REASON, "max_calls")]);
            let message = format!("{} calls are under way, the most there may be", self.max_calls);
            Fault::exhausted("TOO_MANY_CALLS", message, BUSY_PAUSE)
        })
    }
}

#[tonic::async_trait]
impl CoordinatorService for Service {
    type SearchPersonStream = Driven<SearchPersonResponse>;
    type IngestStream = Driven<IngestResponse>;

    async fn search_person(
        &self,
        request: Request<SearchPersonRequest>,
    ) -> Result<Response<Self::SearchPersonStream>, Status> {
        let call = Call::of(&request);
        call.require(Right::Read, Some(&request.get_ref().collection))?;
        let input = SearchInput::parse(request.into_inner(), &self.defaults)?;
        let place = self.admit()?;
        let urgency = match input.priority {
            Priority::Batch => Urgency::Batch,
            Priority::Unspecified | Priority::Interactive => Urgency::Interactive,
        };
        let clients = self.clients.by(call.deadline(), urgency).answered_by(input.adapter.clone());
        let ask_ahead = self.ask_ahead;
        tracing::debug!(priority = input.priority.as_str_name(), rounds = input.settings.rounds(), "search");
        Ok(Response::new(Driven::spawn(|outlet| async move {
            let _place = place;
            Search::new(input, clients, outlet).asking_ahead(ask_ahead).run().await
        })))
    }

    async fn ingest(
        &self,
        request: Request<Streaming<IngestRequest>>,
    ) -> Result<Response<Self::IngestStream>, Status> {
        let call = Call::of(&request);
        // The collection is in the first message, and the right to it is looked at then.
        call.require(Right::Write, None)?;
        let place = self.admit()?;
        let clients = self.clients.by(call.deadline(), Urgency::Batch);
        let requests = request.into_inner();
        Ok(Response::new(Driven::spawn(|outlet| async move {
            let _place = place;
            Ingest::new(call, clients, outlet).run(requests).await
        })))
    }
}
