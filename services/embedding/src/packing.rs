//! Which texts share a forward pass. A pass computes every text at the length of its longest: the rest is padding.

/// Padding that a pass may always have: below it, a pass of its own would cost more than the padding.
const FREE_PADDING: usize = 128;
/// The part of a longer pass that may be padding.
const PADDING_PART: usize = 4;

/// Parts a call's texts into jobs that each fit the budget. Texts of like length stay together.
///
/// `lengths` are in tokens. Returns the places of the texts of each job; a text that alone exceeds the budget is a job.
pub fn jobs(lengths: &[usize], budget: usize) -> Vec<Vec<usize>> {
    pack(lengths, budget, |_| usize::MAX)
}

/// Groups texts into passes. A pass takes at most `budget` tokens, padding included, unless it is a single text; at most
/// a quarter of them is padding, or 128 tokens where that is more.
///
/// `lengths` are in tokens. Returns the places of the texts of each pass.
pub fn passes(lengths: &[usize], budget: usize) -> Vec<Vec<usize>> {
    pack(lengths, budget, |padded| (padded / PADDING_PART).max(FREE_PADDING))
}

fn pack(lengths: &[usize], budget: usize, allowed: impl Fn(usize) -> usize) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by_key(|&place| lengths[place]);
    let mut groups: Vec<Vec<usize>> = Vec::new();
    let mut tokens = 0;
    for place in order {
        let length = lengths[place];
        if let Some(group) = groups.last_mut() {
            let padded = (group.len() + 1) * length;
            let padding = padded - tokens - length;
            if padded <= budget && padding <= allowed(padded) {
                group.push(place);
                tokens += length;
                continue;
            }
        }
        groups.push(vec![place]);
        tokens = length;
    }
    groups
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn padded(lengths: &[usize], group: &[usize]) -> usize {
        group.len() * group.iter().map(|&place| lengths[place]).max().unwrap_or(0)
    }

    #[test]
    fn texts_of_like_length_share_a_pass() {
        let lengths = [77, 8, 76, 9, 77, 8];
        assert_eq!(passes(&lengths, 1000), [vec![1, 5, 3], vec![2, 0, 4]]);
    }

    #[test]
    fn little_padding_costs_less_than_a_second_pass() {
        assert_eq!(passes(&[12, 30], 1000), [vec![0, 1]]);
    }

    #[test]
    fn a_call_beyond_the_budget_becomes_several_jobs() {
        assert_eq!(jobs(&[10; 5], 20), [vec![0, 1], vec![2, 3], vec![4]]);
        assert_eq!(jobs(&[77, 5], 20), [vec![1], vec![0]]);
        assert!(jobs(&[], 20).is_empty());
    }

    proptest! {
        #[test]
        fn every_text_is_in_one_pass_within_the_budget_and_the_bound_on_padding(
            lengths in prop::collection::vec(1..300_usize, 0..200),
            budget in 1..5000_usize,
        ) {
            let passes = passes(&lengths, budget);
            let mut places = passes.concat();
            places.sort_unstable();
            prop_assert_eq!(places, (0..lengths.len()).collect::<Vec<_>>());
            for pass in passes {
                let padded = padded(&lengths, &pass);
                let padding = padded - pass.iter().map(|&place| lengths[place]).sum::<usize>();
                prop_assert!(pass.len() == 1 || padded <= budget);
                prop_assert!(padding <= 128 || padding * 4 <= padded, "{padding} of {padded}");
            }
        }

        #[test]
        fn every_text_is_in_one_job_within_the_budget(
            lengths in prop::collection::vec(1..300_usize, 0..200),
            budget in 1..5000_usize,
        ) {
            let jobs = jobs(&lengths, budget);
            let mut places = jobs.concat();
            places.sort_unstable();
            prop_assert_eq!(places, (0..lengths.len()).collect::<Vec<_>>());
            prop_assert!(jobs.iter().all(|job| job.len() == 1 || padded(&lengths, job) <= budget));
        }
    }
}
