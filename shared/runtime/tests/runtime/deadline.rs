//! A spent time budget is DEADLINE_EXCEEDED, whoever notices it and wherever the call is.

use std::time::Duration;

use crate::support::{config, start};
use hyper_util::rt::{TokioExecutor, TokioIo};
use thicket_proto::v1::coordinator_service_client::CoordinatorServiceClient;
use thicket_proto::v1::embedding_service_client::EmbeddingServiceClient;
use thicket_proto::v1::{EmbedImageRequest, GetModelRequest, SearchPersonRequest};
use thicket_runtime::{Deadline, RoleConfig, request_by};
use tokio_stream::StreamExt;
use tonic::Code;
use tonic::transport::Channel;

const SHORT: Duration = Duration::from_millis(60);

fn impatient() -> RoleConfig {
    RoleConfig { unary_deadline: SHORT, stream_deadline: SHORT, ..config() }
}

async fn plain_channel(address: std::net::SocketAddr) -> Channel {
    Channel::from_shared(format!("http://{address}")).expect("valid").connect().await.expect("connected")
}

#[tokio::test]
async fn a_unary_call_that_names_no_deadline_gets_the_servers() {
    let role = start(&impatient()).await;
    let mut client = EmbeddingServiceClient::new(plain_channel(role.grpc).await);
    let status = client.embed_image(EmbedImageRequest::default()).await.expect_err("nobody releases it");
    assert_eq!(status.code(), Code::DeadlineExceeded);
}

#[tokio::test]
async fn a_stream_ends_at_the_deadline_after_what_it_has_sent() {
    let role = start(&impatient()).await;
    let mut client = CoordinatorServiceClient::new(plain_channel(role.grpc).await);
    let mut events = client.search_person(SearchPersonRequest::default()).await.expect("begun").into_inner();
    assert!(events.next().await.expect("an event").is_ok());
    let end = events.next().await.expect("an end").expect_err("cut");
    assert_eq!(end.code(), Code::DeadlineExceeded);
}

#[tokio::test]
async fn the_server_answers_before_tonics_own_timer_does() {
    // tonic's timers answer CANCELLED, its client's as well as its server's, so the client here is a bare one.
    let role = start(&config()).await;
    let stream = tokio::net::TcpStream::connect(role.grpc).await.expect("connected");
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .expect("http/2");
    tokio::spawn(connection);
    for _ in 0..20 {
        let request =
            http::Request::post(format!("http://{}/thicket.v1.EmbeddingService/EmbedImage", role.grpc))
                .header("content-type", "application/grpc")
                .header("te", "trailers")
                .header("grpc-timeout", "20m")
                .body("\0\0\0\0\0".to_owned())
                .expect("a request");
        let answer = sender.send_request(request).await.expect("answered");
        let code = answer.headers().get("grpc-status").expect("an answer without a body");
        assert_eq!(Code::from_bytes(code.as_bytes()), Code::DeadlineExceeded);
    }
}

#[tokio::test]
async fn a_call_that_comes_after_its_deadline_is_refused_before_anything_is_done_and_counted() {
    let role = start(&config()).await;
    let stream = tokio::net::TcpStream::connect(role.grpc).await.expect("connected");
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .expect("http/2");
    tokio::spawn(connection);
    // A call that would be answered at once.
    let request = http::Request::post(format!("http://{}/thicket.v1.EmbeddingService/GetModel", role.grpc))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("grpc-timeout", "0n")
        .body("\0\0\0\0\0".to_owned())
        .expect("a request");
    let answer = sender.send_request(request).await.expect("answered");
    let code = answer.headers().get("grpc-status").expect("an answer without a body");
    assert_eq!(Code::from_bytes(code.as_bytes()), Code::DeadlineExceeded);
    let metrics = thicket_telemetry::prometheus_text();
    let counted = "thicket_admission_rejected_total{reason=\"DEADLINE_EXCEEDED\"}";
    assert!(metrics.contains(counted), "{metrics}");
}

#[tokio::test]
async fn a_peer_call_ends_at_its_deadline_with_deadline_exceeded() {
    let role = start(&config()).await;
    let request = request_by(EmbedImageRequest::default(), Deadline::after(SHORT));
    let status = role.client().embed_image(request).await.expect_err("nobody releases it");
    assert_eq!(status.code(), Code::DeadlineExceeded);

    let request = request_by(SearchPersonRequest::default(), Deadline::after(SHORT));
    let mut events = role.search_client().search_person(request).await.expect("begun").into_inner();
    assert!(events.next().await.expect("an event").is_ok());
    let end = events.next().await.expect("an end").expect_err("cut");
    assert_eq!(end.code(), Code::DeadlineExceeded);
}

#[tokio::test]
async fn a_spent_budget_is_not_sent_at_all() {
    let role = start(&config()).await;
    let request = request_by(EmbedImageRequest::default(), Deadline::after(Duration::ZERO));
    let status = role.client().embed_image(request).await.expect_err("too late");
    assert_eq!(status.code(), Code::DeadlineExceeded);
}

#[tokio::test]
async fn the_rest_of_the_budget_reaches_the_handler() {
    let role = start(&config()).await;
    let request = request_by(GetModelRequest {}, Deadline::after(Duration::from_secs(7)));
    let model =
        role.client().get_model(request).await.expect("answered").into_inner().model.expect("a model");
    assert!((1..=7000).contains(&model.dimension), "{} ms were left", model.dimension);
}

#[tokio::test]
async fn a_peer_that_is_not_there_is_unavailable() {
    let nobody =
        tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bound").local_addr().expect("known");
    let peer = thicket_runtime::Peer::lazy(&format!("http://{nobody}"), None).expect("valid");
    let status =
        EmbeddingServiceClient::new(peer).get_model(GetModelRequest {}).await.expect_err("no server");
    assert_eq!(status.code(), Code::Unavailable);
}
