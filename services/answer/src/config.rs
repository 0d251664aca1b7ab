use std::path::PathBuf;
use std::time::Duration;

use thicket_device::ComputeArgs;
use thicket_discovery::DiscoveryArgs;
use thicket_imaging::Limits;
use thicket_openai::Server;
use thicket_qwen::{Budgets, Quantization};
use thicket_runtime::{
    DEFAULT_DECODED_MIB, DEFAULT_MAX_DELAY, DEFAULT_QUEUE_LIMIT, Failure, Role, RoleArgs, RoleConfig,
    WorkerOptions, parse_duration,
};
use thicket_telemetry::TelemetryArgs;
use thicket_thi::prompts::PromptSet;

use crate::adapters::folder_of;

/// Questions that the model works on at a time where nothing else is said.
pub const DEFAULT_MAX_BATCH: usize = 32;
/// Bytes of answers kept in the data folder where nothing else is said.
pub const DEFAULT_ANSWER_CACHE_BYTES: u64 = 256 << 20;
/// Longest answer in tokens where nothing else is said.
pub const DEFAULT_MAX_OUTPUT_TOKENS: usize = 1024;
/// Descriptions kept in memory where nothing else is said.
pub const DEFAULT_DESCRIPTIONS: usize = 10_000;
/// Adapters loaded at a time at most where nothing else is said.
pub const DEFAULT_ADAPTER_LIMIT: usize = 8;
/// The prompt file that a model folder may bring along.
pub const PROMPTS_FILE: &str = "prompts.toml";

/// Command line of `thicket-answer`; every flag is also an environment variable.
#[derive(Debug, Clone, clap::Parser)]
#[command(
    name = "thicket-answer",
    version,
    about = "Serves one answer model of Thicket: questions about pedestrian images",
    mut_arg("answer_model", |arg| arg.visible_alias("model"))
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
    /// What the answer role alone has
    #[command(flatten)]
    pub answer: AnswerArgs,
    /// Where the model computes
    #[command(flatten)]
    pub compute: ComputeArgs,
}

/// How the answer model is loaded, for `#[command(flatten)]`.
#[derive(Debug, Clone, clap::Args)]
pub struct LoadingArgs {
    /// Folder of a LoRA adapter as PEFT saves it, merged into the model at start
    #[arg(long, env = "THICKET_ADAPTER", value_name = "DIR")]
    pub adapter: Option<PathBuf>,
    /// Folder whose subfolders are LoRA adapters that can be loaded beside the model while it serves
    #[arg(long, env = "THICKET_ADAPTERS", value_name = "DIR")]
    pub adapters: Option<PathBuf>,
    /// Adapters of that folder to load at start, separated by commas
    #[arg(
        long,
        env = "THICKET_LOAD_ADAPTERS",
        value_name = "NAMES",
        value_delimiter = ',',
        requires = "adapters"
    )]
    pub load_adapters: Vec<String>,
    /// Adapters loaded at a time at most
    #[arg(long, env = "THICKET_ADAPTER_LIMIT", value_name = "N", default_value_t = DEFAULT_ADAPTER_LIMIT)]
    pub adapter_limit: usize,
    /// Keep the language model's matrices in fewer bits: q8 or q4. Halves or quarters their memory and changes answers
    #[arg(long, env = "THICKET_QUANTIZE", value_name = "FORM")]
    pub quantize: Option<Quantization>,
}

impl Default for LoadingArgs {
    /// The model as it is: no adapter, not quantized.
    fn default() -> Self {
        Self {
            adapter: None,
            adapters: None,
            load_adapters: Vec::new(),
            adapter_limit: DEFAULT_ADAPTER_LIMIT,
            quantize: None,
        }
    }
}

impl LoadingArgs {
    /// Names and folders of the adapters to load at start.
    ///
    /// # Errors
    /// [`Failure::BadInput`] for a folder that is not there.
    pub(crate) fn check(&self) -> Result<Vec<(String, PathBuf)>, Failure> {
        for (what, folder) in [("adapter", &self.adapter), ("adapters", &self.adapters)] {
            if let Some(folder) = folder.as_ref().filter(|folder| !folder.is_dir()) {
                return Err(Failure::BadInput(format!("{what} folder {} is not there", folder.display())));
            }
        }
        let folder = |name: &String| {
            let root = self.adapters.as_deref().ok_or_else(|| {
                Failure::BadInput(format!("load-adapters: {name} needs a folder of adapters"))
            })?;
            let found = folder_of(root, name)
                .map_err(|fault| Failure::BadInput(format!("load-adapters: {}: {fault}", root.display())))?;
            Ok((name.clone(), found))
        };
        self.load_adapters.iter().map(folder).collect()
    }
}

