//! An embedding role around a model that can be told to misbehave.

use std::io::Cursor;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use image::{ImageFormat, RgbImage};
use thicket_embedding::{App, Config};
use thicket_engine::{Embedder, EmbedderInfo, EngineError, Similarity};
use thicket_proto::v1::embedding_service_client::EmbeddingServiceClient;
use thicket_runtime::{Failure, Health, Peer, Stop, StopHandle};
use tokio::task::JoinHandle;

/// Embeds a text as its number of characters and an image as its width and height.
pub(crate) struct Sizes {
    info: EmbedderInfo,
    /// Inputs of each forward pass.
    batches: Arc<Mutex<Vec<usize>>>,
}

impl Embedder for Sizes {
    fn info(&self) -> &EmbedderInfo {
        &self.info
    }

    fn embed_texts(&mut self, texts: &[String]) -> Result<Vec<Vec<f32>>, EngineError> {
        self.batches.lock().unwrap().push(texts.len());
        if texts.iter().any(|text| text == "wordless") {
            return Err(EngineError::invalid("text", "it has no word"));
        }
        Ok(texts
            .iter()
            .map(|text| match text.as_str() {
                "nan" => vec![f32::NAN, 0.0],
                text => vec![text.chars().count() as f32, 0.0],
            })
            .collect())
    }

    fn embed_images(&mut self, images: &[RgbImage]) -> Result<Vec<Vec<f32>>, EngineError> {
        self.batches.lock().unwrap().push(images.len());
        Ok(images.iter().map(|image| vec![image.width() as f32, image.height() as f32]).collect())
    }
}

pub(crate) struct Running {
    pub(crate) client: EmbeddingServiceClient<Peer>,
    pub(crate) batches: Arc<Mutex<Vec<usize>>>,
    pub(crate) health: Health,
    pub(crate) stop: StopHandle,
    pub(crate) done: JoinHandle<Result<(), Failure>>,
}

pub(crate) async fn start(config: Config) -> Running {
    let batches: Arc<Mutex<Vec<usize>>> = Arc::default();
    let info = EmbedderInfo {
        name: "sizes".to_owned(),
        fingerprint: "f00d".to_owned(),
        dimension: 2,
        similarity: Similarity::MeanOfTwoCosines,
        image_size: (384, 128),
        text_length: 77,
    };
    let app = App::with_engine(config, Box::new(Sizes { info, batches: batches.clone() })).await.unwrap();
    let peer = Peer::lazy(&format!("http://{}", app.grpc_addr()), None).unwrap();
    let health = app.health();
    let (stop, stopped) = Stop::by_hand();
    let done = tokio::spawn(app.run(stopped));
    health.ready().await;
    // What the warm-up did is of no interest.
    batches.lock().unwrap().clear();
    Running { client: EmbeddingServiceClient::new(peer), batches, health, stop, done }
}

pub(crate) fn png(width: u32, height: u32) -> Bytes {
    let mut bytes = Cursor::new(Vec::new());
    RgbImage::new(width, height).write_to(&mut bytes, ImageFormat::Png).unwrap();
    bytes.into_inner().into()
}
