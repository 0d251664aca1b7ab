//! The other roles, small and predictable: a gallery in memory, a model that reads its answers from a table.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use thicket_coordinator::{App, Config, Peers};
use thicket_proto::v1::answer_service_server::{AnswerService, AnswerServiceServer};
use thicket_proto::v1::coordinator_service_client::CoordinatorServiceClient;
use thicket_proto::v1::embedding_service_server::{EmbeddingService, EmbeddingServiceServer};
use thicket_proto::v1::gallery_service_server::{GalleryService, GalleryServiceServer};
use thicket_proto::v1::job_service_client::JobServiceClient;
use thicket_proto::v1::search_person_response::Event;
use thicket_proto::v1::*;
use thicket_runtime::{Fault, MAX_MESSAGE_BYTES, Role, RoleConfig, Server, Services, Stop, StopHandle};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::{Stream, StreamExt};
use tonic::transport::Channel;
use tonic::{Request, Response, Status, Streaming};

pub(crate) const COLLECTION: &str = "lobby";
pub(crate) const TEXT: &str = "a woman in a red coat";
pub(crate) const REFINED: &str = "a woman in a red coat with a black bag";
pub(crate) const MODEL: &str = "model-1";

/// One image of the gallery.
#[derive(Debug, Clone)]
pub(crate) struct Stored {
    pub(crate) id: String,
    pub(crate) vector: Vec<f32>,
    pub(crate) image: Vec<u8>,
}

/// What the model says about one image.
#[derive(Debug, Clone)]
pub(crate) enum Says {
    PYes(f64),
    Garbage,
    /// Never answers; the sender is dropped when the call is.
    Hang(mpsc::Sender<()>),
    /// As [`Says::Hang`] the first time, Yes from the second on.
    HangFirst(mpsc::Sender<()>),
    /// Yes, once another image has been asked about.
    YesAfter(&'static str),
    Fails(Fault),
}

/// Everything the fakes know, and everything they were asked.
#[derive(Debug, Clone)]
pub(crate) struct World {
    pub(crate) collections: HashMap<String, Vec<Stored>>,
    /// The index that each collection was created with.
    pub(crate) indexes: HashMap<String, Option<VectorIndex>>,
    pub(crate) fingerprint_of_collection: String,
    pub(crate) texts: HashMap<String, Vec<f32>>,
    /// By image; an image that is not in it is answered with No.
    pub(crate) says: HashMap<Vec<u8>, Says>,
    pub(crate) describe: DescribeResponse,
    pub(crate) aggregate: AggregateResponse,
    pub(crate) embedding_fails: Option<Fault>,
    /// Vanishes from the gallery when the refined text is embedded.
    pub(crate) deleted_at_refinement: Option<String>,
    /// `locate:TEXT:IMAGE`, `describe:IMAGE`, `aggregate:TEXT`, `search:TOP`, ...
    pub(crate) log: Vec<String>,
    /// The adapter that each question named.
    pub(crate) adapters: Vec<String>,
    /// The filter of each search.
    pub(crate) filters: Vec<Option<Filter>>,
    /// Seed of how long each question takes, up to 8 ms; `None` for no time.
    pub(crate) takes: Option<u64>,
}

impl World {
    /// A gallery `a, b, c, ...` with the given similarities to [`TEXT`], and to [`REFINED`].
    pub(crate) fn of(similarities: &[(f32, f32)]) -> Self {
        let stored = similarities.iter().zip('a'..).map(|(&(original, refined), name)| Stored {
            id: name.to_string(),
            vector: vec![original, refined],
            image: name.to_string().into_bytes(),
        });
        Self {
            collections: HashMap::from([(COLLECTION.to_owned(), stored.collect())]),
            indexes: HashMap::new(),
            fingerprint_of_collection: MODEL.to_owned(),
            texts: HashMap::from([(TEXT.to_owned(), vec![1.0, 0.0]), (REFINED.to_owned(), vec![0.0, 1.0])]),
            says: HashMap::new(),
            describe: DescribeResponse {
                answers: vec!["Female.".into(), "A black bag.".into()],
                usable: true,
                ..Default::default()
            },
            aggregate: AggregateResponse { text: REFINED.into(), usable: true, timing: None },
            embedding_fails: None,
            deleted_at_refinement: None,
            log: Vec::new(),
            adapters: Vec::new(),
            filters: Vec::new(),
            takes: None,
        }
    }

