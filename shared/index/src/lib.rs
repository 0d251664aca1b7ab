//! Exact inner-product search on FAISS, safe whatever the caller passes.
//!
//! [`FaissIndex`] keeps vectors in a flat FAISS index and everything that FAISS does not promise beside it: ids that
//! are unique, inputs that are checked before they cross into C++, one order for equal scores, and snapshots that are
//! verified before they are believed.
//!
//! FAISS picks the candidates; the scores that callers see come from [`dot`], so that they do not depend on how many
//! queries were searched together or on the machine's BLAS.

mod among;
mod flat;
mod order;
mod snapshot;

pub use flat::{FaissIndex, MAX_DIMENSION};
pub use order::{compare, dot, ranks_before};
pub use snapshot::{SnapshotError, TAG_BYTES};
