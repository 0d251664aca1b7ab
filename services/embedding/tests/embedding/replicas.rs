//! Copies of the model on several devices.

use std::time::Duration;

use thicket_embedding::Config;
use tonic::Code;

use crate::service::texts;
use crate::support::{Gate, Running, call, start_gated};

/// A role with two copies of the model, whose passes the test lets through.
async fn pair() -> (Running, [Gate; 2]) {
    let gates = [Gate::new(), Gate::new()];
    let config = Config { max_delay: Duration::ZERO, ..Config::in_process("unused") };
    (start_gated(config, gates.iter().cloned().map(Some).collect()).await, gates)
}

#[tokio::test]
async fn a_second_call_goes_to_the_copy_that_has_nothing_to_do() {
    let (role, gates) = pair().await;
    let first = call(&role, "first");
    gates[0].reached().await;
    let second = call(&role, "second");
    gates[1].reached().await;
    gates.iter().for_each(|gate| gate.open(1));
    assert_eq!(first.await.unwrap().unwrap(), 5.0);
    assert_eq!(second.await.unwrap().unwrap(), 6.0);
    assert!(role.batches.iter().all(|passes| *passes.lock().unwrap() == [1]));
}

#[tokio::test]
async fn a_role_serves_on_when_one_copy_is_lost() {
    let (mut role, gates) = pair().await;
    gates[0].break_down();
    gates[1].open(9);
    assert_eq!(call(&role, "to the first").await.unwrap().unwrap_err().code(), Code::Internal);
    let now = role.health.snapshot();
    assert!(now.live && now.ready, "{now:?}");
    for _ in 0..3 {
        role.client.embed_text(texts(&["on"])).await.unwrap();
    }
    assert_eq!(*role.batches[1].lock().unwrap(), [1, 1, 1]);
}

#[tokio::test]
async fn a_role_without_a_copy_left_is_not_serving() {
    let (role, gates) = pair().await;
    gates.iter().for_each(Gate::break_down);
    for text in ["to the first", "to the second"] {
        assert_eq!(call(&role, text).await.unwrap().unwrap_err().code(), Code::Internal);
    }
    let now = role.health.snapshot();
    assert!(!now.live && !now.ready, "{now:?}");
    assert_eq!(call(&role, "to nobody").await.unwrap().unwrap_err().code(), Code::Unavailable);
}
