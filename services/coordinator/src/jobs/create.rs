//! Taking in the queries of a new job.

use thicket_dispatch::Urgency;
use thicket_jobs::Plan;
use thicket_jobstore::{NewJob, StoreError};
use thicket_proto::v1::{self, CreateJobRequest, JobQuery};
use thicket_runtime::{Call, Fault, Right};
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tonic::Streaming;
use uuid::Uuid;

use super::Jobs;
use super::clock::now_unix_ms;
use super::fault::of_store;
use super::input::{NewSpec, QueryCheck};
use super::record::{Body, job};

/// Objects of a job that has no record yet. They are cleared where this is dropped before it has.
struct Folder<'a> {
    name: String,
    leftovers: Option<&'a mpsc::Sender<String>>,
}

impl Drop for Folder<'_> {
    fn drop(&mut self) {
        if let Some(leftovers) = self.leftovers
            && leftovers.try_send(self.name.clone()).is_err()
        {
            tracing::warn!(folder = self.name, "objects of a job that did not come about are left");
        }
    }
}

impl Jobs {
    /// Takes the stream to its end and makes the job durable.
    pub(super) async fn create(
        &self,
        call: &Call,
        mut requests: Streaming<CreateJobRequest>,
    ) -> Result<v1::Job, Fault> {
        let now = now_unix_ms();
        let Some(first) = next(&mut requests).await? else {
            return Err(Fault::invalid("spec", "SPEC_MISSING", "the first message has the job"));
        };
        let Some(spec) = first.spec else {
            return Err(Fault::invalid("spec", "SPEC_MISSING", "the first message has the job"));
        };
        call.require(Right::Write, Some(&spec.collection))?;
        let new = NewSpec::parse(spec, &self.defaults, now)?;
        self.must_be_new(&new).await?;
        self.collection_exists(call, &new.spec.collection).await?;

        let folder = Uuid::now_v7().simple().to_string();
        let mut folder = Folder { name: folder, leftovers: Some(&self.leftovers) };
        self.objects.begin(&folder.name, &new.id).await?;
        let queries = self.take_in(&folder.name, &new, first.queries, requests).await?;
        let plan = Plan::new(queries, new.part_size)
            .map_err(|error| Fault::out_of_range("queries", "QUERIES_OUT_OF_RANGE", error.to_string()))?;
        let record = NewJob {
            created_unix_ms: now,
            plan,
            deadline: new.spec.deadline_unix_ms,
            body: Body::new(new.spec, folder.name.clone()).encode(),
        };
        match self.store.create(&new.id, &record).await {
            Ok(()) => {}
            // It may be there, and refer to the objects.
            Err(error @ StoreError::Unavailable { .. }) => {
                folder.leftovers = None;
                return Err(of_store(error));
            }
            Err(error) => return Err(of_store(error)),
        }
        folder.leftovers = None;
        tracing::info!(job = %new.id, queries, parts = plan.parts(), "job made");
        job(&self.store.job(&new.id).await.map_err(of_store)?)
    }

    /// A job of that id is refused before its queries are read.
    async fn must_be_new(&self, new: &NewSpec) -> Result<(), Fault> {
        match self.store.job(&new.id).await {
            Ok(_) | Err(StoreError::Damaged { .. }) => {
                Err(of_store(StoreError::Exists { job: new.id.clone() }))
            }
            Err(StoreError::NotFound { .. }) => Ok(()),
            Err(error) => Err(of_store(error)),
        }
    }

    async fn collection_exists(&self, call: &Call, name: &str) -> Result<(), Fault> {
        let clients = self.clients.by(call.deadline(), Urgency::Interactive);
        let found = clients.collections().await?.iter().any(|collection| collection.name == name);
        if found { Ok(()) } else { Err(Fault::not_found("collection", name)) }
    }

    /// Stores the queries part by part; returns how many there are.
    async fn take_in(
        &self,
        folder: &str,
        new: &NewSpec,
        mut queries: Vec<JobQuery>,
        mut requests: Streaming<CreateJobRequest>,
    ) -> Result<u64, Fault> {
        let part_size = new.part_size as usize;
        let mut check = QueryCheck::default();
        let mut waiting: Vec<JobQuery> = Vec::new();
        let mut part = 0;
        loop {
            for query in queries {
                check.check(&query)?;
                waiting.push(query);
                if waiting.len() == part_size {
                    // Refused here, and not after a million queries.
                    Plan::new(check.count(), new.part_size).map_err(|error| {
                        Fault::out_of_range("queries", "QUERIES_OUT_OF_RANGE", error.to_string())
                    })?;
                    self.objects.put_queries(folder, part, std::mem::take(&mut waiting)).await?;
                    part += 1;
                }
            }
            let Some(request) = next(&mut requests).await? else { break };
            if request.spec.is_some() {
                return Err(Fault::invalid("spec", "SPEC_TWICE", "only the first message has the job"));
            }
            queries = request.queries;
        }
        if !waiting.is_empty() {
            self.objects.put_queries(folder, part, waiting).await?;
        }
        Ok(check.count())
    }
}

async fn next(requests: &mut Streaming<CreateJobRequest>) -> Result<Option<CreateJobRequest>, Fault> {
    let next = requests.next().await;
    next.transpose().map_err(|status| Fault::from_status(&status))
}
