use std::path::{Path, PathBuf};

use thicket_discovery::{Address, AddressError, DiscoveryArgs, StaticPeer};
use thicket_runtime::{Failure, Role, RoleArgs, RoleConfig};
use thicket_telemetry::TelemetryArgs;
use thicket_thi::{Settings, SettingsError};

use crate::{Calling, CallingArgs, DEFAULT_JOB_QUERIES, JobArgs, JobConfig};

/// Searches and ingests served at a time where nothing else is said.
pub const DEFAULT_MAX_CALLS: usize = 256;
const MOST_CALLS: usize = 1 << 20;
const MOST_JOB_QUERIES: usize = 4_096;

/// Command line of `thicket-coordinator`; every flag is also an environment variable.
#[derive(Debug, Clone, clap::Parser)]
#[command(
    name = "thicket-coordinator",
    version,
    about = "Runs Thicket's person searches: rank, ask, refine, rank again"
)]
pub struct Args {
    /// What every role has
    #[command(flatten)]
    pub role: RoleArgs,
    /// Logs and traces
    #[command(flatten)]
    pub telemetry: TelemetryArgs,
    /// How the others find this role
    #[command(flatten)]
    pub discovery: DiscoveryArgs,
    /// Where the other roles are
    #[command(flatten)]
    pub peers: PeerArgs,
    /// Where jobs are kept
    #[command(flatten)]
    pub jobs: JobArgs,
    /// How it works
    #[command(flatten)]
    pub coordination: CoordinationArgs,
}

impl Args {
    /// The settings, validated but for the peers' addresses.
    ///
    /// # Errors
    /// [`ConfigError`] for a setting out of range or a token file that cannot be read.
    pub fn config(&self) -> Result<Config, ConfigError> {
        let Coordination { interaction, calling, job_queries, max_calls } =
            self.coordination.coordination(Settings::default())?;
        let jobs = self.jobs.config(!self.discovery.etcd.is_empty())?;
        Ok(Config {
            role: self.role.config(Role::Coordinator),
            discovery: self.discovery.clone(),
            peers: self.peers.peers()?,
            interaction,
            calling,
            jobs: jobs.map(|jobs| JobConfig { queries: job_queries, ..jobs }),
            max_calls,
        })
    }
}

/// Flags of how a coordinator works, wherever it runs, for `#[command(flatten)]`.
#[derive(Debug, Clone, clap::Args)]
pub struct CoordinationArgs {
    /// How the interaction runs
    #[command(flatten)]
    pub interaction: InteractionArgs,
    /// How the other roles are called
    #[command(flatten)]
    pub calling: CallingArgs,
    /// Queries of jobs that this coordinator searches for at a time
    #[arg(long, env = "THICKET_JOB_QUERIES", value_name = "N", default_value_t = DEFAULT_JOB_QUERIES, help_heading = "Limits")]
    pub job_queries: usize,
    /// Searches and ingests served at a time; more are refused
    #[arg(long, env = "THICKET_MAX_CALLS", value_name = "N", default_value_t = DEFAULT_MAX_CALLS, help_heading = "Limits")]
    pub max_calls: usize,
}

/// How a coordinator works, wherever it runs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Coordination {
    /// As in [`Config`].
    pub interaction: Settings,
    /// As in [`Config`].
    pub calling: Calling,
    /// As in [`JobConfig::queries`].
    pub job_queries: usize,
    /// As in [`Config`].
    pub max_calls: usize,
}

impl Coordination {
    /// The defaults, with an interaction.
    pub fn of(interaction: Settings) -> Self {
        Self {
            interaction,
            calling: Calling::default(),
            job_queries: DEFAULT_JOB_QUERIES,
            max_calls: DEFAULT_MAX_CALLS,
        }
    }
}

impl CoordinationArgs {
    /// The validated settings; what the flags leave open of the interaction is as in `chosen`.
    ///
    /// # Errors
    /// [`ConfigError`] for the first value out of range.
    pub fn coordination(&self, chosen: Settings) -> Result<Coordination, ConfigError> {
        let &Self { job_queries, max_calls, .. } = self;
        if !(1..=MOST_CALLS).contains(&max_calls) {
            return Err(ConfigError::MaxCalls { limit: MOST_CALLS, actual: max_calls });
        }
        if !(1..=MOST_JOB_QUERIES).contains(&job_queries) {
            return Err(ConfigError::JobQueries { limit: MOST_JOB_QUERIES, actual: job_queries });
        }
        Ok(Coordination {
            interaction: self.interaction.settings(chosen)?,
            calling: self.calling.calling()?,
            job_queries,
            max_calls,
        })
    }
}

