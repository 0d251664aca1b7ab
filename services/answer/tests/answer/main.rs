//! The answer service over real gRPC.

mod adapters;
mod continuous;
mod kept;
mod replicas;
mod served;
mod support;

use std::time::Duration;

use bytes::Bytes;
use support::{Running, png, start};
use thicket_answer::{App, Config, MAX_ANSWERS, PROMPTS_FILE};
use thicket_proto::v1::{
    AggregateRequest, DecomposeRequest, DescribeRequest, GetAnswerModelRequest, LocateRequest, RewriteRequest,
};
use thicket_runtime::{Failure, Fault};
use thicket_thi::prompts::PromptSet;
use tonic::{Code, Status};

async fn running() -> Running {
    start(Config::in_process("unused")).await
}

pub(crate) fn locate(text: &str, image: Bytes) -> LocateRequest {
    LocateRequest { text: text.to_owned(), image, adapter: String::new() }
}

pub(crate) fn reason(status: &Status) -> String {
    Fault::from_status(status).reason().into_owned()
}

#[tokio::test]
async fn the_model_and_its_wording_are_described() {
    let model = running().await.client.get_answer_model(GetAnswerModelRequest {}).await.unwrap().into_inner();
    assert_eq!((model.name.as_str(), model.fingerprint.as_str()), ("scripted", "cafe"));
    assert_eq!(model.prompt_version, PromptSet::default().version());
    assert_eq!(model.context_length, 4096);
}

#[tokio::test]
async fn locate_is_one_forward_pass_in_the_wording_of_the_prompts() {
    let mut role = running().await;
    let answer = role.client.locate(locate("a man in red", png([204, 255, 0]))).await.unwrap().into_inner();
    assert_eq!((answer.p_yes, answer.usable, answer.raw_text.as_str()), (0.8, true, ""));
    assert_eq!(answer.timing.unwrap().prompt_tokens, 70);
    let expected = PromptSet::default().locate("a man in red").unwrap();
    assert_eq!(*role.asked.lock().unwrap(), [("judge", vec![expected])]);
}

#[tokio::test]
async fn without_a_clear_word_in_the_logits_the_text_is_read() {
    let mut role = running().await;
    let unclear = png([255, 100, 0]);
    role.says(&["I would say yes.", "No, it does not.", "The picture is dark.", ""]);
    for (p_yes, usable, text) in [
        (1.0, true, "I would say yes."),
        (0.0, true, "No, it does not."),
        (0.0, false, "The picture is dark."),
        (0.0, false, ""),
    ] {
        let answer = role.client.locate(locate("a man", unclear.clone())).await.unwrap().into_inner();
        assert_eq!((answer.p_yes, answer.usable, answer.raw_text.as_str()), (p_yes, usable, text));
        assert_eq!(answer.timing.unwrap().prompt_tokens, 160, "both questions count");
    }
    assert!(role.samplings.lock().unwrap().iter().all(|sampling| sampling.temperature == 0.0));
}

#[tokio::test]
async fn questions_that_wait_together_are_asked_together_and_a_bad_one_fails_alone() {
    let mut config = Config { max_delay: Duration::from_secs(60), ..Config::in_process("unused") };
    config.budgets.sequences = 3;
    let role = start(config).await;
    let ask = |colour| {
        let mut client = role.client.clone();
        async move { client.locate(locate("a man", png(colour))).await }
    };
    let (first, bad, other) = tokio::join!(ask([255, 255, 0]), ask([0, 255, 255]), ask([0, 255, 0]));
    assert_eq!(first.unwrap().into_inner().p_yes, 1.0);
    assert_eq!(bad.unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(other.unwrap().into_inner().p_yes, 0.0);
    assert_eq!(role.batches(), [("judge", 3)]);
}

#[tokio::test]
async fn a_bad_text_or_image_is_refused_before_the_model_is_asked() {
    let mut role = running().await;
    let image = png([0, 255, 0]);
    let status = role.client.locate(locate(" \n", image.clone())).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::InvalidArgument, "TEXT_EMPTY"));
    let status = role.client.locate(locate(&"word ".repeat(10_000), image)).await.unwrap_err();
    assert_eq!(reason(&status), "TEXT_TOO_LONG");
    let status = role.client.locate(locate("a man", Bytes::from_static(b"a text file"))).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::InvalidArgument, "IMAGE_FORMAT_UNKNOWN"));
    let status = role
        .client
        .describe(DescribeRequest { image: Bytes::new(), ..Default::default() })
        .await
        .unwrap_err();
    assert_eq!(reason(&status), "IMAGE_EMPTY");
    assert!(role.batches().is_empty());
}

