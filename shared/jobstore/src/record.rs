//! What is written of a job: a record as JSON, counts as JSON for each part that is done.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use thicket_jobs::{Counts, Job, JobId, Place, Plan, Unit, Wish};

use crate::{MAX_BODY_BYTES, NewJob, StoreError, Stored};

/// Version of the record's form.
const FORM: u32 = 1;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Record {
    form: u32,
    created_unix_ms: i64,
    queries: u64,
    part_size: u32,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    deadline_unix_ms: Option<i64>,
    wish: WishRecord,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    finished: Option<CountsRecord>,
    /// Base64.
    body: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum WishRecord {
    Run,
    Cancel,
    Delete,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct CountsRecord {
    succeeded: u64,
    failed: u64,
}

impl From<Counts> for CountsRecord {
    fn from(counts: Counts) -> Self {
        Self { succeeded: counts.succeeded, failed: counts.failed }
    }
}

impl From<CountsRecord> for Counts {
    fn from(record: CountsRecord) -> Self {
        Self { succeeded: record.succeeded, failed: record.failed }
    }
}

impl Record {
    /// The record of a new job.
    pub(crate) fn of(job: &NewJob) -> Result<Self, StoreError> {
        if job.body.len() > MAX_BODY_BYTES {
            return Err(StoreError::TooLarge { actual: job.body.len() });
        }
        Ok(Self {
            form: FORM,
            created_unix_ms: job.created_unix_ms,
            queries: job.plan.queries(),
            part_size: job.plan.part_size(),
            deadline_unix_ms: job.deadline,
            wish: WishRecord::Run,
            finished: None,
            body: STANDARD.encode(&job.body),
        })
    }

    /// The same job as it stands now.
    pub(crate) fn standing(self, job: &Job) -> Self {
        let wish = match job.wish() {
            Wish::Run => WishRecord::Run,
            Wish::Cancel => WishRecord::Cancel,
            Wish::Delete => WishRecord::Delete,
        };
        Self { deadline_unix_ms: job.deadline(), wish, finished: job.finished().map(Into::into), ..self }
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_else(|error| unreachable!("a record is JSON: {error}"))
    }

    pub(crate) fn decode(id: &JobId, bytes: &[u8]) -> Result<Self, StoreError> {
        let record: Self = serde_json::from_slice(bytes).map_err(|error| damaged(id, error))?;
        if record.form != FORM {
            return Err(damaged(id, format!("form {} is not known", record.form)));
        }
        Ok(record)
    }

    /// The job, with what is said elsewhere of its units.
    pub(crate) fn restore(
        &self,
        id: JobId,
        version: i64,
        places: impl IntoIterator<Item = (Unit, Place)>,
    ) -> Result<Stored, StoreError> {
        let plan = Plan::new(self.queries, self.part_size).map_err(|error| damaged(&id, error))?;
        let body = STANDARD.decode(&self.body).map_err(|error| damaged(&id, error))?;
        let wish = match self.wish {
            WishRecord::Run => Wish::Run,
            WishRecord::Cancel => Wish::Cancel,
            WishRecord::Delete => Wish::Delete,
        };
        let finished = self.finished.map(Into::into);
        let job = Job::restore(plan, self.deadline_unix_ms, wish, finished, places);
        Ok(Stored { id, created_unix_ms: self.created_unix_ms, body: Bytes::from(body), job, version })
    }
}

/// Counts of a part that is done.
pub(crate) fn encode_counts(counts: Counts) -> Vec<u8> {
    serde_json::to_vec(&CountsRecord::from(counts))
        .unwrap_or_else(|error| unreachable!("counts are JSON: {error}"))
}

pub(crate) fn decode_counts(id: &JobId, bytes: &[u8]) -> Result<Counts, StoreError> {
    let record: CountsRecord = serde_json::from_slice(bytes).map_err(|error| damaged(id, error))?;
    Ok(record.into())
}

pub(crate) fn damaged(id: &JobId, reason: impl std::fmt::Display) -> StoreError {
    StoreError::Damaged { job: id.clone(), reason: reason.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let id = JobId::parse("a").unwrap();
        let new = NewJob {
            created_unix_ms: 7,
            plan: Plan::new(50, 32).unwrap(),
            deadline: Some(9),
            body: Bytes::from_static(b"\x00\xffbody"),
        };
        let record = Record::of(&new).unwrap();
        let read = Record::decode(&id, &record.encode()).unwrap();
        let stored = read.restore(id.clone(), 3, []).unwrap();
        assert_eq!((stored.created_unix_ms, &stored.body), (7, &new.body));
        assert_eq!(stored.job, Job::new(new.plan, Some(9)));
    }

    #[test]
    fn garbage_is_damage_and_no_panic() {
        let id = JobId::parse("a").unwrap();
        for bytes in [
            &b""[..],
            b"{}",
            b"[]",
            b"\xff",
            br#"{"form":2,"created_unix_ms":0,"queries":1,"part_size":1,"wish":"run","body":""}"#,
        ] {
            assert!(matches!(Record::decode(&id, bytes), Err(StoreError::Damaged { .. })), "{bytes:?}");
        }
        let record = br#"{"form":1,"created_unix_ms":0,"queries":0,"part_size":1,"wish":"run","body":"?"}"#;
        let record = Record::decode(&id, record).unwrap();
        assert!(matches!(record.restore(id, 1, []), Err(StoreError::Damaged { .. })));
    }
}
