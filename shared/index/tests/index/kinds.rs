//! IVF and HNSW: exact scores and order, and a ranking that is nearly the exact one.

use std::path::Path;

use proptest::prelude::*;
use thicket_engine::Hit;
use thicket_index::{
    Build, CollectionIndex, IndexKind, RECALL_QUERIES, RecallMeter, SnapshotError, TAG_BYTES, Work, dot,
};

const DIMENSION: usize = 16;
const IVF: IndexKind = IndexKind::Ivf { lists: 16, probes: 4 };
const HNSW: IndexKind = IndexKind::Hnsw { links: 8, ef_search: 32, ef_construction: 40 };
const KINDS: [IndexKind; 2] = [IVF, HNSW];
const TAG: [u8; TAG_BYTES] = [7; TAG_BYTES];

/// Unit vectors about a few centres, the same for the same seed.
fn vectors(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 24) as f32 - 0.5
    };
    let centres: Vec<f32> = (0..20 * DIMENSION).map(|_| next()).collect();
    let mut rows = Vec::with_capacity(count * DIMENSION);
    for i in 0..count {
        let row: Vec<f32> = (0..DIMENSION).map(|j| centres[i % 20 * DIMENSION + j] + 0.4 * next()).collect();
        let norm = row.iter().map(|value| value * value).sum::<f32>().sqrt();
        rows.extend(row.iter().map(|value| value / norm));
    }
    rows
}

fn filled(kind: IndexKind, count: usize) -> CollectionIndex {
    let mut index = CollectionIndex::new(DIMENSION, kind).unwrap();
    // Ids run against the order of insertion.
    let ids: Vec<u64> = (0..count as u64).map(|i| 1_000_000 - i).collect();
    index.add(&ids, &vectors(count, 1)).unwrap();
    index
}

fn build(index: &mut CollectionIndex) {
    let mut build = Build::begin(index).unwrap();
    build.train().unwrap();
    loop {
        let gathered = build.gather(index);
        build.insert(&gathered).unwrap();
        if gathered.is_last() {
            break;
        }
    }
    index.install(build);
}

/// Does whatever is to be done, as the gallery does.
fn settle(index: &mut CollectionIndex) {
    while let Some(work) = index.work() {
        match work {
            Work::Build => build(index),
            Work::Fold => index.fold().unwrap(),
            Work::GiveUp => index.give_up(),
        }
    }
}

fn recall(index: &CollectionIndex) -> thicket_index::Recall {
    let mut meter = RecallMeter::default();
    for id in RecallMeter::sample(index) {
        meter.measure(index, id).unwrap();
    }
    meter.recall().unwrap()
}

/// Scores are right and in order, and no vector comes twice.
fn assert_ranking(index: &CollectionIndex, query: &[f32], hits: &[Hit]) {
    for hit in hits {
        assert_eq!(hit.score, dot(query, index.exact().vector(hit.id).unwrap()));
    }
    for pair in hits.windows(2) {
        let falls =
            pair[0].score > pair[1].score || (pair[0].score == pair[1].score && pair[0].id < pair[1].id);
        assert!(falls, "{pair:?}");
    }
}

#[test]
fn a_few_vectors_are_searched_exactly() {
    for kind in KINDS {
        let mut index = filled(kind, 300);
        settle(&mut index);
        assert!(!index.is_approximate(), "{kind}");
        let query = &vectors(1, 9);
        assert_eq!(index.top(query, 20).unwrap(), index.exact().top(query, 20).unwrap());
    }
}

#[test]
fn most_of_the_exact_ranking_is_found() {
    for kind in KINDS {
        let mut index = filled(kind, 4000);
        settle(&mut index);
        assert!(index.is_approximate(), "{kind}");
        let recall = recall(&index);
        assert_eq!(recall.queries, RECALL_QUERIES);
        assert!(recall.at_10 > 0.8 && recall.at_100 > 0.7, "{kind}: {recall:?}");
    }
}

#[test]
fn an_index_that_reads_every_list_is_exact() {
    let mut index = filled(IndexKind::Ivf { lists: 16, probes: 16 }, 3000);
    settle(&mut index);
    assert!(index.is_approximate());
    let recall = recall(&index);
    assert_eq!((recall.at_10, recall.at_100), (1.0, 1.0));
}

