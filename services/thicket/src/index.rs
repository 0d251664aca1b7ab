//! Kinds of indexes between the command line and the contract.

use thicket_index::IndexKind;
use thicket_proto::v1::vector_index::Kind;
use thicket_proto::v1::{ExactIndex, HnswIndex, IvfIndex, VectorIndex};

/// A kind as the services name it.
pub(crate) fn message(kind: IndexKind) -> VectorIndex {
    let kind = match kind {
        IndexKind::Exact => Kind::Exact(ExactIndex {}),
        IndexKind::Ivf { lists, probes } => Kind::Ivf(IvfIndex { lists, probes }),
        IndexKind::Hnsw { links, ef_search, ef_construction } => {
            Kind::Hnsw(HnswIndex { links, ef_search, ef_construction })
        }
    };
    VectorIndex { kind: Some(kind) }
}

/// A kind as a service named it. One that names none is exact: it is older than the choice.
pub(crate) fn kind(message: Option<VectorIndex>) -> IndexKind {
    match message.and_then(|message| message.kind) {
        None | Some(Kind::Exact(_)) => IndexKind::Exact,
        Some(Kind::Ivf(IvfIndex { lists, probes })) => IndexKind::Ivf { lists, probes },
        Some(Kind::Hnsw(HnswIndex { links, ef_search, ef_construction })) => {
            IndexKind::Hnsw { links, ef_search, ef_construction }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_survives_its_message() {
        for given in [IndexKind::Exact, IndexKind::IVF, IndexKind::HNSW] {
            assert_eq!(kind(Some(message(given))), given);
        }
        assert_eq!(kind(None), IndexKind::Exact);
    }
}