/// Bytes and tokens that the work on questions may take, for `#[command(flatten)]`.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct BudgetArgs {
    /// Tokens of one step of the model, at least twice the questions worked on at a time. Smaller steps let a new question
    /// in sooner, larger ones do more work in a second
    #[arg(long, env = "THICKET_STEP_TOKENS", value_name = "N", default_value_t = Budgets::default().step_tokens)]
    pub step_tokens: usize,
    /// Bytes for the keys and values of questions being worked on
    #[arg(long, env = "THICKET_KV_CACHE_BYTES", value_name = "N", default_value_t = Budgets::default().cache_bytes)]
    pub kv_cache_bytes: usize,
    /// Bytes for the keys and values of images that were asked about; 0 keeps none
    #[arg(long, env = "THICKET_PREFIX_CACHE_BYTES", value_name = "N", default_value_t = Budgets::default().prefix_bytes)]
    pub prefix_cache_bytes: usize,
    /// Bytes for what the vision tower made of images; 0 keeps nothing
    #[arg(long, env = "THICKET_FEATURE_CACHE_BYTES", value_name = "N", default_value_t = Budgets::default().feature_bytes)]
    pub feature_cache_bytes: usize,
}

impl BudgetArgs {
    fn budgets(self, sequences: usize) -> Budgets {
        Budgets {
            step_tokens: self.step_tokens,
            sequences,
            cache_bytes: self.kv_cache_bytes,
            prefix_bytes: self.prefix_cache_bytes,
            feature_bytes: self.feature_cache_bytes,
        }
    }
}

/// A model that another program serves, for `#[command(flatten)]`.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct ServedArgs {
    /// Address of a server with the OpenAI chat interface, such as vLLM's http://host:8000/v1, that is asked instead of a
    /// model computed here; it is sent the images. Of a model folder beside it, only `prompts.toml` counts
    #[arg(long, env = "THICKET_ANSWER_SERVER", value_name = "URL", conflicts_with_all = ["adapter", "adapters", "quantize"])]
    pub answer_server: Option<String>,
    /// Name of the model there; may be left out where it serves one
    #[arg(long, env = "THICKET_ANSWER_SERVER_MODEL", value_name = "NAME", requires = "answer_server")]
    pub answer_server_model: Option<String>,
    /// File with the key that the server wants
    #[arg(long, env = "THICKET_ANSWER_SERVER_KEY_FILE", value_name = "FILE", requires = "answer_server")]
    pub answer_server_key_file: Option<PathBuf>,
}

impl ServedArgs {
    /// The server, if there is one, asked up to `concurrency` questions at a time.
    ///
    /// # Errors
    /// [`Failure::BadInput`] for an address or a key file that cannot be used.
    pub fn server(&self, concurrency: usize) -> Result<Option<Server>, Failure> {
        let Some(url) = &self.answer_server else { return Ok(None) };
        let refuse = |error: &dyn std::fmt::Display| Failure::BadInput(format!("answer-server: {error}"));
        let mut server = Server::at(url, concurrency).map_err(|error| refuse(&error))?;
        server.model.clone_from(&self.answer_server_model);
        let Some(file) = &self.answer_server_key_file else { return Ok(Some(server)) };
        let key = std::fs::read_to_string(file)
            .map_err(|cause| refuse(&format!("key file {}: {cause}", file.display())))?;
        server.with_key(key.trim()).map(Some).map_err(|error| refuse(&error))
    }
}

