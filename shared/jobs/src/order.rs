use crate::{Job, Unit};

/// What to take next of several jobs, the oldest first; `eligible` leaves out what must not be taken just now.
///
/// What ends a job goes before what begins more work. Of the parts, those of the job with the fewest under way go first, so
/// that a small job does not wait for the end of a large one; of equals the oldest.
pub fn next<'a, K: Copy>(
    jobs: impl IntoIterator<Item = (K, &'a Job)>,
    now: i64,
    eligible: impl Fn(K, Unit) -> bool,
) -> Option<(K, Unit)> {
    let mut best: Option<((bool, usize), (K, Unit))> = None;
    for (key, job) in jobs {
        let Some(unit) = job.units(now).find(|unit| eligible(key, *unit)) else { continue };
        let rank = (matches!(unit, Unit::Part(_)), job.leased());
        if best.as_ref().is_none_or(|(least, _)| rank < *least) {
            best = Some((rank, (key, unit)));
        }
    }
    best.map(|(_, found)| found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Change, Counts, Plan, Token};

    fn job(queries: u64) -> Job {
        Job::new(Plan::new(queries, 1).unwrap(), None)
    }

    fn next_of(jobs: &[Job]) -> Option<(usize, Unit)> {
        next(jobs.iter().enumerate(), 0, |_, _| true)
    }

    #[test]
    fn the_first_part_of_the_oldest_job_is_taken_first() {
        assert_eq!(next_of(&[job(3), job(3)]), Some((0, Unit::Part(0))));
        assert_eq!(next_of(&[]), None);
    }

    #[test]
    fn a_small_job_does_not_wait_for_the_end_of_a_large_one() {
        let mut jobs = [job(1000), job(1)];
        jobs[0].take(Unit::Part(0), Token(1)).unwrap();
        assert_eq!(next_of(&jobs), Some((1, Unit::Part(0))));
        jobs[1].take(Unit::Part(0), Token(2)).unwrap();
        assert_eq!(next_of(&jobs), Some((0, Unit::Part(1))));
    }

    #[test]
    fn what_ends_a_job_goes_first() {
        let mut jobs = [job(10), job(1), job(1)];
        jobs[1].take(Unit::Part(0), Token(1)).unwrap();
        jobs[1].finish(Unit::Part(0), Token(1), Counts::default()).unwrap();
        assert_eq!(next_of(&jobs), Some((1, Unit::File)));
        jobs[1].take(Unit::File, Token(2)).unwrap();
        jobs[2].change(Change::Delete).unwrap();
        assert_eq!(next_of(&jobs), Some((2, Unit::Removal)));
    }

    #[test]
    fn what_must_not_be_taken_is_passed_over() {
        let jobs = [job(2)];
        let without = |banned: &[Unit]| next(jobs.iter().enumerate(), 0, |_, unit| !banned.contains(&unit));
        assert_eq!(without(&[Unit::Part(0)]), Some((0, Unit::Part(1))));
        assert_eq!(without(&[Unit::Part(0), Unit::Part(1)]), None);
    }
}
