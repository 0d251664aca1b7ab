//! Every kind of bad input gets its own status, and nothing else suffers.

use crate::common::*;
use bytes::Bytes;
use thicket_proto::v1;
use thicket_runtime::Fault;
use tonic::Code;

async fn lobby(folder: &std::path::Path) -> Running {
    let mut gallery = Running::on(folder).await;
    create(&mut gallery.client, "lobby", 2).await;
    fill(&mut gallery.client, vec![item("a", at(0.0))]).await;
    gallery
}

fn creation(name: &str) -> v1::CreateCollectionRequest {
    v1::CreateCollectionRequest {
        name: name.to_owned(),
        model_fingerprint: MODEL.to_owned(),
        dimension: 2,
        similarity: v1::Similarity::Cosine as i32,
        index: None,
    }
}

#[tokio::test]
async fn a_bad_collection_is_not_created() {
    let folder = tempfile::tempdir().unwrap();
    let mut gallery = lobby(folder.path()).await;
    let cases = [
        (creation("Bad Name"), Code::InvalidArgument, "COLLECTION_NAME_INVALID"),
        (creation(""), Code::InvalidArgument, "COLLECTION_NAME_INVALID"),
        (creation("lobby"), Code::AlreadyExists, "COLLECTION_EXISTS"),
        (
            v1::CreateCollectionRequest { dimension: 0, ..creation("x") },
            Code::InvalidArgument,
            "DIMENSION_INVALID",
        ),
        (
            v1::CreateCollectionRequest { similarity: 0, ..creation("x") },
            Code::InvalidArgument,
            "SIMILARITY_INVALID",
        ),
        (
            v1::CreateCollectionRequest { model_fingerprint: String::new(), ..creation("x") },
            Code::InvalidArgument,
            "MODEL_FINGERPRINT_INVALID",
        ),
        (
            v1::CreateCollectionRequest {
                index: Some(v1::VectorIndex {
                    kind: Some(v1::vector_index::Kind::Ivf(v1::IvfIndex { lists: 8, probes: 9 })),
                }),
                ..creation("x")
            },
            Code::InvalidArgument,
            "INDEX_INVALID",
        ),
    ];
    for (request, code, reason) in cases {
        assert_eq!(refusal(gallery.client.create_collection(request).await), (code, reason.to_owned()));
    }
    let listed = gallery.client.list_collections(v1::ListCollectionsRequest {}).await.unwrap().into_inner();
    assert_eq!(listed.collections.len(), 1);
    gallery.stop().await;
}

#[tokio::test]
async fn an_unknown_collection_or_item_is_not_found_and_named() {
    let folder = tempfile::tempdir().unwrap();
    let mut gallery = lobby(folder.path()).await;
    let client = &mut gallery.client;
    let mut request = search_request(at(0.0), 1);
    request.collection = "attic".to_owned();
    let status = client.search(request).await.unwrap_err();
    assert_eq!(Fault::from_status(&status), Fault::not_found("collection", "attic"));
    let missing = (Code::NotFound, "COLLECTION_NOT_FOUND".to_owned());
    let name = "attic".to_owned();
    assert_eq!(
        refusal(
            client
                .delete_collection(v1::DeleteCollectionRequest { name: name.clone(), max_items: None })
                .await
        ),
        missing
    );
    let request = v1::DeleteRequest { collection: name, ids: vec!["a".to_owned()] };
    assert_eq!(refusal(client.delete(request).await), missing);

    let (collection, ids) = ("lobby".to_owned(), vec!["a".to_owned(), "ghost".to_owned()]);
    let unknown = (Code::NotFound, "ITEM_NOT_FOUND".to_owned());
    let request = v1::ScoreRequest {
        collection: collection.clone(),
        query: Some(at(0.0)),
        ids: ids.clone(),
        ..Default::default()
    };
    assert_eq!(refusal(client.score(request).await), unknown);
    let request = v1::RankOfRequest {
        collection: collection.clone(),
        query: Some(at(0.0)),
        ids,
        filter: None,
        ..Default::default()
    };
    assert_eq!(refusal(client.rank_of(request).await), unknown);
    let request = v1::GetItemRequest { collection, id: "ghost".to_owned(), ..Default::default() };
    assert_eq!(refusal(client.get_item(request).await), unknown);
    assert_eq!(refusal(image_of(client, "ghost").await), unknown);
    // The item is there, but it has no image.
    assert_eq!(refusal(image_of(client, "a").await), (Code::NotFound, "IMAGE_NOT_FOUND".to_owned()));
    gallery.stop().await;
}