/// Flags that name the other roles, for `#[command(flatten)]`.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Other roles")]
pub struct PeerArgs {
    /// Addresses of the embedding replicas, without etcd; a name may stand for several
    #[arg(long, env = "THICKET_EMBEDDING", value_name = "URL", value_delimiter = ',', default_values_t = [default_url(Role::Embedding)])]
    pub embedding: Vec<String>,
    /// Address of the gallery, without etcd
    #[arg(long, env = "THICKET_GALLERY", value_name = "URL", default_value_t = default_url(Role::Gallery))]
    pub gallery: String,
    /// Addresses of the gallery's read replicas, without etcd; a name may stand for several
    #[arg(long, env = "THICKET_GALLERY_REPLICAS", value_name = "URL", value_delimiter = ',')]
    pub gallery_replicas: Vec<String>,
    /// Addresses of the answer replicas, without etcd; a name may stand for several
    #[arg(long, env = "THICKET_ANSWER", value_name = "URL", value_delimiter = ',', default_values_t = [default_url(Role::Answer)])]
    pub answer: Vec<String>,
    /// File with the bearer token that the other roles want; none is sent without it
    #[arg(long, env = "THICKET_TOKEN_FILE", value_name = "FILE")]
    pub token_file: Option<PathBuf>,
}

impl PeerArgs {
    /// Reads the token file, if there is one.
    ///
    /// # Errors
    /// [`ConfigError::Token`] where it cannot be read or is empty.
    pub fn peers(&self) -> Result<Peers, ConfigError> {
        Ok(Peers {
            embedding: self.embedding.clone(),
            gallery: self.gallery.clone(),
            gallery_replicas: self.gallery_replicas.clone(),
            answer: self.answer.clone(),
            token: self.token_file.as_deref().map(read_token).transpose()?,
        })
    }
}

/// Flags of the interaction's defaults, for `#[command(flatten)]`.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Interaction, where a caller names no value")]
pub struct InteractionArgs {
    /// Candidates looked at, one a round, 1 to 100 [default: 5, or what comes with the model of `thicket up`]
    #[arg(long, env = "THICKET_ROUNDS", value_name = "K")]
    pub rounds: Option<usize>,
    /// Similarity above which a query is refined in round 1 only, and in later rounds only otherwise [default: 0.5, or what
    /// comes with the model of `thicket up`]
    #[arg(long, env = "THICKET_XI", value_name = "X", allow_negative_numbers = true)]
    pub xi: Option<f32>,
    /// Weight of the original query in the final score, 0 to 1 [default: 0.8, or what comes with the model of `thicket up`]
    #[arg(long, env = "THICKET_LAMBDA", value_name = "L")]
    pub lambda: Option<f32>,
    /// An answer is Yes when p(Yes) is above this, 0 to 1 [default: 0.5, or what comes with the model of `thicket up`]
    #[arg(long, env = "THICKET_YES_THRESHOLD", value_name = "P")]
    pub yes_threshold: Option<f64>,
}

impl InteractionArgs {
    /// The validated settings; what is not given is as in `chosen`.
    ///
    /// # Errors
    /// [`SettingsError`] for the first value out of range.
    pub fn settings(&self, chosen: Settings) -> Result<Settings, SettingsError> {
        Settings::new(
            self.rounds.unwrap_or(chosen.rounds()),
            self.xi.unwrap_or(chosen.xi()),
            self.lambda.unwrap_or(chosen.lambda()),
            self.yes_threshold.unwrap_or(chosen.yes_threshold()),
        )
    }
}

/// Where the other roles are and how to call them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peers {
    /// Addresses of the embedding replicas, each `http://host:port`; a name is resolved again and again, and every address
    /// of it is a replica.
    pub embedding: Vec<String>,
    /// Address of the gallery that takes writes, `http://host:port`.
    pub gallery: String,
    /// Addresses of its read replicas, as those of the embedding role.
    pub gallery_replicas: Vec<String>,
    /// Addresses of the answer replicas, as those of the embedding role.
    pub answer: Vec<String>,
    /// Bearer token sent with every call; `None` sends none.
    pub token: Option<String>,
}

