use std::time::Duration;

use crate::{End, Scenario, ScenarioError, run};

/// What a number of replicas did under a load.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Capacity {
    /// Queries that ended with an outcome.
    pub finished: usize,
    /// Queries that failed or expired.
    pub failed: usize,
    /// Finished queries a second, from the first arrival to the last end.
    pub per_second: f64,
    /// Time from arrival to outcome that half of the finished queries do not exceed.
    pub p50: Duration,
    /// The same for 99 of a hundred.
    pub p99: Duration,
    /// Questions sent, every copy counted.
    pub questions: usize,
}

/// Tells what [`Scenario::replicas`] do with queries that come every [`Scenario::arrivals`] and questions that take
/// [`Scenario::service`]. Zeros where no query finishes.
///
/// A load above what the replicas can do shows as throughput below the arrival rate and latency that grows with
/// [`Scenario::queries`].
///
/// # Errors
/// [`ScenarioError`] where it cannot be simulated.
pub fn capacity(scenario: &Scenario, seed: u64) -> Result<Capacity, ScenarioError> {
    let run = run(scenario, seed)?;
    let finished = || run.ends.iter().filter(|(_, end, ..)| matches!(end, End::Done(_)));
    let mut latencies: Vec<Duration> =
        finished().map(|(query, _, _, ended)| *ended - run.arrivals[*query]).collect();
    latencies.sort_unstable();
    let first = run.arrivals.first().copied().unwrap_or_default();
    let last = finished().map(|(.., ended)| *ended).max().unwrap_or(first);
    let seconds = (last - first).as_secs_f64();
    Ok(Capacity {
        finished: latencies.len(),
        failed: run.ends.len() - latencies.len(),
        per_second: if seconds > 0.0 { latencies.len() as f64 / seconds } else { 0.0 },
        p50: quantile(&latencies, 50),
        p99: quantile(&latencies, 99),
        questions: run.sent,
    })
}

/// The smallest of the sorted times that so many percent of them do not exceed.
fn quantile(sorted: &[Duration], percent: usize) -> Duration {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().unwrap_or_default()
}
