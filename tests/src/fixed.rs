use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use thicket_proto::v1::answer_service_server::AnswerService;
use thicket_proto::v1::*;
use tokio::sync::Semaphore;
use tonic::{Request, Response, Status};

/// How often each text was asked about, over all replicas.
pub type Asked = Arc<Mutex<HashMap<String, usize>>>;

/// An answer replica without a model: every question takes the same time, so many are worked on at a time, and the answer is
/// No.
#[derive(Debug, Clone)]
pub struct FixedAnswers {
    takes: Duration,
    slots: Arc<Semaphore>,
    asked: Asked,
}

impl FixedAnswers {
    /// A replica that counts what it is asked in `asked`.
    pub fn new(takes: Duration, slots: usize, asked: Asked) -> Self {
        Self { takes, slots: Arc::new(Semaphore::new(slots)), asked }
    }
}

fn not_here<T>() -> Result<Response<T>, Status> {
    Err(Status::unimplemented("this replica only judges"))
}

#[tonic::async_trait]
impl AnswerService for FixedAnswers {
    async fn locate(&self, request: Request<LocateRequest>) -> Result<Response<LocateResponse>, Status> {
        let _slot = self.slots.acquire().await.map_err(|closed| Status::unavailable(closed.to_string()))?;
        tokio::time::sleep(self.takes).await;
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        *asked.entry(request.into_inner().text).or_default() += 1;
        Ok(Response::new(LocateResponse { p_yes: 0.1, usable: true, ..Default::default() }))
    }

    async fn get_answer_model(
        &self,
        _: Request<GetAnswerModelRequest>,
    ) -> Result<Response<GetAnswerModelResponse>, Status> {
        not_here()
    }

    async fn describe(&self, _: Request<DescribeRequest>) -> Result<Response<DescribeResponse>, Status> {
        not_here()
    }

    async fn aggregate(&self, _: Request<AggregateRequest>) -> Result<Response<AggregateResponse>, Status> {
        not_here()
    }

    async fn decompose(&self, _: Request<DecomposeRequest>) -> Result<Response<DecomposeResponse>, Status> {
        not_here()
    }

    async fn rewrite(&self, _: Request<RewriteRequest>) -> Result<Response<RewriteResponse>, Status> {
        not_here()
    }

    async fn list_adapters(
        &self,
        _: Request<ListAdaptersRequest>,
    ) -> Result<Response<ListAdaptersResponse>, Status> {
        not_here()
    }

    async fn load_adapter(
        &self,
        _: Request<LoadAdapterRequest>,
    ) -> Result<Response<LoadAdapterResponse>, Status> {
        not_here()
    }

    async fn unload_adapter(
        &self,
        _: Request<UnloadAdapterRequest>,
    ) -> Result<Response<UnloadAdapterResponse>, Status> {
        not_here()
    }

    async fn forget_images(
        &self,
        _: Request<ForgetImagesRequest>,
    ) -> Result<Response<ForgetImagesResponse>, Status> {
        not_here()
    }

    async fn forget_image(
        &self,
        _: Request<ForgetImageRequest>,
    ) -> Result<Response<ForgetImageResponse>, Status> {
        not_here()
    }
}
