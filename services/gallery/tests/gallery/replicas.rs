//! Read replicas: what they have, what they refuse, and what they make of a writer that dies or is restored.

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::common::*;
use thicket_gallery::{App, Config};
use thicket_proto::v1;
use thicket_proto::v1::replication_service_client::ReplicationServiceClient;
use thicket_runtime::{Failure, Peer, State, Stop};
use tonic::Code;

pub(crate) fn following(folder: &Path, writer: SocketAddr) -> Config {
    let follow = Some(format!("http://{writer}").parse().unwrap());
    Config { follow, ..Config::in_process(folder) }
}

async fn list(client: &mut Client) -> Result<v1::ListCollectionsResponse, tonic::Status> {
    client.list_collections(v1::ListCollectionsRequest {}).await.map(tonic::Response::into_inner)
}

/// Waits until a replica is where its writer is.
async fn level(writer: &mut Client, replica: &mut Client) {
    let patience = Instant::now() + Duration::from_secs(60);
    loop {
        if let Ok(there) = list(replica).await {
            let mut here = list(writer).await.unwrap();
            let replication = there.replication.clone().expect("it says that it follows");
            // Recall is measured at each by itself.
            let mut collections = there.collections;
            for collection in here.collections.iter_mut().chain(&mut collections) {
                (collection.recall, collection.approximate) = (None, false);
            }
            if collections == here.collections
                && replication.connected
                && replication.transaction == replication.writer_transaction
            {
                return;
            }
        }
        assert!(Instant::now() < patience, "never level");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

pub(crate) async fn assert_same(writer: &mut Client, replica: &mut Client) {
    level(writer, replica).await;
    for degrees in [0.0, 77.0] {
        let there = search(replica, at(degrees), 100_000).await;
        assert_eq!(there, search(writer, at(degrees), 100_000).await);
        for hit in there {
            let item = hit.item.unwrap();
            if !item.image_hash.is_empty() {
                assert_eq!(
                    image_of(replica, &item.id).await.unwrap(),
                    image_of(writer, &item.id).await.unwrap()
                );
            }
        }
    }
}

fn numbered(i: u32) -> v1::UpsertRequest {
    with_image(item(&format!("item-{i}"), at((i * 37 % 360) as f32)), png(i))
}

/// A writer with some items, and a replica that is level with it.
async fn pair(folder: &Path) -> (Running, Running) {
    let mut writer = Running::on(&folder.join("writer")).await;
    create(&mut writer.client, "lobby", 2).await;
    fill(&mut writer.client, (0..30).map(numbered).collect()).await;
    let mut replica = Running::start(following(&folder.join("replica"), writer.address)).await;
    assert_same(&mut writer.client, &mut replica.client).await;
    (writer, replica)
}

#[tokio::test]
async fn a_replica_has_what_the_writer_has_and_follows_what_changes() {
    let folder = tempfile::tempdir().unwrap();
    let (mut writer, mut replica) = pair(folder.path()).await;
    delete(&mut writer.client, &["item-3", "item-4"]).await;
    fill(&mut writer.client, (20..40).map(|i| with_image(numbered(i), png(i + 500))).collect()).await;
    create(&mut writer.client, "attic", 3).await;
    assert_same(&mut writer.client, &mut replica.client).await;
    let name = "attic".to_owned();
    writer.client.delete_collection(v1::DeleteCollectionRequest { name, max_items: None }).await.unwrap();
    let name = "lobby".to_owned();
    writer.client.delete_collection(v1::DeleteCollectionRequest { name, max_items: Some(11) }).await.unwrap();
    assert_same(&mut writer.client, &mut replica.client).await;
    assert_eq!(image_files(&folder.path().join("replica")), image_files(&folder.path().join("writer")));
    replica.stop().await;
    writer.stop().await;
}

#[tokio::test]
async fn a_replica_refuses_writes_and_names_the_writer() {
    let folder = tempfile::tempdir().unwrap();
    let (writer, mut replica) = pair(folder.path()).await;
    let refused = upsert(&mut replica.client, vec![item("x", at(0.0))]).await.remove(0).unwrap_err();
    assert_eq!((refused.code, refused.reason.as_str()), (9, "READ_REPLICA"));
    assert!(refused.message.contains(&writer.address.to_string()), "{}", refused.message);
    let expected = (Code::FailedPrecondition, "READ_REPLICA".to_owned());
    let deletion = v1::DeleteRequest { collection: "lobby".to_owned(), ids: vec!["item-1".to_owned()] };
    assert_eq!(refusal(replica.client.delete(deletion).await), expected);
    let drop = v1::DeleteCollectionRequest { name: "lobby".to_owned(), max_items: None };
    assert_eq!(refusal(replica.client.delete_collection(drop).await), expected);
    let request = v1::CreateCollectionRequest {
        name: "attic".to_owned(),
        model_fingerprint: MODEL.to_owned(),
        dimension: 2,
        similarity: v1::Similarity::Cosine as i32,
        index: None,
    };
    assert_eq!(refusal(replica.client.create_collection(request).await), expected);
    // Nor does it hand out to others what it was given.
    let peer = Peer::lazy(&format!("http://{}", replica.address), None).unwrap();
    let follow = v1::FollowRequest { format: 1, position: None };
    assert_eq!(refusal(ReplicationServiceClient::new(peer).follow(follow).await), expected);
    replica.stop().await;
    writer.stop().await;
}

#[tokio::test]
async fn a_read_that_names_a_transaction_knows_of_it_or_fails() {
    let folder = tempfile::tempdir().unwrap();
    let (mut writer, mut replica) = pair(folder.path()).await;
    for i in 100..130 {
        let mut answers = writer.client.upsert(tokio_stream::iter([numbered(i)])).await.unwrap().into_inner();
        let transaction = answers.message().await.unwrap().unwrap().transaction;
        assert!(transaction > 0);
        let id = format!("item-{i}");
        let request = v1::GetItemRequest { collection: "lobby".to_owned(), id, min_transaction: transaction };
        replica.client.get_item(request).await.unwrap();
    }
    let request = v1::SearchRequest { min_transaction: 1_000_000, ..search_request(at(0.0), 1) };
    for client in [&mut replica.client, &mut writer.client] {
        let refused = refusal(client.search(request.clone()).await);
        assert_eq!(refused, (Code::Unavailable, "REPLICA_BEHIND".to_owned()));
    }
    replica.stop().await;
    writer.stop().await;
}

#[tokio::test]
async fn a_replica_serves_once_it_has_been_level_with_the_writer() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = Running::on(&folder.path().join("writer")).await;
    create(&mut writer.client, "lobby", 2).await;
    let address = writer.address;
    writer.stop().await;

    let app = App::build(following(&folder.path().join("replica"), address)).await.unwrap();
    let (health, replica) = (app.health(), client(app.grpc_addr()));
    let (stop_handle, stop) = Stop::by_hand();
    let served = tokio::spawn(app.run(stop));
    let mut replica = replica;
    // It is up, and refuses.
    let refused = replica.search(search_request(at(0.0), 1)).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    assert_eq!(health.snapshot().state, State::Starting);
    let mut config = Config::in_process(folder.path().join("writer"));
    config.role.listen = address;
    let mut writer = Running::start(config).await;
    tokio::time::timeout(Duration::from_secs(60), health.ready()).await.unwrap();
    assert_same(&mut writer.client, &mut replica).await;
    stop_handle.stop();
    served.await.unwrap().unwrap();
    writer.stop().await;
}

#[tokio::test]
async fn a_replica_goes_on_without_its_writer_and_follows_it_when_it_comes_back() {
    let folder = tempfile::tempdir().unwrap();
    let (mut writer, mut replica) = pair(folder.path()).await;
    let address = writer.address;
    let ranking = search(&mut writer.client, at(0.0), 100).await;
    writer.stop().await;
    let patience = Instant::now() + Duration::from_secs(60);
    while list(&mut replica.client).await.unwrap().replication.unwrap().connected {
        assert!(Instant::now() < patience);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(search(&mut replica.client, at(0.0), 100).await, ranking);
    let mut config = Config::in_process(folder.path().join("writer"));
    config.role.listen = address;
    let mut writer = Running::start(config).await;
    fill(&mut writer.client, (50..60).map(numbered).collect()).await;
    assert_same(&mut writer.client, &mut replica.client).await;
    replica.stop().await;
    // Of a replica that comes back, what it had is there, and what it missed comes.
    delete(&mut writer.client, &["item-50"]).await;
    let mut replica = Running::start(following(&folder.path().join("replica"), address)).await;
    assert_same(&mut writer.client, &mut replica.client).await;
    replica.stop().await;
    writer.stop().await;
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let (path, target) = {
            let entry = entry.unwrap();
            (entry.path(), to.join(entry.file_name()))
        };
        if path.is_dir() {
            copy(&path, &target);
        } else {
            std::fs::copy(&path, &target).unwrap();
        }
    }
}

#[tokio::test]
async fn a_replica_of_a_writer_that_was_restored_starts_over() {
    let folder = tempfile::tempdir().unwrap();
    let (data, backup) = (folder.path().join("writer"), folder.path().join("backup"));
    let (writer, mut replica) = pair(folder.path()).await;
    let address = writer.address;
    writer.stop().await;
    copy(&data, &backup);
    let mut config = Config::in_process(&data);
    config.role.listen = address;
    let mut writer = Running::start(config.clone()).await;
    fill(&mut writer.client, (60..70).map(numbered).collect()).await;
    assert_same(&mut writer.client, &mut replica.client).await;
    writer.stop().await;
    std::fs::remove_dir_all(&data).unwrap();
    copy(&backup, &data);
    let mut writer = Running::start(config).await;
    for i in 80..95 {
        fill(&mut writer.client, vec![numbered(i)]).await;
    }
    assert_same(&mut writer.client, &mut replica.client).await;
    let held = ids(&search(&mut replica.client, at(0.0), 100_000).await);
    assert!(!held.contains(&"item-60".to_owned()) && held.contains(&"item-80".to_owned()));
    assert_eq!(image_files(&folder.path().join("replica")), image_files(&data));
    replica.stop().await;
    writer.stop().await;
}

#[tokio::test]
async fn what_is_deleted_leaves_the_disk_of_a_replica() {
    let folder = tempfile::tempdir().unwrap();
    let (mut writer, mut replica) = pair(folder.path()).await;
    let marked = |id: &str| {
        let mut request = with_image(item(id, v1::Vector { values: vec![0.28, 0.96] }), png(777));
        request.metadata = [("note".to_owned(), "find-me-on-disk".to_owned())].into();
        request
    };
    fill(&mut writer.client, vec![marked("gone")]).await;
    assert_same(&mut writer.client, &mut replica.client).await;
    let vector: Vec<u8> = [0.28f32, 0.96].iter().flat_map(|value| value.to_le_bytes()).collect();
    let image = png(777).to_vec();
    let data = folder.path().join("replica");
    let holding = || {
        let mut found = Vec::new();
        let mut folders = vec![data.clone()];
        while let Some(folder) = folders.pop() {
            for file in std::fs::read_dir(folder).unwrap() {
                let path = file.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                    continue;
                }
                let bytes = std::fs::read(&path).unwrap();
                for needle in [&vector[..], b"find-me-on-disk", &image] {
                    if bytes.windows(needle.len()).any(|window| window == needle) {
                        found.push(path.clone());
                    }
                }
            }
        }
        found.len()
    };
    assert_eq!(holding(), 3, "vector and metadata in the store, and the image");
    delete(&mut writer.client, &["gone"]).await;
    assert_same(&mut writer.client, &mut replica.client).await;
    assert!(image_of(&mut replica.client, "gone").await.is_err());
    replica.client.compact(v1::CompactRequest {}).await.unwrap();
    assert_eq!(holding(), 0);
    replica.stop().await;
    writer.stop().await;
}