/// Flags of the answer role, for `#[command(flatten)]`.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Answer")]
pub struct AnswerArgs {
    /// Folder of the Qwen2-VL model
    #[arg(long, env = "THICKET_ANSWER_MODEL", value_name = "DIR", required_unless_present = "answer_server")]
    pub answer_model: Option<PathBuf>,
    /// Or a model that another program serves
    #[command(flatten)]
    pub served: ServedArgs,
    /// How the model is loaded
    #[command(flatten)]
    pub loading: LoadingArgs,
    /// Name the model is served under; its folder's unless given
    #[arg(long, env = "THICKET_ANSWER_NAME", value_name = "NAME")]
    pub answer_name: Option<String>,
    /// What to ask the model, as templates; `prompts.toml` of the model folder or the built-in ones unless given
    #[arg(long, env = "THICKET_PROMPTS", value_name = "FILE")]
    pub prompts: Option<PathBuf>,
    /// Questions that may wait for each copy of the model; more are refused
    #[arg(long, env = "THICKET_ANSWER_QUEUE", value_name = "N", default_value_t = DEFAULT_QUEUE_LIMIT)]
    pub answer_queue: usize,
    /// Questions that the model works on at a time
    #[arg(long, env = "THICKET_ANSWER_BATCH", value_name = "N", default_value_t = DEFAULT_MAX_BATCH)]
    pub answer_batch: usize,
    /// How long the first question after a rest waits for others [default: 2ms]
    #[arg(long, env = "THICKET_ANSWER_BATCH_DELAY", value_name = "TIME", value_parser = parse_duration)]
    pub answer_batch_delay: Option<Duration>,
    /// What the work on questions may take
    #[command(flatten)]
    pub budgets: BudgetArgs,
    /// Folder that judgements and descriptions are kept in; without one they are forgotten at the end
    #[arg(long = "data", env = "THICKET_ANSWER_DATA", value_name = "DIR")]
    pub answer_data: Option<PathBuf>,
    /// Bytes of answers kept in that folder, the oldest leaving first
    #[arg(long, env = "THICKET_ANSWER_CACHE_BYTES", value_name = "N", default_value_t = DEFAULT_ANSWER_CACHE_BYTES)]
    pub answer_cache_bytes: u64,
    /// Longest answer in tokens
    #[arg(long, env = "THICKET_MAX_OUTPUT_TOKENS", value_name = "N", default_value_t = DEFAULT_MAX_OUTPUT_TOKENS)]
    pub max_output_tokens: usize,
    /// Descriptions of images kept in memory
    #[arg(long, env = "THICKET_DESCRIPTIONS", value_name = "N", default_value_t = DEFAULT_DESCRIPTIONS)]
    pub descriptions: usize,
}

impl Args {
    /// The settings, not yet validated but for the address and key of a server.
    ///
    /// # Errors
    /// [`Failure::BadInput`] for a server's address or key file that cannot be used.
    pub fn config(&self) -> Result<Config, Failure> {
        let answer = &self.answer;
        let model = ModelSource::Folder(answer.answer_model.clone().unwrap_or_default());
        let config = Config {
            role: self.role.config(Role::Answer),
            discovery: self.discovery.clone(),
            name: model.name(),
            model,
            loading: answer.loading.clone(),
            prompts: answer.prompts.clone(),
            compute: self.compute.clone(),
            queue_limit: answer.answer_queue,
            budgets: answer.budgets.budgets(answer.answer_batch),
            data: answer.answer_data.clone(),
            answer_cache_bytes: answer.answer_cache_bytes,
            max_delay: answer.answer_batch_delay.unwrap_or(DEFAULT_MAX_DELAY),
            max_output_tokens: answer.max_output_tokens,
            descriptions: answer.descriptions,
            images: Limits::default(),
            decoded_mib: DEFAULT_DECODED_MIB,
        };
        let config = match answer.served.server(answer.answer_batch)? {
            Some(server) => config.served_by(server),
            None => config,
        };
        Ok(match &answer.answer_name {
            Some(name) => Config { name: name.clone(), ..config },
            None => config,
        })
    }
}

/// Where the answers come from.
#[derive(Debug, Clone)]
pub enum ModelSource {
    /// A Qwen2-VL folder, computed here.
    Folder(PathBuf),
    /// Another program. Devices, adapters and budgets are its business.
    Server(Server),
}

impl ModelSource {
    /// The name it is served under where none is given.
    fn name(&self) -> String {
        match self {
            Self::Folder(folder) => {
                folder.file_name().unwrap_or(folder.as_os_str()).to_string_lossy().into_owned()
            }
            Self::Server(server) => server.model.clone().unwrap_or_else(|| "served".to_owned()),
        }
    }
}

