use crate::Share;

/// What one call costs; each first call pays in its percentage.
const CALL: u64 = 100;

/// A token bucket that calls fill, not time: out of `n` calls come at most `burst + n * percent / 100` tokens.
#[derive(Debug, Clone)]
pub(crate) struct Budget {
    share: Share,
    saved: u64,
}

impl Budget {
    /// A full one.
    pub(crate) fn new(share: Share) -> Self {
        Self { share, saved: u64::from(share.burst) * CALL }
    }

    pub(crate) fn percent(&self) -> u32 {
        self.share.percent
    }

    /// Pays in for a call. Above the burst nothing is saved, but for the fraction of a token that a call pays in.
    pub(crate) fn call(&mut self) {
        let most = u64::from(self.share.burst).max(1) * CALL;
        self.saved = (self.saved + u64::from(self.share.percent)).min(most);
    }

    pub(crate) fn has_token(&self) -> bool {
        self.saved >= CALL
    }

    /// Takes a token; false where there is none.
    pub(crate) fn spend(&mut self) -> bool {
        let has_token = self.has_token();
        if has_token {
            self.saved -= CALL;
        }
        has_token
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn nothing_is_spent_beyond_what_was_saved() {
        let mut budget = Budget::new(Share { percent: 50, burst: 1 });
        assert!(budget.spend() && !budget.spend());
        budget.call();
        assert!(!budget.spend());
        budget.call();
        assert!(budget.spend() && !budget.spend());
    }

    proptest! {
        #[test]
        fn no_stretch_of_calls_gives_more_than_its_share_and_the_burst(
            percent in 0u32..=100,
            burst in 0u32..5,
            steps in prop::collection::vec(any::<bool>(), 0..200),
        ) {
            let mut budget = Budget::new(Share { percent, burst });
            // Tokens spent less tokens paid in, in hundredths; its rise since any earlier moment is bounded.
            let (mut balance, mut lowest) = (0i64, 0i64);
            for is_call in steps {
                if is_call {
                    budget.call();
                    balance -= i64::from(percent);
                    lowest = lowest.min(balance);
                } else if budget.spend() {
                    balance += 100;
                }
                prop_assert!(balance - lowest <= i64::from(burst.max(1)) * 100);
                prop_assert!(balance <= i64::from(burst) * 100);
            }
        }
    }
}