impl Default for Peers {
    /// Every role on loopback, on the port it listens on by default.
    fn default() -> Self {
        Self {
            embedding: vec![default_url(Role::Embedding)],
            gallery: default_url(Role::Gallery),
            gallery_replicas: Vec::new(),
            answer: vec![default_url(Role::Answer)],
            token: None,
        }
    }
}

impl Peers {
    /// The addresses, read.
    ///
    /// # Errors
    /// [`ConfigError::Address`] or [`ConfigError::Secure`] for the first that is not `http://host:port`.
    pub fn list(&self) -> Result<Vec<StaticPeer>, ConfigError> {
        let roles = [
            (Role::Embedding, self.embedding.as_slice(), true),
            (Role::Gallery, std::slice::from_ref(&self.gallery), true),
            (Role::Gallery, self.gallery_replicas.as_slice(), false),
            (Role::Answer, self.answer.as_slice(), true),
        ];
        let mut peers = Vec::new();
        for (role, addresses, writable) in roles {
            for address in addresses {
                let address = Address::parse(address)?;
                if address.is_secure() {
                    return Err(ConfigError::Secure { address });
                }
                peers.push(StaticPeer { role, address, writable });
            }
        }
        Ok(peers)
    }
}

/// Settings of a coordinator.
#[derive(Debug, Clone)]
pub struct Config {
    /// Listeners, deadlines, tokens, audit log.
    pub role: RoleConfig,
    /// How the others find this role. Default: not at all.
    pub discovery: DiscoveryArgs,
    /// Where the other roles are, without etcd, and the token that they want.
    pub peers: Peers,
    /// The interaction where a caller names no value.
    pub interaction: Settings,
    /// Asking ahead, second copies, calls that are lost.
    pub calling: Calling,
    /// How jobs are kept and done; `None`: they are not.
    pub jobs: Option<JobConfig>,
    /// Searches and ingests served at a time, at least 1, and calls about jobs as many; more are refused with RESOURCE_EXHAUSTED. Default:
    /// [`DEFAULT_MAX_CALLS`].
    pub max_calls: usize,
}

impl Config {
    /// The defaults on a free loopback port: a coordinator inside another process or a test.
    pub fn in_process(peers: Peers) -> Self {
        Self {
            role: RoleConfig::in_process(),
            discovery: DiscoveryArgs::default(),
            peers,
            interaction: Settings::default(),
            calling: Calling::default(),
            jobs: None,
            max_calls: DEFAULT_MAX_CALLS,
        }
    }
}

/// A setting that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A default of the interaction is out of range.
    #[error(transparent)]
    Interaction(#[from] SettingsError),
    /// Too many rounds asked ahead.
    #[error("ask-ahead must be 0 to {limit}, not {actual}")]
    AskAhead {
        /// The largest value.
        limit: usize,
        /// What was given.
        actual: usize,
    },
    /// How other roles are called.
    #[error(transparent)]
    Calling(#[from] thicket_dispatch::SettingsError),
    /// The address of another role.
    #[error("peer {0}")]
    Address(#[from] AddressError),
    /// An address with TLS.
    #[error(
        "peer {address}: roles call each other without TLS in this version, write it as http://host:port"
    )]
    Secure {
        /// The address.
        address: Address,
    },
    /// No call or absurdly many at a time.
    #[error("max-calls must be 1 to {limit}, not {actual}")]
    MaxCalls {
        /// The largest value.
        limit: usize,
        /// What was given.
        actual: usize,
    },
    /// No query of a job or absurdly many at a time.
    #[error("job-queries must be 1 to {limit}, not {actual}")]
    JobQueries {
        /// The largest value.
        limit: usize,
        /// What was given.
        actual: usize,
    },
    /// Jobs have nowhere to keep their records.
    #[error("jobs-store is given, but neither etcd nor jobs-data: jobs need a place for their records")]
    JobRecords,
    /// The token file cannot be used.
    #[error("token file {path} cannot be used: {reason}")]
    Token {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::BadInput(error.to_string())
    }
}

fn default_url(role: Role) -> String {
    format!("http://{}", role.default_listen())
}