#[tokio::test]
async fn a_bad_search_is_refused_with_its_reason() {
    let folder = tempfile::tempdir().unwrap();
    let mut gallery = lobby(folder.path()).await;
    let vector = |values: &[f32]| v1::Vector { values: values.to_vec() };
    let invalid = Code::InvalidArgument;
    let mut none = search_request(at(0.0), 1);
    none.queries.clear();
    let mut many = search_request(at(0.0), 1);
    many.queries = vec![at(0.0); 257];
    let mut other_model = search_request(at(0.0), 1);
    other_model.model_fingerprint = "model-b".to_owned();
    let cases = [
        (search_request(vector(&[1.0]), 1), invalid, "VECTOR_SIZE_WRONG"),
        (search_request(vector(&[f32::NAN, 0.0]), 1), invalid, "VECTOR_NOT_FINITE"),
        (search_request(vector(&[3.0, 0.0]), 1), invalid, "VECTOR_NOT_UNIT"),
        (search_request(at(0.0), 0), invalid, "TOP_INVALID"),
        (search_request(at(0.0), 100_001), invalid, "TOP_INVALID"),
        (none, invalid, "QUERY_COUNT_INVALID"),
        (many, invalid, "QUERY_COUNT_INVALID"),
        (other_model, Code::FailedPrecondition, "MODEL_MISMATCH"),
    ];
    for (request, code, reason) in cases {
        assert_eq!(refusal(gallery.client.search(request).await), (code, reason.to_owned()));
    }
    gallery.stop().await;
}

#[tokio::test]
async fn a_bad_item_fails_alone() {
    let folder = tempfile::tempdir().unwrap();
    let mut gallery = lobby(folder.path()).await;
    let vector = |values: &[f32]| v1::Vector { values: values.to_vec() };
    let picture = noise(1, 8, 8);
    let mut other_collection = item("x", at(0.0));
    other_collection.collection = "attic".to_owned();
    let mut other_model = item("x", at(0.0));
    other_model.model_fingerprint = "model-b".to_owned();
    let mut no_model = item("x", at(0.0));
    no_model.model_fingerprint.clear();
    let mut long_value = item("x", at(0.0));
    long_value.metadata.insert("k".to_owned(), "v".repeat(1025));
    let mut no_time = item("x", at(0.0));
    no_time.metadata.insert("captured_at".to_owned(), "yesterday".to_owned());
    let mut gif = b"GIF89a".to_vec();
    gif.extend([0; 64]);
    let image = |bytes: Bytes| with_image(item("x", at(0.0)), bytes);
    let wide = noise(2, 5000, 1);
    let cases = [
        (item("", at(0.0)), 3, "ITEM_ID_INVALID"),
        (item(&"x".repeat(257), at(0.0)), 3, "ITEM_ID_INVALID"),
        (item("x", vector(&[1.0])), 3, "VECTOR_SIZE_WRONG"),
        (item("x", vector(&[f32::NAN, 0.0])), 3, "VECTOR_NOT_FINITE"),
        (item("x", vector(&[f32::INFINITY, 0.0])), 3, "VECTOR_NOT_FINITE"),
        (item("x", vector(&[0.5, 0.5])), 3, "VECTOR_NOT_UNIT"),
        (other_collection, 3, "COLLECTION_CHANGED"),
        (other_model, 9, "MODEL_MISMATCH"),
        (no_model, 3, "MODEL_FINGERPRINT_INVALID"),
        (long_value, 3, "METADATA_INVALID"),
        (no_time, 3, "METADATA_TIME_INVALID"),
        (image(Bytes::from_static(b"hello, this is text")), 3, "IMAGE_FORMAT_UNKNOWN"),
        (image(gif.into()), 3, "IMAGE_FORMAT_UNKNOWN"),
        (image(picture.slice(..picture.len() / 2)), 3, "IMAGE_UNDECODABLE"),
        (image(wide), 3, "IMAGE_TOO_LARGE"),
    ];
    let mut items = vec![item("first", at(20.0))];
    for (bad, _, _) in &cases {
        items.push(bad.clone());
        items.push(item(&format!("after-{}", items.len()), at(30.0)));
    }
    let outcomes = upsert(&mut gallery.client, items).await;
    for (place, (_, code, reason)) in cases.iter().enumerate() {
        let error = outcomes[1 + 2 * place].as_ref().unwrap_err();
        assert_eq!((error.code, error.reason.as_str()), (*code, *reason), "{}", error.message);
        assert!(outcomes[2 + 2 * place].is_ok());
    }
    let hits = search(&mut gallery.client, at(0.0), 100).await;
    assert_eq!(hits.len(), 2 + cases.len());
    assert!(!ids(&hits).contains(&"x".to_owned()));
    assert_eq!(image_files(folder.path()), Vec::<String>::new());
    gallery.stop().await;
}

