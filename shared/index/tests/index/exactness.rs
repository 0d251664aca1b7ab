//! Every result equals the plain algorithm: score everything, sort, cut.

use proptest::prelude::*;
use thicket_engine::{Hit, VectorIndex};
use thicket_index::{FaissIndex, dot};

fn plain(items: &[(u64, Vec<f32>)], query: &[f32], k: usize) -> Vec<Hit> {
    let mut hits: Vec<Hit> = items.iter().map(|(id, row)| Hit { id: *id, score: dot(query, row) }).collect();
    hits.sort_by(|a, b| b.score.partial_cmp(&a.score).unwrap().then(a.id.cmp(&b.id)));
    hits.truncate(k);
    hits
}

fn filled(items: &[(u64, Vec<f32>)], dimension: usize) -> FaissIndex {
    let mut index = FaissIndex::new(dimension).unwrap();
    let ids: Vec<u64> = items.iter().map(|(id, _)| *id).collect();
    let rows: Vec<f32> = items.iter().flat_map(|(_, row)| row.clone()).collect();
    index.add(&ids, &rows).unwrap();
    index
}

/// Coordinates from a few values, so that equal scores are common, or from a line, so that they are rare.
fn rows(count: std::ops::Range<usize>, dimension: usize) -> impl Strategy<Value = Vec<Vec<f32>>> {
    let coarse = prop::collection::vec(
        prop::collection::vec((-1i8..=1).prop_map(f32::from), dimension),
        count.clone(),
    );
    let fine = prop::collection::vec(prop::collection::vec(-1f32..1.0, dimension), count);
    prop_oneof![coarse, fine]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_search_equals_the_sorted_list(vectors in rows(1..300, 5), queries in rows(1..30, 5), k in 0usize..400) {
        // Ids run against the order of insertion, so that id order is not an accident.
        let items: Vec<(u64, Vec<f32>)> =
            vectors.into_iter().enumerate().map(|(i, row)| ((1_000_003 * (i as u64 + 1)) % 1009, row)).collect();
        let index = filled(&items, 5);
        let found = index.top(&queries.concat(), k).unwrap();
        prop_assert_eq!(found.len(), queries.len());
        for (query, hits) in queries.iter().zip(found) {
            prop_assert_eq!(hits, plain(&items, query, k));
        }
    }

    #[test]
    fn a_search_that_threads_share_equals_the_sorted_list(
        seed in 0usize..1000,
        queries in rows(1..5, 300),
        k in 1usize..400,
        coarse: bool,
    ) {
        // More values than one thread compares a query with, and equal scores across the shares.
        let value = |place: usize| (place * 7919 + seed) * 31 % 1013;
        let value = |place: usize| if coarse { (value(place) % 3) as f32 - 1.0 } else { value(place) as f32 / 1013.0 - 0.5 };
        let row = |number: usize| (0..300).map(|column| value(number % 2500 * 300 + column)).collect();
        let items: Vec<(u64, Vec<f32>)> = (0..3000).map(|number| ((number * 17 % 3001) as u64, row(number))).collect();
        let index = filled(&items, 300);
        for (query, hits) in queries.iter().zip(index.top(&queries.concat(), k).unwrap()) {
            prop_assert_eq!(hits, plain(&items, query, k));
        }
    }

    #[test]
    fn the_index_follows_additions_and_removals(steps in prop::collection::vec((0u64..40, any::<bool>(), rows(1..2, 3)), 1..80)) {
        let mut index = FaissIndex::new(3).unwrap();
        let mut held: Vec<(u64, Vec<f32>)> = Vec::new();
        for (id, add, row) in steps {
            let present = held.iter().any(|(other, _)| *other == id);
            if add {
                prop_assert_eq!(index.add(&[id], &row[0]).is_ok(), !present);
                if !present {
                    held.push((id, row[0].clone()));
                }
            } else {
                prop_assert_eq!(index.remove(&[id, id]).unwrap(), usize::from(present));
                held.retain(|(other, _)| *other != id);
            }
            prop_assert_eq!(index.len(), held.len());
            prop_assert_eq!(index.search(&row[0], 5).unwrap().remove(0), plain(&held, &row[0], 5));
        }
        for (id, row) in &held {
            prop_assert_eq!(index.vector(*id), Some(row.as_slice()));
        }
    }

    #[test]
    fn a_rank_is_the_place_in_the_full_search(vectors in rows(1..120, 4), query in rows(1..2, 4)) {
        let items: Vec<(u64, Vec<f32>)> = vectors.into_iter().enumerate().map(|(i, row)| (i as u64, row)).collect();
        let index = filled(&items, 4);
        let ids: Vec<u64> = items.iter().rev().map(|(id, _)| *id).collect();
        let full = index.top(&query[0], items.len()).unwrap().remove(0);
        let ranks = index.ranks(&query[0], &ids).unwrap();
        let scores = index.scores(&query[0], &ids).unwrap();
        for ((id, rank), score) in ids.iter().zip(ranks).zip(scores) {
            prop_assert_eq!(full[rank as usize - 1], Hit { id: *id, score });
        }
    }
}

