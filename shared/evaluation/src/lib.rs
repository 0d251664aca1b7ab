//! How good a ranking is: the metrics of text-to-image person search, and how sure one can be of a difference.
//!
//! A query is right about an image when their identities agree; the gallery is every image of the split. Ties rank in
//! gallery order, so every number here is a function of its inputs.

mod bootstrap;
mod histogram;
mod metrics;
mod rounds;

pub use bootstrap::{DEFAULT_RESAMPLES, Difference, Differences, MAX_RESAMPLES, bootstrap_differences};
pub use histogram::{Histogram, histograms};
pub use metrics::{
    Evaluation, EvaluationError, Metric, Metrics, QueryResult, evaluate_rankings, evaluate_similarity,
};
pub use rounds::metrics_by_round;