/// Settings of an answer role.
#[derive(Debug, Clone)]
pub struct Config {
    /// Listeners, deadlines, tokens, audit log.
    pub role: RoleConfig,
    /// How the others find this role. Default: not at all.
    pub discovery: DiscoveryArgs,
    /// Where the answers come from.
    pub model: ModelSource,
    /// How it is loaded. Default: as it is.
    pub loading: LoadingArgs,
    /// Name the model is served under.
    pub name: String,
    /// Prompt file; `None` takes [`PROMPTS_FILE`] of the model folder, or the built-in wording where there is none.
    pub prompts: Option<PathBuf>,
    /// Where the model computes, with a copy of it on each device, and how. Default: f32 on the CPU.
    pub compute: ComputeArgs,
    /// Questions that may wait for each copy of the model, at least 1. Default: [`DEFAULT_QUEUE_LIMIT`].
    pub queue_limit: usize,
    /// Questions that the model works on at a time and what they may take. Default: [`DEFAULT_MAX_BATCH`] questions.
    pub budgets: Budgets,
    /// Folder that answers are kept in; created where it is missing. Default: none, they are forgotten at the end.
    pub data: Option<PathBuf>,
    /// Bytes of answers kept there. Default: [`DEFAULT_ANSWER_CACHE_BYTES`].
    pub answer_cache_bytes: u64,
    /// How long the first question after a rest waits for others. Default: [`DEFAULT_MAX_DELAY`].
    pub max_delay: Duration,
    /// Longest answer in tokens, at least 1. Default: [`DEFAULT_MAX_OUTPUT_TOKENS`].
    pub max_output_tokens: usize,
    /// Descriptions kept in memory; 0 keeps none. Default: [`DEFAULT_DESCRIPTIONS`].
    pub descriptions: usize,
    /// Bounds on an image.
    pub images: Limits,
    /// Memory that decoded images may take, in MiB, at least 1. Default: [`DEFAULT_DECODED_MIB`].
    pub decoded_mib: usize,
}

impl Config {
    /// The defaults on a free loopback port: a role inside another process or a test.
    pub fn in_process(model: impl Into<PathBuf>) -> Self {
        let model = ModelSource::Folder(model.into());
        Self {
            role: RoleConfig::in_process(),
            discovery: DiscoveryArgs::default(),
            name: model.name(),
            model,
            loading: LoadingArgs::default(),
            prompts: None,
            compute: ComputeArgs::default(),
            queue_limit: DEFAULT_QUEUE_LIMIT,
            budgets: Budgets { sequences: DEFAULT_MAX_BATCH, ..Budgets::default() },
            data: None,
            answer_cache_bytes: DEFAULT_ANSWER_CACHE_BYTES,
            max_delay: DEFAULT_MAX_DELAY,
            max_output_tokens: DEFAULT_MAX_OUTPUT_TOKENS,
            descriptions: DEFAULT_DESCRIPTIONS,
            images: Limits::default(),
            decoded_mib: DEFAULT_DECODED_MIB,
        }
    }

    /// The same with another program's answers. The prompts of the model folder that was there, if it has any, stay.
    #[must_use]
    pub fn served_by(self, server: Server) -> Self {
        let prompts = match (self.prompts, &self.model) {
            (None, ModelSource::Folder(folder)) => {
                Some(folder.join(PROMPTS_FILE)).filter(|file| file.exists())
            }
            (prompts, _) => prompts,
        };
        let model = ModelSource::Server(server);
        Self { prompts, name: model.name(), model, ..self }
    }

    /// Checks every setting that can be checked without reading a file.
    ///
    /// # Errors
    /// [`Failure::BadInput`] with the setting and the actual value.
    pub fn validate(&self) -> Result<(), Failure> {
        for (setting, value) in [
            ("answer-queue", self.queue_limit),
            ("answer-batch", self.budgets.sequences),
            ("max-output-tokens", self.max_output_tokens),
        ] {
            if value == 0 {
                return Err(Failure::BadInput(format!("{setting}: at least 1, got 0")));
            }
        }
        let Budgets { step_tokens, sequences, .. } = self.budgets;
        let least = sequences.saturating_mul(2);
        if step_tokens < least {
            return Err(Failure::BadInput(format!(
                "step-tokens: at least {least}, twice answer-batch, got {step_tokens}"
            )));
        }
        Ok(())
    }