    pub(crate) fn saying(mut self, image: &str, says: Says) -> Self {
        self.says.insert(image.as_bytes().to_vec(), says);
        self
    }

    pub(crate) fn count(&self, prefix: &str) -> usize {
        self.log.iter().filter(|line| line.starts_with(prefix)).count()
    }

    fn collection(&self, name: &str) -> Result<&Vec<Stored>, Fault> {
        self.collections.get(name).ok_or_else(|| Fault::not_found("collection", name))
    }

    fn item(&self, collection: &str, id: &str) -> Result<&Stored, Fault> {
        let found = self.collection(collection)?.iter().find(|stored| stored.id == id);
        found.ok_or_else(|| Fault::not_found("item", id))
    }

    /// All items of a collection, best first, equal scores in insertion order.
    pub(crate) fn ranking(&self, collection: &str, query: &[f32]) -> Result<Vec<(String, f32)>, Fault> {
        let mut scored: Vec<_> = self
            .collection(collection)?
            .iter()
            .map(|stored| (stored.id.clone(), dot(query, &stored.vector)))
            .collect();
        scored.sort_by(|left, right| right.1.partial_cmp(&left.1).expect("finite scores"));
        Ok(scored)
    }
}

/// As a gallery names an image.
pub(crate) fn hash(image: &[u8]) -> String {
    blake3::hash(image).to_hex().to_string()
}

pub(crate) fn dot(left: &[f32], right: &[f32]) -> f32 {
    left.iter().zip(right).map(|(a, b)| a * b).sum()
}

#[derive(Debug, Clone)]
struct Fakes(Arc<Mutex<World>>);

impl Fakes {
    fn world(&self) -> MutexGuard<'_, World> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

#[tonic::async_trait]
impl EmbeddingService for Fakes {
    async fn get_model(&self, _: Request<GetModelRequest>) -> Result<Response<GetModelResponse>, Status> {
        let model = EmbeddingModel {
            name: "test".into(),
            fingerprint: MODEL.into(),
            dimension: 2,
            similarity: Similarity::Cosine.into(),
            ..Default::default()
        };
        Ok(Response::new(GetModelResponse { model: Some(model) }))
    }

    async fn embed_text(
        &self,
        request: Request<EmbedTextRequest>,
    ) -> Result<Response<EmbedTextResponse>, Status> {
        let mut world = self.world();
        if let Some(fault) = world.embedding_fails.clone() {
            return Err(fault.into());
        }
        let text = request.into_inner().texts.remove(0);
        world.log.push(format!("embed:{text}"));
        if text == REFINED
            && let Some(gone) = world.deleted_at_refinement.clone()
        {
            for stored in world.collections.values_mut() {
                stored.retain(|item| item.id != gone);
            }
        }
        let values = world.texts.get(&text).cloned().ok_or_else(|| {
            Status::from(Fault::invalid("texts[0]", "TEXT_UNKNOWN", "the test does not know this text"))
        })?;
        let vectors = vec![Vector { values }];
        Ok(Response::new(EmbedTextResponse { vectors, model_fingerprint: MODEL.into() }))
    }

