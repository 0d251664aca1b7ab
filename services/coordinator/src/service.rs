use thicket_dispatch::Urgency;
use thicket_proto::v1::coordinator_service_server::CoordinatorService;
use thicket_proto::v1::{IngestRequest, IngestResponse, Priority, SearchPersonRequest, SearchPersonResponse};
use thicket_runtime::{Call, Right};
use thicket_thi::Settings;
use tonic::{Request, Response, Status, Streaming};

use crate::admission::Admission;
use crate::clients::Clients;
use crate::driven::Driven;
use crate::ingest::Ingest;
use crate::input::SearchInput;
use crate::search::Search;

/// The coordinator's part of the contract.
#[derive(Debug)]
pub(crate) struct Service {
    clients: Clients,
    defaults: Settings,
    ask_ahead: usize,
    admission: Admission,
}

impl Service {
    pub(crate) fn new(clients: Clients, defaults: Settings, ask_ahead: usize, admission: Admission) -> Self {
        Self { clients, defaults, ask_ahead, admission }
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
        let place = self.admission.admit()?;
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
        let place = self.admission.admit()?;
        let clients = self.clients.by(call.deadline(), Urgency::Batch);
        let requests = request.into_inner();
        Ok(Response::new(Driven::spawn(|outlet| async move {
            let _place = place;
            Ingest::new(call, clients, outlet).run(requests).await
        })))
    }
}
