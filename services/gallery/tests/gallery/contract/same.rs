//! The same history on both backends gives the same answers.

use std::collections::HashMap;

use crate::common::*;
use crate::contract::places::Place;
use thicket_proto::v1;

const DIMENSION: usize = 12;
const STEPS: usize = 12;

/// Numbers that look random and are the same everywhere.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as usize) % bound
    }

    /// A unit vector; few values, so that equal and nearly equal scores are frequent.
    fn vector(&mut self) -> v1::Vector {
        let mut values: Vec<f32> = (0..DIMENSION).map(|_| self.below(3) as f32 - 1.0).collect();
        values[0] += 0.5;
        let norm = values.iter().map(|value| value * value).sum::<f32>().sqrt();
        values.iter_mut().for_each(|value| *value /= norm);
        v1::Vector { values }
    }

    fn item(&mut self) -> v1::UpsertRequest {
        let id = format!("item {}", self.below(160));
        let mut metadata = HashMap::new();
        if self.below(4) > 0 {
            metadata.insert("camera".to_owned(), format!("gate {}", self.below(3)));
        }
        if self.below(3) > 0 {
            let (day, hour) = (1 + self.below(5), self.below(24));
            metadata.insert("captured_at".to_owned(), format!("2026-03-{day:02}T{hour:02}:00:00Z"));
        }
        let tags: Vec<&str> =
            ["red", "bag", "hat", "bike"].into_iter().filter(|_| self.below(2) == 0).collect();
        if !tags.is_empty() {
            metadata.insert("tags".to_owned(), tags.join(", "));
        }
        let image = match self.below(3) {
            0 => bytes::Bytes::new(),
            _ => png(self.below(40) as u32),
        };
        v1::UpsertRequest { metadata, image, ..item(&id, self.vector()) }
    }

    fn filter(&mut self) -> Option<v1::Filter> {
        /// 2026-03-01.
        const FIRST: i64 = 1_772_323_200_000;
        let mut filter = v1::Filter::default();
        match self.below(6) {
            0 => return None,
            1 => filter.cameras = vec!["gate 0".to_owned(), "gate 2".to_owned()],
            2 => filter.tags_all = vec!["red".to_owned(), "bag".to_owned()],
            3 => filter.tags_any = vec!["hat".to_owned(), "nothing".to_owned()],
            4 => {
                filter.captured_from_unix_ms = Some(FIRST + self.below(3) as i64 * 86_400_000);
                filter.captured_until_unix_ms = Some(FIRST + 4 * 86_400_000);
            }
            _ => {
                filter.cameras = vec!["gate 1".to_owned()];
                filter.tags_any = vec!["red".to_owned(), "bike".to_owned()];
                filter.captured_until_unix_ms = Some(FIRST + 3 * 86_400_000);
            }
        }
        Some(filter)
    }
}

fn assert_same_rankings(ours: &[v1::Ranking], theirs: &[v1::Ranking], what: &str) {
    assert_eq!(ours.len(), theirs.len());
    for (ours, theirs) in ours.iter().zip(theirs) {
        assert_eq!(ids(&ours.hits), ids(&theirs.hits), "{what}");
        for (our, their) in ours.hits.iter().zip(&theirs.hits) {
            assert!((our.score - their.score).abs() <= 1e-5, "{what}: {} and {}", our.score, their.score);
            assert_eq!(our.item, their.item, "{what}");
        }
    }
}

async fn step(one: &mut Client, two: &mut Client, dice: &mut Dice) {
    let items: Vec<_> = (0..1 + dice.below(60)).map(|_| dice.item()).collect();
    assert_eq!(upsert(one, items.clone()).await, upsert(two, items).await);
    let gone: Vec<String> = (0..dice.below(30)).map(|_| format!("item {}", dice.below(160))).collect();
    if !gone.is_empty() {
        let request = v1::DeleteRequest { collection: "lobby".to_owned(), ids: gone };
        let ours = one.delete(request.clone()).await.unwrap().into_inner();
        let theirs = two.delete(request).await.unwrap().into_inner();
        // Only the embedded store numbers its transactions.
        assert_eq!(ours, v1::DeleteResponse { transaction: ours.transaction, ..theirs });
    }
}

async fn compare(one: &mut Client, two: &mut Client, dice: &mut Dice, what: &str) {
    let filter = dice.filter();
    let request = v1::SearchRequest {
        queries: (0..1 + dice.below(4)).map(|_| dice.vector()).collect(),
        filter: filter.clone(),
        ..search_request(at(0.0), 1 + dice.below(80) as u32)
    };
    let ours = one.search(request.clone()).await.unwrap().into_inner().rankings;
    let theirs = two.search(request.clone()).await.unwrap().into_inner().rankings;
    assert_same_rankings(&ours, &theirs, what);
    let asked = ids(&search_all(one).await);
    if asked.is_empty() {
        return;
    }
    let some: Vec<String> = (0..5).map(|_| asked[dice.below(asked.len())].clone()).collect();
    let query = Some(request.queries[0].clone());
    let score = v1::ScoreRequest {
        collection: "lobby".to_owned(),
        query: query.clone(),
        ids: some.clone(),
        ..Default::default()
    };
    let ours = one.score(score.clone()).await.unwrap().into_inner().scores;
    let theirs = two.score(score).await.unwrap().into_inner().scores;
    assert!(ours.iter().zip(&theirs).all(|(our, their)| (our - their).abs() <= 1e-5), "{what}");
    let rank =
        v1::RankOfRequest { collection: "lobby".to_owned(), query, ids: some, filter, ..Default::default() };
    let ours = one.rank_of(rank.clone()).await.unwrap().into_inner().ranks;
    assert_eq!(ours, two.rank_of(rank).await.unwrap().into_inner().ranks, "{what}");
}

async fn search_all(client: &mut Client) -> Vec<v1::Hit> {
    let mut values = vec![0.0; DIMENSION];
    values[0] = 1.0;
    search(client, v1::Vector { values }, 1000).await
}

#[tokio::test]
async fn random_histories_give_the_same_rankings_scores_and_ranks() {
    let Some(mut milvus) = Place::milvus().await else { return };
    let mut embedded = Place::embedded().await;
    for seed in 0..3 {
        let mut dice = Dice(seed);
        for place in [&mut embedded, &mut milvus] {
            create(&mut place.client, "lobby", DIMENSION as u32).await;
        }
        for i in 0..STEPS {
            step(&mut embedded.client, &mut milvus.client, &mut dice).await;
            for _ in 0..4 {
                let what = format!("seed {seed}, step {i}");
                compare(&mut embedded.client, &mut milvus.client, &mut dice, &what).await;
            }
        }
        for place in [&mut embedded, &mut milvus] {
            let request = v1::DeleteCollectionRequest { name: "lobby".to_owned(), max_items: None };
            place.client.delete_collection(request).await.unwrap();
        }
    }
    milvus.end().await;
    embedded.end().await;
}