    async fn embed_image(
        &self,
        request: Request<EmbedImageRequest>,
    ) -> Result<Response<EmbedImageResponse>, Status> {
        let mut world = self.world();
        if let Some(fault) = world.embedding_fails.clone() {
            return Err(fault.into());
        }
        let images = request.into_inner().images;
        world.log.push(format!("embed_images:{}", images.len()));
        let result = |image: &[u8]| match image.starts_with(b"bad") {
            true => embed_image_result::Result::Error(
                Fault::invalid("image", "IMAGE_UNDECODABLE", "not an image").to_item_error(),
            ),
            false => embed_image_result::Result::Vector(Vector { values: vec![1.0, 0.0] }),
        };
        let results = images.iter().map(|image| EmbedImageResult { result: Some(result(image)) }).collect();
        Ok(Response::new(EmbedImageResponse { results, model_fingerprint: MODEL.into() }))
    }
}

type Upserts = std::pin::Pin<Box<dyn Stream<Item = Result<UpsertResponse, Status>> + Send>>;

#[tonic::async_trait]
impl GalleryService for Fakes {
    type UpsertStream = Upserts;

    async fn create_collection(
        &self,
        request: Request<CreateCollectionRequest>,
    ) -> Result<Response<CreateCollectionResponse>, Status> {
        let request = request.into_inner();
        if request.name.contains(' ') {
            return Err(Fault::invalid("name", "COLLECTION_NAME_INVALID", "no spaces").into());
        }
        let mut world = self.world();
        world.log.push(format!("create:{}:{}", request.name, request.dimension));
        world.indexes.insert(request.name.clone(), request.index);
        world.collections.insert(request.name, Vec::new());
        Ok(Response::new(CreateCollectionResponse::default()))
    }

    async fn list_collections(
        &self,
        _: Request<ListCollectionsRequest>,
    ) -> Result<Response<ListCollectionsResponse>, Status> {
        let world = self.world();
        let collections = world.collections.keys().map(|name| Collection {
            name: name.clone(),
            model_fingerprint: world.fingerprint_of_collection.clone(),
            ..Default::default()
        });
        Ok(Response::new(ListCollectionsResponse {
            collections: collections.collect(),
            ..Default::default()
        }))
    }

    async fn delete_collection(
        &self,
        _: Request<DeleteCollectionRequest>,
    ) -> Result<Response<DeleteCollectionResponse>, Status> {
        Err(Status::unimplemented("the coordinator deletes nothing"))
    }

    async fn upsert(&self, request: Request<Streaming<UpsertRequest>>) -> Result<Response<Upserts>, Status> {
        let fakes = self.clone();
        fakes.world().log.push("upsert".into());
        let results = request.into_inner().map(move |item| {
            let item = item?;
            let error = |fault: Fault| upsert_response::Result::Error(fault.to_item_error());
            let mut world = fakes.world();
            let result = match world.collections.get_mut(&item.collection) {
                None => return Err(Fault::not_found("collection", item.collection).into()),
                Some(_) if item.id.is_empty() => {
                    error(Fault::invalid("id", "ITEM_ID_INVALID", "1 to 256 bytes, got 0"))
                }
                Some(stored) => {
                    stored.push(Stored {
                        id: item.id.clone(),
                        vector: item.vector.unwrap_or_default().values,
                        image: item.image.to_vec(),
                    });
                    upsert_response::Result::Item(Item {
                        id: item.id.clone(),
                        metadata: item.metadata,
                        ..Default::default()
                    })
                }
            };
            Ok(UpsertResponse { id: item.id, result: Some(result), ..Default::default() })
        });
        Ok(Response::new(Box::pin(results)))
    }

    async fn compact(&self, _: Request<CompactRequest>) -> Result<Response<CompactResponse>, Status> {
        Err(Status::unimplemented("the coordinator deletes nothing"))
    }

    async fn delete(&self, _: Request<DeleteRequest>) -> Result<Response<DeleteResponse>, Status> {
        Err(Status::unimplemented("the coordinator deletes nothing"))
    }

