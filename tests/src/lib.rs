//! What the cross-service tests share: a whole cluster in the test's own process, every role behind a real listener.
//!
//! The tests themselves are in `tests/`, the reference data and the scripts that made it in `golden/`.

mod cluster;

pub use cluster::{Cluster, ClusterOptions, goldens};
