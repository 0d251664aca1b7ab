use etcd_client::DeleteOptions;
use thicket_discovery::Prefix;
use thicket_jobs::{JobId, Unit};

/// Where the keys of jobs are.
#[derive(Debug, Clone)]
pub(super) struct Keys {
    first: String,
    end: String,
    records: String,
    parts: String,
    leases: String,
}

/// What a key is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Named {
    pub(super) job: JobId,
    /// `None` for a record.
    pub(super) unit: Option<Unit>,
}

const FILE: &str = "file";
const REMOVAL: &str = "removal";

impl Keys {
    pub(super) fn of(prefix: &Prefix) -> Self {
        let folder = |name: &str| format!("{prefix}/v1/{name}/");
        // From `job-leases` over `job-parts` to the end of `jobs`: a zero comes after a slash.
        let (first, end) = (format!("{prefix}/v1/job-"), format!("{prefix}/v1/jobs0"));
        Self { first, end, records: folder("jobs"), parts: folder("job-parts"), leases: folder("job-leases") }
    }

    /// Where the keys of jobs begin, and the first key after them.
    pub(super) fn range(&self) -> (&str, Vec<u8>) {
        (&self.first, self.end.clone().into_bytes())
    }

    /// What every record's key begins with.
    pub(super) fn all_records(&self) -> &str {
        &self.records
    }

    /// What the key of every part that is done begins with.
    pub(super) fn all_parts(&self) -> &str {
        &self.parts
    }

    /// What every lease's key begins with.
    pub(super) fn all_leases(&self) -> &str {
        &self.leases
    }

    pub(super) fn record(&self, job: &JobId) -> String {
        format!("{}{job}", self.records)
    }

    pub(super) fn parts(&self, job: &JobId) -> String {
        format!("{}{job}/", self.parts)
    }

    pub(super) fn part(&self, job: &JobId, part: u32) -> String {
        format!("{}{part:05}", self.parts(job))
    }

    pub(super) fn leases(&self, job: &JobId) -> String {
        format!("{}{job}/", self.leases)
    }

    pub(super) fn lease(&self, job: &JobId, unit: Unit) -> String {
        let leases = self.leases(job);
        match unit {
            Unit::Part(part) => format!("{leases}{part:05}"),
            Unit::File => format!("{leases}{FILE}"),
            Unit::Removal => format!("{leases}{REMOVAL}"),
        }
    }

    /// Reads a key; `None` for one of another form.
    pub(super) fn read(&self, key: &[u8]) -> Option<Named> {
        let key = std::str::from_utf8(key).ok()?;
        if let Some(job) = key.strip_prefix(&self.records) {
            return Some(Named { job: JobId::parse(job).ok()?, unit: None });
        }
        let rest = key.strip_prefix(&self.parts).or_else(|| key.strip_prefix(&self.leases))?;
        let (job, unit) = rest.split_once('/')?;
        let unit = match unit {
            FILE => Unit::File,
            REMOVAL => Unit::Removal,
            part => Unit::Part(part.parse().ok()?),
        };
        Some(Named { job: JobId::parse(job).ok()?, unit: Some(unit) })
    }
}

/// Everything below a key that ends with a slash.
pub(super) fn below() -> DeleteOptions {
    DeleteOptions::new().with_prefix()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_read_as_it_was_written() {
        let keys = Keys::of(&Prefix::default());
        let job = JobId::parse("nightly-7").unwrap();
        let named = |unit| Some(Named { job: job.clone(), unit });
        assert_eq!(keys.read(keys.record(&job).as_bytes()), named(None));
        assert_eq!(keys.read(keys.part(&job, 12).as_bytes()), named(Some(Unit::Part(12))));
        for unit in [Unit::Part(4095), Unit::File, Unit::Removal] {
            assert_eq!(keys.read(keys.lease(&job, unit).as_bytes()), named(Some(unit)));
        }
    }

    #[test]
    fn a_key_of_another_form_is_none() {
        let keys = Keys::of(&Prefix::default());
        for key in [
            &b"/thicket/v1/jobs/"[..],
            b"/thicket/v1/jobs/A",
            b"/thicket/v1/jobs/a/b",
            b"/thicket/v1/job-parts/a",
            b"/thicket/v1/job-parts/a/x",
            b"/thicket/v1/job-leases/a/",
            b"/other/v1/jobs/a",
            b"\xff",
        ] {
            assert_eq!(keys.read(key), None, "{}", String::from_utf8_lossy(key));
        }
    }
}