#[tokio::test]
async fn only_a_caller_with_rights_on_everything_may_follow() {
    let folder = tempfile::tempdir().unwrap();
    let tokens = folder.path().join("tokens.json");
    // SHA-256 of "secret".
    let hash = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b";
    for (rights, collections, expected) in [
        (vec!["read", "write"], None, Some(Code::PermissionDenied)),
        (vec!["read", "admin"], Some(["lobby"]), Some(Code::PermissionDenied)),
        (vec!["admin"], None, Some(Code::PermissionDenied)),
        (vec!["read", "admin"], None, None),
    ] {
        let mut entry = serde_json::json!({"name": "replica", "sha256": hash, "rights": rights});
        if let Some(collections) = collections {
            entry["collections"] = serde_json::json!(collections);
        }
        std::fs::write(&tokens, serde_json::json!([entry]).to_string()).unwrap();
        let mut config = Config::in_process(folder.path().join("data"));
        config.role.tokens_file = Some(tokens.clone());
        let gallery = Running::start(config).await;
        let peer = Peer::lazy(&format!("http://{}", gallery.address), Some("secret")).unwrap();
        let follow = v1::FollowRequest { format: 1, position: None };
        let answered = ReplicationServiceClient::new(peer).follow(follow).await;
        assert_eq!(answered.as_ref().err().map(tonic::Status::code), expected);
        drop(answered);
        gallery.stop().await;
    }
}

