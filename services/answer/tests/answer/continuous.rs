//! Questions come and go while others are being answered.

use thicket_answer::Config;
use thicket_proto::v1::DescribeRequest;

use crate::locate;
use crate::support::{ENDLESS, Running, png, start};

/// A role whose model is writing a text without an end.
async fn writing() -> (Running, tokio::task::JoinHandle<()>) {
    let role = start(Config::in_process("unused")).await;
    role.says(&[ENDLESS]);
    let mut client = role.client.clone();
    let describing = tokio::spawn(async move {
        let request = DescribeRequest { image: png([1, 2, 3]), ..Default::default() };
        let ended = client.describe(request).await;
        panic!("a text without an end ended: {ended:?}");
    });
    while role.batches().is_empty() {
        tokio::task::yield_now().await;
    }
    (role, describing)
}

#[tokio::test]
async fn a_judgement_is_answered_while_a_text_is_being_written() {
    let (mut role, describing) = writing().await;
    for _ in 0..3 {
        let answer = role.client.locate(locate("a man", png([255, 255, 0]))).await.unwrap().into_inner();
        assert_eq!(answer.p_yes, 1.0);
    }
    assert!(!describing.is_finished());
}

#[tokio::test]
async fn a_text_that_nobody_waits_for_any_more_is_given_up() {
    let (role, describing) = writing().await;
    describing.abort();
    while role.cancelled.lock().unwrap().is_empty() {
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
    assert_eq!(role.cancelled.lock().unwrap().len(), 1);
}
