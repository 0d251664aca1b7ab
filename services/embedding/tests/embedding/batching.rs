//! What shares a forward pass, and where inputs are prepared.

use std::time::Duration;

use bytes::Bytes;
use thicket_embedding::Config;
use thicket_proto::v1::EmbedImageRequest;
use thicket_proto::v1::embed_image_result::Result as ImageResult;
use thicket_runtime::{Deadline, request_by};
use tonic::Code;

use crate::service::texts;
use crate::support::{Gate, Running, call, png, start, start_gated};

/// A role whose passes the test lets through.
async fn gated(config: Config) -> (Running, Gate) {
    let gate = Gate::new();
    (start_gated(config, vec![Some(gate.clone())]).await, gate)
}

/// Waits until this many inputs were prepared, so that what was is in the queue or about to be.
async fn prepared(role: &Running, count: usize) {
    while role.threads.lock().unwrap().len() < count {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn calls_that_wait_together_are_embedded_together_and_a_bad_one_fails_alone() {
    let config =
        Config { batch_tokens: 8, max_delay: Duration::from_secs(60), ..Config::in_process("unused") };
    let role = start(config).await;
    let (good, bad, other) = tokio::join!(call(&role, "one"), call(&role, "wordless"), call(&role, "three"));
    assert_eq!(good.unwrap().unwrap(), 3.0);
    assert_eq!(other.unwrap().unwrap(), 5.0);
    let status = bad.unwrap().unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().contains("texts[0]"), "{status}");
    // Eight tokens fill the batch; two texts of at most five tokens do not fit a pass of eight.
    assert_eq!(role.passes(), [1, 1]);
}

#[tokio::test]
async fn texts_of_like_length_share_a_pass_and_come_back_in_their_order() {
    let mut role = start(Config::in_process("unused")).await;
    let (long, short) = ("x".repeat(900), "xy");
    let mixed = texts(&[&long, short, &long, short, &long]);
    let answer = role.client.embed_text(mixed).await.unwrap().into_inner();
    let firsts: Vec<f32> = answer.vectors.iter().map(|vector| vector.values[0]).collect();
    assert_eq!(firsts, [900.0, 2.0, 900.0, 2.0, 900.0]);
    assert_eq!(role.passes(), [2, 3]);
}

#[tokio::test]
async fn no_pass_exceeds_the_budget_however_many_texts_a_call_has() {
    let config = Config { batch_tokens: 100, ..Config::in_process("unused") };
    let mut role = start(config).await;
    let text = "x".repeat(30);
    let answer = role.client.embed_text(texts(&[text.as_str(); 10])).await.unwrap().into_inner();
    assert_eq!(answer.vectors.len(), 10);
    assert_eq!(role.passes(), [3, 3, 3, 1]);
}

#[tokio::test]
async fn images_are_batched_by_their_tokens() {
    let config =
        Config { batch_tokens: 2 * 193, max_delay: Duration::from_secs(60), ..Config::in_process("unused") };
    let mut role = start(config).await;
    let request = EmbedImageRequest { images: vec![png(3, 4); 4] };
    let answer = role.client.embed_image(request).await.unwrap().into_inner();
    assert!(answer.results.iter().all(|result| matches!(result.result, Some(ImageResult::Vector(_)))));
    assert_eq!(role.passes(), [2, 2]);
}

#[tokio::test]
async fn a_caller_who_went_away_costs_no_pass() {
    let (role, gate) = gated(Config::in_process("unused")).await;
    let first = call(&role, "first");
    gate.reached().await;
    let gone = call(&role, "gone away");
    prepared(&role, 2).await;
    gone.abort();
    assert!(gone.await.unwrap_err().is_cancelled());
    let last = call(&role, "the last");
    prepared(&role, 3).await;
    // The server hears of the reset before it reads a call that is made after it on the same connection.
    gate.open(9);
    assert_eq!(first.await.unwrap().unwrap(), 5.0);
    assert_eq!(last.await.unwrap().unwrap(), 8.0);
    assert_eq!(role.passes(), [1, 1]);
}

#[tokio::test]
async fn a_call_whose_deadline_passes_in_the_queue_costs_no_pass() {
    let (role, gate) = gated(Config::in_process("unused")).await;
    let first = call(&role, "first");
    gate.reached().await;
    let mut client = role.client.clone();
    let request = request_by(texts(&["too late"]), Deadline::after(Duration::from_millis(30)));
    assert_eq!(client.embed_text(request).await.unwrap_err().code(), Code::DeadlineExceeded);
    let before = role.threads.lock().unwrap().len();
    let last = call(&role, "the last");
    prepared(&role, before + 1).await;
    gate.open(9);
    assert_eq!(first.await.unwrap().unwrap(), 5.0);
    assert_eq!(last.await.unwrap().unwrap(), 8.0);
    assert_eq!(role.passes(), [1, 1]);
}

#[tokio::test]
async fn inputs_are_prepared_while_the_model_computes_and_not_on_its_thread() {
    let (role, gate) = gated(Config::in_process("unused")).await;
    let first = call(&role, "first");
    gate.reached().await;
    let (mut client, mut images) = (role.client.clone(), role.client.clone());
    let second = tokio::spawn(async move { client.embed_text(texts(&["second"])).await });
    let third =
        tokio::spawn(async move { images.embed_image(EmbedImageRequest { images: vec![png(3, 4)] }).await });
    // The model stands at the gate all the while.
    prepared(&role, 3).await;
    gate.open(9);
    first.await.unwrap().unwrap();
    second.await.unwrap().unwrap();
    third.await.unwrap().unwrap();
    assert!(role.threads.lock().unwrap().iter().all(|thread| thread != "embedding-model"));
}

#[tokio::test]
async fn images_that_are_prepared_share_the_memory_set_aside() {
    let config = Config { decoded_mib: 1, ..Config::in_process("unused") };
    let mut role = start(config).await;
    let request = EmbedImageRequest { images: vec![png(1000, 1000); 6] };
    let answer = role.client.embed_image(request).await.unwrap().into_inner();
    assert!(answer.results.iter().all(|result| matches!(result.result, Some(ImageResult::Vector(_)))));
    assert_eq!(role.passes(), [1; 6], "1 MiB holds one image of 384 by 128 floats");
}

#[tokio::test]
async fn an_image_that_cannot_be_decoded_gives_its_memory_back() {
    let config = Config { decoded_mib: 1, ..Config::in_process("unused") };
    let mut role = start(config).await;
    let images = vec![Bytes::from_static(b"a text file"), png(3, 4), Bytes::new(), png(5, 6)];
    let answer = role.client.embed_image(EmbedImageRequest { images }).await.unwrap().into_inner();
    let vectors =
        answer.results.iter().filter(|result| matches!(result.result, Some(ImageResult::Vector(_))));
    assert_eq!(vectors.count(), 2);
}
