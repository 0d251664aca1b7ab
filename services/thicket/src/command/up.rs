use std::net::SocketAddr;
use std::path::PathBuf;

use thicket_coordinator::{CoordinationArgs, JobConfig};
use thicket_device::ComputeArgs;
use thicket_runtime::{Role, RoleArgs, Stop};

use crate::cluster::{BackendOptions, Backends, Front, OwnToken, url};
use crate::models::ModelArgs;
use crate::{Failure, console};

/// Folder of the data where none is given.
const DEFAULT_DATA: &str = "thicket-data";

/// Runs the whole cluster in this process until a signal, then drains
#[derive(Debug, clap::Args)]
pub(crate) struct UpArgs {
    /// Folder of collections, images, remembered answers and jobs; created where it is missing
    #[arg(long, env = "THICKET_DATA", value_name = "DIR", default_value = DEFAULT_DATA)]
    data: PathBuf,
    /// Address of the gallery's API, which `collections` and `delete` call
    #[arg(long, env = "THICKET_GALLERY_LISTEN", value_name = "ADDR", default_value_t = Role::Gallery.default_listen())]
    gallery_listen: SocketAddr,
    /// Address of the answer service's API, which `adapters` calls
    #[arg(long, env = "THICKET_ANSWER_LISTEN", value_name = "ADDR", default_value_t = Role::Answer.default_listen())]
    answer_listen: SocketAddr,
    #[command(flatten)]
    models: ModelArgs,
    #[command(flatten)]
    compute: ComputeArgs,
    #[command(flatten)]
    coordination: CoordinationArgs,
    #[command(flatten)]
    role: RoleArgs,
}

pub(super) async fn run(args: UpArgs) -> Result<(), Failure> {
    let stop =
        Stop::on_signals().map_err(|error| Failure::failed(format!("signals cannot be handled: {error}")))?;
    let starting = start(&args);
    let (mut backends, mut front) = tokio::select! {
        started = starting => started?,
        // Nothing is served yet, so there is nothing to drain.
        () = stop.clone().requested() => return Ok(()),
    };
    let unexpected = tokio::select! {
        () = stop.requested() => None,
        failure = front.failed() => Some(failure),
        failure = backends.failed() => Some(failure),
    };
    // Calls in flight need the roles behind the coordinator until they have ended.
    let outcome = front.drain().await.and(backends.drain().await);
    unexpected.map_or(outcome, Err)
}

async fn start(args: &UpArgs) -> Result<(Backends, Front), Failure> {
    let models = args.models.find()?;
    let coordination = args.coordination.coordination(models.settings()?.unwrap_or_default());
    let coordination = coordination.map_err(|error| Failure::bad_input(error.to_string()))?;
    std::fs::create_dir_all(&args.data).map_err(|error| {
        Failure::bad_input(format!("data: {} cannot be made: {error}", args.data.display()))
    })?;
    let front_role = args.role.config(Role::Coordinator);
    let tokens = front_role.tokens_file.as_deref().map(OwnToken::add_to).transpose()?;
    let backends = Backends::start(BackendOptions {
        models: models.clone(),
        compute: args.compute.clone(),
        data: args.data.clone(),
        keep_answers: true,
        gallery: args.gallery_listen,
        answer: args.answer_listen,
        tokens,
    })
    .await?;
    let jobs = JobConfig::in_folder(&args.data.join("jobs"));
    let front = Front::start(backends.peers(None), front_role, coordination, Some(jobs)).await?;
    backends.forget_with(front.address);
    console::print(&format!(
        "coordinator  {}\nadmin        {}\ngallery      {}\nembedding    {}  ({})\nanswer       {}  ({})\n\
         data         {}\nready; Ctrl-C drains and stops",
        url(front.address),
        front.admin.map_or_else(|| "none".to_owned(), url),
        url(backends.gallery),
        url(backends.embedding),
        models.embedding.display(),
        url(backends.answer),
        models.answer.display(),
        args.data.display(),
    ))?;
    Ok((backends, front))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use clap::{Args, Command, CommandFactory};
    use thicket_coordinator::{JobArgs, PeerArgs};
    use thicket_discovery::DiscoveryArgs;
    use thicket_telemetry::TelemetryArgs;

    use super::UpArgs;

    fn flags(command: &Command) -> BTreeSet<String> {
        command.get_arguments().map(|flag| flag.get_id().to_string()).collect()
    }

    #[test]
    fn its_coordinator_can_be_set_to_whatever_one_of_its_own_can() {
        // Where the others are and where jobs are kept is said by `up` itself, and logs are every command's.
        let elsewhere = [
            PeerArgs::augment_args(Command::new("peers")),
            DiscoveryArgs::augment_args(Command::new("discovery")),
            JobArgs::augment_args(Command::new("jobs")),
            TelemetryArgs::augment_args(Command::new("telemetry")),
        ];
        let elsewhere: BTreeSet<String> = elsewhere.iter().flat_map(flags).collect();
        let up = flags(&UpArgs::augment_args(Command::new("up")));
        let coordinator = flags(&thicket_coordinator::Args::command());
        let missing: Vec<_> = coordinator.difference(&up).filter(|flag| !elsewhere.contains(*flag)).collect();
        assert!(missing.is_empty(), "{missing:?}");
        assert!(up.contains("ask_ahead") && up.contains("hedge_after"));
    }
}
