//! A model that another program serves, which is there later than the role, or refuses it.

#[allow(dead_code)] // shared with the tests of the client
#[path = "../../../../shared/openai/tests/openai/script.rs"]
mod script;

use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use serde_json::json;
use thicket_answer::{App, Config, Server};
use thicket_proto::v1::GetAnswerModelRequest;
use thicket_proto::v1::answer_service_client::AnswerServiceClient;
use thicket_runtime::{Failure, Peer, Stop};
use tonic::Code;

use self::script::{Reply, Script};
use crate::reason;

/// Long enough for any machine; nothing waits for its end.
const LIMIT: Duration = Duration::from_secs(60);

fn models() -> Reply {
    Reply::json(200, &json!({"object": "list", "data": [{"id": "qwen", "max_model_len": 4096}]}))
}

fn yes() -> Reply {
    let top = json!([{"token": "Yes", "logprob": -0.1}, {"token": "No", "logprob": -2.4}]);
    let content = json!([{"token": "Yes", "logprob": -0.1, "top_logprobs": top}]);
    Reply::json(
        200,
        &json!({
            "choices": [{"message": {"role": "assistant", "content": "Yes"}, "logprobs": {"content": content}}],
            "usage": {"prompt_tokens": 70, "completion_tokens": 1}
        }),
    )
}

fn config(address: SocketAddr) -> Config {
    let mut server = Server::at(&format!("http://{address}/v1"), 4).unwrap();
    server.first_pause = Duration::from_millis(1);
    Config::in_process("unused").served_by(server)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_away_at_the_start_is_waited_for() {
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let app = App::build(config(address)).await.unwrap();
    let peer = Peer::lazy(&format!("http://{}", app.grpc_addr()), None).unwrap();
    let mut client = AnswerServiceClient::new(peer);
    let health = app.health();
    let (stop, stopped) = Stop::by_hand();
    let running = tokio::spawn(app.run(stopped));
    let refused = client.get_answer_model(GetAnswerModelRequest {}).await.unwrap_err();
    assert_eq!((refused.code(), reason(&refused).as_str()), (Code::Unavailable, "STARTING"));

    // What it is asked: its models, whether it gives log-probabilities, and the two questions that warm it up.
    let server = Script::at(address, [models(), yes(), yes(), yes()]);
    tokio::time::timeout(LIMIT, health.ready()).await.expect("the role is ready once the server is there");
    let model = client.get_answer_model(GetAnswerModelRequest {}).await.unwrap().into_inner();
    assert_eq!((model.context_length, server.requests()), (4096, 4));
    stop.stop();
    running.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_ends_while_it_waits_for_a_server() {
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let app = App::build(config(address)).await.unwrap();
    let (stop, stopped) = Stop::by_hand();
    let running = tokio::spawn(app.run(stopped));
    stop.stop();
    let ended = tokio::time::timeout(LIMIT, running).await.expect("it does not wait for the server");
    ended.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_refuses_ends_the_role_at_once() {
    let no = Reply::json(401, &json!({"error": {"message": "a key is wanted"}}));
    let server = Script::of([no]);
    let address = server.url().trim_start_matches("http://").trim_end_matches("/v1").parse().unwrap();
    let app = App::build(config(address)).await.unwrap();
    let (_stop, stopped) = Stop::by_hand();
    let ended = tokio::time::timeout(LIMIT, app.run(stopped)).await.expect("it gives up");
    let failure = ended.unwrap_err();
    assert!(matches!(&failure, Failure::BadInput(reason) if reason.contains("a key is wanted")), "{failure}");
}
