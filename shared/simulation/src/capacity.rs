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
    /// Finished queries a second while the middle half of them ended: neither filling up nor running empty counts.
    pub sustained: f64,
    /// Queries that were under way at a time, on average.
    pub under_way: f64,
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
    // In the order of time, as the ends are.
    let ends: Vec<Duration> = finished().map(|(.., ended)| *ended).collect();
    let first = run.arrivals.first().copied().unwrap_or_default();
    let span = ends.last().map_or(Duration::ZERO, |last| last.saturating_sub(first));
    let waited: Duration = latencies.iter().sum();
    Ok(Capacity {
        finished: latencies.len(),
        failed: run.ends.len() - latencies.len(),
        per_second: ratio(latencies.len() as f64, span),
        sustained: sustained(&ends),
        under_way: ratio(waited.as_secs_f64(), span),
        p50: quantile(&latencies, 50),
        p99: quantile(&latencies, 99),
        questions: run.sent,
    })
}

/// Ends a second between the first and the last quarter.
fn sustained(ends: &[Duration]) -> f64 {
    let (from, to) = (ends.len() / 4, ends.len() * 3 / 4);
    match (ends.get(from), ends.get(to)) {
        (Some(first), Some(last)) => ratio((to - from) as f64, *last - *first),
        _ => 0.0,
    }
}

fn ratio(count: f64, time: Duration) -> f64 {
    if time.is_zero() { 0.0 } else { count / time.as_secs_f64() }
}

/// The smallest of the sorted times that so many percent of them do not exceed.
fn quantile(sorted: &[Duration], percent: usize) -> Duration {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().unwrap_or_default()
}