#[test]
fn a_single_probe_that_finds_too_little_gives_as_many_as_were_asked_for() {
    let mut index = filled(IndexKind::Ivf { lists: 64, probes: 1 }, 4000);
    settle(&mut index);
    let query = vectors(1, 3);
    let hits = index.top(&query, 900).unwrap().remove(0);
    assert_eq!(hits.len(), 900);
    assert_ranking(&index, &query, &hits);
    let poor = recall(&index);
    assert!(poor.at_100 < 1.0, "one list of 64 cannot hold every ranking: {poor:?}");
}

#[test]
fn the_same_vectors_give_the_same_structure() {
    for kind in KINDS {
        let (mut one, mut other) = (filled(kind, 3000), filled(kind, 3000));
        settle(&mut one);
        settle(&mut other);
        let queries = vectors(40, 5);
        assert_eq!(one.top(&queries, 10).unwrap(), other.top(&queries, 10).unwrap(), "{kind}");
    }
}

#[test]
fn what_is_removed_or_replaced_is_not_found_any_more() {
    for kind in KINDS {
        let mut index = filled(kind, 3000);
        settle(&mut index);
        let query = vectors(1, 4);
        let best: Vec<u64> = index.top(&query, 10).unwrap()[0].iter().map(|hit| hit.id).collect();
        index.remove(&best[..5]).unwrap();
        // The others come back with the opposite vector.
        index.remove(&best[5..]).unwrap();
        let opposite: Vec<f32> = query.iter().map(|value| -value).collect();
        index.add(&best[5..], &opposite.repeat(5)).unwrap();
        assert!(index.remembers_removed());
        let hits = index.top(&query, 10).unwrap().remove(0);
        assert_ranking(&index, &query, &hits);
        assert!(hits.iter().all(|hit| !best.contains(&hit.id)), "{kind}");
        let hits = index.top(&opposite, 5).unwrap().remove(0);
        assert!(hits.iter().all(|hit| best[5..].contains(&hit.id)), "{kind}: new vectors are found at once");
        let ranks = index.exact().ranks(&opposite, &best[5..]).unwrap();
        assert!(ranks.iter().all(|rank| *rank <= 5));
    }
}

#[test]
fn a_structure_with_many_removed_vectors_is_built_again() {
    for kind in KINDS {
        let mut index = filled(kind, 3000);
        settle(&mut index);
        let ids: Vec<u64> = index.exact().ids()[..600].to_vec();
        index.remove(&ids).unwrap();
        assert_eq!(index.work(), None);
        let ids: Vec<u64> = index.exact().ids()[..200].to_vec();
        index.remove(&ids).unwrap();
        assert_eq!(index.work(), Some(Work::Build));
        settle(&mut index);
        assert!(index.is_approximate() && !index.remembers_removed());
        let ids: Vec<u64> = index.exact().ids()[..2100].to_vec();
        index.remove(&ids).unwrap();
        settle(&mut index);
        assert!(!index.is_approximate(), "{kind}: a hundred vectors need no structure");
    }
}

#[test]
fn an_ivf_index_is_trained_again_when_it_has_grown() {
    let mut index = filled(IVF, 1000);
    settle(&mut index);
    let trained = index.generation();
    let ids: Vec<u64> = (0..900).collect();
    index.add(&ids, &vectors(900, 2)).unwrap();
    assert_eq!(index.work(), Some(Work::Fold));
    settle(&mut index);
    index.add(&(900..1100).collect::<Vec<u64>>(), &vectors(200, 3)).unwrap();
    assert_eq!(index.work(), Some(Work::Build));
    settle(&mut index);
    assert!(index.generation() > trained);
    assert!(recall(&index).at_10 > 0.8);
}

#[test]
fn a_build_follows_what_changes_meanwhile() {
    for kind in KINDS {
        let mut index = filled(kind, 2000);
        let mut build = Build::begin(&index).unwrap();
        build.train().unwrap();
        let first = build.gather(&index);
        build.insert(&first).unwrap();
        let gone: Vec<u64> = index.exact().ids().iter().copied().step_by(3).collect();
        index.remove(&gone).unwrap();
        index.add(&gone, &vectors(gone.len(), 8)).unwrap();
        loop {
            let gathered = build.gather(&index);
            build.insert(&gathered).unwrap();
            if gathered.is_last() {
                break;
            }
        }
        index.install(build);
        assert!(recall(&index).at_10 > 0.7, "{kind}");
        for id in &gone {
            let own = index.exact().vector(*id).unwrap().to_vec();
            let hits = index.top(&own, 1).unwrap().remove(0);
            assert!(hits[0].score >= dot(&own, &own) - 0.05, "{kind}");
        }
    }
}

