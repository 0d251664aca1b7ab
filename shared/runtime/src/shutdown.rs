use std::io;
use std::process;
use std::time::Duration;

use thicket_telemetry::TelemetryArgs;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// Exit status after a second SIGINT.
const EXIT_SIGINT: i32 = 130;
/// Exit status after a second SIGTERM.
const EXIT_SIGTERM: i32 = 143;

/// Says when to stop. Every clone hears it.
#[derive(Debug, Clone)]
pub struct Stop(watch::Receiver<bool>);

/// Tells every [`Stop`] to stop.
#[derive(Debug)]
pub struct StopHandle(watch::Sender<bool>);

impl Stop {
    /// A stop that the program gives itself, for several roles in one process and for tests.
    pub fn by_hand() -> (StopHandle, Self) {
        let (sender, receiver) = watch::channel(false);
        (StopHandle(sender), Self(receiver))
    }

    /// A stop at the first SIGINT or SIGTERM. A second signal ends the process at once, with status 130 or 143.
    ///
    /// The handlers are installed when this returns, which a process that is PID 1 of its container depends on. Must be
    /// called inside a tokio runtime.
    ///
    /// # Errors
    /// Where the handlers cannot be installed.
    pub fn on_signals() -> io::Result<Self> {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let (handle, stop) = Self::by_hand();
        tokio::spawn(async move {
            let mut seen = false;
            loop {
                let status = tokio::select! {
                    _ = interrupt.recv() => EXIT_SIGINT,
                    _ = terminate.recv() => EXIT_SIGTERM,
                };
                if seen {
                    process::exit(status);
                }
                seen = true;
                tracing::info!("stopping; a second signal leaves at once");
                handle.stop();
            }
        });
        Ok(stop)
    }

    /// Waits until it is time to stop.
    pub async fn requested(mut self) {
        let stopped = self.0.wait_for(|stop| *stop).await.is_ok();
        if !stopped {
            // The handle is gone without a word: nobody will ever say stop.
            std::future::pending::<()>().await;
        }
    }
}

impl StopHandle {
    /// Stops.
    pub fn stop(&self) {
        self.0.send_replace(true);
    }
}

/// How a program ends when it does not end well.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The work failed: exit status 1.
    #[error("{0}")]
    Failed(String),
    /// Bad usage, configuration or input: exit status 2.
    #[error("{0}")]
    BadInput(String),
}

impl Failure {
    /// The exit status.
    pub fn exit_status(&self) -> i32 {
        match self {
            Self::Failed(_) => 1,
            Self::BadInput(_) => 2,
        }
    }
}

/// Runs a service program to its end and exits: starts the runtime, listens for signals, sets telemetry up, runs `main`,
/// flushes, prints the one line that says why it failed, and leaves with the right status.
///
/// Never returns, so that neither a silent connection nor a busy model thread can hold the process.
pub fn run<F>(service: &str, telemetry: &TelemetryArgs, main: impl FnOnce(Stop) -> F) -> !
where
    F: Future<Output = Result<(), Failure>>,
{
    let result = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::Failed(format!("runtime cannot start: {error}")))
        .and_then(|runtime| {
            let result = runtime.block_on(async {
                let stop = Stop::on_signals()
                    .map_err(|error| Failure::Failed(format!("signals cannot be handled: {error}")))?;
                let telemetry = thicket_telemetry::init(service, telemetry)
                    .map_err(|error| Failure::BadInput(error.to_string()))?;
                let result = main(stop).await;
                // The exporter blocks; its own limit is inside, this one is for a flush that hangs.
                let flushed = tokio::task::spawn_blocking(move || telemetry.flush());
                let limit = thicket_telemetry::FLUSH_LIMIT + Duration::from_millis(500);
                let _ = tokio::time::timeout(limit, flushed).await;
                result
            });
            runtime.shutdown_background();
            result
        });
    match result {
        Ok(()) => process::exit(0),
        Err(failure) => {
            eprintln!("{service}: {failure}");
            process::exit(failure.exit_status())
        }
    }
}
