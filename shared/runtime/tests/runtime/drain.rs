//! The order of a drain.

use std::time::Duration;

use crate::support::{config, start, text};
use thicket_proto::v1::{EmbedImageRequest, SearchPersonRequest};
use thicket_runtime::{Drained, Fault, RoleConfig, State};
use tokio_stream::StreamExt;
use tonic::Code;

#[tokio::test]
async fn readiness_goes_first_and_calls_are_served_during_the_delay() {
    let config = RoleConfig { drain_delay: Duration::from_secs(3600), ..config() };
    let role = start(&config).await;
    let mut client = role.client();
    client.embed_text(text("one")).await.expect("serving");
    role.stop.stop();
    role.health.subscribe().wait_for(|now| !now.ready).await.expect("the role lives");
    assert_eq!(role.get("/readyz").await.0, 503);
    assert_eq!(role.get("/livez").await.0, 200);
    assert!(client.embed_text(text("two")).await.is_ok());
}

#[tokio::test]
async fn a_call_in_flight_is_finished_and_a_new_one_is_refused() {
    let role = start(&config()).await;
    let mut client = role.client();
    let mut other = client.clone();
    let in_flight = tokio::spawn(async move { client.embed_image(EmbedImageRequest::default()).await });
    role.handlers.entered.notified().await;
    role.stop.stop();
    role.health.subscribe().wait_for(|now| now.state == State::Closing).await.expect("the role lives");
    let refused = other.embed_text(text("late")).await.expect_err("closing");
    assert_eq!(refused.code(), Code::Unavailable);
    role.handlers.release.notify_one();
    assert!(in_flight.await.expect("no panic").is_ok());
    assert_eq!(role.served.await.expect("no panic").expect("drained"), Drained::Clean);
}

#[tokio::test]
async fn what_outlasts_the_limit_is_cut_off_with_unavailable() {
    let config = RoleConfig { drain_timeout: Duration::from_millis(50), ..config() };
    let role = start(&config).await;
    let mut client = role.client();
    let mut events = role.search_client().search_person(SearchPersonRequest::default()).await.expect("begun");
    assert!(events.get_mut().next().await.expect("an event").is_ok());
    let unary = tokio::spawn(async move { client.embed_image(EmbedImageRequest::default()).await });
    role.handlers.entered.notified().await;
    role.stop.stop();

    let fault = Fault::from_status(&unary.await.expect("no panic").expect_err("cut off"));
    assert!(matches!(&fault, Fault::Unavailable { reason, .. } if reason == "DRAINING"), "{fault:?}");
    let end = events.get_mut().next().await.expect("an end").expect_err("cut off");
    assert_eq!(end.code(), Code::Unavailable);
    let drained = role.served.await.expect("no panic").expect("drained");
    assert_eq!(drained, Drained::CutOff(2));
    assert_eq!(drained.into_result().expect_err("not clean").exit_status(), 1);
}

#[tokio::test]
async fn a_silent_connection_does_not_hold_the_drain_up() {
    let role = start(&config()).await;
    let _silent = tokio::net::TcpStream::connect(role.grpc).await.expect("connected");
    role.stop.stop();
    let drained =
        tokio::time::timeout(Duration::from_secs(20), role.served).await.expect("it ends by itself");
    assert_eq!(drained.expect("no panic").expect("drained"), Drained::Clean);
}
