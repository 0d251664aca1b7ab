//! What probes, health clients and reflection clients see.

use std::time::Duration;

use crate::support::{config, start};
use thicket_proto::v1::embedding_service_client::EmbeddingServiceClient;
use thicket_proto::v1::embedding_service_server::EmbeddingServiceServer;
use thicket_runtime::{Fault, Probe, Role, Server, Services, Stop};
use tokio_stream::StreamExt;
use tonic::Code;
use tonic::transport::Channel;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::{v1, v1alpha};

async fn channel(address: std::net::SocketAddr) -> Channel {
    Channel::from_shared(format!("http://{address}")).expect("valid").connect().await.expect("connected")
}

fn named(name: &str) -> HealthCheckRequest {
    HealthCheckRequest { service: name.to_owned() }
}

#[tokio::test]
async fn a_mounted_service_and_the_server_as_a_whole_are_serving() {
    let role = start(&config()).await;
    let mut health = HealthClient::new(channel(role.grpc).await);
    for name in ["", "thicket.v1.EmbeddingService", "thicket.v1.CoordinatorService"] {
        let answer = health.check(named(name)).await.expect("known").into_inner();
        assert_eq!(answer.status(), ServingStatus::Serving, "{name}");
    }
}

#[tokio::test]
async fn checking_an_unknown_name_is_not_found() {
    let role = start(&config()).await;
    let mut health = HealthClient::new(channel(role.grpc).await);
    let status = health.check(named("thicket.v1.GalleryService")).await.expect_err("not mounted");
    assert_eq!(status.code(), Code::NotFound);
}

#[tokio::test]
async fn watching_an_unknown_name_answers_service_unknown_and_stays_open() {
    let role = start(&config()).await;
    let mut health = HealthClient::new(channel(role.grpc).await);
    let mut changes = health.watch(named("nothing")).await.expect("a stream").into_inner();
    let first = changes.next().await.expect("a message").expect("no error");
    assert_eq!(first.status(), ServingStatus::ServiceUnknown);
    let second = tokio::time::timeout(Duration::from_millis(50), changes.next()).await;
    assert!(second.is_err(), "{second:?}");
}

#[tokio::test]
async fn a_watcher_hears_of_the_drain_and_does_not_hold_it_up() {
    let role = start(&config()).await;
    let mut health = HealthClient::new(channel(role.grpc).await);
    let mut changes = health.watch(named("")).await.expect("a stream").into_inner();
    assert_eq!(changes.next().await.expect("one").expect("ok").status(), ServingStatus::Serving);
    role.stop.stop();
    assert_eq!(changes.next().await.expect("two").expect("ok").status(), ServingStatus::NotServing);
    assert_eq!(changes.next().await.expect("an end").expect_err("cut").code(), Code::Unavailable);
    assert!(role.served.await.expect("no panic").is_ok());
}

#[tokio::test]
async fn both_versions_of_reflection_list_the_mounted_services() {
    let role = start(&config()).await;
    let channel = channel(role.grpc).await;
    let expected = ["thicket.v1.EmbeddingService", "thicket.v1.CoordinatorService"];

    let request = v1::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(v1::server_reflection_request::MessageRequest::ListServices(String::new())),
    };
    let mut answers = v1::server_reflection_client::ServerReflectionClient::new(channel.clone())
        .server_reflection_info(tokio_stream::once(request))
        .await
        .expect("answered")
        .into_inner();
    let answer = answers.next().await.expect("one").expect("ok").message_response;
    let Some(v1::server_reflection_response::MessageResponse::ListServicesResponse(list)) = answer else {
        panic!("{answer:?}")
    };
    assert_eq!(list.service.iter().map(|service| service.name.as_str()).collect::<Vec<_>>(), expected);

    let request = v1alpha::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(
            v1alpha::server_reflection_request::MessageRequest::ListServices(String::new()),
        ),
    };
    let mut answers = v1alpha::server_reflection_client::ServerReflectionClient::new(channel)
        .server_reflection_info(tokio_stream::once(request))
        .await
        .expect("answered")
        .into_inner();
    let answer = answers.next().await.expect("one").expect("ok").message_response;
    let Some(v1alpha::server_reflection_response::MessageResponse::ListServicesResponse(list)) = answer
    else {
        panic!("{answer:?}")
    };
    assert_eq!(list.service.iter().map(|service| service.name.as_str()).collect::<Vec<_>>(), expected);
}

#[tokio::test]
async fn the_admin_pages_tell_the_state_and_name_each_check() {
    let role = start(&config()).await;
    for page in ["/livez", "/readyz", "/startupz"] {
        assert_eq!(role.get(page).await, (200, "ok\n".to_owned()), "{page}");
    }
    let lease = role.health.check("lease", Probe::Ready);
    lease.fail("etcd has not answered");
    let (status, page) = role.get("/readyz?verbose").await;
    assert_eq!(status, 503);
    assert!(
        page.contains("[+] model: ok\n") && page.contains("[-] lease: etcd has not answered\n"),
        "{page}"
    );
    assert_eq!(role.get("/livez").await.0, 200);
    assert_eq!(role.get("/startupz").await.0, 200);
}

#[tokio::test]
async fn the_admin_pages_tell_version_and_metrics() {
    let role = start(&config()).await;
    role.client().embed_text(crate::support::text("four")).await.expect("embedded");
    let (status, page) = role.get("/version").await;
    assert_eq!(status, 200);
    assert_eq!(page, format!("{{\"role\":\"embedding\",\"version\":\"{}\"}}\n", env!("CARGO_PKG_VERSION")));
    let (status, page) = role.get("/metrics").await;
    assert_eq!(status, 200);
    // The metrics are the process's, so other tests' calls are among them.
    let line = page
        .lines()
        .filter(|line| line.starts_with("rpc_server_call_duration_seconds_count"))
        .find(|line| line.contains(r#"rpc_method="thicket.v1.EmbeddingService/EmbedText""#))
        .unwrap_or_else(|| panic!("no call in {page}"));
    assert!(line.contains(r#"rpc_response_status_code="OK""#), "{line}");
}

#[tokio::test]
async fn a_role_that_is_still_loading_is_live_but_refuses_calls() {
    let config = config();
    let server = Server::bind(Role::Embedding, &config).await.expect("bound");
    let (grpc, admin) = (server.grpc_addr(), server.admin_addr().expect("asked for"));
    let loading = server.health().check("weights", Probe::Startup);
    let ready = start(&config).await;
    let services = Services::new().with(EmbeddingServiceServer::new(ready.handlers.clone()));
    let (_stop, stopped) = Stop::by_hand();
    tokio::spawn(server.serve(services, stopped.requested()));

    let mut client = EmbeddingServiceClient::new(channel(grpc).await);
    let refused = client.embed_text(crate::support::text("four")).await.expect_err("still loading");
    let fault = Fault::from_status(&refused);
    assert!(matches!(&fault, Fault::Unavailable { reason, .. } if reason == "STARTING"), "{fault:?}");
    assert_eq!(crate::support::get(admin, "/livez").await.0, 200);
    assert_eq!(crate::support::get(admin, "/startupz").await.0, 503);
    loading.pass();
    assert!(client.embed_text(crate::support::text("four")).await.is_ok());
}
