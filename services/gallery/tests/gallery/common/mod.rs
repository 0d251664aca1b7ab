//! A gallery behind real gRPC on a free port, and small inputs for it.

use std::io::Cursor;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

use bytes::Bytes;
use parking_lot::Mutex;
use thicket_gallery::{App, Config};
use thicket_proto::v1;
use thicket_proto::v1::gallery_service_client::GalleryServiceClient;
use thicket_proto::v1::upsert_response::Result as Outcome;
use thicket_runtime::{Failure, Fault, MAX_MESSAGE_BYTES, Peer, Stop, StopHandle};
use tonic::Status;

/// Fingerprint of the model of every collection here.
pub(crate) const MODEL: &str = "model-a";

pub(crate) type Client = GalleryServiceClient<Peer>;

pub(crate) fn client(address: SocketAddr) -> Client {
    let peer = Peer::lazy(&format!("http://{address}"), None).unwrap();
    GalleryServiceClient::new(peer)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(2 * MAX_MESSAGE_BYTES)
}

/// What a gallery warned of.
#[derive(Debug, Clone, Default)]
pub(crate) struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    /// How many lines have these words.
    pub(crate) fn count(&self, words: &str) -> usize {
        self.text().lines().filter(|line| line.contains(words)).count()
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock()).into_owned()
    }
}

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// A gallery in this process, on a runtime of its own as it would be in a process of its own.
pub(crate) struct Running {
    pub(crate) client: Client,
    pub(crate) address: SocketAddr,
    stop: StopHandle,
    served: JoinHandle<Result<(), Failure>>,
}

impl Running {
    pub(crate) async fn start(config: Config) -> Self {
        Self::start_logging(config, &Log::default()).await
    }

    /// The same, warnings going to a log.
    pub(crate) async fn start_logging(config: Config, log: &Log) -> Self {
        let (stop_handle, stop) = Stop::by_hand();
        let (ready, started) = tokio::sync::oneshot::channel();
        let log = log.clone();
        let served = std::thread::spawn(move || {
            let subscriber = tracing_subscriber::fmt().with_max_level(tracing::Level::WARN).with_ansi(false);
            let subscriber = subscriber.with_writer(move || log.clone()).finish();
            let _logging = tracing::subscriber::set_default(subscriber);
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let app = App::build(config).await?;
                ready.send(app.grpc_addr()).unwrap();
                app.run(stop).await
            })
        });
        let address = started.await.expect("the gallery starts");
        Self { client: client(address), address, stop: stop_handle, served }
    }

    pub(crate) async fn on(folder: &Path) -> Self {
        Self::start(Config::in_process(folder)).await
    }

    /// Stops it and waits until the folder is free.
    pub(crate) async fn stop(self) {
        self.stop.stop();
        tokio::task::spawn_blocking(|| self.served.join()).await.unwrap().unwrap().unwrap();
    }
}

pub(crate) async fn create(client: &mut Client, name: &str, dimension: u32) {
    create_indexed(client, name, dimension, None).await;
}

pub(crate) async fn create_indexed(
    client: &mut Client,
    name: &str,
    dimension: u32,
    kind: Option<v1::vector_index::Kind>,
) {
    let request = v1::CreateCollectionRequest {
        name: name.to_owned(),
        model_fingerprint: MODEL.to_owned(),
        dimension,
        similarity: v1::Similarity::Cosine as i32,
        index: kind.map(|kind| v1::VectorIndex { kind: Some(kind) }),
    };
    client.create_collection(request).await.unwrap();
}

/// A point on the unit circle.
pub(crate) fn at(degrees: f32) -> v1::Vector {
    let (sin, cos) = degrees.to_radians().sin_cos();
    v1::Vector { values: vec![cos, sin] }
}

pub(crate) fn item(id: &str, vector: v1::Vector) -> v1::UpsertRequest {
    v1::UpsertRequest {
        collection: "lobby".to_owned(),
        id: id.to_owned(),
        vector: Some(vector),
        image: Bytes::new(),
        metadata: [("camera".to_owned(), "3".to_owned())].into(),
        model_fingerprint: MODEL.to_owned(),
    }
}

