//! An answer role around a model that answers as the prompt tells it.

use std::collections::VecDeque;
use std::io::Cursor;
use std::path::Path;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use image::{ImageFormat, Rgb, RgbImage};
use thicket_answer::{App, Config};
use thicket_engine::{
    AdapterInfo, Answer, Answerer, AnswererInfo, Ask, EngineError, Finish, Generation, Load, Progress,
    Prompt, Question, Sampling, Ticket, Verdict,
};
use thicket_proto::v1::answer_service_client::AnswerServiceClient;
use thicket_runtime::{Failure, Peer, Stop, StopHandle};
use tokio::task::JoinHandle;

/// What the model was asked: `judge` or `generate` with the texts that one step found side by side.
pub(crate) type Asked = Vec<(&'static str, Vec<String>)>;

/// A model whose p(Yes) is the red of the image's first pixel, 0 to 255, whose mass is its green, and whose texts are read
/// from a script.
pub(crate) struct Scripted {
    info: AnswererInfo,
    pub(crate) script: Arc<Mutex<VecDeque<String>>>,
    pub(crate) asked: Arc<Mutex<Asked>>,
    pub(crate) samplings: Arc<Mutex<Vec<Sampling>>>,
    pub(crate) cancelled: Arc<Mutex<Vec<Ticket>>>,
    /// Open questions, with the text that is read for them once they have been begun.
    open: Vec<(Ticket, Question, Option<String>)>,
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

    fn submit(&mut self, ticket: Ticket, question: Question) -> Result<(), EngineError> {
        self.open.push((ticket, question, None));
        Ok(())
    }

    fn cancel(&mut self, ticket: Ticket) {
        self.open.retain(|(open, ..)| *open != ticket);
        self.cancelled.lock().unwrap().push(ticket);
    }

    /// Answers everything but texts that read [`ENDLESS`].
    fn step(&mut self) -> Progress {
        let new: Vec<usize> = (0..self.open.len()).filter(|index| self.open[*index].2.is_none()).collect();
        let mut asked: Vec<(&str, Vec<String>)> = Vec::new();
        for &index in &new {
            let (_, question, script) = &mut self.open[index];
            let kind = match question.ask {
                Ask::Judgement => "judge",
                Ask::Text(sampling) => {
                    self.samplings.lock().unwrap().push(sampling);
                    "generate"
                }
            };
            *script = Some(match question.ask {
                Ask::Judgement => String::new(),
                Ask::Text(_) => self.script.lock().unwrap().pop_front().unwrap_or_default(),
            });
            let text = asked_of(&question.prompt);
            match asked.last_mut() {
                Some((last, texts)) if *last == kind => texts.push(text),
                _ => asked.push((kind, vec![text])),
            }
        }
        self.asked.lock().unwrap().extend(asked);
        let (endless, ended): (Vec<_>, Vec<_>) =
            self.open.drain(..).partition(|(_, _, script)| script.as_deref() == Some(ENDLESS));
        self.open = endless;
        let started = ended.iter().map(|(ticket, ..)| *ticket).collect();
        let done = ended
            .into_iter()
            .map(|(ticket, question, script)| (ticket, answer(&question, script.unwrap_or_default())));
        let progress = Progress { started, done: done.collect(), ..Progress::default() };
        if progress.done.is_empty() {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        progress
    }

    fn load(&self) -> Load {
        Load { running: self.open.len(), ..Load::default() }
    }
}

/// A text that is never finished.
pub(crate) const ENDLESS: &str = "endless";

fn answer(question: &Question, text: String) -> Result<Answer, EngineError> {
    if let Ask::Text(_) = question.ask {
        let tokens = vec![1; text.split_whitespace().count()];
        return Ok(Answer::Text(Generation {
            text,
            output_tokens: tokens.len(),
            tokens,
            prompt_tokens: 90,
            finish: Finish::EndOfTurn,
        }));
    }
    let Rgb([red, green, blue]) = *question.prompt.image.as_ref().unwrap().get_pixel(0, 0);
    if blue == 255 {
        return Err(EngineError::invalid("image", "more than 200 to 1"));
    }
    let share = |level: u8| f64::from(level) / 255.0;
    Ok(Answer::Verdict(Verdict { p_yes: share(red), mass: share(green), prompt_tokens: 70 }))
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
    pub(crate) cancelled: Arc<Mutex<Vec<Ticket>>>,
    pub(crate) stop: StopHandle,
    pub(crate) done: JoinHandle<Result<(), Failure>>,
}

fn scripted() -> Scripted {
    Scripted {
        info: AnswererInfo {
            name: "scripted".to_owned(),
            fingerprint: "cafe".to_owned(),
            context_length: 4096,
        },
        script: Arc::default(),
        asked: Arc::default(),
        samplings: Arc::default(),
        cancelled: Arc::default(),
        open: Vec::new(),
    }
}

/// A role that cannot start.
pub(crate) async fn refused(config: Config) -> Failure {
    App::with_engine(config, Box::new(scripted())).await.unwrap_err()
}

pub(crate) async fn start(config: Config) -> Running {
    let model = scripted();
    let cancelled = model.cancelled.clone();
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
    Running { client: AnswerServiceClient::new(peer), script, asked, samplings, cancelled, stop, done }
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
