//! Search, score and rank-of.

use crate::common::*;
use crate::contract::places::everywhere;
use thicket_proto::v1;

#[tokio::test]
async fn equal_scores_come_in_insertion_order_and_a_replaced_item_keeps_its_place() {
    everywhere(async |place| {
        let client = &mut place.client;
        create(client, "lobby", 2).await;
        let names: Vec<String> = (0..90).map(|i| format!("{:02}", (i * 37) % 90)).collect();
        fill(client, names.iter().map(|name| item(name, at(45.0))).collect()).await;
        fill(client, vec![item(&names[5], at(10.0)), item(&names[5], at(45.0))]).await;
        assert_eq!(ids(&search(client, at(0.0), 100).await), names, "{}", place.name);
        assert_eq!(ids(&search(client, at(0.0), 7).await), names[..7]);
        // A deleted item that is added again is a new one, at the end.
        assert_eq!(delete(client, &[&names[0], &names[0], "nobody"]).await, 1);
        fill(client, vec![item(&names[0], at(45.0))]).await;
        let again = ids(&search(client, at(0.0), 100).await);
        assert_eq!(again[..89], names[1..]);
        assert_eq!(again[89], names[0]);
    })
    .await;
}

#[tokio::test]
async fn a_rank_is_the_place_in_the_full_ranking_however_far_down() {
    everywhere(async |place| {
        let client = &mut place.client;
        create(client, "lobby", 2).await;
        let items = (0..1500).map(|i| item(&format!("p{i}"), at((i * 53 % 750) as f32 * 0.2))).collect();
        fill(client, items).await;
        let full = search(client, at(100.0), 2000).await;
        assert_eq!(full.len(), 1500, "{}", place.name);
        let asked = ids(&full);
        for some in [&asked[..40], &asked[..], &asked[1400..]] {
            let request = v1::RankOfRequest {
                collection: "lobby".to_owned(),
                query: Some(at(100.0)),
                ids: some.to_vec(),
                filter: None,
                ..Default::default()
            };
            let ranks = client.rank_of(request).await.unwrap().into_inner().ranks;
            let first = asked.iter().position(|id| *id == some[0]).unwrap() as u64 + 1;
            assert_eq!(ranks, (first..first + some.len() as u64).collect::<Vec<_>>(), "{}", place.name);
        }
        let request = v1::ScoreRequest {
            collection: "lobby".to_owned(),
            query: Some(at(100.0)),
            ids: asked.clone(),
            ..Default::default()
        };
        let scores = client.score(request).await.unwrap().into_inner().scores;
        assert_eq!(scores, full.iter().map(|hit| hit.score).collect::<Vec<_>>());
    })
    .await;
}

#[tokio::test]
async fn several_queries_are_answered_in_their_order() {
    everywhere(async |place| {
        let client = &mut place.client;
        create(client, "lobby", 2).await;
        assert_eq!(search(client, at(0.0), 100_000).await, []);
        fill(client, (0..90).map(|i| item(&format!("{i}"), at(i as f32))).collect()).await;
        let mut request = search_request(at(0.0), 1);
        request.queries = (0..70).map(|i| at(i as f32)).collect();
        let rankings = client.search(request).await.unwrap().into_inner().rankings;
        let best: Vec<String> = rankings.iter().map(|ranking| ids(&ranking.hits).remove(0)).collect();
        assert_eq!(best, (0..70).map(|i| i.to_string()).collect::<Vec<_>>());
        assert_eq!(search(client, at(0.0), 100_000).await.len(), 90);
    })
    .await;
}

