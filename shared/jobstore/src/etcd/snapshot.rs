use std::collections::BTreeMap;

use etcd_client::{GetOptions, KeyValue};
use thicket_jobs::{JobId, Place, Token, Unit};

use super::EtcdJobs;
use crate::record::{Record, damaged, decode_counts};
use crate::{StoreError, Stored};

/// Keys read at a time: records are the largest, and a message of the client holds 4 MiB.
const PAGE: i64 = 1_000;
/// Records read at a time.
const RECORDS_PAGE: i64 = 8;

impl EtcdJobs {
    /// How many jobs there are.
    pub(super) async fn count(&self) -> Result<usize, StoreError> {
        let options = GetOptions::new().with_prefix().with_count_only();
        let counted = self.link.get("count the jobs", self.keys.all_records(), options).await?;
        Ok(usize::try_from(counted.count()).unwrap_or(usize::MAX))
    }

    /// One job, as it was at one moment.
    pub(super) async fn read_one(&self, id: &JobId) -> Result<Stored, StoreError> {
        let found = self.link.get("read a job", self.keys.record(id), GetOptions::new()).await?;
        let Some(entry) = found.kvs().first() else { return Err(StoreError::NotFound { job: id.clone() }) };
        let revision = found.header().map(|header| header.revision()).unwrap_or_default();
        let record = Record::decode(id, entry.value())?;
        let mut places = Vec::new();
        for entry in self.range(&self.keys.parts(id), PAGE, revision).await?.0 {
            places.extend(self.done(&entry)?.map(|(_, unit, place)| (unit, place)));
        }
        for entry in self.range(&self.keys.leases(id), PAGE, revision).await?.0 {
            places.extend(self.leased(&entry).map(|(_, unit, place)| (unit, place)));
        }
        record.restore(id.clone(), entry.mod_revision(), places)
    }

    /// Every job, as they were at one moment.
    pub(super) async fn read_all(&self) -> Result<Vec<Result<Stored, StoreError>>, StoreError> {
        let (records, revision) = self.range(self.keys.all_records(), RECORDS_PAGE, 0).await?;
        if records.is_empty() {
            return Ok(Vec::new());
        }
        let mut places: BTreeMap<JobId, Result<Vec<(Unit, Place)>, StoreError>> = BTreeMap::new();
        for entry in self.range(self.keys.all_parts(), PAGE, revision).await?.0 {
            match self.done(&entry) {
                Ok(Some((job, unit, place))) => {
                    if let Ok(known) = places.entry(job).or_insert_with(|| Ok(Vec::new())) {
                        known.push((unit, place));
                    }
                }
                Ok(None) => {}
                Err(StoreError::Damaged { job, reason }) => {
                    places.insert(job.clone(), Err(damaged(&job, reason)));
                }
                Err(error) => return Err(error),
            }
        }
        for entry in self.range(self.keys.all_leases(), PAGE, revision).await?.0 {
            if let Some((job, unit, place)) = self.leased(&entry)
                && let Ok(known) = places.entry(job).or_insert_with(|| Ok(Vec::new()))
            {
                known.push((unit, place));
            }
        }
        let jobs = records.iter().filter_map(|entry| {
            let job = self.keys.read(entry.key())?.job;
            let places = places.remove(&job).unwrap_or_else(|| Ok(Vec::new()));
            let record = Record::decode(&job, entry.value());
            Some(places.and_then(|places| record?.restore(job, entry.mod_revision(), places)))
        });
        Ok(jobs.collect())
    }

    fn done(&self, entry: &KeyValue) -> Result<Option<(JobId, Unit, Place)>, StoreError> {
        let Some(named) = self.keys.read(entry.key()) else { return Ok(None) };
        let counts = decode_counts(&named.job, entry.value())?;
        Ok(named.unit.map(|unit| (named.job, unit, Place::Done(counts))))
    }

    fn leased(&self, entry: &KeyValue) -> Option<(JobId, Unit, Place)> {
        let named = self.keys.read(entry.key())?;
        Some((named.job, named.unit?, Place::Leased(Token(entry.create_revision()))))
    }

    /// Every key below one that ends with a slash, at a revision, or at that of the first page where it is 0.
    async fn range(
        &self,
        below: &str,
        page: i64,
        mut revision: i64,
    ) -> Result<(Vec<KeyValue>, i64), StoreError> {
        let end = format!("{}0", below.strip_suffix('/').unwrap_or(below));
        let mut next = below.as_bytes().to_vec();
        let mut entries = Vec::new();
        loop {
            let options = GetOptions::new().with_range(end.as_str()).with_limit(page).with_revision(revision);
            let found = self.link.get("read the jobs", next.clone(), options).await?;
            if revision == 0 {
                revision = found.header().map(|header| header.revision()).unwrap_or_default();
            }
            entries.extend_from_slice(found.kvs());
            match entries.last() {
                // Nothing is between a key and the same with a zero behind it.
                Some(last) if found.more() => next = [last.key(), &[0]].concat(),
                _ => return Ok((entries, revision)),
            }
        }
    }
}
