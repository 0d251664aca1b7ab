//! Answer services are told which images are gone, until they have done what they were told.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use thicket_discovery::Address;
use thicket_gallery::{Config, ForgetConfig, Told};
use thicket_proto::v1;
use thicket_proto::v1::answer_service_server::{AnswerService, AnswerServiceServer};
use thicket_proto::v1::job_service_server::{JobService, JobServiceServer};
use thicket_runtime::Fault;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

use crate::common::*;

/// An answer service that does nothing but forget, or refuses to.
#[derive(Debug, Clone, Default)]
struct Forgetful {
    refuses: Arc<AtomicBool>,
    forgotten: Arc<Mutex<Vec<String>>>,
}

impl Forgetful {
    async fn start(&self) -> SocketAddr {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
        let service = AnswerServiceServer::new(self.clone());
        tokio::spawn(Server::builder().add_service(service).serve_with_incoming(incoming));
        address
    }

    async fn has_forgotten(&self, image: u32) {
        let hash = blake3::hash(&png(image)).to_hex().to_string();
        while !self.forgotten.lock().contains(&hash) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

macro_rules! not_here {
    ($($name:ident: $request:ident -> $response:ident),+ $(,)?) => {
        #[tonic::async_trait]
        impl AnswerService for Forgetful {
            $(async fn $name(&self, _: Request<v1::$request>) -> Result<Response<v1::$response>, Status> {
                Err(Status::unimplemented("it forgets"))
            })+

            async fn forget_images(
                &self,
                request: Request<v1::ForgetImagesRequest>,
            ) -> Result<Response<v1::ForgetImagesResponse>, Status> {
                if self.refuses.load(Ordering::SeqCst) {
                    return Err(Status::unavailable("not now"));
                }
                let images = request.into_inner().image_hashes;
                let answers = images.len() as u64;
                self.forgotten.lock().extend(images);
                Ok(Response::new(v1::ForgetImagesResponse { answers }))
            }
        }
    };
}

not_here!(
    get_answer_model: GetAnswerModelRequest -> GetAnswerModelResponse,
    locate: LocateRequest -> LocateResponse,
    describe: DescribeRequest -> DescribeResponse,
    aggregate: AggregateRequest -> AggregateResponse,
    decompose: DecomposeRequest -> DecomposeResponse,
    rewrite: RewriteRequest -> RewriteResponse,
    forget_image: ForgetImageRequest -> ForgetImageResponse,
    list_adapters: ListAdaptersRequest -> ListAdaptersResponse,
    load_adapter: LoadAdapterRequest -> LoadAdapterResponse,
    unload_adapter: UnloadAdapterRequest -> UnloadAdapterResponse,
);

fn telling(config: Config, answers: &[SocketAddr]) -> Config {
    telling_both(config, answers, &[])
}

fn telling_both(config: Config, answers: &[SocketAddr], coordinators: &[SocketAddr]) -> Config {
    let [answers, coordinators] = [answers, coordinators].map(|addresses| {
        addresses.iter().map(|at| Address::of_ip(at.ip(), at.port()).unwrap()).collect::<Vec<_>>()
    });
    Config { forget: Some(ForgetConfig { told: Told::at(&answers, &coordinators), token: None }), ..config }
}

/// A coordinator that does nothing but forget; without jobs it says that it has none.
#[derive(Debug, Clone, Default)]
struct ForgetfulJobs {
    is_off: bool,
    forgotten: Arc<Mutex<Vec<String>>>,
}

impl ForgetfulJobs {
    async fn start(&self) -> SocketAddr {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
        let service = JobServiceServer::new(self.clone());
        tokio::spawn(Server::builder().add_service(service).serve_with_incoming(incoming));
        address
    }
}

type NoStream<T> = tokio_stream::Empty<Result<T, Status>>;

macro_rules! no_job {
    ($($name:ident: $request:ty => $response:ty),+ $(,)?) => {
        #[tonic::async_trait]
        impl JobService for ForgetfulJobs {
            type WatchJobStream = NoStream<v1::WatchJobResponse>;
            type FetchJobResultsStream = NoStream<v1::FetchJobResultsResponse>;
            type FetchJobFileStream = NoStream<v1::FetchJobFileResponse>;

            $(async fn $name(&self, _: Request<$request>) -> Result<Response<$response>, Status> {
                Err(Status::unimplemented("it forgets"))
            })+

            async fn forget_job_images(
                &self,
                request: Request<v1::ForgetJobImagesRequest>,
            ) -> Result<Response<v1::ForgetJobImagesResponse>, Status> {
                if self.is_off {
                    return Err(Fault::failed_precondition("JOBS_OFF", "no jobs here").into());
                }
                self.forgotten.lock().extend(request.into_inner().image_hashes);
                Ok(Response::new(v1::ForgetJobImagesResponse { results: 1 }))
            }
        }
    };
}

no_job!(
    create_job: tonic::Streaming<v1::CreateJobRequest> => v1::CreateJobResponse,
    get_job: v1::GetJobRequest => v1::GetJobResponse,
    list_jobs: v1::ListJobsRequest => v1::ListJobsResponse,
    watch_job: v1::WatchJobRequest => Self::WatchJobStream,
    cancel_job: v1::CancelJobRequest => v1::CancelJobResponse,
    resume_job: v1::ResumeJobRequest => v1::ResumeJobResponse,
    delete_job: v1::DeleteJobRequest => v1::DeleteJobResponse,
    fetch_job_results: v1::FetchJobResultsRequest => Self::FetchJobResultsStream,
    fetch_job_file: v1::FetchJobFileRequest => Self::FetchJobFileStream,
);

#[tokio::test]
async fn coordinators_take_what_is_deleted_out_of_the_results_of_jobs() {
    let folder = tempfile::tempdir().unwrap();
    let answers = Forgetful::default();
    let jobs = ForgetfulJobs::default();
    let without = ForgetfulJobs { is_off: true, ..ForgetfulJobs::default() };
    let coordinators = [without.start().await, jobs.start().await];
    let config = telling_both(Config::in_process(folder.path()), &[answers.start().await], &coordinators);
    let mut gallery = Running::start(config).await;
    fill_with_images(&mut gallery.client).await;
    delete(&mut gallery.client, &["3"]).await;
    answers.has_forgotten(3).await;
    let hash = blake3::hash(&png(3)).to_hex().to_string();
    // The one without jobs comes before or after, and holds nobody up.
    while !jobs.forgotten.lock().contains(&hash) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(jobs.forgotten.lock().iter().all(|forgotten| *forgotten == hash));
    gallery.stop().await;
}

async fn fill_with_images(client: &mut Client) {
    create(client, "lobby", 2).await;
    let items = (0..6).map(|i| with_image(item(&format!("{i}"), at(i as f32)), png(i))).collect();
    fill(client, items).await;
}

#[tokio::test]
async fn every_answer_service_forgets_what_is_deleted_replaced_or_dropped() {
    let folder = tempfile::tempdir().unwrap();
    let services = [Forgetful::default(), Forgetful::default()];
    let addresses = [services[0].start().await, services[1].start().await];
    let config = telling(Config::in_process(folder.path()), &addresses);
    let mut gallery = Running::start(config).await;
    fill_with_images(&mut gallery.client).await;
    fill(&mut gallery.client, vec![with_image(item("twin", at(0.0)), png(1))]).await;
    delete(&mut gallery.client, &["0", "1"]).await;
    fill(&mut gallery.client, vec![with_image(item("2", at(0.0)), png(20))]).await;
    for service in &services {
        service.has_forgotten(0).await;
        service.has_forgotten(2).await;
        let shown = blake3::hash(&png(1)).to_hex().to_string();
        assert!(!service.forgotten.lock().contains(&shown), "another item shows it");
    }
    let request = v1::DeleteCollectionRequest { name: "lobby".to_owned(), max_items: None };
    gallery.client.delete_collection(request).await.unwrap();
    for service in &services {
        service.has_forgotten(1).await;
        service.has_forgotten(5).await;
    }
    gallery.stop().await;
}

#[tokio::test]
async fn a_request_outlives_the_gallery_and_an_answer_service_that_is_away() {
    let folder = tempfile::tempdir().unwrap();
    let service = Forgetful::default();
    service.refuses.store(true, Ordering::SeqCst);
    let address = service.start().await;
    let mut gallery = Running::start(telling(Config::in_process(folder.path()), &[address])).await;
    fill_with_images(&mut gallery.client).await;
    delete(&mut gallery.client, &["3"]).await;
    // Not even the hash is taken out of the files before it is done.
    gallery.client.compact(v1::CompactRequest {}).await.unwrap();
    gallery.stop().await;
    assert!(service.forgotten.lock().is_empty());
    service.refuses.store(false, Ordering::SeqCst);
    let gallery = Running::start(telling(Config::in_process(folder.path()), &[address])).await;
    service.has_forgotten(3).await;
    gallery.stop().await;
}

#[tokio::test]
async fn a_gallery_on_milvus_has_answers_forgotten_too() {
    let Some(milvus) = crate::contract::start_milvus().await else { return };
    let folder = tempfile::tempdir().unwrap();
    let service = Forgetful::default();
    service.refuses.store(true, Ordering::SeqCst);
    let address = service.start().await;
    let config = || telling(crate::contract::config(&milvus, folder.path()), &[address]);
    let mut gallery = Running::start(config()).await;
    fill_with_images(&mut gallery.client).await;
    delete(&mut gallery.client, &["3"]).await;
    gallery.stop().await;
    service.refuses.store(false, Ordering::SeqCst);
    let gallery = Running::start(config()).await;
    service.has_forgotten(3).await;
    gallery.stop().await;
}