#[tokio::test]
async fn a_description_is_made_once_and_read_as_the_method_reads_it() {
    let mut role = running().await;
    role.says(&["1. Yes, a woman. She walks.\n\n2. red coat\n3. shoes: white"]);
    let request = DescribeRequest { image: png([1, 2, 3]), ..Default::default() };
    let first = role.client.describe(request.clone()).await.unwrap().into_inner();
    assert_eq!(first.answers, ["A woman.", "", "Red coat."]);
    assert!(first.usable && !first.cached);
    let again = role.client.describe(request).await.unwrap().into_inner();
    assert_eq!((again.answers, again.raw_text), (first.answers, first.raw_text));
    assert!(again.cached);
    assert_eq!(role.batches(), [("generate", 1)]);
}

#[tokio::test]
async fn an_empty_description_is_reported_and_not_an_error() {
    let mut role = running().await;
    role.says(&[""]);
    let answer = role
        .client
        .describe(DescribeRequest { image: png([9, 9, 9]), ..Default::default() })
        .await
        .unwrap()
        .into_inner();
    assert!(!answer.usable, "{answer:?}");
}

#[tokio::test]
async fn the_same_image_asked_about_at_one_time_is_described_once() {
    let config = Config { max_delay: Duration::from_millis(100), ..Config::in_process("unused") };
    let role = start(config).await;
    role.says(&["1. a man"]);
    let ask = || {
        let mut client = role.client.clone();
        async move {
            client
                .describe(DescribeRequest { image: png([7, 7, 7]), ..Default::default() })
                .await
                .unwrap()
                .into_inner()
        }
    };
    let answers = tokio::join!(ask(), ask(), ask());
    for answer in [&answers.0, &answers.1, &answers.2] {
        assert_eq!(answer.answers, answers.0.answers);
    }
    assert_eq!(role.batches(), [("generate", 1)]);
}

#[tokio::test]
async fn a_merge_shows_the_model_the_text_before_the_answers() {
    let mut role = running().await;
    role.says(&["A man in red.", " ... "]);
    let request = AggregateRequest {
        text: "a man".to_owned(),
        answers: vec!["Red coat.".to_owned(), String::new()],
        ..Default::default()
    };
    let answer = role.client.aggregate(request.clone()).await.unwrap().into_inner();
    assert_eq!((answer.text.as_str(), answer.usable), ("A man in red.", true));
    let parts = ["a man", "Red coat.", ""].map(str::to_owned);
    let expected = PromptSet::default().aggregate(&parts).unwrap();
    assert_eq!(*role.asked.lock().unwrap(), [("generate", vec![expected])]);
    let answer = role.client.aggregate(request).await.unwrap().into_inner();
    assert_eq!(
        (answer.text.as_str(), answer.usable),
        (" ... ", false),
        "unmodified, and said to be unusable"
    );
}

#[tokio::test]
async fn too_many_or_too_long_answers_are_refused() {
    let mut role = running().await;
    let request = |answers| AggregateRequest { text: "a man".to_owned(), answers, ..Default::default() };
    let status = role.client.aggregate(request(vec!["x".to_owned(); MAX_ANSWERS + 1])).await.unwrap_err();
    assert_eq!(reason(&status), "TOO_MANY_ANSWERS");
    let status = role.client.aggregate(request(vec!["x".repeat(10_001); 2])).await.unwrap_err();
    assert_eq!(reason(&status), "TEXT_TOO_LONG");
}