fn read_token(path: &Path) -> Result<String, ConfigError> {
    let unusable = |reason: String| ConfigError::Token { path: path.to_owned(), reason };
    let text = std::fs::read_to_string(path).map_err(|cause| unusable(cause.to_string()))?;
    match text.trim() {
        "" => Err(unusable("it is empty".to_owned())),
        token => Ok(token.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::*;

    fn config(flags: &[&str]) -> Result<Config, ConfigError> {
        Args::parse_from([&["thicket-coordinator"], flags].concat()).config()
    }

    #[test]
    fn the_command_line_is_well_formed() {
        Args::command().debug_assert();
    }

    #[test]
    fn every_flag_has_an_environment_variable() {
        for arg in Args::command()
            .get_arguments()
            .filter(|arg| !["help", "version"].contains(&arg.get_id().as_str()))
        {
            let variable = arg.get_env().unwrap_or_else(|| panic!("{} has none", arg.get_id()));
            assert!(variable.to_string_lossy().starts_with("THICKET_"), "{variable:?}");
        }
    }

    #[test]
    fn a_setting_out_of_range_is_refused_by_name() {
        for (flags, name) in [
            (["--rounds", "0"], "rounds"),
            (["--xi", "nan"], "xi"),
            (["--xi", "inf"], "xi"),
            (["--lambda", "1.1"], "lambda"),
            (["--yes-threshold", "2"], "yes_threshold"),
            (["--max-calls", "0"], "max-calls"),
            (["--job-queries", "0"], "job-queries"),
            (["--jobs-store", "file:///tmp"], "jobs-store"),
        ] {
            let error = config(&flags).unwrap_err().to_string();
            assert!(error.starts_with(name), "{flags:?}: {error}");
        }
    }

    #[test]
    fn the_defaults_that_the_help_names_are_those_in_force() {
        let settings = config(&[]).unwrap().interaction;
        let command = Args::command();
        for (flag, value) in [
            ("rounds", settings.rounds().to_string()),
            ("xi", settings.xi().to_string()),
            ("lambda", settings.lambda().to_string()),
            ("yes_threshold", settings.yes_threshold().to_string()),
        ] {
            let flag = command.get_arguments().find(|arg| arg.get_id().as_str() == flag).unwrap();
            let help = flag.get_help().unwrap().to_string();
            assert!(help.contains(&format!("[default: {value}, ")), "{help}");
        }
    }

    #[test]
    fn what_no_flag_sets_of_the_interaction_is_as_it_was_chosen() {
        let chosen = Settings::new(7, 0.25, 0.5, 0.75).unwrap();
        let Args { coordination, .. } = Args::parse_from(["thicket-coordinator", "--lambda", "0.9"]);
        let settings = coordination.coordination(chosen).unwrap().interaction;
        assert_eq!(settings, Settings::new(7, 0.25, 0.9, 0.75).unwrap());
    }

    #[test]
    fn a_negative_threshold_is_a_value_and_not_a_flag() {
        assert_eq!(config(&["--xi", "-0.25"]).unwrap().interaction.xi(), -0.25);
    }

    #[test]
    fn the_other_roles_are_expected_on_their_own_ports() {
        let peers = config(&[]).unwrap().peers;
        assert_eq!(peers, Peers::default());
        assert_eq!(peers.gallery, "http://127.0.0.1:7702");
    }

    #[test]
    fn several_replicas_stand_in_one_flag_and_what_cannot_be_called_is_refused() {
        let list = |answer: &str| config(&["--answer", answer]).unwrap().peers.list();
        assert_eq!(list("http://a:1,http://b:2").unwrap().len(), 4);
        assert!(matches!(list("a:1"), Err(ConfigError::Address(_))));
        assert!(matches!(list("https://a:1"), Err(ConfigError::Secure { .. })));
    }

    #[test]
    fn jobs_need_a_place_for_objects_and_one_for_records() {
        assert!(config(&[]).unwrap().jobs.is_none());
        let alone =
            config(&["--jobs-store", "file:///objects", "--jobs-data", "/records"]).unwrap().jobs.unwrap();
        assert_eq!(alone.records, Some("/records".into()));
        let many =
            config(&["--jobs-store", "s3://people", "--etcd", "http://etcd:2379"]).unwrap().jobs.unwrap();
        assert_eq!(many.records, None);
    }

    #[test]
    fn a_token_file_that_is_not_there_is_refused() {
        let error = config(&["--token-file", "/nonexistent/token"]).unwrap_err();
        assert!(matches!(error, ConfigError::Token { .. }));
    }
}
