//! What is refused is refused alike.

use crate::common::*;
use crate::contract::places::everywhere;
use thicket_proto::v1;
use tonic::Code;

#[tokio::test]
async fn bad_reads_have_the_same_codes_and_reasons() {
    everywhere(async |place| {
        let client = &mut place.client;
        create(client, "lobby", 2).await;
        fill(client, vec![item("a", at(0.0))]).await;
        let unknown = |collection: &str| v1::SearchRequest {
            collection: collection.to_owned(),
            ..search_request(at(0.0), 1)
        };
        for name in ["nowhere", "No such; name", &"x".repeat(500)] {
            let refused = refusal(client.search(unknown(name)).await);
            assert_eq!(refused, (Code::NotFound, "COLLECTION_NOT_FOUND".to_owned()), "{}", place.name);
        }
        let mut wrong = search_request(v1::Vector { values: vec![1.0] }, 1);
        assert_eq!(refusal(client.search(wrong.clone()).await).1, "VECTOR_SIZE_WRONG");
        wrong.queries = vec![v1::Vector { values: vec![f32::NAN, 0.0] }];
        assert_eq!(refusal(client.search(wrong.clone()).await).1, "VECTOR_NOT_FINITE");
        wrong.queries = vec![at(0.0)];
        wrong.top = 0;
        assert_eq!(refusal(client.search(wrong).await).1, "TOP_INVALID");
        let mut other = search_request(at(0.0), 1);
        other.model_fingerprint = "model-b".to_owned();
        assert_eq!(
            refusal(client.search(other).await),
            (Code::FailedPrecondition, "MODEL_MISMATCH".to_owned())
        );
        let ids = vec!["a".to_owned(), "nobody".to_owned()];
        let score = v1::ScoreRequest {
            collection: "lobby".to_owned(),
            query: Some(at(0.0)),
            ids: ids.clone(),
            ..Default::default()
        };
        assert_eq!(refusal(client.score(score).await), (Code::NotFound, "ITEM_NOT_FOUND".to_owned()));
        let rank = v1::RankOfRequest {
            collection: "lobby".to_owned(),
            query: Some(at(0.0)),
            ids,
            filter: None,
            ..Default::default()
        };
        assert_eq!(refusal(client.rank_of(rank).await).1, "ITEM_NOT_FOUND");
        let get = v1::GetItemRequest {
            collection: "lobby".to_owned(),
            id: "nobody".to_owned(),
            ..Default::default()
        };
        assert_eq!(refusal(client.get_item(get).await).1, "ITEM_NOT_FOUND");
    })
    .await;
}

#[tokio::test]
async fn a_bad_item_fails_alone() {
    everywhere(async |place| {
        let client = &mut place.client;
        create(client, "lobby", 2).await;
        let mut alien = item("alien", at(0.0));
        alien.model_fingerprint = "model-b".to_owned();
        let items = vec![
            item("good", at(0.0)),
            alien,
            item("long", v1::Vector { values: vec![3.0, 4.0] }),
            with_image(item("text", at(1.0)), "no image".into()),
            item("good", at(30.0)),
            item("last", at(2.0)),
        ];
        let outcomes = upsert(client, items).await;
        let reasons: Vec<_> = outcomes
            .iter()
            .map(|outcome| outcome.as_ref().err().map_or("", |error| error.reason.as_str()))
            .collect();
        let expected = ["", "MODEL_MISMATCH", "VECTOR_NOT_UNIT", "IMAGE_FORMAT_UNKNOWN", "", ""];
        assert_eq!(reasons, expected, "{}", place.name);
        assert_eq!(ids(&search(client, at(0.0), 10).await), ["last", "good"]);
    })
    .await;
}
