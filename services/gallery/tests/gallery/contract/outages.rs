//! Several galleries over one Milvus, and a Milvus that goes away.

use std::time::Duration;

use crate::common::*;
use crate::contract::places::Place;
use tonic::Code;

#[tokio::test]
async fn what_one_gallery_acknowledged_the_other_sees_at_once() {
    let Some(mut place) = Place::milvus().await else { return };
    let mut other = place.another().await;
    create(&mut place.client, "lobby", 2).await;
    for i in 0..20 {
        let (one, two) = match i % 2 {
            0 => (&mut place.client, &mut other.client),
            _ => (&mut other.client, &mut place.client),
        };
        let id = format!("{i}");
        fill(one, vec![with_image(item(&id, at(i as f32)), png(i))]).await;
        assert_eq!(ids(&search(two, at(i as f32), 1).await), [id.as_str()]);
        assert_eq!(image_of(two, &id).await.unwrap().image, png(i));
        if i % 3 == 0 {
            assert_eq!(delete(two, &[&id]).await, 1);
            assert!(!ids(&search(one, at(i as f32), 100).await).contains(&id));
        }
    }
    other.stop().await;
    place.end().await;
}

#[tokio::test]
async fn while_milvus_is_away_calls_are_unavailable_and_afterwards_all_is_well() {
    let Some(mut place) = Place::milvus().await else { return };
    create(&mut place.client, "lobby", 2).await;
    fill(&mut place.client, vec![item("a", at(0.0)), item("b", at(10.0))]).await;
    place.milvus.as_mut().unwrap().kill();
    let refused = refusal(place.client.search(search_request(at(0.0), 1)).await);
    assert_eq!(refused, (Code::Unavailable, "BACKEND_UNAVAILABLE".to_owned()));
    let outcome = upsert_one(&mut place.client, item("c", at(20.0))).await;
    assert_eq!(outcome.unwrap_err().message(), "BACKEND_UNAVAILABLE");
    let mut milvus = place.milvus.take().unwrap();
    let milvus = tokio::task::spawn_blocking(move || {
        milvus.go_on();
        milvus
    });
    place.milvus = Some(milvus.await.unwrap());
    // A connection is made anew by and by.
    while place.client.search(search_request(at(0.0), 1)).await.is_err() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(ids(&search(&mut place.client, at(0.0), 10).await), ["a", "b"]);
    place.end().await;
}

/// Upserts one item; the refusal's reason where it is refused, as an item or with its stream.
async fn upsert_one(
    client: &mut Client,
    item: thicket_proto::v1::UpsertRequest,
) -> Result<(), tonic::Status> {
    use thicket_proto::v1::upsert_response::Result as Outcome;
    let reason = |status: tonic::Status| {
        tonic::Status::unknown(thicket_runtime::Fault::from_status(&status).reason().into_owned())
    };
    let mut answers = client.upsert(tokio_stream::iter([item])).await.map_err(reason)?.into_inner();
    match answers.message().await.map_err(reason)?.and_then(|answer| answer.result) {
        Some(Outcome::Error(error)) => Err(tonic::Status::unknown(error.reason)),
        _ => Ok(()),
    }
}
