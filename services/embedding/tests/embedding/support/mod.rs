//! An embedding role around a model that can be told to misbehave.

use std::io::Cursor;
use std::sync::{Arc, Condvar, Mutex};

use bytes::Bytes;
use image::{ImageFormat, RgbImage};
use thicket_embedding::{App, Config};
use thicket_engine::{
    Embedder, EmbedderInfo, EngineError, PreparedImage, PreparedText, Preprocessor, Similarity,
};
use thicket_proto::v1::embedding_service_client::EmbeddingServiceClient;
use thicket_runtime::{Failure, Health, Peer, Stop, StopHandle};
use tokio::task::JoinHandle;
use tonic::Status;

use crate::service::texts;

/// Prepares a text to as many ids as it has characters, and an image to its width and height.
struct Counting {
    /// Texts and images that were prepared, by the thread that did it.
    threads: Arc<Mutex<Vec<String>>>,
}

impl Counting {
    fn note(&self) {
        let thread = std::thread::current();
        self.threads.lock().unwrap().push(thread.name().unwrap_or_default().to_owned());
    }
}

impl Preprocessor for Counting {
    fn text(&self, text: &str) -> Result<PreparedText, EngineError> {
        self.note();
        if text == "wordless" {
            return Err(EngineError::invalid("text", "it has no word"));
        }
        Ok(PreparedText { ids: text.chars().map(u32::from).collect() })
    }

    fn image(&self, image: &RgbImage) -> PreparedImage {
        self.note();
        PreparedImage { pixels: vec![image.width() as f32, image.height() as f32] }
    }
}

/// Embeds a text as its number of characters and an image as its width and height.
pub(crate) struct Sizes {
    info: EmbedderInfo,
    preprocessor: Arc<Counting>,
    /// Inputs of each forward pass.
    batches: Arc<Mutex<Vec<usize>>>,
    /// A pass waits for one permit, where there is a gate.
    gate: Option<Gate>,
}

/// Holds passes until they are let through, one a permit. A gate that is closed for good makes the next pass panic.
#[derive(Clone)]
pub(crate) struct Gate(Arc<(Mutex<GateState>, Condvar)>);

#[derive(Default)]
struct GateState {
    permits: usize,
    waiting: usize,
    broken: bool,
}

impl Gate {
    /// A gate that lets the two passes of a warm-up through.
    pub(crate) fn new() -> Self {
        let state = GateState { permits: 2, ..GateState::default() };
        Self(Arc::new((Mutex::new(state), Condvar::new())))
    }

    pub(crate) fn open(&self, permits: usize) {
        self.0.0.lock().unwrap().permits += permits;
        self.0.1.notify_all();
    }

    pub(crate) fn break_down(&self) {
        self.0.0.lock().unwrap().broken = true;
        self.0.1.notify_all();
    }

    /// Waits until a pass stands at the gate.
    pub(crate) async fn reached(&self) {
        while self.0.0.lock().unwrap().waiting == 0 {
            tokio::task::yield_now().await;
        }
    }

    fn pass(&self) {
        let mut state = self.0.0.lock().unwrap();
        state.waiting += 1;
        let mut state = self.0.1.wait_while(state, |state| state.permits == 0 && !state.broken).unwrap();
        state.waiting -= 1;
        let broken = state.broken;
        state.permits = state.permits.saturating_sub(1);
        // A panic with the lock in hand would poison it for the test.
        drop(state);
        assert!(!broken, "the gate is broken");
    }
}

impl Sizes {
    fn begin(&self, inputs: usize) {
        if let Some(gate) = &self.gate {
            gate.pass();
        }
        self.batches.lock().unwrap().push(inputs);
    }
}

impl Embedder for Sizes {
    fn info(&self) -> &EmbedderInfo {
        &self.info
    }

    fn preprocessor(&self) -> Arc<dyn Preprocessor> {
        self.preprocessor.clone()
    }

    fn embed_prepared_texts(&mut self, texts: &[PreparedText]) -> Result<Vec<Vec<f32>>, EngineError> {
        self.begin(texts.len());
        let nan: Vec<u32> = "nan".chars().map(u32::from).collect();
        let first = |text: &PreparedText| if text.ids == nan { f32::NAN } else { text.ids.len() as f32 };
        Ok(texts.iter().map(|text| vec![first(text), 0.0]).collect())
    }

    fn embed_prepared_images(&mut self, images: &[PreparedImage]) -> Result<Vec<Vec<f32>>, EngineError> {
        self.begin(images.len());
        Ok(images.iter().map(|image| image.pixels.clone()).collect())
    }
}

pub(crate) struct Running {
    pub(crate) client: EmbeddingServiceClient<Peer>,
    /// Inputs of each forward pass, by replica.
    pub(crate) batches: Vec<Arc<Mutex<Vec<usize>>>>,
    /// Threads that prepared an input.
    pub(crate) threads: Arc<Mutex<Vec<String>>>,
    pub(crate) health: Health,
    pub(crate) stop: StopHandle,
    pub(crate) done: JoinHandle<Result<(), Failure>>,
}

impl Running {
    /// Inputs of each forward pass of a single replica, the warm-up left out.
    pub(crate) fn passes(&self) -> Vec<usize> {
        self.batches[0].lock().unwrap().clone()
    }
}

pub(crate) async fn start(config: Config) -> Running {
    start_gated(config, vec![None]).await
}

/// Starts a role with a replica for each gate.
pub(crate) async fn start_gated(config: Config, gates: Vec<Option<Gate>>) -> Running {
    let threads: Arc<Mutex<Vec<String>>> = Arc::default();
    let info = EmbedderInfo {
        name: "sizes".to_owned(),
        fingerprint: "f00d".to_owned(),
        dimension: 2,
        similarity: Similarity::MeanOfTwoCosines,
        image_size: (384, 128),
        text_length: 77,
        image_tokens: 193,
    };
    let mut batches = Vec::new();
    let mut replicas: Vec<Box<dyn Embedder>> = Vec::new();
    for gate in gates {
        let passes: Arc<Mutex<Vec<usize>>> = Arc::default();
        let preprocessor = Arc::new(Counting { threads: threads.clone() });
        batches.push(passes.clone());
        replicas.push(Box::new(Sizes { info: info.clone(), preprocessor, batches: passes, gate }));
    }
    let app = App::with_replicas(config, replicas).await.unwrap();
    let peer = Peer::lazy(&format!("http://{}", app.grpc_addr()), None).unwrap();
    let health = app.health();
    let (stop, stopped) = Stop::by_hand();
    let done = tokio::spawn(app.run(stopped));
    health.ready().await;
    // What the warm-up did is of no interest.
    batches.iter().for_each(|passes| passes.lock().unwrap().clear());
    threads.lock().unwrap().clear();
    Running { client: EmbeddingServiceClient::new(peer), batches, threads, health, stop, done }
}

/// A call for one text that goes on by itself; its answer is the first value of the vector.
pub(crate) fn call(role: &Running, text: &'static str) -> JoinHandle<Result<f32, Status>> {
    let mut client = role.client.clone();
    tokio::spawn(
        async move { Ok(client.embed_text(texts(&[text])).await?.into_inner().vectors[0].values[0]) },
    )
}

pub(crate) fn png(width: u32, height: u32) -> Bytes {
    let mut bytes = Cursor::new(Vec::new());
    RgbImage::new(width, height).write_to(&mut bytes, ImageFormat::Png).unwrap();
    bytes.into_inner().into()
}
