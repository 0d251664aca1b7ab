//! Inner-product search on FAISS, safe whatever the caller passes.
//!
//! [`FaissIndex`] keeps vectors in a flat FAISS index and everything that FAISS does not promise beside it: ids that
//! are unique, inputs that are checked before they cross into C++, and one order for equal scores.
//! [`CollectionIndex`] adds an IVF or HNSW structure where every vector need not be compared, and snapshots that are
//! verified before they are believed.
//!
//! FAISS picks the candidates; the scores that callers see come from [`dot`], so that they do not depend on the kind of
//! index, on how many queries were searched together or on the machine's BLAS.

mod among;
mod flat;
mod index;
mod kind;
mod native;
mod order;
mod proposer;
mod recall;
mod snapshot;

pub use flat::{FaissIndex, MAX_DIMENSION};
pub use index::{Build, CollectionIndex, GONE, GROWTH, Gathered, Work};
pub use kind::{IndexKind, KindError, MAX_EF, MAX_LINKS, MAX_LISTS};
pub use order::{compare, dot, ranks_before};
pub use recall::{RECALL_QUERIES, Recall, RecallMeter};
pub use snapshot::{SnapshotError, TAG_BYTES};