    async fn search(&self, request: Request<SearchRequest>) -> Result<Response<SearchResponse>, Status> {
        let request = request.into_inner();
        let mut world = self.world();
        world.log.push(format!("search:{}", request.top));
        world.filters.push(request.filter);
        if request.model_fingerprint != world.fingerprint_of_collection {
            return Err(Fault::failed_precondition("MODEL_MISMATCH", "another model").into());
        }
        let ranking = world.ranking(&request.collection, &request.queries[0].values)?;
        let hits = ranking.into_iter().take(request.top as usize).map(|(id, score)| {
            let image_hash = hash(&world.item(&request.collection, &id)?.image);
            Ok(Hit { item: Some(Item { id, image_hash, ..Default::default() }), score })
        });
        let hits = hits.collect::<Result<_, Fault>>()?;
        Ok(Response::new(SearchResponse { rankings: vec![Ranking { hits }] }))
    }

    async fn score(&self, request: Request<ScoreRequest>) -> Result<Response<ScoreResponse>, Status> {
        let request = request.into_inner();
        let world = self.world();
        let query = request.query.unwrap_or_default().values;
        let scores = request
            .ids
            .iter()
            .map(|id| world.item(&request.collection, id).map(|stored| dot(&query, &stored.vector)))
            .collect::<Result<_, Fault>>()?;
        Ok(Response::new(ScoreResponse { scores }))
    }

    async fn rank_of(&self, request: Request<RankOfRequest>) -> Result<Response<RankOfResponse>, Status> {
        let request = request.into_inner();
        let mut world = self.world();
        world.log.push("rank_of".into());
        let ranking = world.ranking(&request.collection, &request.query.unwrap_or_default().values)?;
        let ranks = request
            .ids
            .iter()
            .map(|id| {
                let place = ranking.iter().position(|(other, _)| other == id);
                place.map(|place| place as u64 + 1).ok_or_else(|| Fault::not_found("item", id))
            })
            .collect::<Result<_, Fault>>()?;
        Ok(Response::new(RankOfResponse { ranks }))
    }

    async fn get_item(&self, _: Request<GetItemRequest>) -> Result<Response<GetItemResponse>, Status> {
        Err(Status::unimplemented("the coordinator needs no metadata"))
    }

    async fn get_image(
        &self,
        request: Request<GetImageRequest>,
    ) -> Result<Response<GetImageResponse>, Status> {
        let request = request.into_inner();
        let Some(get_image_request::By::Id(id)) = request.by else {
            return Err(Status::unimplemented("by id only"));
        };
        let mut world = self.world();
        world.log.push(format!("image:{id}"));
        let image = world.item(&request.collection, &id)?.image.clone();
        if image.is_empty() {
            return Err(Fault::not_found("image", id).into());
        }
        Ok(Response::new(GetImageResponse { image: image.into(), ..Default::default() }))
    }
}

#[tonic::async_trait]
impl AnswerService for Fakes {
    async fn get_answer_model(
        &self,
        _: Request<GetAnswerModelRequest>,
    ) -> Result<Response<GetAnswerModelResponse>, Status> {
        Ok(Response::new(GetAnswerModelResponse::default()))
    }