#[test]
fn equal_scores_across_the_boundary_come_in_id_order() {
    // 500 copies of one vector, highest id first: FAISS alone would return whichever it met first.
    let items: Vec<(u64, Vec<f32>)> = (0..500).rev().map(|id| (id, vec![0.6, 0.8])).collect();
    let index = filled(&items, 2);
    for k in [1, 10, 99, 100, 101, 499, 500, 501] {
        let ids: Vec<u64> = index.top(&[0.6, 0.8], k).unwrap()[0].iter().map(|hit| hit.id).collect();
        assert_eq!(ids, (0..500.min(k as u64)).collect::<Vec<_>>(), "k = {k}");
    }
}

#[test]
fn scores_do_not_depend_on_how_many_queries_are_searched_together() {
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 24) as f32 - 0.5
    };
    let items: Vec<(u64, Vec<f32>)> = (0..700).map(|id| (id, (0..96).map(|_| next()).collect())).collect();
    let queries: Vec<f32> = (0..40 * 96).map(|_| next()).collect();
    let index = filled(&items, 96);
    let together = index.top(&queries, 50).unwrap();
    for (query, expected) in queries.chunks(96).zip(together) {
        assert_eq!(index.top(query, 50).unwrap()[0], expected);
        assert_eq!(plain(&items, query, 50), expected);
    }
}

#[test]
fn values_near_the_end_of_the_number_range_are_ranked() {
    let items =
        vec![(0, vec![f32::MAX, -f32::MAX]), (1, vec![f32::MAX, f32::MAX]), (2, vec![-f32::MAX, 0.0])];
    let hits = filled(&items, 2).top(&[f32::MAX, f32::MAX], 3).unwrap().remove(0);
    assert_eq!(hits.iter().map(|hit| hit.id).collect::<Vec<_>>(), [1, 0, 2]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_search_among_some_equals_the_sorted_list_of_those(
        vectors in rows(1..400, 5),
        queries in rows(1..6, 5),
        k in 0usize..60,
        kept in 1u32..=16,
        salt in any::<u32>(),
    ) {
        let items: Vec<(u64, Vec<f32>)> =
            vectors.into_iter().enumerate().map(|(i, row)| ((1_000_003 * (i as u64 + 1)) % 1009, row)).collect();
        let index = filled(&items, 5);
        // From one in sixteen to all, so that both ways of searching are taken.
        let some: Vec<(u64, Vec<f32>)> = items
            .iter()
            .filter(|(id, _)| (*id as u32 ^ salt).wrapping_mul(2_654_435_761) >> 28 < kept)
            .cloned()
            .collect();
        // In no order, and with repetitions.
        let mut among: Vec<u64> = some.iter().rev().map(|(id, _)| *id).collect();
        among.extend(some.iter().take(3).map(|(id, _)| *id));
        let found = index.top_among(&queries.concat(), k, &among).unwrap();
        prop_assert_eq!(found.len(), queries.len());
        for (query, hits) in queries.iter().zip(found) {
            prop_assert_eq!(hits, plain(&some, query, k));
        }
    }

    #[test]
    fn a_rank_among_some_counts_those_alone(vectors in rows(1..120, 4), query in rows(1..2, 4), modulus in 1u64..5) {
        let items: Vec<(u64, Vec<f32>)> = vectors.into_iter().enumerate().map(|(i, row)| (i as u64, row)).collect();
        let index = filled(&items, 4);
        let some: Vec<(u64, Vec<f32>)> = items.iter().filter(|(id, _)| id.is_multiple_of(modulus)).cloned().collect();
        let among: Vec<u64> = some.iter().map(|(id, _)| *id).collect();
        let ids: Vec<u64> = items.iter().map(|(id, _)| *id).collect();
        let full = plain(&items, &query[0], items.len());
        let ranks = index.ranks_among(&query[0], &ids, &among).unwrap();
        for (id, rank) in ids.iter().zip(ranks) {
            let place = full.iter().position(|hit| hit.id == *id).unwrap();
            let before = full[..place].iter().filter(|hit| hit.id.is_multiple_of(modulus)).count();
            prop_assert_eq!(rank, before as u64 + 1);
        }
    }
}

#[test]
fn a_search_among_vectors_that_all_score_below_the_others_finds_them() {
    // FAISS proposes the thousand good ones first; half of all are searched, and none of those is proposed.
    let items: Vec<(u64, Vec<f32>)> =
        (0..2000).map(|id| (id, vec![if id < 1000 { 1.0 } else { 0.1 }, id as f32 * 1e-6])).collect();
    let among: Vec<u64> = (1000..2000).collect();
    let found = filled(&items, 2).top_among(&[1.0, 0.0], 7, &among).unwrap().remove(0);
    assert_eq!(found, plain(&items[1000..], &[1.0, 0.0], 7));
}