    /// Reads the prompts.
    ///
    /// # Errors
    /// [`Failure::BadInput`] where a file that is given, or that the model folder brings along, cannot be used.
    pub fn read_prompts(&self) -> Result<PromptSet, Failure> {
        let file = match (&self.prompts, &self.model) {
            (Some(file), _) => file.clone(),
            (None, ModelSource::Folder(folder)) => folder.join(PROMPTS_FILE),
            (None, ModelSource::Server(_)) => return Ok(PromptSet::default()),
        };
        if self.prompts.is_none() && !file.exists() {
            return Ok(PromptSet::default());
        }
        let unusable =
            |reason: String| Failure::BadInput(format!("prompt file {}: {reason}", file.display()));
        let text = std::fs::read_to_string(&file).map_err(|cause| unusable(cause.to_string()))?;
        PromptSet::parse(&text).map_err(|error| unusable(error.to_string()))
    }

    pub(crate) fn worker(&self) -> WorkerOptions {
        WorkerOptions {
            name: "answer-model",
            queue_limit: self.queue_limit,
            max_batch: self.budgets.sequences,
            max_delay: self.max_delay,
            stuck_after: self.role.stuck_after,
        }
    }
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
    fn a_server_stands_in_for_the_folder_and_takes_no_adapter() {
        let served = |flags: &[&str]| {
            let flags = [&["thicket-answer", "--answer-server", "http://127.0.0.1:1/v1"], flags].concat();
            Args::try_parse_from(flags).ok().map(|args| args.config())
        };
        let config = served(&["--answer-server-model", "qwen"]).unwrap().unwrap();
        assert!(matches!(config.model, ModelSource::Server(_)) && config.name == "qwen");
        assert!(served(&["--adapter", "lora"]).is_none());
        let error = served(&["--answer-server-key-file", "/nonexistent/key"]).unwrap().unwrap_err();
        assert!(error.to_string().starts_with("answer-server: key file /nonexistent/key"), "{error}");
    }

    #[test]
    fn a_folder_or_a_server_is_needed() {
        assert!(Args::try_parse_from(["thicket-answer"]).is_err());
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
        let config = Args::parse_from(["thicket-answer", "--model", "models/qwen-small"]).config().unwrap();
        assert!(
            matches!(config.model, ModelSource::Folder(folder) if folder.as_os_str() == "models/qwen-small")
        );
        assert_eq!(config.name, "qwen-small");
    }

    #[test]
    fn an_answer_of_no_tokens_is_refused() {
        let config = Config { max_output_tokens: 0, ..Config::in_process("x") };
        assert!(matches!(config.validate(), Err(Failure::BadInput(_))));
        assert_eq!(Config::in_process("x").validate(), Ok(()));
    }

    #[test]
    fn steps_that_leave_prompts_no_room_are_refused_with_both_numbers() {
        let budgets = Budgets { step_tokens: 63, sequences: 32, ..Budgets::default() };
        let config = Config { budgets, ..Config::in_process("x") };
        let Err(Failure::BadInput(line)) = config.validate() else { panic!("63 tokens for 32 questions") };
        assert_eq!(line, "step-tokens: at least 64, twice answer-batch, got 63");
    }

    #[test]
    fn prompts_come_from_the_flag_then_from_the_model_folder_then_from_the_built_in_ones() {
        let folder = tempfile::tempdir().expect("a folder");
        let version = |config: &Config| config.read_prompts().expect("usable").version().to_owned();
        let config = Config::in_process(folder.path());
        let built_in = version(&config);
        std::fs::write(folder.path().join(PROMPTS_FILE), "[describe]\ntemplate = 'What is there?'")
            .expect("written");
        let brought_along = version(&config);
        assert_ne!(brought_along, built_in);
        let other = folder.path().join("other.toml");
        std::fs::write(&other, "[describe]\ntemplate = 'Who is there?'").expect("written");
        let given = Config { prompts: Some(other), ..config.clone() };
        assert!(![brought_along, built_in].contains(&version(&given)));
    }

    #[test]
    fn a_prompt_file_that_is_missing_or_damaged_is_bad_input() {
        let folder = tempfile::tempdir().expect("a folder");
        let missing =
            Config { prompts: Some(folder.path().join("missing")), ..Config::in_process(folder.path()) };
        assert!(matches!(missing.read_prompts(), Err(Failure::BadInput(_))));
        std::fs::write(folder.path().join(PROMPTS_FILE), "[locate]\ntemplate = 'no caption'")
            .expect("written");
        let damaged = Config::in_process(folder.path()).read_prompts();
        assert!(matches!(damaged, Err(Failure::BadInput(_))));
    }
}
