//! The rules of the contract that need no state.

use std::collections::{BTreeMap, HashMap};

use thicket_engine::Similarity;
use thicket_index::{IndexKind, MAX_DIMENSION};
use thicket_proto::v1;
use thicket_runtime::unix_ms;

use crate::error::GalleryError;
use crate::facets::CAPTURED_AT;

/// Most characters of a collection's name.
pub(crate) const NAME_CHARS: usize = 64;
/// Most bytes of an item's id.
pub(crate) const ID_BYTES: usize = 256;
/// Most bytes of a model's fingerprint.
const FINGERPRINT_BYTES: usize = 256;
/// Most ids of one request.
const IDS: usize = 10_000;
/// Most queries of one search.
const QUERIES: usize = 256;
/// Most results for each query.
const TOP: u32 = 100_000;
/// Most items deleted of a collection at a time, and most image hashes of a response.
pub(crate) const DELETED_AT_A_TIME: usize = 100_000;
/// Most key-value pairs of an item.
const PAIRS: usize = 32;
/// Most bytes of a key.
const KEY_BYTES: usize = 64;
/// Most bytes of a value.
pub(crate) const VALUE_BYTES: usize = 1024;
/// Lists of an IVF index unless told otherwise.
const IVF_LISTS: u32 = 1024;
/// Lists that a search of it reads unless told otherwise.
const IVF_PROBES: u32 = 32;
/// Links of a vector in an HNSW index unless told otherwise.
const HNSW_LINKS: u32 = 32;
/// Candidates that a search of it keeps unless told otherwise.
const HNSW_EF_SEARCH: u32 = 128;
/// Candidates for a new vector's links unless told otherwise.
const HNSW_EF_CONSTRUCTION: u32 = 200;
/// How far the norm of a unit vector may be from 1.
const NORM_TOLERANCE: f64 = 1e-3;

type Checked<T = ()> = Result<T, GalleryError>;

/// A name for a new collection.
pub(crate) fn new_collection_name(field: &str, name: &str) -> Checked {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let starts_well = name.chars().next().is_some_and(fits);
    if starts_well && name.len() <= NAME_CHARS && name.chars().all(|c| fits(c) || c == '_' || c == '-') {
        return Ok(());
    }
    let rule = format!("1 to {NAME_CHARS} characters of [a-z0-9_-], starting with a letter or a digit");
    Err(GalleryError::invalid(field, "COLLECTION_NAME_INVALID", format!("{rule}; got {}", shown(name))))
}

/// A name that must be there; whether it exists is for the gallery to say.
pub(crate) fn collection_name(field: &str, name: &str) -> Checked {
    if name.is_empty() {
        return Err(GalleryError::invalid(field, "COLLECTION_NAME_MISSING", "name a collection"));
    }
    Ok(())
}

/// An item's id.
pub(crate) fn item_id(field: &str, id: &str) -> Checked {
    if id.is_empty() || id.len() > ID_BYTES {
        let message = format!("1 to {ID_BYTES} bytes, got {}", id.len());
        return Err(GalleryError::invalid(field, "ITEM_ID_INVALID", message));
    }
    Ok(())
}

/// The ids of one request.
pub(crate) fn item_ids(ids: &[String]) -> Checked {
    if ids.is_empty() || ids.len() > IDS {
        let message = format!("1 to {IDS} ids, got {}", ids.len());
        return Err(GalleryError::invalid("ids", "ID_COUNT_INVALID", message));
    }
    ids.iter().enumerate().try_for_each(|(i, id)| item_id(&format!("ids[{i}]"), id))
}

/// Fingerprint of a model.
pub(crate) fn fingerprint(fingerprint: &str) -> Checked {
    if fingerprint.is_empty() || fingerprint.len() > FINGERPRINT_BYTES {
        let message = format!("1 to {FINGERPRINT_BYTES} bytes, got {}", fingerprint.len());
        return Err(GalleryError::invalid("model_fingerprint", "MODEL_FINGERPRINT_INVALID", message));
    }
    Ok(())
}