    async fn locate(&self, request: Request<LocateRequest>) -> Result<Response<LocateResponse>, Status> {
        let request = request.into_inner();
        let image = request.image.to_vec();
        let (says, takes) = {
            let mut world = self.world();
            world.adapters.push(request.adapter);
            world.log.push(format!("locate:{}:{}", request.text, String::from_utf8_lossy(&image)));
            let times = world.count("locate:");
            let says = world.says.get(&image).cloned().unwrap_or(Says::PYes(0.1));
            (says, world.takes.map(|seed| SmallRng::seed_from_u64(seed ^ times as u64).random_range(0..8)))
        };
        if let Some(takes) = takes {
            tokio::time::sleep(Duration::from_millis(takes)).await;
        }
        let yes = || Response::new(LocateResponse { p_yes: 0.9, usable: true, ..Default::default() });
        let line = |image: &str| format!("locate:{}:{image}", request.text);
        match says {
            Says::PYes(p_yes) => {
                Ok(Response::new(LocateResponse { p_yes, usable: true, ..Default::default() }))
            }
            Says::Garbage => Ok(Response::new(LocateResponse {
                p_yes: f64::NAN,
                raw_text: "\u{fffd}\u{fffd} 42".into(),
                ..Default::default()
            })),
            Says::Hang(_dropped_with_the_call) => std::future::pending().await,
            Says::HangFirst(_dropped_with_the_call) => {
                if self.world().count(&line(&String::from_utf8_lossy(&image))) == 1 {
                    std::future::pending::<()>().await;
                }
                Ok(yes())
            }
            Says::YesAfter(other) => {
                while self.world().count(&line(other)) == 0 {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                Ok(yes())
            }
            Says::Fails(fault) => Err(fault.into()),
        }
    }

    async fn describe(
        &self,
        request: Request<DescribeRequest>,
    ) -> Result<Response<DescribeResponse>, Status> {
        let DescribeRequest { image, adapter } = request.into_inner();
        let mut world = self.world();
        world.adapters.push(adapter);
        let line = format!("describe:{}", String::from_utf8_lossy(&image));
        world.log.push(line);
        Ok(Response::new(world.describe.clone()))
    }

    async fn aggregate(
        &self,
        request: Request<AggregateRequest>,
    ) -> Result<Response<AggregateResponse>, Status> {
        let request = request.into_inner();
        let mut world = self.world();
        world.adapters.push(request.adapter);
        world.log.push(format!("aggregate:{}:{}", request.text, request.answers.join("|")));
        Ok(Response::new(world.aggregate.clone()))
    }

    async fn decompose(&self, _: Request<DecomposeRequest>) -> Result<Response<DecomposeResponse>, Status> {
        Err(Status::unimplemented("not part of a search"))
    }

    async fn rewrite(&self, _: Request<RewriteRequest>) -> Result<Response<RewriteResponse>, Status> {
        Err(Status::unimplemented("not part of a search"))
    }

    async fn list_adapters(
        &self,
        _: Request<ListAdaptersRequest>,
    ) -> Result<Response<ListAdaptersResponse>, Status> {
        Err(Status::unimplemented("not part of a search"))
    }

    async fn load_adapter(
        &self,
        _: Request<LoadAdapterRequest>,
    ) -> Result<Response<LoadAdapterResponse>, Status> {
        Err(Status::unimplemented("not part of a search"))
    }

    async fn forget_images(
        &self,
        _: Request<ForgetImagesRequest>,
    ) -> Result<Response<ForgetImagesResponse>, Status> {
        Err(Status::unimplemented("not part of a search"))
    }

    async fn forget_image(
        &self,
        _: Request<ForgetImageRequest>,
    ) -> Result<Response<ForgetImageResponse>, Status> {
        Err(Status::unimplemented("not part of a search"))
    }

    async fn unload_adapter(
        &self,
        _: Request<UnloadAdapterRequest>,
    ) -> Result<Response<UnloadAdapterResponse>, Status> {
        Err(Status::unimplemented("not part of a search"))
    }
}

/// A coordinator with its fakes; everything stops when it is dropped.
#[derive(Debug)]
pub(crate) struct Bench {
    fakes: Fakes,
    pub(crate) client: CoordinatorServiceClient<Channel>,
    pub(crate) jobs: JobServiceClient<Channel>,
    stops: Vec<StopHandle>,
    coordinator: Option<std::thread::JoinHandle<()>>,
}

impl Bench {
    pub(crate) async fn start(world: World) -> Self {
        Self::start_with(world, |_| ()).await
    }

    pub(crate) async fn start_with(world: World, change: impl FnOnce(&mut Config)) -> Self {
        Self::start_several(world, 1, change).await
    }

