use std::path::{Path, PathBuf};
use std::time::Duration;

use thicket_device::ComputeArgs;
use thicket_discovery::DiscoveryArgs;
use thicket_imaging::Limits;
use thicket_runtime::{
    DEFAULT_DECODED_MIB, DEFAULT_MAX_DELAY, DEFAULT_QUEUE_LIMIT, Failure, Role, RoleArgs, RoleConfig,
    WorkerOptions, parse_duration,
};
use thicket_telemetry::TelemetryArgs;

/// Tokens of a forward pass at most where nothing else is said: 21 images of 384 by 128 pixels in patches of 16, or 53
/// texts of 77 tokens.
pub const DEFAULT_BATCH_TOKENS: usize = 4096;

/// Command line of `thicket-embedding`; every flag is also an environment variable.
#[derive(Debug, Clone, clap::Parser)]
#[command(
    name = "thicket-embedding",
    version,
    about = "Serves one embedding model of Thicket: texts and images to vectors",
    mut_arg("embedding_model", |arg| arg.visible_alias("model"))
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
    /// What the embedding role alone has
    #[command(flatten)]
    pub embedding: EmbeddingArgs,
    /// Where the model computes
    #[command(flatten)]
    pub compute: ComputeArgs,
}

/// Flags of the embedding role, for `#[command(flatten)]`.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Embedding")]
pub struct EmbeddingArgs {
    /// Checkpoint folder of the model
    #[arg(long, env = "THICKET_EMBEDDING_MODEL", value_name = "DIR")]
    pub embedding_model: PathBuf,
    /// Name the model is served under; its folder's unless given
    #[arg(long, env = "THICKET_EMBEDDING_NAME", value_name = "NAME")]
    pub embedding_name: Option<String>,
    /// Calls for texts and single images that may wait for each copy of the model; more are refused
    #[arg(long, env = "THICKET_EMBEDDING_QUEUE", value_name = "N", default_value_t = DEFAULT_QUEUE_LIMIT)]
    pub embedding_queue: usize,
    /// Tokens of a forward pass at most: words of texts with their padding, or patches of images
    #[arg(long, env = "THICKET_EMBEDDING_BATCH_TOKENS", value_name = "N", default_value_t = DEFAULT_BATCH_TOKENS)]
    pub embedding_batch_tokens: usize,
    /// How long the first of a batch waits for others [default: 2ms]
    #[arg(long, env = "THICKET_EMBEDDING_BATCH_DELAY", value_name = "TIME", value_parser = parse_duration)]
    pub embedding_batch_delay: Option<Duration>,
}

impl Args {
    /// The settings, not yet validated.
    pub fn config(&self) -> Config {
        let embedding = &self.embedding;
        Config {
            role: self.role.config(Role::Embedding),
            discovery: self.discovery.clone(),
            name: embedding.embedding_name.clone().unwrap_or_else(|| folder_name(&embedding.embedding_model)),
            model: embedding.embedding_model.clone(),
            compute: self.compute.clone(),
            queue_limit: embedding.embedding_queue,
            batch_tokens: embedding.embedding_batch_tokens,
            max_delay: embedding.embedding_batch_delay.unwrap_or(DEFAULT_MAX_DELAY),
            images: Limits::default(),
            decoded_mib: DEFAULT_DECODED_MIB,
        }
    }
}

/// Settings of an embedding role.
#[derive(Debug, Clone)]
pub struct Config {
    /// Listeners, deadlines, tokens, audit log.
    pub role: RoleConfig,
    /// How the others find this role. Default: not at all.
    pub discovery: DiscoveryArgs,
    /// Checkpoint folder of the model.
    pub model: PathBuf,
    /// Name the model is served under.
    pub name: String,
    /// Where the model computes, with a copy of it on each device, and how. Default: f32 on the CPU.
    pub compute: ComputeArgs,
    /// Jobs that may wait for each copy of the model, at least 1. Every image is one; a call for texts is one for every
    /// [`Self::batch_tokens`] that it has. Default: [`DEFAULT_QUEUE_LIMIT`].
    pub queue_limit: usize,
    /// Tokens of a forward pass at most, padding included, at least 1; one text or image may have more. Default:
    /// [`DEFAULT_BATCH_TOKENS`].
    pub batch_tokens: usize,
    /// How long the first of a batch waits for others. Default: [`DEFAULT_MAX_DELAY`].
    pub max_delay: Duration,
    /// Bounds on an image.
    pub images: Limits,
    /// Memory that images prepared for the model may take, in MiB, at least 1. Default: [`DEFAULT_DECODED_MIB`].
    pub decoded_mib: usize,
}

impl Config {
    /// The defaults on a free loopback port: a role inside another process or a test.
    pub fn in_process(model: impl Into<PathBuf>) -> Self {
        let model = model.into();
        Self {
            role: RoleConfig::in_process(),
            discovery: DiscoveryArgs::default(),
            name: folder_name(&model),
            model,
            compute: ComputeArgs::default(),
            queue_limit: DEFAULT_QUEUE_LIMIT,
            batch_tokens: DEFAULT_BATCH_TOKENS,
            max_delay: DEFAULT_MAX_DELAY,
            images: Limits::default(),
            decoded_mib: DEFAULT_DECODED_MIB,
        }
    }

    /// Checks every setting that can be checked without reading weights.
    ///
    /// # Errors
    /// [`Failure::BadInput`] with the setting and the actual value.
    pub fn validate(&self) -> Result<(), Failure> {
        for (setting, value) in
            [("embedding-queue", self.queue_limit), ("embedding-batch-tokens", self.batch_tokens)]
        {
            if value == 0 {
                return Err(Failure::BadInput(format!("{setting}: at least 1, got 0")));
            }
        }
        Ok(())
    }

    pub(crate) fn worker(&self) -> WorkerOptions {
        WorkerOptions {
            name: "embedding-model",
            queue_limit: self.queue_limit,
            max_batch: self.batch_tokens,
            max_delay: self.max_delay,
            stuck_after: self.role.stuck_after,
        }
    }
}

fn folder_name(folder: &Path) -> String {
    folder.file_name().unwrap_or(folder.as_os_str()).to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::*;

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
    fn the_model_has_a_short_flag_name_here_and_is_named_after_its_folder() {
        let config = Args::parse_from(["thicket-embedding", "--model", "models/rde-small"]).config();
        assert_eq!(config.model, Path::new("models/rde-small"));
        assert_eq!(config.name, "rde-small");
        assert_eq!(config.max_delay, DEFAULT_MAX_DELAY);
    }

    #[test]
    fn a_queue_or_a_batch_of_nothing_is_refused() {
        for config in [
            Config { queue_limit: 0, ..Config::in_process("x") },
            Config { batch_tokens: 0, ..Config::in_process("x") },
        ] {
            assert!(matches!(config.validate(), Err(Failure::BadInput(_))), "{config:?}");
        }
        assert_eq!(Config::in_process("x").validate(), Ok(()));
    }
}