/// Values per vector of a new collection.
pub(crate) fn dimension(dimension: u32) -> Checked<usize> {
    let size = dimension as usize;
    if size == 0 || size > MAX_DIMENSION {
        let message = format!("1 to {MAX_DIMENSION}, got {dimension}");
        return Err(GalleryError::invalid("dimension", "DIMENSION_INVALID", message));
    }
    Ok(size)
}

/// Similarity of a new collection.
pub(crate) fn similarity(value: i32) -> Checked<Similarity> {
    match v1::Similarity::try_from(value) {
        Ok(v1::Similarity::Cosine) => Ok(Similarity::Cosine),
        Ok(v1::Similarity::MeanOfTwoCosines) => Ok(Similarity::MeanOfTwoCosines),
        _ => {
            let message = format!("name one of the similarities, got {value}");
            Err(GalleryError::invalid("similarity", "SIMILARITY_INVALID", message))
        }
    }
}

/// Index of a new collection; what is 0 has its default.
pub(crate) fn index(index: Option<v1::VectorIndex>) -> Checked<IndexKind> {
    use v1::vector_index::Kind;
    let or = |value: u32, default: u32| if value == 0 { default } else { value };
    let kind = match index.and_then(|index| index.kind) {
        None | Some(Kind::Exact(_)) => IndexKind::Exact,
        Some(Kind::Ivf(ivf)) => {
            let lists = or(ivf.lists, IVF_LISTS);
            IndexKind::Ivf { lists, probes: or(ivf.probes, IVF_PROBES.min(lists)) }
        }
        Some(Kind::Hnsw(hnsw)) => IndexKind::Hnsw {
            links: or(hnsw.links, HNSW_LINKS),
            ef_search: or(hnsw.ef_search, HNSW_EF_SEARCH),
            ef_construction: or(hnsw.ef_construction, HNSW_EF_CONSTRUCTION),
        },
    };
    match kind.check() {
        Ok(()) => Ok(kind),
        Err(error) => Err(GalleryError::invalid("index", "INDEX_INVALID", error.to_string())),
    }
}

/// An index as callers see it.
pub(crate) fn describe_index(kind: IndexKind) -> v1::VectorIndex {
    use v1::vector_index::Kind;
    let kind = match kind {
        IndexKind::Exact => Kind::Exact(v1::ExactIndex {}),
        IndexKind::Ivf { lists, probes } => Kind::Ivf(v1::IvfIndex { lists, probes }),
        IndexKind::Hnsw { links, ef_search, ef_construction } => {
            Kind::Hnsw(v1::HnswIndex { links, ef_search, ef_construction })
        }
    };
    v1::VectorIndex { kind: Some(kind) }
}

/// A vector to be stored: of unit length.
pub(crate) fn item_vector(vector: Option<v1::Vector>, dimension: usize) -> Checked<Vec<f32>> {
    let (values, norm) = finite("vector", vector, dimension)?;
    if (norm - 1.0).abs() > NORM_TOLERANCE {
        let message = format!("length 1 within {NORM_TOLERANCE}, got {norm:.6}");
        return Err(GalleryError::invalid("vector", "VECTOR_NOT_UNIT", message));
    }
    Ok(values)
}

/// A query: at most of unit length, because a mixture of two unit vectors is shorter than they are.
pub(crate) fn query(field: &str, vector: Option<v1::Vector>, dimension: usize) -> Checked<Vec<f32>> {
    let (values, norm) = finite(field, vector, dimension)?;
    if norm > 1.0 + NORM_TOLERANCE {
        let message = format!("length at most 1 within {NORM_TOLERANCE}, got {norm:.6}");
        return Err(GalleryError::invalid(field, "VECTOR_NOT_UNIT", message));
    }
    Ok(values)
}

/// The queries of one search as rows of one matrix.
pub(crate) fn queries(vectors: Vec<v1::Vector>, dimension: usize) -> Checked<Vec<f32>> {
    if vectors.is_empty() || vectors.len() > QUERIES {
        let message = format!("1 to {QUERIES} queries, got {}", vectors.len());
        return Err(GalleryError::invalid("queries", "QUERY_COUNT_INVALID", message));
    }
    let mut rows = Vec::with_capacity(vectors.len() * dimension);
    for (i, vector) in vectors.into_iter().enumerate() {
        rows.extend(query(&format!("queries[{i}]"), Some(vector), dimension)?);
    }
    Ok(rows)
}

