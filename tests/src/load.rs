use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use thicket_proto::v1::answer_service_server::AnswerServiceServer;
use thicket_proto::v1::coordinator_service_client::CoordinatorServiceClient;
use thicket_proto::v1::embedding_service_client::EmbeddingServiceClient;
use thicket_proto::v1::gallery_service_client::GalleryServiceClient;
use thicket_proto::v1::search_person_response::Event;
use thicket_proto::v1::{
    CreateCollectionRequest, EmbedTextRequest, InteractionSettings, SearchPersonRequest, Similarity,
    UpsertRequest, upsert_response,
};
use thicket_runtime::{Failure, Role, RoleConfig, Server, Services, Stop, StopHandle};
use tokio::task::{JoinHandle, JoinSet};
use tonic::transport::Channel;
use tonic::{Code, Request, Status};
use tonic_types::StatusExt;

use crate::cluster::{goldens, url};
use crate::fixed::{Asked, FixedAnswers};

const COLLECTION: &str = "load";
/// Texts that are searched for; each finds an image of its own first.
const TEXTS: usize = 64;

/// A cluster under load: its roles are the real ones, but for answer replicas that take a fixed time.
#[derive(Debug)]
pub struct LoadedCluster {
    coordinator: SocketAddr,
    texts: Vec<String>,
    asked: Asked,
    stop: StopHandle,
    running: Vec<JoinHandle<Result<(), Failure>>>,
}

/// What such a cluster is made of.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// Answer replicas.
    pub replicas: usize,
    /// Questions that each works on at a time.
    pub slots: usize,
    /// How long each question takes.
    pub takes: Duration,
    /// Searches that the coordinator lets in at a time.
    pub max_calls: usize,
    /// Folder of the gallery.
    pub data: PathBuf,
}

/// How a search ended.
#[derive(Debug, Clone)]
pub enum Fate {
    /// With its ranking, after so long.
    Finished(Duration),
    /// Refused with RESOURCE_EXHAUSTED after so long, with the delay it was told, if any.
    Refused(Duration, Option<Duration>),
    /// In any other way.
    Failed(Code, String),
}

impl LoadedCluster {
    /// Starts the roles and stores an image for each text.
    ///
    /// # Errors
    /// [`Failure`] where a role cannot start or refuses what it is given.
    pub async fn start(options: LoadOptions) -> Result<Self, Failure> {
        let (stop, stopped) = Stop::by_hand();
        let asked = Asked::default();
        let mut running = Vec::new();
        let mut answer = Vec::new();
        for _ in 0..options.replicas {
            let replica = FixedAnswers::new(options.takes, options.slots, asked.clone());
            let server = Server::bind(Role::Answer, &RoleConfig::in_process()).await?;
            answer.push(url(server.grpc_addr()));
            let stopped = stopped.clone();
            running.push(tokio::spawn(async move {
                let services = Services::new().with(AnswerServiceServer::new(replica));
                server.serve(services, stopped.requested()).await?.into_result()
            }));
        }
        let embedding_config = thicket_embedding::Config::in_process(goldens().join("clip/trained"));
        let embedding = thicket_embedding::App::build(embedding_config).await?;
        let gallery = thicket_gallery::App::build(thicket_gallery::Config::in_process(options.data)).await?;
        let peers = thicket_coordinator::Peers {
            embedding: vec![url(embedding.grpc_addr())],
            gallery: url(gallery.grpc_addr()),
            gallery_replicas: Vec::new(),
            answer,
            token: None,
        };
        let mut config = thicket_coordinator::Config::in_process(peers);
        config.max_calls = options.max_calls;
        let coordinator = thicket_coordinator::App::build(config).await?;
        let address = coordinator.grpc_addr();
        let (embedding_at, gallery_at) = (embedding.grpc_addr(), gallery.grpc_addr());
        let health = [embedding.health(), gallery.health(), coordinator.health()];
        running.push(tokio::spawn(embedding.run(stopped.clone())));
        running.push(tokio::spawn(gallery.run(stopped.clone())));
        running.push(tokio::spawn(coordinator.run(stopped)));
        for health in health {
            health.ready().await;
        }
        let texts: Vec<String> = (0..TEXTS).map(|number| format!("person {number} in a coat")).collect();
        let failed = |status: Status| Failure::Failed(status.to_string());
        store(&texts, embedding_at, gallery_at).await.map_err(failed)?;
        let cluster = Self { coordinator: address, texts, asked, stop, running };
        // The coordinator finds its peers with the first search.
        let fate = cluster.search(&cluster.client(), 0, Duration::from_secs(30)).await;
        match fate {
            Fate::Finished(_) => {
                cluster.asked.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clear();
                Ok(cluster)
            }
            other => Err(Failure::Failed(format!("the first search: {other:?}"))),
        }
    }

    /// A connection of its own.
    pub fn client(&self) -> CoordinatorServiceClient<Channel> {
        let channel = Channel::from_shared(url(self.coordinator))
            .unwrap_or_else(|error| unreachable!("an address is a target: {error}"));
        CoordinatorServiceClient::new(channel.connect_lazy())
    }

    /// Questions that replicas were asked about the text of each search, in the order of the texts.
    pub fn asked(&self) -> Vec<usize> {
        let asked = self.asked.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        self.texts.iter().map(|text| asked.get(text).copied().unwrap_or_default()).collect()
    }