#[tokio::test]
async fn names_of_any_kind_are_only_names() {
    everywhere(async |place| {
        let client = &mut place.client;
        create(client, "1-st_floor", 2).await;
        let nasty = ["\"] or key != [\"", "a'b\"c\\", "é\u{1f600}", "*", " ", "key", "%"];
        let items: Vec<_> = nasty
            .iter()
            .enumerate()
            .map(|(i, name)| {
                let mut request = item(name, at(i as f32));
                request.collection = "1-st_floor".to_owned();
                request.metadata.insert("camera".to_owned(), (*name).to_owned());
                request.metadata.insert("tags".to_owned(), format!("x,{}", name.trim()));
                request
            })
            .collect();
        fill(client, items).await;
        for name in nasty {
            let camera = v1::Filter { cameras: vec![name.to_owned()], ..v1::Filter::default() };
            let mut request = search_request(at(0.0), 10);
            request.collection = "1-st_floor".to_owned();
            request.filter = Some(camera);
            let found = client.search(request).await.unwrap().into_inner().rankings.remove(0);
            assert_eq!(ids(&found.hits), [name], "{}", place.name);
        }
        let request = v1::DeleteRequest {
            collection: "1-st_floor".to_owned(),
            ids: nasty[..2].iter().map(|name| (*name).to_owned()).collect(),
        };
        assert_eq!(client.delete(request).await.unwrap().into_inner().deleted, 2);
    })
    .await;
}

#[tokio::test]
async fn a_collection_is_created_once_listed_and_deleted_in_parts_oldest_first() {
    everywhere(async |place| {
        let client = &mut place.client;
        create(client, "lobby", 2).await;
        create(client, "attic", 3).await;
        let again = v1::CreateCollectionRequest {
            name: "lobby".to_owned(),
            model_fingerprint: MODEL.to_owned(),
            dimension: 2,
            similarity: v1::Similarity::Cosine as i32,
            ..Default::default()
        };
        assert_eq!(refusal(client.create_collection(again).await).1, "COLLECTION_EXISTS", "{}", place.name);
        fill(client, (0..25).map(|i| item(&format!("{i:02}"), at(90.0 - i as f32))).collect()).await;
        let list = v1::ListCollectionsRequest {};
        let listed = client.list_collections(list).await.unwrap().into_inner().collections;
        let shown: Vec<_> = listed.iter().map(|one| (one.name.as_str(), one.dimension, one.items)).collect();
        assert_eq!(shown, [("attic", 3, 0), ("lobby", 2, 25)]);
        assert!(listed.iter().all(|one| one.model_fingerprint == MODEL && one.created_unix_ms > 0));
        let request = v1::DeleteCollectionRequest { name: "lobby".to_owned(), max_items: Some(10) };
        let part = client.delete_collection(request.clone()).await.unwrap().into_inner();
        assert_eq!((part.deleted_items, part.remains), (10, true));
        let left = ids(&search(client, at(90.0), 100).await);
        assert_eq!(left, (10..25).map(|i| format!("{i:02}")).collect::<Vec<_>>());
        let part = client.delete_collection(request.clone()).await.unwrap().into_inner();
        assert_eq!((part.deleted_items, part.remains), (10, true));
        let part = client.delete_collection(request.clone()).await.unwrap().into_inner();
        assert_eq!((part.deleted_items, part.remains), (5, false));
        assert_eq!(refusal(client.delete_collection(request).await).1, "COLLECTION_NOT_FOUND");
        // The name may be used again, for vectors of another size.
        create(client, "lobby", 4).await;
        assert_eq!(refusal(client.search(search_request(at(0.0), 1)).await).1, "VECTOR_SIZE_WRONG");
    })
    .await;
}

#[tokio::test]
async fn a_restart_keeps_everything() {
    everywhere(async |place| {
        create(&mut place.client, "lobby", 2).await;
        let items = (0..30).map(|i| with_image(item(&format!("{i}"), at(i as f32)), png(i))).collect();
        fill(&mut place.client, items).await;
        let before = search(&mut place.client, at(3.0), 30).await;
        place.restart().await;
        assert_eq!(search(&mut place.client, at(3.0), 30).await, before, "{}", place.name);
        for i in 0..30 {
            assert_eq!(image_of(&mut place.client, &i.to_string()).await.unwrap().image, png(i));
        }
    })
    .await;
}
