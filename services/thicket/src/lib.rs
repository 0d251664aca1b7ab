//! The operator's command, `thicket`: the whole cluster in one process, one-off use of the models, offline tools of
//! the method, and the client of a running cluster.
//!
//! Results go to stdout, with `--json` as one JSON document; logs and progress go to stderr. The exit status is 0 when
//! the work is done, 1 when it failed, 2 for bad usage or input, and 130 or 143 after SIGINT or SIGTERM.

mod capacity;
mod cli;
mod client;
mod cluster;
mod command;
mod console;
pub mod cpu;
mod demo;
mod disk;
mod failure;
mod forget;
mod index;
mod interrupt;
mod metadata;
mod models;
mod npy;
mod scratch;
mod upload;

use std::ffi::OsString;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

pub use failure::Failure;

use cli::{Cli, Parsed};
use scratch::Scratch;

/// How long work that was interrupted may take to leave its files in order.
const INTERRUPTED_WORK_LIMIT: Duration = Duration::from_secs(2);

/// Runs the command line `args`, the program's name first, and tells the exit status.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let outcome = match cli::parse(args) {
        Ok(Parsed::Run(cli)) => execute(*cli),
        Ok(Parsed::Print(text)) => console::print(text.trim_end()).map(|()| 0),
        Err(failure) => Err(failure),
    };
    match outcome {
        Ok(status) => ExitCode::from(status),
        Err(failure) => {
            console::note(&format!("error: {failure}"));
            ExitCode::from(failure.exit_status())
        }
    }
}

/// Runs a command until it is done or a signal ends it; the result is the exit status.
fn execute(cli: Cli) -> Result<u8, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::failed(format!("the runtime cannot be started: {error}")))?;
    let scratch = Arc::new(Scratch::default());
    let outcome = runtime.block_on(async {
        let telemetry = thicket_telemetry::init("thicket", &cli.telemetry).map_err(Failure::bad_input)?;
        let drains = cli.command.drains();
        let outcome = tokio::select! {
            outcome = cli.command.run(scratch.clone()) => outcome.map(|()| 0),
            status = interrupt::signalled(), if !drains => Ok(status),
        };
        let _ = tokio::task::spawn_blocking(move || telemetry.flush()).await;
        outcome
    });
    runtime.shutdown_timeout(INTERRUPTED_WORK_LIMIT);
    scratch.clear();
    outcome
}
