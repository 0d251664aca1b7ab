//! Search, score and rank-of agree with each other and with insertion order.

use crate::common::*;
use thicket_proto::v1;

#[tokio::test]
async fn a_search_ranks_by_inner_product() {
    let folder = tempfile::tempdir().unwrap();
    let mut gallery = Running::on(folder.path()).await;
    create(&mut gallery.client, "lobby", 2).await;
    fill(&mut gallery.client, vec![item("far", at(90.0)), item("near", at(10.0)), item("mid", at(40.0))])
        .await;
    let hits = search(&mut gallery.client, at(0.0), 2).await;
    assert_eq!(ids(&hits), ["near", "mid"]);
    assert!((hits[0].score - 10f32.to_radians().cos()).abs() < 1e-5);
    assert_eq!(hits[0].item.as_ref().unwrap().metadata["camera"], "3");
    gallery.stop().await;
}

#[tokio::test]
async fn equal_scores_come_in_insertion_order_and_a_replaced_item_keeps_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let mut gallery = Running::on(folder.path()).await;
    create(&mut gallery.client, "lobby", 2).await;
    let names: Vec<String> = (0..60).map(|i| format!("{:02}", (i * 37) % 60)).collect();
    fill(&mut gallery.client, names.iter().map(|name| item(name, at(45.0))).collect()).await;
    fill(&mut gallery.client, vec![item(&names[5], at(10.0)), item(&names[5], at(45.0))]).await;
    assert_eq!(ids(&search(&mut gallery.client, at(0.0), 100).await), names);
    assert_eq!(ids(&search(&mut gallery.client, at(0.0), 7).await), names[..7]);
    // A deleted item that is added again is a new one, at the end.
    assert_eq!(delete(&mut gallery.client, &[&names[0]]).await, 1);
    fill(&mut gallery.client, vec![item(&names[0], at(45.0))]).await;
    let again = ids(&search(&mut gallery.client, at(0.0), 100).await);
    assert_eq!(again[..59], names[1..]);
    assert_eq!(again[59], names[0]);
    gallery.stop().await;
}

#[tokio::test]
async fn rank_of_is_the_position_in_the_full_search() {
    let folder = tempfile::tempdir().unwrap();
    let mut gallery = Running::on(folder.path()).await;
    create(&mut gallery.client, "lobby", 2).await;
    // Every angle twice, so that half of the ranks are decided by insertion order.
    let items = (0..120).map(|i| item(&format!("p{i}"), at((i * 53 % 60) as f32 * 3.0))).collect();
    fill(&mut gallery.client, items).await;
    let full = search(&mut gallery.client, at(100.0), 120).await;
    let mut asked = ids(&full);
    asked.reverse();
    let request = v1::RankOfRequest {
        collection: "lobby".into(),
        query: Some(at(100.0)),
        ids: asked.clone(),
        filter: None,
        ..Default::default()
    };
    let ranks = gallery.client.rank_of(request).await.unwrap().into_inner().ranks;
    assert_eq!(ranks, (1..=120).rev().collect::<Vec<u64>>());
    let request = v1::ScoreRequest {
        collection: "lobby".into(),
        query: Some(at(100.0)),
        ids: asked,
        ..Default::default()
    };
    let scores = gallery.client.score(request).await.unwrap().into_inner().scores;
    assert_eq!(scores, full.iter().rev().map(|hit| hit.score).collect::<Vec<_>>());
    gallery.stop().await;
}

#[tokio::test]
async fn a_gallery_smaller_than_top_gives_what_it_has_and_an_empty_one_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut gallery = Running::on(folder.path()).await;
    create(&mut gallery.client, "lobby", 2).await;
    assert_eq!(search(&mut gallery.client, at(0.0), 100_000).await, []);
    fill(&mut gallery.client, vec![item("only", at(0.0))]).await;
    assert_eq!(ids(&search(&mut gallery.client, at(0.0), 100_000).await), ["only"]);
    gallery.stop().await;
}

#[tokio::test]
async fn a_mixture_of_two_unit_vectors_is_a_valid_query() {
    let folder = tempfile::tempdir().unwrap();
    let mut gallery = Running::on(folder.path()).await;
    create(&mut gallery.client, "lobby", 2).await;
    fill(&mut gallery.client, vec![item("a", at(0.0))]).await;
    let mixture = v1::Vector { values: vec![0.5, 0.5] };
    let hits = search(&mut gallery.client, mixture, 1).await;
    assert!((hits[0].score - 0.5).abs() < 1e-5);
    gallery.stop().await;
}

#[tokio::test]
async fn several_queries_are_answered_in_their_order() {
    let folder = tempfile::tempdir().unwrap();
    let mut gallery = Running::on(folder.path()).await;
    create(&mut gallery.client, "lobby", 2).await;
    fill(&mut gallery.client, (0..90).map(|i| item(&format!("{i}"), at(i as f32))).collect()).await;
    let mut request = search_request(at(0.0), 1);
    request.queries = (0..70).map(|i| at(i as f32)).collect();
    let rankings = gallery.client.search(request).await.unwrap().into_inner().rankings;
    let best: Vec<String> = rankings.iter().map(|ranking| ids(&ranking.hits).remove(0)).collect();
    assert_eq!(best, (0..70).map(|i| i.to_string()).collect::<Vec<_>>());
    gallery.stop().await;
}
