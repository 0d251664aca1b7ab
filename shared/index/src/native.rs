//! FAISS indexes of the approximate kinds. This is the module with the foreign call; what it offers is safe.

#![allow(unsafe_code)]

use std::ffi::CStr;
use std::fmt;
use std::ops::Range;
use std::path::Path;
use std::sync::Once;

use faiss::index::autotune::ParameterSpace;
use faiss::index::flat::FlatIndex;
use faiss::index::io::{read_index, write_index};
use faiss::index::{Idx, IndexImpl, NativeIndex, index_factory};
use faiss::selector::IdSelector;
use faiss::{Index, MetricType};
use thicket_engine::EngineError;

use crate::IndexKind;

/// Queries from which on FAISS compares them with all vectors in one matrix product. Its own limit is 20, below which it
/// reads every vector once for each query.
pub(crate) const FEWEST_QUERIES_OF_A_PRODUCT: usize = 4;

/// Settles, once for the process, from how many queries on flat indexes multiply matrices.
pub(crate) fn compare_by_products() {
    static ONCE: Once = Once::new();
    // SAFETY: sets a number that FAISS reads when a search begins. None has begun: the first flat index calls this while it
    // is made, and an approximate one stands beside a flat one.
    ONCE.call_once(|| unsafe {
        faiss_sys::faiss_set_distance_compute_blas_threshold(FEWEST_QUERIES_OF_A_PRODUCT as i32);
    });
}

/// The `k` best for one query among the vectors at some positions of a flat index: as many, or all of them, with FAISS's scores, in no
/// order that matters. A place that FAISS leaves empty has the position `usize::MAX`. On the calling thread alone.
pub(crate) fn best_among(
    index: &FlatIndex,
    positions: Range<usize>,
    query: &[f32],
    k: usize,
) -> Result<Vec<(usize, f32)>, EngineError> {
    assert_eq!(query.len(), index.d() as usize, "values of a query");
    let k = k.min(positions.len());
    let mut scores = vec![0f32; k];
    let mut labels = vec![-1i64; k];
    let selector = IdSelector::range(Idx::new(positions.start as u64), Idx::new(positions.end as u64))
        .map_err(|cause| EngineError::internal("index search", cause))?;
    let mut parameters = std::ptr::null_mut();
    // SAFETY: the parameters point to the selector, which outlives them, and are freed once. The query is as long as the index's vectors
    // and both results have room for `k` values. FAISS's search of a flat index is const, and a change takes `&mut`.
    let code = unsafe {
        let mut code = faiss_sys::faiss_SearchParameters_new(&raw mut parameters, selector.inner_ptr());
        if code == 0 {
            code = faiss_sys::faiss_Index_search_with_params(
                index.inner_ptr(),
                1,
                query.as_ptr(),
                k as i64,
                parameters,
                scores.as_mut_ptr(),
                labels.as_mut_ptr(),
            );
            faiss_sys::faiss_SearchParameters_free(parameters);
        }
        code
    };
    if code != 0 {
        return Err(EngineError::internal("index search", last_error()));
    }
    Ok(labels.into_iter().map(|label| usize::try_from(label).unwrap_or(usize::MAX)).zip(scores).collect())
}

/// An IVF or HNSW index of FAISS, which names vectors by the order in which they were added.
pub(crate) struct Native {
    dimension: usize,
    inner: IndexImpl,
}

impl fmt::Debug for Native {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Native").field("dimension", &self.dimension).field("len", &self.len()).finish()
    }
}

impl Native {
    /// An empty index of an approximate kind.
    pub(crate) fn new(kind: IndexKind, dimension: usize) -> Result<Self, EngineError> {
        let description = match kind {
            IndexKind::Exact => return Err(EngineError::internal("index creation", "exact needs none")),
            IndexKind::Ivf { lists, .. } => format!("IVF{lists},Flat"),
            IndexKind::Hnsw { links, .. } => format!("HNSW{links},Flat"),
        };
        let inner = index_factory(dimension as u32, description, MetricType::InnerProduct)
            .map_err(|cause| EngineError::internal("index creation", cause))?;
        let native = Self { dimension, inner };
        native.set_parameters(kind)?;
        Ok(native)
    }

