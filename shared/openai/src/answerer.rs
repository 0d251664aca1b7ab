use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use thicket_engine::{
    AdapterInfo, Answer, Answerer, AnswererInfo, Ask, EngineError, Finish, Generation, Load, Progress,
    Prompt, Question, Sampling, Ticket,
};
use tokio::runtime::Runtime;
use tokio::sync::Semaphore;
use tokio::task::{AbortHandle, Id, JoinError, JoinSet};

use crate::client::Client;
use crate::settings::DEFAULT_CONTEXT_LENGTH;
use crate::verdict::verdict;
use crate::wire::{ALTERNATIVES, ChatRequest, ChatResponse, Message, data_url};
use crate::{Server, ServerError};

/// How long a step waits for an answer before new questions are looked for.
const STEP: Duration = Duration::from_millis(5);
/// A judgement is the first token of the answer.
const ONE_TOKEN: Sampling = Sampling { max_tokens: 1, temperature: 0.0, seed: 0 };
/// Highest sampling temperature of the interface.
const MAX_TEMPERATURE: f64 = 2.0;

type Outcome = Result<Answer, EngineError>;

/// A model that another program serves. Its connections run on the thread that owns it, while it steps.
#[derive(Debug)]
pub struct OpenAiAnswerer {
    info: AnswererInfo,
    asker: Asker,
    runtime: Runtime,
    questions: JoinSet<Outcome>,
    open: HashMap<Ticket, AbortHandle>,
    tickets: HashMap<Id, Ticket>,
    /// Questions that the server has been asked and has not answered.
    asked: Arc<AtomicUsize>,
    /// Taken up since the last step.
    taken: Vec<Ticket>,
}

/// What a question needs to be asked.
#[derive(Debug, Clone)]
struct Asker {
    client: Client,
    model: Arc<str>,
    /// The server gives log-probabilities.
    gives_alternatives: bool,
    places: Arc<Semaphore>,
    asked: Arc<AtomicUsize>,
}

impl OpenAiAnswerer {
    /// Looks the server's models up, and finds out whether it gives log-probabilities. It is served under `name`.
    ///
    /// # Errors
    /// [`ServerError`] where it is away or does not serve the model.
    pub fn connect(name: String, server: Server) -> Result<Self, ServerError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| ServerError::Local { reason: error.to_string() })?;
        let client = Client::new(server)?;
        let listed = runtime.block_on(client.model())?;
        let asked = Arc::new(AtomicUsize::new(0));
        let mut asker = Asker {
            places: Arc::new(Semaphore::new(client.server().concurrency)),
            client,
            model: listed.id.into(),
            gives_alternatives: true,
            asked: asked.clone(),
        };
        asker.gives_alternatives = runtime.block_on(asker.probe())?;
        let address = asker.client.server().url.as_str();
        let fingerprint = fingerprint(address, &asker.model);
        if !asker.gives_alternatives {
            tracing::warn!(
                server = address,
                "no log-probabilities here: the first token decides, p(Yes) is 0 or 1"
            );
        }
        let context_length = listed.max_model_len.unwrap_or(DEFAULT_CONTEXT_LENGTH);
        Ok(Self {
            info: AnswererInfo { name, fingerprint, context_length },
            asker,
            runtime,
            questions: JoinSet::new(),
            open: HashMap::new(),
            tickets: HashMap::new(),
            asked,
            taken: Vec::new(),
        })
    }

    fn settle(&mut self, ended: Result<(Id, Outcome), JoinError>, progress: &mut Progress) {
        let (id, outcome) = match ended {
            Ok(ended) => ended,
            Err(error) if error.is_cancelled() => {
                self.tickets.remove(&error.id());
                return;
            }
            Err(error) => (error.id(), Err(EngineError::internal("asking the server", error))),
        };
        let Some(ticket) = self.tickets.remove(&id) else { return };
        // A question that was given up is not open any more, even where its answer was there already.
        if self.open.remove(&ticket).is_none() {
            return;
        }
        if let Ok(answer) = &outcome {
            let (prompt, output) = match answer {
                Answer::Verdict(verdict) => (verdict.prompt_tokens, 0),
                Answer::Text(generation) => (generation.prompt_tokens, generation.output_tokens),
            };
            progress.prompt_tokens += prompt;
            progress.output_tokens += output;
        }
        progress.done.push((ticket, outcome));
    }
}

/// Equal servers and models count as equal: what the server does not say cannot be told apart.
fn fingerprint(address: &str, model: &str) -> String {
    let mut hasher = blake3::Hasher::new();
    for part in ["openai", address, model] {
        hasher.update(&(part.len() as u64).to_le_bytes()).update(part.as_bytes());
    }
    hasher.finalize().to_hex().to_string()
}

impl Answerer for OpenAiAnswerer {
    fn info(&self) -> &AnswererInfo {
        &self.info
    }

    fn load_adapter(&mut self, _: &str, _: &Path) -> Result<AdapterInfo, EngineError> {
        Err(EngineError::invalid("adapter", "the model is served by another program: load adapters there"))
    }

    fn unload_adapter(&mut self, _: &str) -> bool {
        false
    }

    fn submit(&mut self, ticket: Ticket, question: Question) -> Result<(), EngineError> {
        let Question { prompt, ask, .. } = question;
        if let Some(adapter) = &prompt.adapter {
            return Err(EngineError::invalid("adapter", format!("{adapter} is not loaded")));
        }
        if let Ask::Text(sampling) = &ask {
            check(sampling)?;
        }
        let asker = self.asker.clone();
        let handle =
            self.questions.spawn_on(async move { asker.answer(prompt, ask).await }, self.runtime.handle());
        self.tickets.insert(handle.id(), ticket);
        self.open.insert(ticket, handle);
        self.taken.push(ticket);
        Ok(())
    }