fn saved(kind: IndexKind, path: &Path) -> CollectionIndex {
    let mut index = filled(kind, 2500);
    settle(&mut index);
    index.add(&[1, 2, 3], &vectors(3, 6)).unwrap();
    index.save(path, &TAG).unwrap();
    index
}

#[test]
fn a_snapshot_keeps_the_structure() {
    for kind in KINDS {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.tidx");
        let written = saved(kind, &path);
        let read = CollectionIndex::load(&path, DIMENSION, kind, &TAG).unwrap();
        assert!(read.is_approximate() && read.work().is_none(), "{kind}");
        let queries = vectors(50, 11);
        assert_eq!(read.top(&queries, 25).unwrap(), written.top(&queries, 25).unwrap());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "nothing stays beside the snapshot");
    }
}

#[test]
fn a_snapshot_has_no_removed_vector() {
    for kind in KINDS {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.tidx");
        let mut index = saved(kind, &path);
        let id = index.exact().ids()[77];
        let needle: Vec<u8> =
            index.exact().vector(id).unwrap().iter().flat_map(|value| value.to_le_bytes()).collect();
        let holds =
            |path: &Path| std::fs::read(path).unwrap().windows(needle.len()).any(|bytes| bytes == needle);
        assert!(holds(&path), "or there is nothing to look for");
        index.remove(&[id]).unwrap();
        index.save(&path, &TAG).unwrap();
        assert!(!holds(&path), "{kind}");
        let mut read = CollectionIndex::load(&path, DIMENSION, kind, &TAG).unwrap();
        assert_eq!((read.len(), read.is_approximate()), (2502, false));
        settle(&mut read);
        assert!(read.is_approximate());
    }
}

#[test]
fn a_flipped_bit_in_the_structure_is_damage() {
    for kind in KINDS {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.tidx");
        saved(kind, &path);
        let bytes = std::fs::read(&path).unwrap();
        for place in [36, 38, 50, 60, 70, bytes.len() / 2, bytes.len() - 5000, bytes.len() - 33] {
            let mut bent = bytes.clone();
            bent[place] ^= 0x04;
            std::fs::write(&path, &bent).unwrap();
            let result = CollectionIndex::load(&path, DIMENSION, kind, &TAG);
            assert!(matches!(result, Err(SnapshotError::Damaged { .. })), "{kind}, byte {place}: {result:?}");
            assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        }
    }
}

#[test]
fn a_snapshot_of_another_kind_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.tidx");
    saved(IVF, &path);
    for kind in [IndexKind::Exact, HNSW, IndexKind::Ivf { lists: 16, probes: 5 }] {
        let result = CollectionIndex::load(&path, DIMENSION, kind, &TAG);
        assert!(matches!(result, Err(SnapshotError::Damaged { .. })), "{kind}");
    }
}

#[test]
fn a_kind_out_of_range_is_refused() {
    assert!(CollectionIndex::new(DIMENSION, IndexKind::Ivf { lists: 0, probes: 0 }).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn scores_and_order_are_exact_whatever_is_added_and_removed(
        steps in prop::collection::vec((0u64..3000, 1usize..400, any::<bool>()), 1..12),
        hnsw in any::<bool>(),
        k in 1usize..120,
    ) {
        let kind = if hnsw { HNSW } else { IVF };
        let mut index = filled(kind, 1200);
        settle(&mut index);
        for (number, (first, count, add)) in steps.into_iter().enumerate() {
            let ids: Vec<u64> = (first..first + count as u64).collect();
            index.remove(&ids).unwrap();
            if add {
                index.add(&ids, &vectors(count, number as u32 + 20)).unwrap();
            } else {
                let some: Vec<u64> = index.exact().ids().iter().copied().take(count).collect();
                index.remove(&some).unwrap();
            }
            let queries = vectors(3, 99);
            for (query, hits) in queries.chunks(DIMENSION).zip(index.top(&queries, k).unwrap()) {
                prop_assert_eq!(hits.len(), k.min(index.len()));
                assert_ranking(&index, query, &hits);
            }
            settle(&mut index);
        }
    }
}
