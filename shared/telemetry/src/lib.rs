//! Logs, traces and metrics, set up the same way in every role.
//!
//! Logs go to stderr. Metrics are always on: [`instruments`] writes them, [`prometheus_text`] prints them for
//! `/metrics`. Traces are exported over OTLP where an endpoint is given. No text, image, answer, metadata value or token
//! belongs in a span or a log line unless [`Telemetry::content`] says so.

mod export;
mod metrics;
/// Names of instruments and attributes.
pub mod names;
/// W3C trace context in request headers.
pub mod propagate;

use std::io::IsTerminal;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::trace::TracerProvider;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry};

pub use metrics::{Instruments, Side, code_name, instruments, prometheus_text, record_rpc};

/// Longest time that [`Telemetry::flush`] waits for the exporter.
pub const FLUSH_LIMIT: Duration = Duration::from_secs(3);
/// Log filter where none is given.
pub const DEFAULT_LOG: &str = "info";

static SERVICE_NAME: OnceLock<String> = OnceLock::new();

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// One line for a person.
    Text,
    /// One JSON object a line.
    Json,
}

/// Flags about logs and traces, for `#[command(flatten)]`.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Telemetry")]
pub struct TelemetryArgs {
    /// Which log lines to print: `warn`, `info`, `debug`, or directives such as `info,thicket_gallery=debug`
    #[arg(long = "log", env = "THICKET_LOG", default_value = DEFAULT_LOG, value_name = "FILTER", global = true)]
    pub log: String,
    /// Form of the log lines on stderr
    #[arg(long, env = "THICKET_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text, global = true)]
    pub log_format: LogFormat,
    /// Send traces to this OTLP/gRPC collector, as in `http://127.0.0.1:4317`; none are recorded without it
    #[arg(long, env = "THICKET_OTLP_ENDPOINT", value_name = "URL", global = true)]
    pub otlp_endpoint: Option<String>,
    /// Allow query texts and answers in spans and logs
    #[arg(long, env = "THICKET_TELEMETRY_CONTENT", global = true)]
    pub telemetry_content: bool,
}

impl Default for TelemetryArgs {
    fn default() -> Self {
        Self {
            log: DEFAULT_LOG.to_owned(),
            log_format: LogFormat::Text,
            otlp_endpoint: None,
            telemetry_content: false,
        }
    }
}

/// Why telemetry could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The log filter has an error.
    #[error("log filter `{filter}` is not valid: {reason}")]
    Filter {
        /// The filter as given.
        filter: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The collector's address cannot be used.
    #[error("otlp endpoint `{endpoint}` is not valid: {reason}")]
    Endpoint {
        /// The endpoint as given.
        endpoint: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Another library has installed its own subscriber.
    #[error("logging is set up already by someone else")]
    Installed,
}

/// A handle on the telemetry of this process.
#[derive(Debug, Clone)]
pub struct Telemetry {
    traces: Option<SdkTracerProvider>,
    content: bool,
}

impl Telemetry {
    /// Whether texts and answers may appear in spans and logs.
    pub fn content(&self) -> bool {
        self.content
    }

    /// Exports what is still held, for at most [`FLUSH_LIMIT`]. Blocks.
    pub fn flush(&self) {
        if let Some(traces) = &self.traces
            && let Err(error) = traces.shutdown_with_timeout(FLUSH_LIMIT)
        {
            tracing::warn!(%error, "some spans were not exported");
        }
    }
}

/// Installs logging and, where an endpoint is given, the trace exporter. `service` becomes `service.name`
/// (`thicket-gallery`, or `thicket` for all roles in one process).
///
/// The first call decides; later calls return the same handle and change nothing, so that several roles can share a
/// process. With an endpoint it must be called inside a tokio runtime.
///
/// # Errors
/// [`TelemetryError`] for a bad filter or endpoint.
pub fn init(service: &str, args: &TelemetryArgs) -> Result<Telemetry, TelemetryError> {
    static INSTALLED: Mutex<Option<Telemetry>> = Mutex::new(None);
    let mut installed = INSTALLED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(telemetry) = installed.as_ref() {
        return Ok(telemetry.clone());
    }
    let filter = EnvFilter::try_new(&args.log)
        .map_err(|error| TelemetryError::Filter { filter: args.log.clone(), reason: error.to_string() })?;
    let _ = SERVICE_NAME.set(service.to_owned());
    let traces = args.otlp_endpoint.as_deref().map(export::tracer_provider).transpose()?;

    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let lines: Box<dyn Layer<Registry> + Send + Sync> = match args.log_format {
        LogFormat::Text => lines.with_ansi(std::io::stderr().is_terminal()).with_filter(filter).boxed(),
        LogFormat::Json => lines.json().with_filter(filter).boxed(),
    };
    // Spans of ours are exported whatever the log filter says; the exporter's own connection must not trace itself.
    let spans = traces.as_ref().map(|provider| {
        tracing_opentelemetry::layer().with_tracer(provider.tracer("thicket")).with_filter(
            tracing_subscriber::filter::filter_fn(|meta| {
                meta.target().starts_with("thicket") && *meta.level() <= tracing::Level::INFO
            }),
        )
    });
    tracing_subscriber::registry()
        .with(lines)
        .with(spans)
        .try_init()
        .map_err(|_| TelemetryError::Installed)?;

    let telemetry = Telemetry { traces, content: args.telemetry_content };
    *installed = Some(telemetry.clone());
    Ok(telemetry)
}

/// Who this process is; `OTEL_RESOURCE_ATTRIBUTES` adds to it. One answer for traces and metrics.
fn resource() -> Resource {
    static RESOURCE: OnceLock<Resource> = OnceLock::new();
    let build = || {
        let service = SERVICE_NAME.get().map_or("thicket", String::as_str).to_owned();
        Resource::builder()
            .with_attributes([
                KeyValue::new("service.namespace", "thicket"),
                KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
                KeyValue::new("service.instance.id", uuid::Uuid::new_v4().to_string()),
            ])
            .with_service_name(service)
            .build()
    };
    RESOURCE.get_or_init(build).clone()
}
