use std::path::PathBuf;
use std::sync::Arc;

use thicket_blobs::{Blobs, Settings};
use thicket_discovery::{EtcdConfig, InstanceId};
use thicket_jobstore::{EmbeddedJobs, EtcdJobs, JobStore};
use thicket_runtime::Failure;

use crate::ConfigError;
use crate::jobs::Objects;

/// Queries of jobs searched for at a time where nothing else is said.
pub const DEFAULT_JOB_QUERIES: usize = 16;
/// Most bytes of the queries, and of the results, of one part.
const MAX_OBJECT_BYTES: u64 = 256 << 20;

/// Flags about jobs, for `#[command(flatten)]`.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Jobs")]
pub struct JobArgs {
    /// Object store of the jobs' queries and results, `s3://bucket/prefix`, or `file:///path` of a folder that every
    /// coordinator sees; without it this coordinator keeps no jobs. Keys and endpoint of S3 are read from the AWS_* variables
    #[arg(long, env = "THICKET_JOBS_STORE", value_name = "URL")]
    pub jobs_store: Option<String>,
    /// Folder of the jobs' records where no etcd is named; one coordinator uses it
    #[arg(long, env = "THICKET_JOBS_DATA", value_name = "DIR", requires = "jobs_store")]
    pub jobs_data: Option<PathBuf>,
}

impl JobArgs {
    /// The settings; `None` where no object store is named.
    ///
    /// # Errors
    /// [`ConfigError::JobRecords`].
    pub fn config(&self, has_etcd: bool) -> Result<Option<JobConfig>, ConfigError> {
        let Some(url) = &self.jobs_store else { return Ok(None) };
        if !has_etcd && self.jobs_data.is_none() {
            return Err(ConfigError::JobRecords);
        }
        Ok(Some(JobConfig {
            objects: JobObjects::Url(url.clone()),
            settings: Settings::from_env(),
            records: self.jobs_data.clone(),
            queries: DEFAULT_JOB_QUERIES,
        }))
    }
}

/// How a coordinator keeps and does jobs.
#[derive(Debug, Clone)]
pub struct JobConfig {
    /// Where queries and results are.
    pub objects: JobObjects,
    /// What that place needs beside its URL; how large an object may be is not taken from here.
    pub settings: Settings,
    /// Folder of the records where no etcd is named; made where it is not there.
    pub records: Option<PathBuf>,
    /// Queries searched for at a time, at least 1. Default: [`DEFAULT_JOB_QUERIES`].
    pub queries: usize,
}

/// Where queries and results of jobs are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JobObjects {
    /// A bucket, or a folder that exists.
    Url(String),
    /// A folder, which is made where it is not there.
    Folder(PathBuf),
}

impl JobConfig {
    /// Jobs of one process, below a folder that is made where it is not there.
    pub fn in_folder(folder: &std::path::Path) -> Self {
        Self {
            objects: JobObjects::Folder(folder.join("objects")),
            settings: Settings::default(),
            records: Some(folder.join("records")),
            queries: DEFAULT_JOB_QUERIES,
        }
    }

    /// Opens what jobs are kept in.
    pub(crate) fn open(
        &self,
        etcd: Option<&EtcdConfig>,
        instance: Option<InstanceId>,
    ) -> Result<(Arc<dyn JobStore>, Objects), Failure> {
        let refuse =
            |what: &str, reason: &dyn std::fmt::Display| Failure::BadInput(format!("{what}: {reason}"));
        let url = match &self.objects {
            JobObjects::Url(url) => url.clone(),
            JobObjects::Folder(folder) => {
                let folder = std::path::absolute(folder).map_err(|error| refuse("jobs-store", &error))?;
                format!("file://{}", folder.display())
            }
        };
        let folder = url.strip_prefix("file://").map(PathBuf::from);
        if let (JobObjects::Url(url), Some(folder)) = (&self.objects, &folder) {
            // One that every coordinator is to see, and is not mounted here, must not be made here.
            std::fs::metadata(folder).map_err(|error| refuse("jobs-store", &format!("{url}: {error}")))?;
        }
        let settings = Settings { max_bytes: MAX_OBJECT_BYTES, ..self.settings.clone() };
        let blobs = Blobs::open(&url, settings);
        let objects = Objects::new(blobs.map_err(|error| refuse("jobs-store", &error))?, folder);
        let store: Arc<dyn JobStore> = match (etcd, &self.records) {
            (Some(etcd), _) => {
                let instance = instance.unwrap_or_else(InstanceId::random);
                Arc::new(EtcdJobs::start(etcd, instance).map_err(|error| refuse("etcd", &error))?)
            }
            (None, Some(folder)) => {
                Arc::new(EmbeddedJobs::open(folder).map_err(|error| refuse("jobs-data", &error))?)
            }
            (None, None) => return Err(ConfigError::JobRecords.into()),
        };
        Ok((store, objects))
    }
}