    /// The place among the texts that the search of this number is for.
    pub fn text_of(&self, number: usize) -> usize {
        number % self.texts.len()
    }

    /// Runs one search to its end: of the high class, and its one question is answered No.
    pub async fn search(
        &self,
        client: &CoordinatorServiceClient<Channel>,
        number: usize,
        deadline: Duration,
    ) -> Fate {
        let settings = InteractionSettings { xi: Some(-1.0), ..Default::default() };
        let mut request = Request::new(SearchPersonRequest {
            collection: COLLECTION.into(),
            text: self.texts[self.text_of(number)].clone(),
            settings: Some(settings),
            ..Default::default()
        });
        request.set_timeout(deadline);
        let began = Instant::now();
        match finished(client.clone(), request).await {
            Ok(()) => Fate::Finished(began.elapsed()),
            Err(status) if status.code() == Code::ResourceExhausted => {
                let hint = status.get_details_retry_info().and_then(|info| info.retry_delay);
                Fate::Refused(began.elapsed(), hint)
            }
            Err(status) => Fate::Failed(status.code(), status.message().to_owned()),
        }
    }

    /// Begins `count` searches, `every` after each other, whatever becomes of them; how each ended, in that order.
    ///
    /// # Panics
    /// Where a search does.
    pub async fn pour(
        self: &std::sync::Arc<Self>,
        count: usize,
        every: Duration,
        deadline: Duration,
    ) -> Vec<Fate> {
        let clients: Vec<_> = (0..4).map(|_| self.client()).collect();
        let mut ticks = tokio::time::interval(every);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Burst);
        let mut searches = JoinSet::new();
        let mut fates = Vec::with_capacity(count);
        for number in 0..count {
            ticks.tick().await;
            // A task that has ended holds its memory until it is joined.
            while let Some(ended) = searches.try_join_next() {
                fates.push(ended.unwrap_or_else(|error| panic!("a search: {error}")));
            }
            let (cluster, client) = (self.clone(), clients[number % clients.len()].clone());
            searches.spawn(async move { (number, cluster.search(&client, number, deadline).await) });
        }
        fates.extend(searches.join_all().await);
        fates.sort_by_key(|(number, _)| *number);
        fates.into_iter().map(|(_, fate)| fate).collect()
    }

    /// Drains every role and waits for its end.
    ///
    /// # Errors
    /// [`Failure`] of the first role that did not end well.
    pub async fn stop(self) -> Result<(), Failure> {
        self.stop.stop();
        for role in self.running {
            role.await.map_err(|panic| Failure::Failed(panic.to_string()))??;
        }
        Ok(())
    }
}

async fn finished(
    mut client: CoordinatorServiceClient<Channel>,
    request: Request<SearchPersonRequest>,
) -> Result<(), Status> {
    let mut events = client.search_person(request).await?.into_inner();
    let mut last = None;
    while let Some(response) = events.message().await? {
        last = response.event;
    }
    match last {
        Some(Event::Finished(_)) => Ok(()),
        other => Err(Status::data_loss(format!("the last event is {other:?}"))),
    }
}

/// Stores an image for each text, under the text's own vector.
async fn store(texts: &[String], embedding: SocketAddr, gallery: SocketAddr) -> Result<(), Status> {
    let unavailable = |error: tonic::transport::Error| Status::unavailable(error.to_string());
    let mut embedding = EmbeddingServiceClient::connect(url(embedding)).await.map_err(unavailable)?;
    let mut gallery = GalleryServiceClient::connect(url(gallery)).await.map_err(unavailable)?;
    let embedded = embedding.embed_text(EmbedTextRequest { texts: texts.to_vec() }).await?.into_inner();
    let dimension = embedded.vectors.first().map_or(0, |vector| vector.values.len());
    let collection = CreateCollectionRequest {
        name: COLLECTION.into(),
        model_fingerprint: embedded.model_fingerprint.clone(),
        dimension: u32::try_from(dimension).unwrap_or(u32::MAX),
        similarity: Similarity::Cosine.into(),
        ..Default::default()
    };
    gallery.create_collection(collection).await?;
    let items: Vec<UpsertRequest> = embedded
        .vectors
        .into_iter()
        .enumerate()
        .map(|(number, vector)| UpsertRequest {
            collection: COLLECTION.into(),
            id: format!("item-{number}"),
            vector: Some(vector),
            image: pixel(number).into(),
            model_fingerprint: embedded.model_fingerprint.clone(),
            ..Default::default()
        })
        .collect();
    let mut stored = gallery.upsert(tokio_stream::iter(items)).await?.into_inner();
    while let Some(response) = stored.message().await? {
        if let Some(upsert_response::Result::Error(error)) = response.result {
            return Err(Status::invalid_argument(error.message));
        }
    }
    Ok(())
}

/// A picture of one pixel, another for each number.
fn pixel(number: usize) -> Vec<u8> {
    let colour = image::Rgb([u8::try_from(number % 256).unwrap_or(0), 90, 200]);
    let mut bytes = std::io::Cursor::new(Vec::new());
    image::RgbImage::from_pixel(1, 1, colour)
        .write_to(&mut bytes, image::ImageFormat::Png)
        .unwrap_or_else(|error| unreachable!("memory takes any picture: {error}"));
    bytes.into_inner()
}