pub(crate) fn with_image(mut request: v1::UpsertRequest, image: Bytes) -> v1::UpsertRequest {
    request.image = image;
    request
}

/// A small picture; different seeds give different bytes.
pub(crate) fn png(seed: u32) -> Bytes {
    noise(seed, 4, 8)
}

/// A picture of noise, which does not compress.
pub(crate) fn noise(seed: u32, width: u32, height: u32) -> Bytes {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
    let image = image::RgbImage::from_fn(width, height, |_, _| {
        image::Rgb([0; 3].map(|_: u8| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        }))
    });
    let mut bytes = Cursor::new(Vec::new());
    image.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
    bytes.into_inner().into()
}

/// Upserts in one stream; one outcome an item.
pub(crate) async fn upsert(
    client: &mut Client,
    items: Vec<v1::UpsertRequest>,
) -> Vec<Result<v1::Item, v1::ItemError>> {
    let sent: Vec<String> = items.iter().map(|item| item.id.clone()).collect();
    let mut answers = client.upsert(tokio_stream::iter(items)).await.unwrap().into_inner();
    let mut outcomes = Vec::new();
    while let Some(answer) = answers.message().await.unwrap() {
        if sent[outcomes.len()].len() <= 256 {
            assert_eq!(answer.id, sent[outcomes.len()], "answers come in the order of the requests");
        }
        outcomes.push(match answer.result.unwrap() {
            Outcome::Item(item) => Ok(item),
            Outcome::Error(error) => Err(error),
        });
    }
    assert_eq!(outcomes.len(), sent.len());
    outcomes
}

/// Upserts that must all succeed.
pub(crate) async fn fill(client: &mut Client, items: Vec<v1::UpsertRequest>) {
    for outcome in upsert(client, items).await {
        outcome.unwrap();
    }
}

pub(crate) fn search_request(query: v1::Vector, top: u32) -> v1::SearchRequest {
    v1::SearchRequest {
        collection: "lobby".to_owned(),
        queries: vec![query],
        top,
        model_fingerprint: MODEL.to_owned(),
        filter: None,
        min_transaction: 0,
    }
}

pub(crate) async fn search(client: &mut Client, query: v1::Vector, top: u32) -> Vec<v1::Hit> {
    let response = client.search(search_request(query, top)).await.unwrap().into_inner();
    response.rankings.into_iter().next().unwrap().hits
}

pub(crate) fn ids(hits: &[v1::Hit]) -> Vec<String> {
    hits.iter().map(|hit| hit.item.as_ref().unwrap().id.clone()).collect()
}

pub(crate) async fn image_of(client: &mut Client, id: &str) -> Result<v1::GetImageResponse, Status> {
    let by = Some(v1::get_image_request::By::Id(id.to_owned()));
    let request = v1::GetImageRequest { collection: "lobby".to_owned(), by, min_transaction: 0 };
    client.get_image(request).await.map(tonic::Response::into_inner)
}

pub(crate) async fn delete(client: &mut Client, ids: &[&str]) -> u64 {
    let request = v1::DeleteRequest {
        collection: "lobby".to_owned(),
        ids: ids.iter().map(|id| (*id).to_owned()).collect(),
    };
    client.delete(request).await.unwrap().into_inner().deleted
}

/// Code and reason of a refused call.
pub(crate) fn refusal<T: std::fmt::Debug>(result: Result<T, Status>) -> (tonic::Code, String) {
    let status = result.expect_err("a refusal");
    let fault = Fault::from_status(&status);
    (status.code(), fault.reason().into_owned())
}

/// Files under the folder's images, as hashes.
pub(crate) fn image_files(folder: &Path) -> Vec<String> {
    let mut files = Vec::new();
    for level in std::fs::read_dir(folder.join("images")).unwrap() {
        for file in std::fs::read_dir(level.unwrap().path()).unwrap() {
            files.push(file.unwrap().file_name().to_string_lossy().into_owned());
        }
    }
    files.sort();
    files
}