#[tokio::test]
async fn a_text_is_split_into_one_sentence_a_line() {
    let mut role = running().await;
    role.says(&["1. The coat is red.\n\n- The hair is short."]);
    let request =
        DecomposeRequest { text: "a man with short hair in a red coat".to_owned(), ..Default::default() };
    let answer = role.client.decompose(request).await.unwrap().into_inner();
    assert_eq!(answer.sentences, ["The coat is red.", "The hair is short."]);
    assert_eq!(answer.raw_text, "1. The coat is red.\n\n- The hair is short.");
}

#[tokio::test]
async fn rewrites_are_distinct_and_asked_for_again_only_with_a_temperature() {
    let mut role = running().await;
    let request = |temperature| RewriteRequest {
        sentence: "The coat is red.".to_owned(),
        count: 3,
        temperature,
        seed: 7,
        ..Default::default()
    };
    role.says(&["A red coat.\nA red coat."]);
    let answer = role.client.rewrite(request(0.0)).await.unwrap().into_inner();
    assert_eq!(answer.rewrites, ["A red coat."]);
    role.says(&["A red coat.\nA red coat.", "Red is the coat.\nIt is red.\nA coat in red."]);
    let answer = role.client.rewrite(request(0.7)).await.unwrap().into_inner();
    assert_eq!(answer.rewrites, ["A red coat.", "Red is the coat.", "It is red."]);
    let seeds: Vec<u64> = role.samplings.lock().unwrap().iter().map(|sampling| sampling.seed).collect();
    assert_eq!(seeds, [7, 7, 8]);
}

#[tokio::test]
async fn a_count_or_a_temperature_out_of_range_is_refused() {
    let mut role = running().await;
    for (count, temperature, expected) in [
        (0, 0.0, "COUNT_OUT_OF_RANGE"),
        (17, 0.0, "COUNT_OUT_OF_RANGE"),
        (1, -0.1, "TEMPERATURE_OUT_OF_RANGE"),
        (1, 2.1, "TEMPERATURE_OUT_OF_RANGE"),
        (1, f64::NAN, "TEMPERATURE_OUT_OF_RANGE"),
    ] {
        let request = RewriteRequest {
            sentence: "The coat is red.".to_owned(),
            count,
            temperature,
            ..Default::default()
        };
        let status = role.client.rewrite(request).await.unwrap_err();
        assert_eq!(
            (status.code(), reason(&status).as_str()),
            (Code::InvalidArgument, expected),
            "{count} {temperature}"
        );
    }
}

#[tokio::test]
async fn the_wording_that_a_model_folder_brings_along_is_used() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join(PROMPTS_FILE), "[locate]\ntemplate = 'Is it {{ caption }}?'").unwrap();
    let mut role = start(Config::in_process(folder.path())).await;
    role.client.locate(locate("a man", png([255, 255, 0]))).await.unwrap();
    assert_eq!(*role.asked.lock().unwrap(), [("judge", vec!["Is it a man?".to_owned()])]);
}

#[tokio::test]
async fn a_stopped_role_drains_and_ends_well() {
    let role = running().await;
    role.stop.stop();
    assert_eq!(role.done.await.unwrap(), Ok(()));
}

#[tokio::test]
async fn a_model_folder_that_is_not_there_or_damaged_is_bad_input() {
    let failure = App::build(Config::in_process("/nonexistent/model")).await.unwrap_err();
    assert_eq!(failure, Failure::BadInput("model folder /nonexistent/model is not there".to_owned()));
    let folder = tempfile::tempdir().unwrap();
    let app = App::build(Config::in_process(folder.path())).await.unwrap();
    let (_stop, stopped) = thicket_runtime::Stop::by_hand();
    let Err(Failure::BadInput(line)) = app.run(stopped).await else { panic!("it cannot be loaded") };
    assert!(line.contains("config.json") && line.lines().count() == 1, "{line}");
}
