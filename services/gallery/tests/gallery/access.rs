//! Rights and the audit log.

use crate::common::*;
use thicket_gallery::Config;
use thicket_proto::v1;
use thicket_proto::v1::gallery_service_client::GalleryServiceClient;
use thicket_runtime::Peer;
use tonic::Code;

#[tokio::test]
async fn deletions_leave_a_line_in_the_audit_log() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("audit.jsonl");
    let mut config = Config::in_process(folder.path().join("data"));
    config.role.audit_log = Some(log.clone());
    let mut gallery = Running::start(config).await;
    create(&mut gallery.client, "lobby", 2).await;
    fill(&mut gallery.client, vec![item("a", at(0.0))]).await;
    search(&mut gallery.client, at(0.0), 1).await;
    delete(&mut gallery.client, &["a"]).await;
    let name = "lobby".to_owned();
    gallery.client.delete_collection(v1::DeleteCollectionRequest { name, max_items: None }).await.unwrap();
    gallery.client.compact(v1::CompactRequest {}).await.unwrap();
    gallery.stop().await;
    let text = std::fs::read_to_string(log).unwrap();
    let methods: Vec<String> = text
        .lines()
        .map(|line| {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            let method = line["method"].as_str().unwrap().rsplit('/').next().unwrap().to_owned();
            assert_eq!(line["collection"].as_str(), (method != "Compact").then_some("lobby"));
            assert_eq!(line["outcome"], "OK");
            method
        })
        .collect();
    assert_eq!(methods, ["CreateCollection", "Upsert", "Delete", "DeleteCollection", "Compact"]);
}

#[tokio::test]
async fn a_caller_sees_and_changes_only_what_its_token_allows() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let mut gallery = Running::on(&data).await;
    create(&mut gallery.client, "lobby", 2).await;
    create(&mut gallery.client, "attic", 2).await;
    gallery.stop().await;

    let tokens = folder.path().join("tokens.json");
    // SHA-256 of "secret".
    let hash = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b";
    let entry =
        serde_json::json!([{"name": "guard", "sha256": hash, "rights": ["read"], "collections": ["lobby"]}]);
    std::fs::write(&tokens, entry.to_string()).unwrap();
    let mut config = Config::in_process(&data);
    config.role.tokens_file = Some(tokens);
    let gallery = Running::start(config).await;
    let target = format!("http://{}", gallery.address);
    let mut guard = GalleryServiceClient::new(Peer::lazy(&target, Some("secret")).unwrap());
    let mut stranger = GalleryServiceClient::new(Peer::lazy(&target, None).unwrap());

    let listed =
        guard.list_collections(v1::ListCollectionsRequest {}).await.unwrap().into_inner().collections;
    assert_eq!(listed.iter().map(|collection| collection.name.as_str()).collect::<Vec<_>>(), ["lobby"]);
    guard.search(search_request(at(0.0), 1)).await.unwrap();
    let mut elsewhere = search_request(at(0.0), 1);
    elsewhere.collection = "attic".to_owned();
    assert_eq!(refusal(guard.search(elsewhere).await).0, Code::PermissionDenied);
    let deletion = v1::DeleteRequest { collection: "lobby".to_owned(), ids: vec!["a".to_owned()] };
    assert_eq!(refusal(guard.delete(deletion).await).0, Code::PermissionDenied);
    assert_eq!(refusal(guard.compact(v1::CompactRequest {}).await).0, Code::PermissionDenied);
    let mut answers = guard.upsert(tokio_stream::iter([item("a", at(0.0))])).await.unwrap().into_inner();
    assert_eq!(answers.message().await.unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(refusal(stranger.search(search_request(at(0.0), 1)).await).0, Code::Unauthenticated);
    gallery.stop().await;
}