#[tokio::test]
async fn a_stream_for_an_unknown_or_unnamed_collection_ends_with_its_status() {
    let folder = tempfile::tempdir().unwrap();
    let mut gallery = lobby(folder.path()).await;
    for (name, code) in [("attic", Code::NotFound), ("", Code::InvalidArgument)] {
        let mut request = item("x", at(0.0));
        request.collection = name.to_owned();
        let mut answers = gallery.client.upsert(tokio_stream::iter([request])).await.unwrap().into_inner();
        assert_eq!(answers.message().await.unwrap_err().code(), code);
    }
    gallery.stop().await;
}

#[tokio::test]
async fn a_bad_deletion_changes_nothing_and_unknown_ids_are_not_counted() {
    let folder = tempfile::tempdir().unwrap();
    let mut gallery = lobby(folder.path()).await;
    let request = v1::DeleteRequest { collection: "lobby".to_owned(), ids: vec![] };
    assert_eq!(refusal(gallery.client.delete(request).await).1, "ID_COUNT_INVALID");
    let request = v1::DeleteRequest { collection: "lobby".to_owned(), ids: vec!["a".to_owned(); 10_001] };
    assert_eq!(refusal(gallery.client.delete(request).await).1, "ID_COUNT_INVALID");
    assert_eq!(delete(&mut gallery.client, &["ghost"]).await, 0);
    assert_eq!(delete(&mut gallery.client, &["a", "a", "ghost"]).await, 1);
    gallery.stop().await;
}

#[tokio::test]
async fn an_answer_beyond_the_message_limit_is_refused_before_it_is_sent() {
    let folder = tempfile::tempdir().unwrap();
    let mut gallery = lobby(folder.path()).await;
    let heavy = |i: usize| {
        let mut request = item(&format!("heavy-{i}"), at(1.0));
        request.metadata = (0..30).map(|k| (k.to_string(), "v".repeat(1000))).collect();
        request
    };
    fill(&mut gallery.client, (0..100).map(heavy).collect()).await;
    let mut request = search_request(at(0.0), 100);
    request.queries = vec![at(0.0); 10];
    assert_eq!(
        refusal(gallery.client.search(request).await),
        (Code::OutOfRange, "ANSWER_TOO_LARGE".to_owned())
    );
    assert_eq!(search(&mut gallery.client, at(0.0), 100).await.len(), 100);
    gallery.stop().await;
}
