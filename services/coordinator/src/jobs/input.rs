//! What a caller may ask of a job, checked before anything is kept.

use std::collections::HashSet;

use thicket_jobs::{JobId, MAX_PART_SIZE, MAX_QUERIES};
use thicket_proto::v1::{JobQuery, JobSpec, SearchPersonRequest};
use thicket_runtime::Fault;
use thicket_thi::Settings;
use uuid::Uuid;

use crate::input::SearchInput;

/// Queries of a part where the caller names no number.
const DEFAULT_PART_SIZE: u32 = 32;
/// Most results of a part, which are in memory at once.
const MAX_PART_RESULTS: u32 = 500_000;
/// Most bytes of a query's text. A search takes fewer; the difference fails that query alone.
const MAX_QUERY_BYTES: usize = 65_536;
const MAX_QUERY_ID_BYTES: usize = 256;

/// A job that can be made.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct NewSpec {
    pub(super) id: JobId,
    /// Everything filled in.
    pub(super) spec: JobSpec,
    pub(super) part_size: u32,
}

/// The job's id as a caller names it.
pub(super) fn job_id(id: &str) -> Result<JobId, Fault> {
    JobId::parse(id).map_err(|error| Fault::invalid("id", "JOB_ID_MALFORMED", error.to_string()))
}

impl NewSpec {
    /// Checks what is asked for; what is left unset is filled in.
    pub(super) fn parse(mut spec: JobSpec, defaults: &Settings, now: i64) -> Result<Self, Fault> {
        let id = match spec.id.as_str() {
            "" => JobId::parse(&Uuid::now_v7().to_string()).map_err(Fault::internal)?,
            id => JobId::parse(id)
                .map_err(|error| Fault::invalid("spec.id", "JOB_ID_MALFORMED", error.to_string()))?,
        };
        let probe = SearchPersonRequest {
            collection: spec.collection.clone(),
            text: "probe".to_owned(),
            top: spec.top,
            settings: spec.settings,
            ..SearchPersonRequest::default()
        };
        let input = SearchInput::parse(probe, defaults).map_err(of_the_spec)?;
        let top = u32::try_from(input.top).unwrap_or(u32::MAX);
        let most = (MAX_PART_RESULTS / top).clamp(1, MAX_PART_SIZE);
        let part_size = match spec.part_size {
            0 => DEFAULT_PART_SIZE.min(most),
            size if size <= most => size,
            size => {
                let message = format!("1 to {most} with {top} results a query, or 0; got {size}");
                return Err(Fault::out_of_range("spec.part_size", "PART_SIZE_OUT_OF_RANGE", message));
            }
        };
        if spec.deadline_unix_ms.is_some_and(|deadline| deadline <= now) {
            let message = format!("it has passed, now is {now}");
            return Err(Fault::invalid("spec.deadline_unix_ms", "DEADLINE_PASSED", message));
        }
        spec.id = id.to_string();
        spec.top = top;
        spec.part_size = part_size;
        spec.settings = Some(input.settings_in_force());
        Ok(Self { id, spec, part_size })
    }
}

/// A fault of the search that every query will be, named as the job names it.
fn of_the_spec(fault: Fault) -> Fault {
    match fault {
        Fault::InvalidInput { field, reason, message } => {
            Fault::InvalidInput { field: format!("spec.{field}").into(), reason, message }
        }
        fault => fault,
    }
}

/// The queries of a job as they come.
#[derive(Debug, Default)]
pub(super) struct QueryCheck {
    ids: HashSet<String>,
}

impl QueryCheck {
    /// Queries checked.
    pub(super) fn count(&self) -> u64 {
        self.ids.len() as u64
    }

    /// Checks the next query.
    pub(super) fn check(&mut self, query: &JobQuery) -> Result<(), Fault> {
        let place = self.ids.len();
        let field = |name: &str| format!("queries[{place}].{name}");
        if self.count() >= MAX_QUERIES {
            let message = format!("a job has at most {MAX_QUERIES}");
            return Err(Fault::out_of_range("queries", "TOO_MANY_QUERIES", message));
        }
        if !(1..=MAX_QUERY_ID_BYTES).contains(&query.id.len()) {
            let message = format!("1 to {MAX_QUERY_ID_BYTES} bytes, got {}", query.id.len());
            return Err(Fault::invalid(field("id"), "QUERY_ID_LENGTH", message));
        }
        if query.text.len() > MAX_QUERY_BYTES {
            let message = format!("at most {MAX_QUERY_BYTES} bytes, got {}", query.text.len());
            return Err(Fault::out_of_range(field("text"), "TEXT_TOO_LONG", message));
        }
        if !self.ids.insert(query.id.clone()) {
            let message = "an earlier query has the same".to_owned();
            return Err(Fault::invalid(field("id"), "QUERY_ID_TWICE", message));
        }
        Ok(())
    }
}

