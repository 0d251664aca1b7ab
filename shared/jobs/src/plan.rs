use std::ops::Range;

/// Most queries of a job.
pub const MAX_QUERIES: u64 = 1_000_000;
/// Most queries of a part.
pub const MAX_PART_SIZE: u32 = 1_000;
/// Most parts of a job.
pub const MAX_PARTS: u32 = 4_096;

/// How a job is cut into parts: all of one size but for the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    queries: u64,
    part_size: u32,
}

/// Why a job cannot be cut that way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// No query, or too many.
    #[error("a job has 1 to {MAX_QUERIES} queries, got {actual}")]
    Queries {
        /// What was given.
        actual: u64,
    },
    /// A part of no query, or of too many.
    #[error("a part has 1 to {MAX_PART_SIZE} queries, got {actual}")]
    PartSize {
        /// What was given.
        actual: u32,
    },
    /// Too many parts.
    #[error("a job has at most {MAX_PARTS} parts, got {actual}: make parts of {enough} queries or more")]
    Parts {
        /// What was given.
        actual: u64,
        /// The smallest size that does.
        enough: u64,
    },
}

impl Plan {
    /// Cuts so many queries into parts of so many.
    ///
    /// # Errors
    /// [`PlanError`].
    pub fn new(queries: u64, part_size: u32) -> Result<Self, PlanError> {
        if !(1..=MAX_QUERIES).contains(&queries) {
            return Err(PlanError::Queries { actual: queries });
        }
        if !(1..=MAX_PART_SIZE).contains(&part_size) {
            return Err(PlanError::PartSize { actual: part_size });
        }
        let parts = queries.div_ceil(u64::from(part_size));
        if parts > u64::from(MAX_PARTS) {
            let enough = queries.div_ceil(u64::from(MAX_PARTS));
            return Err(PlanError::Parts { actual: parts, enough });
        }
        Ok(Self { queries, part_size })
    }

    /// Queries of the job, at least 1.
    pub fn queries(&self) -> u64 {
        self.queries
    }

    /// Queries of every part but the last, at least 1.
    pub fn part_size(&self) -> u32 {
        self.part_size
    }

    /// Parts of the job, at least 1.
    pub fn parts(&self) -> u32 {
        u32::try_from(self.queries.div_ceil(u64::from(self.part_size))).unwrap_or(u32::MAX)
    }

    /// The places of a part's queries in the job; empty where there is no such part.
    pub fn range(&self, part: u32) -> Range<u64> {
        let size = u64::from(self.part_size);
        let start = (u64::from(part) * size).min(self.queries);
        start..(start + size).min(self.queries)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn limits_are_kept_and_named() {
        assert_eq!(Plan::new(0, 1), Err(PlanError::Queries { actual: 0 }));
        assert_eq!(Plan::new(MAX_QUERIES + 1, 1000), Err(PlanError::Queries { actual: MAX_QUERIES + 1 }));
        assert_eq!(Plan::new(1, 0), Err(PlanError::PartSize { actual: 0 }));
        assert_eq!(Plan::new(1, 1001), Err(PlanError::PartSize { actual: 1001 }));
        assert_eq!(Plan::new(4097, 1), Err(PlanError::Parts { actual: 4097, enough: 2 }));
        assert!(Plan::new(4097, 2).is_ok());
        assert!(Plan::new(MAX_QUERIES, MAX_PART_SIZE).is_ok());
    }

    proptest! {
        #[test]
        fn every_query_is_in_exactly_one_part(queries in 1_u64..5_000, part_size in 1_u32..=1_000) {
            let Ok(plan) = Plan::new(queries, part_size) else { return Ok(()) };
            let all: Vec<u64> = (0..plan.parts()).flat_map(|part| plan.range(part)).collect();
            prop_assert_eq!(all, (0..queries).collect::<Vec<_>>());
            prop_assert!((0..plan.parts()).all(|part| !plan.range(part).is_empty()));
            prop_assert!(plan.range(plan.parts()).is_empty());
        }
    }
}