fn finite(field: &str, vector: Option<v1::Vector>, dimension: usize) -> Checked<(Vec<f32>, f64)> {
    let values = vector.map(|vector| vector.values).unwrap_or_default();
    if values.len() != dimension {
        let message = format!("{dimension} values, got {}", values.len());
        return Err(GalleryError::invalid(field, "VECTOR_SIZE_WRONG", message));
    }
    if let Some(place) = values.iter().position(|value| !value.is_finite()) {
        let message = format!("finite values, got {} at {place}", values[place]);
        return Err(GalleryError::invalid(field, "VECTOR_NOT_FINITE", message));
    }
    let norm = values.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt();
    Ok((values, norm))
}

/// How many items of a collection may go at a time; `None` for all.
pub(crate) fn max_items(most: Option<u32>) -> Checked<Option<usize>> {
    match most.map(|most| most as usize) {
        Some(most) if most == 0 || most > DELETED_AT_A_TIME => {
            let message = format!("1 to {DELETED_AT_A_TIME}, or unset for all; got {most}");
            Err(GalleryError::invalid("max_items", "MAX_ITEMS_INVALID", message))
        }
        most => Ok(most),
    }
}

/// How many results are wanted.
pub(crate) fn top(top: u32) -> Checked<usize> {
    if top == 0 || top > TOP {
        return Err(GalleryError::invalid("top", "TOP_INVALID", format!("1 to {TOP}, got {top}")));
    }
    Ok(top as usize)
}

/// Key-value pairs of an item.
pub(crate) fn metadata(pairs: HashMap<String, String>) -> Checked<BTreeMap<String, String>> {
    let refuse = |message: String| Err(GalleryError::invalid("metadata", "METADATA_INVALID", message));
    if pairs.len() > PAIRS {
        return refuse(format!("at most {PAIRS} pairs, got {}", pairs.len()));
    }
    for (key, value) in &pairs {
        if key.is_empty() || key.len() > KEY_BYTES {
            return refuse(format!("keys of 1 to {KEY_BYTES} bytes, got {}", key.len()));
        }
        if value.len() > VALUE_BYTES {
            return refuse(format!(
                "values of at most {VALUE_BYTES} bytes, got {} for {}",
                value.len(),
                shown(key)
            ));
        }
    }
    if let Some(time) = pairs.get(CAPTURED_AT)
        && unix_ms(time).is_none()
    {
        let message = format!("a time as in 2026-03-01T08:30:00+01:00, got {}", shown(time));
        return Err(GalleryError::invalid("metadata.captured_at", "METADATA_TIME_INVALID", message));
    }
    Ok(pairs.into_iter().collect())
}