#[tokio::test]
async fn a_follower_of_another_format_or_with_a_broken_position_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let gallery = Running::on(folder.path()).await;
    let peer = Peer::lazy(&format!("http://{}", gallery.address), None).unwrap();
    let mut replication = ReplicationServiceClient::new(peer);
    let refused = refusal(replication.follow(v1::FollowRequest { format: 99, position: None }).await);
    assert_eq!(refused, (Code::FailedPrecondition, "STORE_FORMAT".to_owned()));
    let position = Some(v1::Position { transaction: 3, version: vec![1, 2].into() });
    let refused = refusal(replication.follow(v1::FollowRequest { format: 1, position }).await);
    assert_eq!(refused, (Code::InvalidArgument, "POSITION_INVALID".to_owned()));
    gallery.stop().await;
}

#[tokio::test]
async fn a_follower_learns_at_once_that_the_writer_stops() {
    let folder = tempfile::tempdir().unwrap();
    let gallery = Running::on(folder.path()).await;
    let peer = Peer::lazy(&format!("http://{}", gallery.address), None).unwrap();
    let mut replication = ReplicationServiceClient::new(peer);
    let request = v1::FollowRequest { format: 1, position: None };
    let mut parts = replication.follow(request).await.unwrap().into_inner();
    parts.message().await.unwrap().unwrap();
    gallery.stop().await;
    let ended = loop {
        match parts.message().await {
            Ok(Some(_)) => {}
            other => break other,
        }
    };
    assert_eq!(ended.unwrap_err().code(), Code::Unavailable);
}

#[tokio::test]
async fn a_follow_token_that_is_not_there_is_refused_at_start() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = following(folder.path(), "127.0.0.1:9".parse().unwrap());
    config.follow_token_file = Some(folder.path().join("nothing"));
    assert!(
        matches!(App::build(config).await, Err(Failure::BadInput(line)) if line.contains("follow-token-file"))
    );
}

#[tokio::test]
async fn a_replica_builds_the_same_kind_of_index() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = Running::on(&folder.path().join("writer")).await;
    let kind = v1::vector_index::Kind::Ivf(v1::IvfIndex { lists: 2, probes: 2 });
    create_indexed(&mut writer.client, "lobby", 2, Some(kind)).await;
    fill(&mut writer.client, (0..300).map(|i| item(&format!("i{i}"), at(i as f32))).collect()).await;
    let mut replica = Running::start(following(&folder.path().join("replica"), writer.address)).await;
    assert_same(&mut writer.client, &mut replica.client).await;
    let patience = Instant::now() + Duration::from_secs(60);
    while !list(&mut replica.client).await.unwrap().collections[0].approximate {
        assert!(Instant::now() < patience, "never built");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_same(&mut writer.client, &mut replica.client).await;
    replica.stop().await;
    writer.stop().await;
}
