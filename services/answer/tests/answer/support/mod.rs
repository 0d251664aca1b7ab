//! An answer role around a model that answers as the prompt tells it.

use std::collections::VecDeque;
use std::io::Cursor;
use std::path::Path;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use image::{ImageFormat, Rgb, RgbImage};
use thicket_answer::{App, Config};
use thicket_engine::{
    AdapterInfo, Answerer, AnswererInfo, EngineError, Finish, Generation, Prompt, Sampling, Verdict,
};
use thicket_proto::v1::answer_service_client::AnswerServiceClient;
use thicket_runtime::{Failure, Peer, Stop, StopHandle};
use tokio::task::JoinHandle;

/// What the model was asked: `judge` or `generate` with the texts of the batch.
pub(crate) type Asked = Vec<(&'static str, Vec<String>)>;

/// A model whose p(Yes) is the red of the image's first pixel, 0 to 255, whose mass is its green, and whose texts are read
/// from a script.
pub(crate) struct Scripted {
    info: AnswererInfo,
    pub(crate) script: Arc<Mutex<VecDeque<String>>>,
    pub(crate) asked: Arc<Mutex<Asked>>,
    pub(crate) samplings: Arc<Mutex<Vec<Sampling>>>,
}

impl Answerer for Scripted {
    fn info(&self) -> &AnswererInfo {
        &self.info
    }

    /// A folder whose name begins with `bad` holds no adapter for this model.
    fn load_adapter(&mut self, name: &str, folder: &Path) -> Result<AdapterInfo, EngineError> {
        if name.starts_with("bad") {
            return Err(EngineError::invalid("adapter", format!("{}: no", folder.display())));
        }
        Ok(AdapterInfo { name: name.to_owned(), fingerprint: format!("cafe+{name}") })
    }

    fn unload_adapter(&mut self, _: &str) -> bool {
        true
    }

    fn judge(&mut self, prompts: &[Prompt]) -> Vec<Result<Verdict, EngineError>> {
        self.asked
            .lock()
            .unwrap()
            .push(("judge", prompts.iter().map(|prompt| prompt.text.clone()).collect()));
        prompts
            .iter()
            .map(|prompt| {
                let Rgb([red, green, blue]) = *prompt.image.as_ref().unwrap().get_pixel(0, 0);
                if blue == 255 {
                    return Err(EngineError::invalid("image", "more than 200 to 1"));
                }
                let share = |level: u8| f64::from(level) / 255.0;
                Ok(Verdict { p_yes: share(red), mass: share(green), prompt_tokens: 70 })
            })
            .collect()
    }

    fn generate(&mut self, prompts: &[Prompt], sampling: &Sampling) -> Vec<Result<Generation, EngineError>> {
        self.asked.lock().unwrap().push(("generate", prompts.iter().map(asked_of).collect()));
        self.samplings.lock().unwrap().push(*sampling);
        prompts
            .iter()
            .map(|_| {
                let text = self.script.lock().unwrap().pop_front().unwrap_or_default();
                let tokens = vec![1; text.split_whitespace().count()];
                Ok(Generation { text, tokens, prompt_tokens: 90, finish: Finish::EndOfTurn })
            })
            .collect()
    }
}

/// The text of a prompt, behind the name of its adapter where it has one.
fn asked_of(prompt: &Prompt) -> String {
    prompt.adapter.as_deref().map_or(prompt.text.clone(), |adapter| format!("{adapter}: {}", prompt.text))
}

pub(crate) struct Running {
    pub(crate) client: AnswerServiceClient<Peer>,
    pub(crate) script: Arc<Mutex<VecDeque<String>>>,
    pub(crate) asked: Arc<Mutex<Asked>>,
    pub(crate) samplings: Arc<Mutex<Vec<Sampling>>>,
    pub(crate) stop: StopHandle,
    pub(crate) done: JoinHandle<Result<(), Failure>>,
}

pub(crate) async fn start(config: Config) -> Running {
    let model = Scripted {
        info: AnswererInfo {
            name: "scripted".to_owned(),
            fingerprint: "cafe".to_owned(),
            context_length: 4096,
        },
        script: Arc::default(),
        asked: Arc::default(),
        samplings: Arc::default(),
    };
    let (script, asked, samplings) = (model.script.clone(), model.asked.clone(), model.samplings.clone());
    let app = App::with_engine(config, Box::new(model)).await.unwrap();
    let peer = Peer::lazy(&format!("http://{}", app.grpc_addr()), None).unwrap();
    let health = app.health();
    let (stop, stopped) = Stop::by_hand();
    let done = tokio::spawn(app.run(stopped));
    health.ready().await;
    // What the warm-up did is of no interest.
    asked.lock().unwrap().clear();
    samplings.lock().unwrap().clear();
    Running { client: AnswerServiceClient::new(peer), script, asked, samplings, stop, done }
}

impl Running {
    pub(crate) fn says(&self, texts: &[&str]) {
        self.script.lock().unwrap().extend(texts.iter().map(|text| (*text).to_owned()));
    }

    /// Questions of each batch so far.
    pub(crate) fn batches(&self) -> Vec<(&'static str, usize)> {
        self.asked.lock().unwrap().iter().map(|(kind, texts)| (*kind, texts.len())).collect()
    }
}

/// A picture of one colour.
pub(crate) fn png(colour: [u8; 3]) -> Bytes {
    let mut bytes = Cursor::new(Vec::new());
    RgbImage::from_pixel(4, 8, Rgb(colour)).write_to(&mut bytes, ImageFormat::Png).unwrap();
    bytes.into_inner().into()
}