/// A caller's text in a message: quoted, and cut before it becomes a burden.
fn shown(text: &str) -> String {
    const CHARS: usize = 80;
    if text.chars().count() <= CHARS {
        return format!("{text:?}");
    }
    format!("{:?}... ({} bytes)", text.chars().take(CHARS).collect::<String>(), text.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason<T: std::fmt::Debug>(result: Checked<T>) -> &'static str {
        match result {
            Err(GalleryError::Invalid { reason, .. }) => reason,
            other => panic!("expected a refusal, got {other:?}"),
        }
    }

    fn vector(values: &[f32]) -> Option<v1::Vector> {
        Some(v1::Vector { values: values.to_vec() })
    }

    #[test]
    fn an_index_has_defaults_and_limits() {
        use v1::vector_index::Kind;
        let of = |kind| index(Some(v1::VectorIndex { kind: Some(kind) }));
        assert_eq!(index(None).unwrap(), IndexKind::Exact);
        assert_eq!(index(Some(v1::VectorIndex { kind: None })).unwrap(), IndexKind::Exact);
        let ivf = |lists, probes| of(Kind::Ivf(v1::IvfIndex { lists, probes }));
        assert_eq!(ivf(0, 0).unwrap(), IndexKind::IVF);
        assert_eq!(ivf(5, 0).unwrap(), IndexKind::Ivf { lists: 5, probes: 5 });
        assert_eq!(of(Kind::Hnsw(v1::HnswIndex::default())).unwrap(), IndexKind::HNSW);
        assert_eq!(reason(ivf(5, 6)), "INDEX_INVALID");
        assert_eq!(reason(of(Kind::Hnsw(v1::HnswIndex { links: 1, ..Default::default() }))), "INDEX_INVALID");
        for kind in [IndexKind::Exact, IndexKind::IVF, IndexKind::HNSW] {
            assert_eq!(index(Some(describe_index(kind))).unwrap(), kind);
        }
    }

    #[test]
    fn collection_names_follow_the_rule() {
        for good in ["a", "0", "lobby-2_x", &"a".repeat(64)] {
            new_collection_name("name", good).unwrap();
        }
        for bad in ["", "-a", "_a", "A", "a b", "é", "a/b", "a.b", &"a".repeat(65), "a\n"] {
            assert_eq!(reason(new_collection_name("name", bad)), "COLLECTION_NAME_INVALID", "{bad:?}");
        }
    }

    #[test]
    fn an_item_vector_must_be_of_unit_length() {
        item_vector(vector(&[0.6, 0.8]), 2).unwrap();
        item_vector(vector(&[0.6005, 0.8]), 2).unwrap();
        assert_eq!(reason(item_vector(vector(&[0.61, 0.8]), 2)), "VECTOR_NOT_UNIT");
        assert_eq!(reason(item_vector(vector(&[0.0, 0.0]), 2)), "VECTOR_NOT_UNIT");
    }

    #[test]
    fn a_query_may_be_shorter_but_not_longer() {
        query("query", vector(&[0.3, 0.4]), 2).unwrap();
        assert_eq!(reason(query("query", vector(&[1.0, 0.1]), 2)), "VECTOR_NOT_UNIT");
    }

    #[test]
    fn a_vector_of_the_wrong_size_or_with_nan_is_refused() {
        assert_eq!(reason(item_vector(vector(&[1.0]), 2)), "VECTOR_SIZE_WRONG");
        assert_eq!(reason(item_vector(None, 2)), "VECTOR_SIZE_WRONG");
        assert_eq!(reason(item_vector(vector(&[f32::NAN, 1.0]), 2)), "VECTOR_NOT_FINITE");
        assert_eq!(reason(query("query", vector(&[f32::INFINITY, 0.0]), 2)), "VECTOR_NOT_FINITE");
    }

    #[test]
    fn a_bad_query_names_its_place() {
        let good = v1::Vector { values: vec![1.0, 0.0] };
        let bad = v1::Vector { values: vec![1.0] };
        match queries(vec![good, bad], 2) {
            Err(GalleryError::Invalid { field, .. }) => assert_eq!(field, "queries[1]"),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn counts_and_sizes_have_limits() {
        assert_eq!(reason(top(0)), "TOP_INVALID");
        assert_eq!(reason(top(100_001)), "TOP_INVALID");
        assert_eq!(reason(dimension(0)), "DIMENSION_INVALID");
        assert_eq!(reason(dimension(16_385)), "DIMENSION_INVALID");
        assert_eq!(reason(item_id("id", "")), "ITEM_ID_INVALID");
        assert_eq!(reason(item_id("id", &"é".repeat(129))), "ITEM_ID_INVALID");
        assert_eq!(reason(item_ids(&[])), "ID_COUNT_INVALID");
        assert_eq!(reason(similarity(0)), "SIMILARITY_INVALID");
        assert_eq!(reason(similarity(99)), "SIMILARITY_INVALID");
        let many: HashMap<_, _> = (0..33).map(|i| (i.to_string(), String::new())).collect();
        assert_eq!(reason(metadata(many)), "METADATA_INVALID");
        let long = HashMap::from([("k".to_owned(), "v".repeat(1025))]);
        assert_eq!(reason(metadata(long)), "METADATA_INVALID");
        let captured = |time: &str| metadata(HashMap::from([(CAPTURED_AT.to_owned(), time.to_owned())]));
        assert_eq!(reason(captured("yesterday")), "METADATA_TIME_INVALID");
        captured("2026-03-01T08:30:00+01:00").unwrap();
    }
}
