//! A model behind an HTTP server, which here is a script of answers.

mod script;

use std::sync::Arc;
use std::time::Duration;

use image::RgbImage;
use thicket_engine::{Answer, Answerer, Ask, EngineError, Finish, Prompt, Question, Sampling, Ticket};
use thicket_openai::{OpenAiAnswerer, Server, ServerError};

use crate::script::{Reply, Script};

const GREEDY: Sampling = Sampling { max_tokens: 40, temperature: 0.0, seed: 0 };

fn server(script: &Script) -> Server {
    let mut server = Server::at(&script.url(), 4).unwrap();
    server.first_pause = Duration::from_millis(1);
    server.answer_limit = Duration::from_secs(20);
    server
}

fn connect(script: &Script) -> OpenAiAnswerer {
    OpenAiAnswerer::connect("served".to_owned(), server(script)).unwrap()
}

fn picture() -> Prompt {
    Prompt::new(Some(Arc::new(RgbImage::from_pixel(4, 6, image::Rgb([9, 8, 7])))), "Is it a person?")
}

fn models(names: &[&str]) -> Reply {
    let data: Vec<_> =
        names.iter().map(|name| serde_json::json!({"id": name, "max_model_len": 4096})).collect();
    Reply::json(200, &serde_json::json!({"object": "list", "data": data}))
}

fn yes(p: f64) -> Reply {
    let alternatives = [("Yes", p), ("No", 1.0 - p)];
    let alternatives: Vec<_> = alternatives
        .iter()
        .map(|(token, p)| serde_json::json!({"token": token, "logprob": p.ln()}))
        .collect();
    let content = serde_json::json!([{"token": "Yes", "logprob": p.ln(), "top_logprobs": alternatives}]);
    Reply::json(
        200,
        &serde_json::json!({
            "choices": [{"message": {"role": "assistant", "content": "Yes"}, "logprobs": {"content": content}}],
            "usage": {"prompt_tokens": 70, "completion_tokens": 1}
        }),
    )
}

fn text(content: &str) -> Reply {
    Reply::json(
        200,
        &serde_json::json!({
            "choices": [{"message": {"role": "assistant", "content": content}, "finish_reason": "length"}],
            "usage": {"prompt_tokens": 70, "completion_tokens": 5}
        }),
    )
}

/// A server of one model with log-probabilities, up to the end of the connection.
fn ready() -> Script {
    Script::of([models(&["qwen"]), yes(0.9)])
}

#[test]
fn a_judgement_is_read_from_the_log_probabilities_of_the_first_token() {
    let script = ready();
    let mut answerer = connect(&script);
    assert_eq!(answerer.info().context_length, 4096);
    script.then([yes(0.75)]);
    let verdict = answerer.judge(&[picture()]).remove(0).unwrap();
    assert!((verdict.p_yes - 0.75).abs() < 1e-9 && (verdict.mass - 1.0).abs() < 1e-9, "{verdict:?}");
    assert_eq!(verdict.prompt_tokens, 70);
    let asked = script.last();
    assert_eq!((asked["model"].as_str(), asked["max_tokens"].as_u64()), (Some("qwen"), Some(1)));
    assert_eq!((asked["temperature"].as_f64(), asked["top_logprobs"].as_u64()), (Some(0.0), Some(20)));
    let content = &asked["messages"][0]["content"];
    assert!(content[0]["image_url"]["url"].as_str().unwrap().starts_with("data:image/png;base64,"));
    assert_eq!(content[1]["text"], "Is it a person?");
}

#[test]
fn a_text_is_the_servers_content_with_its_counts() {
    let script = ready();
    let mut answerer = connect(&script);
    script.then([text("A man in red.")]);
    let answer = answerer.generate(&[picture()], &GREEDY).remove(0).unwrap();
    assert_eq!(
        (answer.text.as_str(), answer.output_tokens, answer.finish),
        ("A man in red.", 5, Finish::Length)
    );
    assert_eq!(script.last()["max_tokens"], 40);
    assert!(script.last().get("logprobs").is_none());
}

#[test]
fn a_server_without_log_probabilities_judges_by_its_first_token() {
    for refusal in [text("Yes"), Reply::json(422, &serde_json::json!({"detail": "logprobs: unknown field"}))]
    {
        let script = Script::of([models(&["qwen"]), refusal]);
        let mut answerer = connect(&script);
        script.then([text("No"), text("The")]);
        let verdict = answerer.judge(&[picture()]).remove(0).unwrap();
        assert_eq!((verdict.p_yes, verdict.mass), (0.0, 1.0));
        assert_eq!(script.last()["max_tokens"], 1);
        assert!(script.last().get("logprobs").is_none());
        assert_eq!(answerer.judge(&[picture()]).remove(0).unwrap().mass, 0.0);
    }
}

#[test]
fn an_overloaded_server_is_asked_again_and_then_counts_as_away() {
    let busy = || Reply::json(429, &serde_json::json!({"error": {"message": "busy"}}));
    let script = ready();
    let mut answerer = connect(&script);
    script.then([busy(), Reply::Cut, text("at last")]);
    assert_eq!(answerer.generate(&[picture()], &GREEDY).remove(0).unwrap().text, "at last");
    script.then([busy(), busy(), busy()]);
    let error = answerer.generate(&[picture()], &GREEDY).remove(0).unwrap_err();
    assert!(
        matches!(error, EngineError::Unavailable { .. }) && error.to_string().contains("429: busy"),
        "{error}"
    );
}

