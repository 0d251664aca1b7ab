//! What the cross-service tests share: a whole cluster in the test's own process, every role behind a real listener.
//!
//! The tests themselves are in `tests/`, the reference data and the scripts that made it in `golden/`.

mod cluster;
mod fixed;
mod load;

pub use cluster::{Cluster, ClusterOptions, goldens};
pub use fixed::{Asked, FixedAnswers};
pub use load::{Fate, LoadOptions, LoadedCluster};
