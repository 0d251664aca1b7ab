//! What every role offers beside its own service.

use std::collections::BTreeSet;

use thicket_runtime::Role;
use thicket_tests::{Cluster, ClusterOptions};
use tokio_stream::StreamExt;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

const SERVICES: [(Role, &str); 5] = [
    (Role::Embedding, "thicket.v1.EmbeddingService"),
    (Role::Gallery, "thicket.v1.GalleryService"),
    (Role::Answer, "thicket.v1.AnswerService"),
    (Role::Coordinator, "thicket.v1.CoordinatorService"),
    (Role::Coordinator, "thicket.v1.JobService"),
];

#[tokio::test(flavor = "multi_thread")]
async fn every_role_reports_its_health_and_describes_its_service() {
    let data = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(ClusterOptions::tiny(data.path())).await.unwrap();
    for (role, service) in SERVICES {
        let channel = cluster.connect(role).await.unwrap();

        let mut health = HealthClient::new(channel.clone());
        for name in ["", service] {
            let request = HealthCheckRequest { service: name.to_owned() };
            let status = health.check(request).await.unwrap().into_inner().status();
            assert_eq!(status, ServingStatus::Serving, "{role}: `{name}`");
        }
        let unknown = HealthCheckRequest { service: "thicket.v1.NoSuchService".into() };
        assert_eq!(health.check(unknown).await.unwrap_err().code(), tonic::Code::NotFound);

        let request = ServerReflectionRequest {
            host: String::new(),
            message_request: Some(MessageRequest::ListServices(String::new())),
        };
        let mut reflection = ServerReflectionClient::new(channel);
        let answers = reflection.server_reflection_info(tokio_stream::once(request)).await.unwrap();
        let answer = answers.into_inner().next().await.unwrap().unwrap();
        let Some(MessageResponse::ListServicesResponse(list)) = answer.message_response else {
            panic!("{role}: {answer:?}");
        };
        let names: BTreeSet<_> = list.service.iter().map(|service| service.name.as_str()).collect();
        assert!(names.contains(service), "{role}: {names:?}");
        for (_, other) in SERVICES.iter().filter(|(other, _)| *other != role) {
            assert!(!names.contains(other), "{role} claims to serve {other}");
        }
    }
    cluster.stop().await.unwrap();
}