/// The search that a query of a job is.
pub(super) fn search_of(spec: &JobSpec, query: JobQuery) -> SearchPersonRequest {
    let adapter = if query.adapter.is_empty() { spec.adapter.clone() } else { query.adapter };
    SearchPersonRequest {
        collection: spec.collection.clone(),
        text: query.text,
        top: spec.top,
        settings: spec.settings,
        priority: thicket_proto::v1::Priority::Batch.into(),
        adapter,
        filter: query.filter.or_else(|| spec.filter.clone()),
    }
}

#[cfg(test)]
mod tests {
    use thicket_proto::v1::{Filter, InteractionSettings};

    use super::*;

    fn spec() -> JobSpec {
        JobSpec { collection: "lobby".into(), ..JobSpec::default() }
    }

    fn refused(spec: JobSpec) -> String {
        match NewSpec::parse(spec, &Settings::default(), 100).unwrap_err() {
            Fault::InvalidInput { field, .. } | Fault::OutOfRange { field, .. } => field.into_owned(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_is_left_unset_is_filled_in() {
        let new = NewSpec::parse(spec(), &Settings::default(), 100).unwrap();
        assert_eq!((new.spec.top, new.spec.part_size), (10, DEFAULT_PART_SIZE));
        assert_eq!(new.spec.settings.unwrap().rounds, Some(5));
        assert_eq!(new.spec.id, new.id.to_string());
        assert_eq!(NewSpec::parse(new.spec.clone(), &Settings::default(), 100).unwrap(), new);
    }

    #[test]
    fn each_bad_setting_is_named_as_the_job_names_it() {
        assert_eq!(refused(JobSpec::default()), "spec.collection");
        assert_eq!(refused(JobSpec { id: "A b".into(), ..spec() }), "spec.id");
        assert_eq!(refused(JobSpec { top: 100_001, ..spec() }), "spec.top");
        assert_eq!(refused(JobSpec { part_size: 1_001, ..spec() }), "spec.part_size");
        assert_eq!(refused(JobSpec { part_size: 6, top: 100_000, ..spec() }), "spec.part_size");
        assert_eq!(refused(JobSpec { deadline_unix_ms: Some(100), ..spec() }), "spec.deadline_unix_ms");
        let settings = Some(InteractionSettings { lambda: Some(2.0), ..Default::default() });
        assert_eq!(refused(JobSpec { settings, ..spec() }), "spec.settings.lambda");
    }

    #[test]
    fn a_part_of_long_rankings_is_small_by_default() {
        let new = NewSpec::parse(JobSpec { top: 100_000, ..spec() }, &Settings::default(), 100).unwrap();
        assert_eq!(new.part_size, 5);
    }

    #[test]
    fn a_query_without_an_id_of_its_own_is_refused() {
        let query = |id: &str| JobQuery { id: id.into(), text: "t".into(), ..JobQuery::default() };
        let mut check = QueryCheck::default();
        assert!(check.check(&query("a")).is_ok());
        for bad in ["", "a", &"x".repeat(257)] {
            assert!(check.check(&query(bad)).is_err(), "{bad}");
        }
        let long = JobQuery { text: "x".repeat(MAX_QUERY_BYTES + 1), ..query("b") };
        assert!(check.check(&long).is_err());
        // An empty text fails when it is searched for, and alone.
        assert!(check.check(&JobQuery { text: String::new(), ..query("b") }).is_ok());
        assert_eq!(check.count(), 2);
    }

    #[test]
    fn a_query_has_its_own_adapter_and_filter_or_the_jobs() {
        let filter = |camera: &str| Some(Filter { cameras: vec![camera.into()], ..Filter::default() });
        let spec = JobSpec { adapter: "night".into(), filter: filter("a"), ..spec() };
        let plain = search_of(&spec, JobQuery::default());
        assert_eq!((plain.adapter.as_str(), plain.filter), ("night", filter("a")));
        let query = JobQuery { adapter: "day".into(), filter: filter("b"), ..JobQuery::default() };
        let own = search_of(&spec, query);
        assert_eq!((own.adapter.as_str(), own.filter), ("day", filter("b")));
    }
}
