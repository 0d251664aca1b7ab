//! Copies of the model on several devices.

use std::path::Path;
use std::sync::{Arc, Mutex};

use thicket_answer::{App, Config};
use thicket_engine::{
    AdapterInfo, Answer, Answerer, AnswererInfo, Ask, EngineError, Finish, Generation, Load, Progress,
    Question, Ticket, Verdict,
};
use thicket_proto::v1::answer_service_client::AnswerServiceClient;
use thicket_proto::v1::{ListAdaptersRequest, LoadAdapterRequest, UnloadAdapterRequest};
use thicket_runtime::{Peer, Stop, StopHandle};
use tonic::Code;

/// A copy of a model that keeps a list of its adapters.
struct Copy {
    info: AnswererInfo,
    adapters: Arc<Mutex<Vec<String>>>,
    /// An adapter that this copy has no room for.
    refused: &'static str,
    open: Vec<(Ticket, Ask)>,
}

impl Answerer for Copy {
    fn info(&self) -> &AnswererInfo {
        &self.info
    }

    fn load_adapter(&mut self, name: &str, folder: &Path) -> Result<AdapterInfo, EngineError> {
        if name == self.refused {
            return Err(EngineError::invalid("adapter", format!("{}: no", folder.display())));
        }
        self.adapters.lock().unwrap().push(name.to_owned());
        Ok(AdapterInfo { name: name.to_owned(), fingerprint: name.to_owned() })
    }

    fn unload_adapter(&mut self, name: &str) -> bool {
        let mut adapters = self.adapters.lock().unwrap();
        let before = adapters.len();
        adapters.retain(|adapter| adapter != name);
        adapters.len() < before
    }

    fn submit(&mut self, ticket: Ticket, question: Question) -> Result<(), EngineError> {
        self.open.push((ticket, question.ask));
        Ok(())
    }

    fn cancel(&mut self, ticket: Ticket) {
        self.open.retain(|(open, _)| *open != ticket);
    }

    fn step(&mut self) -> Progress {
        let answer = |ask| match ask {
            Ask::Judgement => Answer::Verdict(Verdict { p_yes: 1.0, mass: 1.0, prompt_tokens: 1 }),
            Ask::Text(_) => Answer::Text(Generation {
                text: String::new(),
                tokens: Vec::new(),
                output_tokens: 0,
                prompt_tokens: 1,
                finish: Finish::EndOfTurn,
            }),
        };
        let done = self.open.drain(..).map(|(ticket, ask)| (ticket, Ok(answer(ask)))).collect();
        Progress { done, ..Progress::default() }
    }

    fn load(&self) -> Load {
        Load { waiting: self.open.len(), ..Load::default() }
    }
}

struct Pair {
    client: AnswerServiceClient<Peer>,
    adapters: [Arc<Mutex<Vec<String>>>; 2],
    _folder: tempfile::TempDir,
    _stop: StopHandle,
}

/// A role with two copies of a model, the second of which has no room for the adapter `large`.
async fn pair() -> Pair {
    let folder = tempfile::tempdir().unwrap();
    for name in ["small", "large"] {
        std::fs::create_dir(folder.path().join(name)).unwrap();
        std::fs::write(folder.path().join(name).join("adapter_config.json"), "{}").unwrap();
    }
    let mut config = Config::in_process("unused");
    config.loading.adapters = Some(folder.path().to_owned());
    let adapters: [Arc<Mutex<Vec<String>>>; 2] = Default::default();
    let copy = |(adapters, refused): (&Arc<Mutex<Vec<String>>>, &'static str)| -> Box<dyn Answerer> {
        let info =
            AnswererInfo { name: "copied".to_owned(), fingerprint: "cafe".to_owned(), context_length: 4096 };
        Box::new(Copy { info, adapters: adapters.clone(), refused, open: Vec::new() })
    };
    let copies = adapters.iter().zip(["", "large"]).map(copy).collect();
    let app = App::with_replicas(config, copies).await.unwrap();
    let client = AnswerServiceClient::new(Peer::lazy(&format!("http://{}", app.grpc_addr()), None).unwrap());
    let health = app.health();
    let (stop, stopped) = Stop::by_hand();
    tokio::spawn(app.run(stopped));
    health.ready().await;
    Pair { client, adapters, _folder: folder, _stop: stop }
}

impl Pair {
    fn held(&self) -> [Vec<String>; 2] {
        [0, 1].map(|copy| self.adapters[copy].lock().unwrap().clone())
    }
}

#[tokio::test]
async fn an_adapter_comes_to_every_copy_and_goes_from_every_copy() {
    let mut role = pair().await;
    role.client.load_adapter(LoadAdapterRequest { name: "small".to_owned() }).await.unwrap();
    assert_eq!(role.held(), [["small"], ["small"]]);
    role.client.unload_adapter(UnloadAdapterRequest { name: "small".to_owned() }).await.unwrap();
    assert_eq!(role.held(), [[""; 0], [""; 0]]);
}

#[tokio::test]
async fn an_adapter_that_one_copy_cannot_load_is_held_by_none() {
    let mut role = pair().await;
    let load = LoadAdapterRequest { name: "large".to_owned() };
    assert_eq!(role.client.load_adapter(load).await.unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(role.held(), [[""; 0], [""; 0]]);
    let listed = role.client.list_adapters(ListAdaptersRequest {}).await.unwrap().into_inner();
    assert!(listed.loaded.is_empty(), "{listed:?}");
}