    /// With so many answer replicas.
    pub(crate) async fn start_several(
        world: World,
        answerers: usize,
        change: impl FnOnce(&mut Config),
    ) -> Self {
        let fakes = Fakes(Arc::new(Mutex::new(world)));
        let mut stops = Vec::new();
        let embedding =
            EmbeddingServiceServer::new(fakes.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES);
        let gallery = GalleryServiceServer::new(fakes.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES);
        let mut answer = Vec::new();
        for _ in 0..answerers {
            let services = Services::new().with(AnswerServiceServer::new(fakes.clone()));
            answer.push(serve(Role::Answer, services, &mut stops).await);
        }
        let peers = Peers {
            embedding: vec![serve(Role::Embedding, Services::new().with(embedding), &mut stops).await],
            gallery: serve(Role::Gallery, Services::new().with(gallery), &mut stops).await,
            answer,
            gallery_replicas: Vec::new(),
            token: None,
        };
        let mut config = Config::in_process(peers);
        change(&mut config);
        let (tell, told) = oneshot::channel();
        let (handle, stop) = Stop::by_hand();
        stops.push(handle);
        let coordinator = on_own_thread(move || async move {
            let app = App::build(config).await.expect("a coordinator");
            tell.send(app.grpc_addr()).expect("a test that waits");
            app.run(stop).await
        });
        let channel = connect(told.await.expect("a running coordinator"));
        let client =
            CoordinatorServiceClient::new(channel.clone()).max_encoding_message_size(MAX_MESSAGE_BYTES);
        let jobs = JobServiceClient::new(channel);
        Self { fakes, client, jobs, stops, coordinator: Some(coordinator) }
    }

    /// Stops the coordinator alone, and waits until it has ended.
    pub(crate) async fn stop_coordinator(&mut self) {
        self.stops.last().expect("a coordinator").stop();
        let coordinator = self.coordinator.take().expect("it runs");
        tokio::task::spawn_blocking(move || coordinator.join()).await.unwrap().unwrap();
    }

    /// What the fakes know and were asked.
    pub(crate) fn world(&self) -> MutexGuard<'_, World> {
        self.fakes.world()
    }

    /// Runs a search to its end.
    pub(crate) async fn search(&self, request: SearchPersonRequest) -> Result<Vec<Event>, Status> {
        let mut stream = self.client.clone().search_person(request).await?.into_inner();
        let mut events = Vec::new();
        while let Some(response) = stream.message().await? {
            events.push(response.event.expect("every message has an event"));
        }
        Ok(events)
    }

    /// The last event of a search.
    pub(crate) async fn finish(&self, request: SearchPersonRequest) -> SearchFinished {
        finished(&self.search(request).await.expect("a search")).clone()
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.stops.iter().for_each(StopHandle::stop);
    }
}

pub(crate) fn request() -> SearchPersonRequest {
    SearchPersonRequest { collection: COLLECTION.into(), text: TEXT.into(), ..Default::default() }
}

pub(crate) fn finished(events: &[Event]) -> &SearchFinished {
    match events.last() {
        Some(Event::Finished(finished)) => finished,
        other => panic!("the last event is {other:?}"),
    }
}

/// Ids of hits, in order.
pub(crate) fn ids(hits: &[Hit]) -> Vec<String> {
    hits.iter().map(|hit| hit.item.clone().unwrap_or_default().id).collect()
}

async fn serve(role: Role, services: Services, stops: &mut Vec<StopHandle>) -> String {
    let (tell, told) = oneshot::channel();
    let (handle, stop) = Stop::by_hand();
    stops.push(handle);
    on_own_thread(move || async move {
        let server = Server::bind(role, &RoleConfig::in_process()).await.expect("a free port");
        tell.send(server.grpc_addr()).expect("a test that waits");
        server.serve(services, stop.requested()).await
    });
    format!("http://{}", told.await.expect("a running role"))
}

/// Runs a role as it runs in production: on a runtime that it shares with nobody.
fn on_own_thread<F: Future>(role: impl FnOnce() -> F + Send + 'static) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let _ = runtime.block_on(role());
    })
}

fn connect(address: SocketAddr) -> Channel {
    Channel::from_shared(format!("http://{address}")).expect("an address").connect_lazy()
}
