use std::sync::Arc;
use std::time::Duration;

use thicket_jobs::{Change, JobId};
use thicket_jobstore::{StoreError, Stored};
use thicket_proto::v1::job_service_server::JobService;
use thicket_proto::v1::{
    CancelJobRequest, CancelJobResponse, CreateJobRequest, CreateJobResponse, DeleteJobRequest,
    DeleteJobResponse, FetchJobFileRequest, FetchJobFileResponse, FetchJobResultsRequest,
    FetchJobResultsResponse, ForgetJobImagesRequest, ForgetJobImagesResponse, GetJobRequest, GetJobResponse,
    ListJobsRequest, ListJobsResponse, ResumeJobRequest, ResumeJobResponse, WatchJobRequest,
    WatchJobResponse,
};
use thicket_runtime::{Call, Deadline, Fault, Right};
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::{Request, Response, Status, Streaming};

use super::Jobs;
use super::board::Snapshot;
use super::clock::now_unix_ms;
use super::fault::of_store;
use super::fetch::must_be_done;
use super::input::job_id;
use super::record::{Body, job};
use crate::admission::Admission;
use crate::driven::{Driven, Outlet};

/// The jobs' part of the contract.
#[derive(Debug)]
pub(crate) struct Service {
    /// `None` where this coordinator keeps no jobs.
    jobs: Option<Arc<Jobs>>,
    admission: Admission,
}

impl Service {
    pub(crate) fn new(jobs: Option<Arc<Jobs>>, admission: Admission) -> Self {
        Self { jobs, admission }
    }

    fn jobs(&self) -> Result<Arc<Jobs>, Fault> {
        self.jobs.clone().ok_or_else(|| {
            let message = "this coordinator keeps no jobs: start it with --jobs-store";
            Fault::failed_precondition("JOBS_OFF", message)
        })
    }

    /// A job that the caller has a right to.
    async fn job_of(&self, call: &Call, right: Right, id: &str) -> Result<(Arc<Jobs>, Stored), Fault> {
        // Who may do this nowhere is not told which jobs there are.
        call.require(right, None)?;
        let jobs = self.jobs()?;
        let stored = jobs.store.job(&job_id(id)?).await.map_err(of_store)?;
        call.require(right, Some(&Body::of(&stored)?.spec().collection))?;
        Ok((jobs, stored))
    }

    async fn change(&self, call: &Call, id: &str, change: Change) -> Result<Stored, Fault> {
        let (jobs, stored) = self.job_of(call, Right::Write, id).await?;
        jobs.store.change(&stored.id, change).await.map_err(of_store)
    }
}

#[tonic::async_trait]
impl JobService for Service {
    type WatchJobStream = Driven<WatchJobResponse>;
    type FetchJobResultsStream = Driven<FetchJobResultsResponse>;
    type FetchJobFileStream = Driven<FetchJobFileResponse>;

    async fn create_job(
        &self,
        request: Request<Streaming<CreateJobRequest>>,
    ) -> Result<Response<CreateJobResponse>, Status> {
        let call = Call::of(&request);
        // The collection is in the first message, and the right to it is looked at then.
        call.require(Right::Write, None)?;
        let jobs = self.jobs()?;
        let _place = self.admission.admit()?;
        let job = jobs.create(&call, request.into_inner()).await?;
        Ok(Response::new(CreateJobResponse { job: Some(job) }))
    }

    async fn get_job(&self, request: Request<GetJobRequest>) -> Result<Response<GetJobResponse>, Status> {
        let call = Call::of(&request);
        let (_, stored) = self.job_of(&call, Right::Read, &request.get_ref().id).await?;
        Ok(Response::new(GetJobResponse { job: Some(job(&stored)?) }))
    }

    async fn list_jobs(
        &self,
        request: Request<ListJobsRequest>,
    ) -> Result<Response<ListJobsResponse>, Status> {
        let call = Call::of(&request);
        call.require(Right::Read, None)?;
        let mut listed = Vec::new();
        for stored in self.jobs()?.store.jobs().await.map_err(of_store)? {
            let job = job(&stored)?;
            let collection = job.spec.as_ref().map(|spec| spec.collection.as_str());
            if call.caller().may(Right::Read, collection) {
                listed.push(job);
            }
        }
        Ok(Response::new(ListJobsResponse { jobs: listed }))
    }

    async fn watch_job(
        &self,
        request: Request<WatchJobRequest>,
    ) -> Result<Response<Self::WatchJobStream>, Status> {
        let call = Call::of(&request);
        // Before the job is read, so that no change after that is missed.
        let snapshots = self.jobs.as_ref().map(|jobs| jobs.board.subscribe());
        let (jobs, stored) = self.job_of(&call, Right::Read, &request.get_ref().id).await?;
        let snapshots = snapshots.unwrap_or_else(|| jobs.board.subscribe());
        let place = self.admission.admit()?;
        Ok(Response::new(Driven::spawn(|outlet| async move {
            let _place = place;
            watch(&jobs, stored, snapshots, &outlet).await
        })))
    }

    async fn cancel_job(
        &self,
        request: Request<CancelJobRequest>,
    ) -> Result<Response<CancelJobResponse>, Status> {
        let call = Call::of(&request);
        let stored = self.change(&call, &request.get_ref().id, Change::Cancel).await?;
        Ok(Response::new(CancelJobResponse { job: Some(job(&stored)?) }))
    }

