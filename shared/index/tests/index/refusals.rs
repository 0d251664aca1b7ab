//! What an index refuses, and that a refusal changes nothing.

use thicket_engine::{EngineError, VectorIndex};
use thicket_index::{FaissIndex, MAX_DIMENSION};

fn index() -> FaissIndex {
    let mut index = FaissIndex::new(2).unwrap();
    index.add(&[7], &[1.0, 0.0]).unwrap();
    index
}

fn refused_for(result: Result<(), EngineError>, expected_field: &str) {
    match result {
        Err(EngineError::InvalidInput { field, .. }) => assert_eq!(field, expected_field),
        other => panic!("expected a refusal of {expected_field}, got {other:?}"),
    }
}

#[test]
fn a_short_id_slice_is_refused_before_faiss_sees_it() {
    let mut index = index();
    refused_for(index.add(&[8], &[0.0, 1.0, 1.0, 0.0]), "ids");
    refused_for(index.add(&[], &[0.0, 1.0]), "ids");
    refused_for(index.add(&[8, 9], &[0.0, 1.0]), "ids");
    assert_eq!(index.len(), 1);
}

#[test]
fn a_broken_row_is_refused() {
    refused_for(index().add(&[8], &[0.0, 1.0, 1.0]), "vectors");
    refused_for(index().top(&[1.0], 1).map(|_| ()), "queries");
}

#[test]
fn values_that_are_not_finite_are_refused() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        refused_for(index().add(&[8], &[bad, 1.0]), "vectors");
        refused_for(index().top(&[bad, 0.0], 1).map(|_| ()), "queries");
        refused_for(index().ranks(&[bad, 0.0], &[7]).map(|_| ()), "query");
    }
}

#[test]
fn a_duplicate_id_is_refused_and_nothing_of_the_call_is_added() {
    let mut index = index();
    refused_for(index.add(&[8, 7], &[0.0, 1.0, 0.0, 1.0]), "ids");
    refused_for(index.add(&[8, 8], &[0.0, 1.0, 0.0, 1.0]), "ids");
    assert_eq!(index.ids(), [7]);
}

#[test]
fn an_unknown_id_has_no_score_and_no_rank() {
    refused_for(index().scores(&[1.0, 0.0], &[7, 9]).map(|_| ()), "ids");
    refused_for(index().ranks(&[1.0, 0.0], &[9]).map(|_| ()), "ids");
}

#[test]
fn an_unknown_id_among_those_searched_is_refused() {
    refused_for(index().top_among(&[1.0, 0.0], 1, &[7, 9]).map(|_| ()), "ids");
    refused_for(index().ranks_among(&[1.0, 0.0], &[7], &[9]).map(|_| ()), "ids");
}

#[test]
fn several_queries_where_one_is_expected_are_refused() {
    refused_for(index().scores(&[1.0, 0.0, 1.0, 0.0], &[7]).map(|_| ()), "query");
}

#[test]
fn a_dimension_out_of_range_is_refused() {
    refused_for(FaissIndex::new(0).map(|_| ()), "dimension");
    refused_for(FaissIndex::new(MAX_DIMENSION + 1).map(|_| ()), "dimension");
}

#[test]
fn ids_beyond_the_signed_range_are_kept() {
    let mut index = index();
    index.add(&[u64::MAX], &[0.0, 1.0]).unwrap();
    assert_eq!(index.top(&[0.0, 1.0], 1).unwrap()[0][0].id, u64::MAX);
}

#[test]
fn an_empty_index_answers_with_empty_rankings() {
    let mut index = index();
    index.remove(&[7]).unwrap();
    assert_eq!(index.top(&[1.0, 0.0, 0.0, 1.0], 3).unwrap(), vec![vec![], vec![]]);
    assert_eq!(index.top_among(&[1.0, 0.0, 0.0, 1.0], 3, &[]).unwrap(), vec![vec![], vec![]]);
    assert_eq!(index.ranks(&[1.0, 0.0], &[]).unwrap(), Vec::<u64>::new());
    assert_eq!(index.vector(7), None);
}