#[test]
fn what_the_server_refuses_is_the_questions_fault() {
    let script = ready();
    let mut answerer = connect(&script);
    script.then([Reply::json(400, &serde_json::json!({"error": {"message": "the prompt is too long"}}))]);
    let error = answerer.generate(&[picture()], &GREEDY).remove(0).unwrap_err();
    let EngineError::InvalidInput { field: "text", reason } = error else { panic!("{error}") };
    assert_eq!(reason, "the prompt is too long");
}

#[test]
fn an_answer_that_is_not_understood_is_a_failure_of_the_server() {
    let script = ready();
    let mut answerer = connect(&script);
    for reply in [
        Reply::raw(200, "not json"),
        Reply::raw(200, r#"{"choices": []}"#),
        Reply::raw(200, "x".repeat(2 << 20)),
    ] {
        script.then([reply]);
        let error = answerer.generate(&[picture()], &GREEDY).remove(0).unwrap_err();
        assert!(matches!(error, EngineError::Internal { .. }), "{error}");
    }
}

#[test]
fn a_refused_key_is_no_fault_of_the_question() {
    let script = ready();
    let mut answerer =
        OpenAiAnswerer::connect("served".to_owned(), server(&script).with_key("secret").unwrap()).unwrap();
    assert_eq!(script.authorization().as_deref(), Some("Bearer secret"));
    script.then([Reply::json(401, &serde_json::json!({"error": {"message": "who are you?"}}))]);
    let error = answerer.generate(&[picture()], &GREEDY).remove(0).unwrap_err();
    assert!(matches!(error, EngineError::Internal { .. }), "{error}");
}

#[test]
fn a_model_that_is_not_served_or_not_chosen_is_refused_by_name() {
    let script = Script::of([models(&["a", "b"])]);
    let mut wanted = server(&script);
    wanted.model = Some("c".to_owned());
    let error = OpenAiAnswerer::connect("served".to_owned(), wanted).unwrap_err();
    assert!(error.to_string().contains("serves a, b, not c"), "{error}");
    let script = Script::of([models(&["a", "b"])]);
    let error = OpenAiAnswerer::connect("served".to_owned(), server(&script)).unwrap_err();
    assert!(matches!(error, ServerError::Model { .. }), "{error}");
}

#[test]
fn a_server_that_is_not_there_is_one_line() {
    let mut away = Server::at("http://127.0.0.1:1/v1", 1).unwrap();
    away.first_pause = Duration::from_millis(1);
    let error = OpenAiAnswerer::connect("served".to_owned(), away).unwrap_err().to_string();
    assert!(
        error.contains("127.0.0.1:1/v1/models gave no answer in 3 attempts") && !error.contains('\n'),
        "{error}"
    );
}

#[test]
fn a_question_that_is_given_up_closes_its_connection_and_is_never_reported() {
    let script = ready();
    let mut answerer = connect(&script);
    script.then([Reply::Silence, text("the other")]);
    let ask = |answerer: &mut OpenAiAnswerer, ticket| {
        answerer.submit(Ticket(ticket), Question::new(picture(), Ask::Text(GREEDY))).unwrap();
    };
    ask(&mut answerer, 1);
    while script.requests() < 3 {
        assert!(answerer.step().done.is_empty());
    }
    answerer.cancel(Ticket(1));
    ask(&mut answerer, 2);
    let mut done = Vec::new();
    while !answerer.load().is_idle() {
        done.extend(answerer.step().done);
    }
    let [(Ticket(2), Ok(Answer::Text(answer)))] = &done[..] else { panic!("{done:?}") };
    assert_eq!(answer.text, "the other");
    script.wait_for_hang_up();
}

#[test]
fn no_more_questions_than_allowed_are_with_the_server() {
    let script = ready();
    let mut two = server(&script);
    two.concurrency = 2;
    let mut answerer = OpenAiAnswerer::connect("served".to_owned(), two).unwrap();
    script.then([Reply::Silence, Reply::Silence, text("third")]);
    for ticket in 0..3 {
        answerer.submit(Ticket(ticket), Question::new(picture(), Ask::Text(GREEDY))).unwrap();
    }
    while script.requests() < 4 {
        answerer.step();
    }
    for _ in 0..5 {
        answerer.step();
    }
    assert_eq!((script.requests(), answerer.load().running, answerer.load().waiting), (4, 2, 1));
    answerer.cancel(Ticket(0));
    let done = loop {
        if let Some(done) = answerer.step().done.pop() {
            break done;
        }
    };
    assert_eq!(done.0, Ticket(2));
}

#[test]
fn an_adapter_and_a_sampling_out_of_range_are_refused() {
    let mut answerer = connect(&ready());
    assert!(answerer.load_adapter("a", std::path::Path::new("a")).is_err());
    let adapted = Prompt { adapter: Some("a".into()), ..picture() };
    let hot = Sampling { temperature: 3.0, ..GREEDY };
    let none = Sampling { max_tokens: 0, ..GREEDY };
    for question in [
        Question::new(adapted, Ask::Judgement),
        Question::new(picture(), Ask::Text(hot)),
        Question::new(picture(), Ask::Text(none)),
    ] {
        let error = answerer.submit(Ticket(0), question).unwrap_err();
        assert!(matches!(error, EngineError::InvalidInput { .. }), "{error}");
    }
    assert!(answerer.load().is_idle());
}
