use std::time::Duration;

use crate::{Capacity, Scenario, ScenarioError, capacity};

/// Share of the arrivals that has to be finished while they last: less, and what waits grows for as long as they do.
const KEEPS_UP: f64 = 0.95;

/// Replicas that are enough for a load, and how they do under it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Enough {
    /// The smallest number that is.
    pub replicas: usize,
    /// What they do.
    pub capacity: Capacity,
}

/// The smallest number of replicas, `least` to `most`, with which all queries of a scenario are finished, as fast as they
/// arrive, and 99 of a hundred within `p99`; [`Scenario::replicas`] is not looked at. `None` where `most` are too few.
///
/// More replicas are taken to be no worse than fewer.
///
/// # Errors
/// [`ScenarioError`] where it cannot be simulated.
pub fn enough(
    scenario: &Scenario,
    (least, most): (usize, usize),
    p99: Duration,
    seed: u64,
) -> Result<Option<Enough>, ScenarioError> {
    let arrivals = 1.0 / scenario.arrivals.mean.as_secs_f64();
    let do_it = |replicas: usize| {
        let capacity = capacity(&Scenario { replicas, ..*scenario }, seed)?;
        let keeps_up = capacity.failed == 0 && capacity.sustained >= KEEPS_UP * arrivals;
        Ok::<_, ScenarioError>((keeps_up && capacity.p99 <= p99).then_some(Enough { replicas, capacity }))
    };
    let (mut too_few, mut found) = (least.max(1) - 1, do_it(most)?);
    while let Some(enough) = found
        && enough.replicas - too_few > 1
    {
        let middle = too_few + (enough.replicas - too_few) / 2;
        match do_it(middle)? {
            Some(fewer) => found = Some(fewer),
            None => too_few = middle,
        }
    }
    Ok(found)
}