    fn set_parameters(&self, kind: IndexKind) -> Result<(), EngineError> {
        let failed = |cause| EngineError::internal("index settings", cause);
        let space = ParameterSpace::new().map_err(failed)?;
        let set =
            |name: &str, value: u32| space.set_index_parameter(&self.inner, name, value).map_err(failed);
        match kind {
            IndexKind::Exact => Ok(()),
            IndexKind::Ivf { probes, .. } => set("nprobe", probes),
            IndexKind::Hnsw { ef_search, ef_construction, .. } => {
                set("efSearch", ef_search)?;
                set("efConstruction", ef_construction)
            }
        }
    }

    /// Vectors held.
    pub(crate) fn len(&self) -> usize {
        self.inner.ntotal() as usize
    }

    /// Divides the space among the lists of an IVF index, from a sample of its vectors. FAISS's k-means starts from a fixed
    /// seed.
    pub(crate) fn train(&mut self, rows: &[f32]) -> Result<(), EngineError> {
        self.inner.train(rows).map_err(|cause| EngineError::internal("index training", cause))
    }

    /// Adds vectors after those held.
    pub(crate) fn add(&mut self, rows: &[f32]) -> Result<(), EngineError> {
        debug_assert!(rows.len().is_multiple_of(self.dimension));
        self.inner.add(rows).map_err(|cause| EngineError::internal("index insertion", cause))
    }

    /// For each query `k` places of vectors in the order in which they were added, in no order that matters; `None` for
    /// places that stayed empty.
    pub(crate) fn search(&self, queries: &[f32], k: usize) -> Result<Vec<Option<usize>>, EngineError> {
        let rows = queries.len() / self.dimension;
        let mut scores = vec![0f32; rows * k];
        let mut labels = vec![-1i64; rows * k];
        // SAFETY: the index lives as long as `self` and has vectors of `dimension` values, of which `queries` has `rows`;
        // both results have room for `rows * k` values. FAISS's search of an IVF or HNSW index is const and keeps what it
        // works on for itself, and adding takes `&mut self`, so that nothing changes meanwhile.
        let code = unsafe {
            faiss_sys::faiss_Index_search(
                self.inner.inner_ptr(),
                rows as i64,
                queries.as_ptr(),
                k as i64,
                scores.as_mut_ptr(),
                labels.as_mut_ptr(),
            )
        };
        if code != 0 {
            return Err(EngineError::internal("index search", last_error()));
        }
        Ok(labels.into_iter().map(|label| usize::try_from(label).ok()).collect())
    }

    /// Writes the index in FAISS's own form, which has no checksum.
    pub(crate) fn write(&self, path: &Path) -> Result<(), EngineError> {
        let failed = |cause: &dyn fmt::Display| EngineError::internal("index writing", cause);
        let name = path.to_str().ok_or_else(|| failed(&"the path is not UTF-8"))?;
        write_index(&self.inner, name).map_err(|cause| failed(&cause))
    }

    /// Reads what [`Self::write`] wrote, of the same kind. The bytes must be known to be those: FAISS trusts them.
    pub(crate) fn read(path: &Path, kind: IndexKind, dimension: usize) -> Result<Self, EngineError> {
        let failed = |cause: &dyn fmt::Display| EngineError::internal("index reading", cause);
        let name = path.to_str().ok_or_else(|| failed(&"the path is not UTF-8"))?;
        let inner = read_index(name).map_err(|cause| failed(&cause))?;
        if inner.d() as usize != dimension || !inner.is_trained() {
            return Err(failed(&"it is not of this collection"));
        }
        let native = Self { dimension, inner };
        native.set_parameters(kind)?;
        Ok(native)
    }
}

fn last_error() -> String {
    // SAFETY: FAISS returns null or a text that stays as it is until this thread's next call.
    unsafe {
        let text = faiss_sys::faiss_get_last_error();
        if text.is_null() {
            return "FAISS gives no reason".to_owned();
        }
        CStr::from_ptr(text).to_string_lossy().into_owned()
    }
}
