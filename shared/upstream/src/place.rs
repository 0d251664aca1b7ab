use std::sync::Arc;

use parking_lot::Mutex;
use thicket_dispatch::ReplicaId;

/// Where calls that belong together go: to one replica, as long as it answers, so that all of them see one state or a later
/// one. Clones are the same place.
#[derive(Debug, Clone, Default)]
pub struct Place(Arc<Mutex<Option<ReplicaId>>>);

impl Place {
    pub(crate) fn replica(&self) -> Option<ReplicaId> {
        *self.0.lock()
    }

    pub(crate) fn set(&self, replica: ReplicaId) {
        *self.0.lock() = Some(replica);
    }
}
