use crate::EngineError;

/// One result of a search.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Hit {
    /// The caller's id of the vector.
    pub id: u64,
    /// Inner product of the query and the vector.
    pub score: f32,
}

/// An inner-product index over vectors with 64-bit ids.
pub trait VectorIndex: Send {
    /// Length of every vector.
    fn dimension(&self) -> usize;

    /// Number of vectors held.
    fn len(&self) -> usize;

    /// True when nothing is held.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Adds vectors, row-major: `vectors.len() == ids.len() * dimension()`.
    ///
    /// # Errors
    /// [`EngineError::InvalidInput`] where the lengths disagree, a value is not finite or an id is held already.
    fn add(&mut self, ids: &[u64], vectors: &[f32]) -> Result<(), EngineError>;

    /// Removes vectors; ids that are not held are ignored. Returns how many were removed.
    ///
    /// # Errors
    /// [`EngineError::Internal`] where the index fails.
    fn remove(&mut self, ids: &[u64]) -> Result<usize, EngineError>;

    /// The `k` best vectors of every query (row-major), score descending, then id ascending; fewer where the index
    /// holds fewer.
    ///
    /// # Errors
    /// [`EngineError::InvalidInput`] where a query has the wrong length or a value that is not finite.
    fn search(&mut self, queries: &[f32], k: usize) -> Result<Vec<Vec<Hit>>, EngineError>;
}