    fn cancel(&mut self, ticket: Ticket) {
        if let Some(handle) = self.open.remove(&ticket) {
            handle.abort();
            self.taken.retain(|taken| *taken != ticket);
        }
    }

    /// Waits for an answer, 5 ms at most.
    fn step(&mut self) -> Progress {
        let mut progress = Progress { started: std::mem::take(&mut self.taken), ..Progress::default() };
        let questions = &mut self.questions;
        let first =
            self.runtime.block_on(async { tokio::time::timeout(STEP, questions.join_next_with_id()).await });
        let mut ended = first.ok().flatten();
        while let Some(one) = ended {
            self.settle(one, &mut progress);
            ended = self.questions.try_join_next_with_id();
        }
        progress
    }

    fn load(&self) -> Load {
        let running = self.asked.load(Ordering::Relaxed).min(self.open.len());
        Load { running, waiting: self.open.len() - running, ..Load::default() }
    }
}

/// Refuses a sampling out of range.
fn check(sampling: &Sampling) -> Result<(), EngineError> {
    if sampling.max_tokens == 0 {
        return Err(EngineError::invalid("max_tokens", "at least 1 expected, got 0"));
    }
    if !(0.0..=MAX_TEMPERATURE).contains(&sampling.temperature) {
        let reason = format!("0 to {MAX_TEMPERATURE} expected, got {}", sampling.temperature);
        return Err(EngineError::invalid("temperature", reason));
    }
    Ok(())
}

/// Counts a question as long as it lives, given up or not.
struct Asked(Arc<AtomicUsize>);

impl Asked {
    fn new(counter: &Arc<AtomicUsize>) -> Self {
        counter.fetch_add(1, Ordering::Relaxed);
        Self(counter.clone())
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Asker {
    /// Whether a judgement can be read from log-probabilities here.
    async fn probe(&self) -> Result<bool, ServerError> {
        let request = self.judgement(Message::user(None, "Is snow white? Answer Yes or No.".to_owned()));
        match self.client.chat(&request).await {
            Ok(response) => {
                let first = response
                    .choices
                    .first()
                    .and_then(|choice| choice.logprobs.as_ref()?.content.as_ref()?.first());
                Ok(first.is_some_and(|position| !position.top_logprobs.is_empty()))
            }
            // A server that knows no log-probabilities may refuse to be asked for them.
            Err(ServerError::Refused { status: 400 | 422, .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn answer(self, prompt: Prompt, ask: Ask) -> Outcome {
        let _place = self
            .places
            .acquire()
            .await
            .map_err(|error| EngineError::internal("waiting for a place", error))?;
        let _asked = Asked::new(&self.asked);
        match ask {
            Ask::Judgement => {
                let message = message(prompt).await?;
                let request = match self.gives_alternatives {
                    true => self.judgement(message),
                    false => self.text(message, &ONE_TOKEN),
                };
                let response = self.client.chat(&request).await.map_err(refused)?;
                Ok(Answer::Verdict(verdict(&response)))
            }
            Ask::Text(sampling) => {
                let request = self.text(message(prompt).await?, &sampling);
                let response = self.client.chat(&request).await.map_err(refused)?;
                Ok(Answer::Text(generation(response)?))
            }
        }
    }

    fn judgement(&self, message: Message) -> ChatRequest {
        ChatRequest {
            logprobs: Some(true),
            top_logprobs: Some(ALTERNATIVES),
            ..self.text(message, &ONE_TOKEN)
        }
    }

    fn text(&self, message: Message, sampling: &Sampling) -> ChatRequest {
        ChatRequest {
            model: self.model.to_string(),
            messages: [message],
            max_tokens: sampling.max_tokens,
            temperature: sampling.temperature,
            seed: (sampling.temperature > 0.0).then_some(sampling.seed),
            logprobs: None,
            top_logprobs: None,
            stream: false,
        }
    }
}

/// The user's turn; the image is encoded on a thread for it.
async fn message(prompt: Prompt) -> Result<Message, EngineError> {
    let Prompt { image, text, .. } = prompt;
    let image = match image {
        Some(image) => {
            let encoded = tokio::task::spawn_blocking(move || data_url(&image)).await;
            let encoded = encoded.map_err(|error| EngineError::internal("encoding the image", error))?;
            Some(encoded.map_err(|error| EngineError::internal("encoding the image", error))?)
        }
        None => None,
    };
    Ok(Message::user(image, text))
}

fn generation(response: ChatResponse) -> Result<Generation, EngineError> {
    let usage = response.usage.unwrap_or_default();
    let choice = response.choices.into_iter().next();
    let choice = choice.ok_or_else(|| EngineError::internal("asking the server", "it gave no choice"))?;
    let finish = match choice.finish_reason.as_deref() {
        Some("length") => Finish::Length,
        _ => Finish::EndOfTurn,
    };
    Ok(Generation {
        text: choice.message.content.unwrap_or_default(),
        tokens: Vec::new(),
        output_tokens: usage.completion_tokens,
        prompt_tokens: usage.prompt_tokens,
        finish,
    })
}

/// What a caller learns of a failure: its own fault where the server could not use the question.
fn refused(error: ServerError) -> EngineError {
    match error {
        ServerError::Refused { status: 400 | 413 | 422, reason, .. } => EngineError::invalid("text", reason),
        ServerError::Unavailable { .. } => {
            EngineError::Unavailable { operation: "asking the server", reason: error.to_string() }
        }
        error => EngineError::internal("asking the server", error),
    }
}