    async fn resume_job(
        &self,
        request: Request<ResumeJobRequest>,
    ) -> Result<Response<ResumeJobResponse>, Status> {
        let call = Call::of(&request);
        let ResumeJobRequest { id, deadline_unix_ms: deadline } = request.into_inner();
        let now = now_unix_ms();
        if deadline.is_some_and(|deadline| deadline <= now) {
            let message = format!("it has passed, now is {now}");
            return Err(Fault::invalid("deadline_unix_ms", "DEADLINE_PASSED", message).into());
        }
        let stored = self.change(&call, &id, Change::Resume { now, deadline }).await?;
        Ok(Response::new(ResumeJobResponse { job: Some(job(&stored)?) }))
    }

    async fn delete_job(
        &self,
        request: Request<DeleteJobRequest>,
    ) -> Result<Response<DeleteJobResponse>, Status> {
        let call = Call::of(&request);
        let stored = self.change(&call, &request.get_ref().id, Change::Delete).await?;
        removed(&*self.jobs()?, &stored.id, call.deadline()).await?;
        Ok(Response::new(DeleteJobResponse {}))
    }

    async fn fetch_job_results(
        &self,
        request: Request<FetchJobResultsRequest>,
    ) -> Result<Response<Self::FetchJobResultsStream>, Status> {
        let call = Call::of(&request);
        let FetchJobResultsRequest { id, partial } = request.into_inner();
        let (jobs, stored) = self.job_of(&call, Right::Read, &id).await?;
        if !partial {
            must_be_done(&stored)?;
        }
        let place = self.admission.admit()?;
        Ok(Response::new(Driven::spawn(|outlet| async move {
            let _place = place;
            jobs.send_results(stored, outlet).await
        })))
    }

    async fn fetch_job_file(
        &self,
        request: Request<FetchJobFileRequest>,
    ) -> Result<Response<Self::FetchJobFileStream>, Status> {
        let call = Call::of(&request);
        let (jobs, stored) = self.job_of(&call, Right::Read, &request.get_ref().id).await?;
        must_be_done(&stored)?;
        let place = self.admission.admit()?;
        Ok(Response::new(Driven::spawn(|outlet| async move {
            let _place = place;
            jobs.send_file(stored, outlet).await
        })))
    }

    async fn forget_job_images(
        &self,
        request: Request<ForgetJobImagesRequest>,
    ) -> Result<Response<ForgetJobImagesResponse>, Status> {
        let call = Call::of(&request);
        call.require(Right::Write, None)?;
        if !call.caller().is_everywhere() {
            let message = "an image is forgotten in the jobs of every collection, later ones too".into();
            return Err(Fault::PermissionDenied { message }.into());
        }
        let jobs = self.jobs()?;
        let _place = self.admission.admit()?;
        let results = jobs.forget(request.into_inner()).await?;
        Ok(Response::new(ForgetJobImagesResponse { results }))
    }
}

/// Sends a job whenever it has changed, until nothing happens to it any more.
async fn watch(
    jobs: &Jobs,
    stored: Stored,
    mut snapshots: watch::Receiver<Snapshot>,
    outlet: &Outlet<WatchJobResponse>,
) -> Result<(), Fault> {
    let began = Instant::now();
    let id = stored.id.clone();
    let mut last = None;
    let mut now = Some(stored);
    loop {
        if let Some(stored) = now.take() {
            let job = job(&stored)?;
            let at_rest = stored.job.state(now_unix_ms()).is_at_rest();
            if last.as_ref() != Some(&job) {
                outlet.send(WatchJobResponse { job: Some(job.clone()) }).await?;
                last = Some(job);
            }
            if at_rest {
                return Ok(());
            }
        }
        let snapshot = changed(&mut snapshots).await?;
        // What was read before may be of a time before the job's last change, or of one after it was read here.
        if snapshot.read_at.is_some_and(|read_at| read_at > began) {
            now = snapshot.find(&id).cloned();
        }
        if now.is_none() {
            // Deleted, or its record cannot be read.
            match jobs.store.job(&id).await {
                Err(StoreError::NotFound { .. }) => return Ok(()),
                Ok(stored) => now = Some(stored),
                Err(error) => return Err(of_store(error)),
            }
        }
    }
}

/// Waits until a job is gone.
async fn removed(jobs: &Jobs, id: &JobId, deadline: Deadline) -> Result<(), Fault> {
    let mut snapshots = jobs.board.subscribe();
    let gone = async {
        while jobs.store.job(id).await != Err(StoreError::NotFound { job: id.clone() }) {
            changed(&mut snapshots).await?;
        }
        Ok(())
    };
    tokio::select! {
        gone = gone => gone,
        () = deadline.passed() => Err(Fault::DeadlineExceeded),
    }
}

/// The next look at all jobs.
async fn changed(snapshots: &mut watch::Receiver<Snapshot>) -> Result<Snapshot, Fault> {
    let gone = || Fault::unavailable("DRAINING", "this coordinator is leaving: ask another", Duration::ZERO);
    snapshots.changed().await.map_err(|_| gone())?;
    let snapshot = snapshots.borrow_and_update().clone();
    if snapshot.is_last { Err(gone()) } else { Ok(snapshot) }
}
