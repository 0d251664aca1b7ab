use std::sync::OnceLock;

use opentelemetry::KeyValue;
use opentelemetry::metrics::{Counter, Gauge, Histogram, Meter, MeterProvider};
use opentelemetry_sdk::metrics::SdkMeterProvider;
use prometheus::{Registry, TextEncoder};
use tonic::Code;

use crate::{names, resource};

const RPC_SECONDS: [f64; 14] =
    [0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0];
const REQUEST_SECONDS: [f64; 14] =
    [0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92];
const FIRST_TOKEN_SECONDS: [f64; 16] =
    [0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0];
const TOKEN_SECONDS: [f64; 13] = [0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5];
const TOKENS: [f64; 10] = [1.0, 4.0, 16.0, 64.0, 256.0, 1024.0, 4096.0, 16384.0, 65536.0, 262144.0];
const BATCH: [f64; 9] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0];

/// Every instrument of the process. Attributes are named in [`names`].
#[derive(Debug)]
#[allow(missing_docs)] // Each field is the instrument of the constant of the same name.
pub struct Instruments {
    pub rpc_server_call_duration: Histogram<f64>,
    pub rpc_client_call_duration: Histogram<f64>,
    pub request_duration: Histogram<f64>,
    pub time_to_first_token: Histogram<f64>,
    pub time_per_output_token: Histogram<f64>,
    pub token_usage: Histogram<u64>,
    pub queue_depth: Gauge<u64>,
    pub queue_wait: Histogram<f64>,
    pub batch_size: Histogram<u64>,
    pub admission_rejected: Counter<u64>,
    pub replica_state: Gauge<u64>,
    pub sequences_running: Gauge<u64>,
    pub sequences_waiting: Gauge<u64>,
    pub step_tokens: Histogram<u64>,
    pub prefix_cache_hits: Counter<u64>,
    pub prefix_cache_misses: Counter<u64>,
    pub prefix_cache_size: Gauge<u64>,
    pub kv_cache_utilization: Gauge<f64>,
    pub gpu_memory_used: Gauge<u64>,
    pub cpu_backend: Gauge<u64>,
    pub thi_questions: Counter<u64>,
    pub gallery_vectors: Gauge<u64>,
    pub gallery_storage_faults: Counter<u64>,
    pub replication_lag: Gauge<u64>,
    pub replication_lag_time: Gauge<f64>,
    pub replication_steps: Counter<u64>,
    pub discovery_connected: Gauge<u64>,
    pub discovery_members: Gauge<u64>,
    pub discovery_ignored: Counter<u64>,
    pub thi_ahead: Counter<u64>,
    pub calls_resent: Counter<u64>,
    pub replica_ejections: Counter<u64>,
    pub clock_jumps: Counter<u64>,
    pub jobs: Gauge<u64>,
    pub job_parts: Counter<u64>,
    pub job_queries: Counter<u64>,
    pub job_retries: Counter<u64>,
    pub job_takeovers: Counter<u64>,
    pub export_failures: Counter<u64>,
}

impl Instruments {
    fn new(meter: &Meter) -> Self {
        let seconds = |name: &'static str, about: &'static str, bounds: &[f64]| {
            meter
                .f64_histogram(name)
                .with_unit("s")
                .with_description(about)
                .with_boundaries(bounds.to_vec())
                .build()
        };
        let sizes = |name: &'static str, unit: &'static str, about: &'static str, bounds: &[f64]| {
            meter
                .u64_histogram(name)
                .with_unit(unit)
                .with_description(about)
                .with_boundaries(bounds.to_vec())
                .build()
        };
        let counter = |name: &'static str, unit: &'static str, about: &'static str| {
            meter.u64_counter(name).with_unit(unit).with_description(about).build()
        };
        let gauge = |name: &'static str, unit: &'static str, about: &'static str| {
            meter.u64_gauge(name).with_unit(unit).with_description(about).build()
        };
        Self {
            rpc_server_call_duration: seconds(
                names::RPC_SERVER_CALL_DURATION,
                "Duration of a gRPC call at its server.",
                &RPC_SECONDS,
            ),
            rpc_client_call_duration: seconds(
                names::RPC_CLIENT_CALL_DURATION,
                "Duration of a gRPC call at its client.",
                &RPC_SECONDS,
            ),
            request_duration: seconds(
                names::REQUEST_DURATION,
                "Duration of a request to a model or an index, queueing included.",
                &REQUEST_SECONDS,
            ),
            time_to_first_token: seconds(
                names::TIME_TO_FIRST_TOKEN,
                "From the arrival of a request to its first token.",
                &FIRST_TOKEN_SECONDS,
            ),
            time_per_output_token: seconds(
                names::TIME_PER_OUTPUT_TOKEN,
                "Duration of each token after the first.",
                &TOKEN_SECONDS,
            ),
            token_usage: sizes(names::TOKEN_USAGE, "{token}", "Tokens of a request.", &TOKENS),
            queue_depth: gauge(names::QUEUE_DEPTH, "{request}", "Requests waiting."),
            queue_wait: seconds(names::QUEUE_WAIT, "Time a request waited for the model.", &REQUEST_SECONDS),
            batch_size: sizes(names::BATCH_SIZE, "{request}", "Requests worked on together.", &BATCH),
            admission_rejected: counter(
                names::ADMISSION_REJECTED,
                "{request}",
                "Requests refused at admission.",
            ),
            replica_state: gauge(names::REPLICA_STATE, "", "State of a replica: 1 for the one it is in."),
            sequences_running: gauge(
                names::SEQUENCES_RUNNING,
                "{request}",
                "Questions that the answer model works on.",
            ),
            sequences_waiting: gauge(
                names::SEQUENCES_WAITING,
                "{request}",
                "Questions that the answer model has not begun.",
            ),
            step_tokens: sizes(
                names::STEP_TOKENS,
                "{token}",
                "Tokens of one step of the answer model.",
                &TOKENS,
            ),
            prefix_cache_hits: counter(
                names::PREFIX_CACHE_HITS,
                "{request}",
                "Questions that found the beginning of their prompt computed.",
            ),
            prefix_cache_misses: counter(
                names::PREFIX_CACHE_MISSES,
                "{request}",
                "Questions whose beginning had to be computed.",
            ),
            prefix_cache_size: gauge(
                names::PREFIX_CACHE_SIZE,
                "By",
                "Keys and values kept of the beginnings of prompts.",
            ),
            kv_cache_utilization: meter
                .f64_gauge(names::KV_CACHE_UTILIZATION)
                .with_unit("1")
                .with_description("Share of the KV cache in use.")
                .build(),
            gpu_memory_used: gauge(names::GPU_MEMORY_USED, "By", "Device memory in use."),
            cpu_backend: gauge(
                names::CPU_BACKEND,
                "",
                "What multiplies on the CPU: 1 for the one that does.",
            ),
            thi_questions: counter(names::THI_QUESTIONS, "{question}", "Questions asked in the interaction."),
            gallery_vectors: gauge(names::GALLERY_VECTORS, "{vector}", "Vectors held by a collection."),
            gallery_storage_faults: counter(
                names::GALLERY_STORAGE_FAULTS,
                "{fault}",
                "Faults of what a gallery stores, found or met.",
            ),
            replication_lag: gauge(
                names::REPLICATION_LAG,
                "{transaction}",
                "Transactions that a read replica lacks.",
            ),
            replication_lag_time: meter
                .f64_gauge(names::REPLICATION_LAG_TIME)
                .with_unit("s")
                .with_description("Time since a read replica was last known to be level with its writer.")
                .build(),
            replication_steps: counter(
                names::REPLICATION_STEPS,
                "{step}",
                "Steps that a read replica took over.",
            ),
            discovery_connected: gauge(names::DISCOVERY_CONNECTED, "", "1 while discovery is connected."),
            discovery_members: gauge(names::DISCOVERY_MEMBERS, "{member}", "Members of the cluster known."),
            discovery_ignored: counter(
                names::DISCOVERY_IGNORED,
                "{registration}",
                "Registrations that were ignored.",
            ),
            thi_ahead: counter(
                names::THI_AHEAD,
                "{question}",
                "Questions of later rounds asked ahead of their turn.",
            ),
            calls_resent: counter(names::CALLS_RESENT, "{call}", "Calls sent to a replica once more."),
            replica_ejections: counter(
                names::REPLICA_EJECTIONS,
                "{ejection}",
                "Replicas taken out because they left calls or health checks unanswered.",
            ),
            clock_jumps: counter(names::CLOCK_JUMPS, "{jump}", "Jumps of the wall clock."),
            jobs: gauge(names::JOBS, "{job}", "Jobs, by the state they are in."),
            job_parts: counter(
                names::JOB_PARTS,
                "{part}",
                "Parts of jobs that were done, given back or lost.",
            ),
            job_queries: counter(
                names::JOB_QUERIES,
                "{query}",
                "Queries of jobs that were searched for or failed.",
            ),
            job_retries: counter(names::JOB_RETRIES, "{query}", "Queries of jobs that were tried again."),
            job_takeovers: counter(
                names::JOB_TAKEOVERS,
                "{part}",
                "Parts of jobs that another coordinator had begun and left.",
            ),
            export_failures: counter(
                names::EXPORT_FAILURES,
                "{batch}",
                "Batches of spans that were not exported.",
            ),
        }
    }
}

struct Metrics {
    registry: Registry,
    instruments: Instruments,
    // Owns the pipeline that the instruments write into.
    _provider: SdkMeterProvider,
}

fn metrics() -> &'static Metrics {
    static METRICS: OnceLock<Metrics> = OnceLock::new();
    METRICS.get_or_init(|| {
        let registry = Registry::new();
        let mut provider = SdkMeterProvider::builder().with_resource(resource());
        match opentelemetry_prometheus::exporter()
            .with_registry(registry.clone())
            .scope_info_enabled(false)
            .build()
        {
            Ok(exporter) => provider = provider.with_reader(exporter),
            Err(error) => tracing::error!(%error, "metrics are off: no prometheus exporter"),
        }
        let provider = provider.build();
        let instruments = Instruments::new(&provider.meter("thicket"));
        Metrics { registry, instruments, _provider: provider }
    })
}

/// The instruments of this process; they work from the first call on, with or without [`crate::init`].
pub fn instruments() -> &'static Instruments {
    &metrics().instruments
}

/// All metrics of this process in the Prometheus text format.
pub fn prometheus_text() -> String {
    TextEncoder::new().encode_to_string(&metrics().registry.gather()).unwrap_or_else(|error| {
        tracing::error!(%error, "metrics cannot be printed");
        String::new()
    })
}

/// Which side of a call is recorded.
#[derive(Debug, Clone, Copy)]
pub enum Side<'a> {
    /// The server.
    Server,
    /// The client, with the logical target.
    Client {
        /// Host name or address.
        address: &'a str,
        /// Port, 0 when unknown.
        port: u16,
    },
}

/// Records the duration of one finished gRPC call. `method` is `package.Service/Method` of a known method, else
/// [`names::OTHER_METHOD`].
pub fn record_rpc(side: Side<'_>, method: &'static str, code: Code, seconds: f64) {
    let status = code_name(code);
    let mut attributes = vec![
        KeyValue::new(names::RPC_SYSTEM, "grpc"),
        KeyValue::new(names::RPC_METHOD, method),
        KeyValue::new(names::RPC_STATUS_CODE, status),
    ];
    if code != Code::Ok {
        attributes.push(KeyValue::new(names::ERROR_TYPE, status));
    }
    match side {
        Side::Server => instruments().rpc_server_call_duration.record(seconds, &attributes),
        Side::Client { address, port } => {
            attributes.push(KeyValue::new(names::SERVER_ADDRESS, address.to_owned()));
            attributes.push(KeyValue::new(names::SERVER_PORT, i64::from(port)));
            instruments().rpc_client_call_duration.record(seconds, &attributes);
        }
    }
}

/// The name of a status code as the conventions spell it.
pub fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instruments_print_under_their_prometheus_names() {
        let all = instruments();
        record_rpc(Side::Server, "thicket.v1.GalleryService/Search", Code::NotFound, 0.02);
        record_rpc(Side::Client { address: "gallery", port: 7702 }, names::OTHER_METHOD, Code::Ok, 0.02);
        all.request_duration.record(0.1, &[]);
        all.time_to_first_token.record(0.1, &[]);
        all.time_per_output_token.record(0.1, &[]);
        all.token_usage.record(7, &[]);
        all.queue_depth.record(3, &[]);
        all.queue_wait.record(0.1, &[]);
        all.batch_size.record(4, &[]);
        all.admission_rejected.add(1, &[KeyValue::new(names::REASON, "QUEUE_FULL")]);
        all.replica_state.record(1, &[]);
        all.sequences_running.record(1, &[]);
        all.sequences_waiting.record(1, &[]);
        all.step_tokens.record(7, &[]);
        all.prefix_cache_hits.add(1, &[]);
        all.prefix_cache_misses.add(1, &[]);
        all.prefix_cache_size.record(1, &[]);
        all.kv_cache_utilization.record(0.5, &[]);
        all.gpu_memory_used.record(1, &[]);
        all.cpu_backend.record(1, &[]);
        all.thi_questions.add(1, &[]);
        all.gallery_vectors.record(9, &[]);
        all.gallery_storage_faults.add(1, &[]);
        all.replication_lag.record(1, &[]);
        all.replication_lag_time.record(0.5, &[]);
        all.replication_steps.add(1, &[]);
        all.discovery_connected.record(1, &[]);
        all.discovery_members.record(3, &[]);
        all.discovery_ignored.add(1, &[]);
        all.thi_ahead.add(1, &[]);
        all.calls_resent.add(1, &[]);
        all.replica_ejections.add(1, &[]);
        all.clock_jumps.add(1, &[]);
        all.jobs.record(1, &[]);
        all.job_parts.add(1, &[]);
        all.job_queries.add(1, &[]);
        all.job_retries.add(1, &[]);
        all.job_takeovers.add(1, &[]);

        let text = prometheus_text();
        for name in [
            "rpc_server_call_duration_seconds",
            "rpc_client_call_duration_seconds",
            "gen_ai_server_request_duration_seconds",
            "gen_ai_server_time_to_first_token_seconds",
            "gen_ai_server_time_per_output_token_seconds",
            "gen_ai_client_token_usage",
            "thicket_queue_depth",
            "thicket_queue_wait_duration_seconds",
            "thicket_batch_size",
            "thicket_admission_rejected_total",
            "thicket_replica_state",
            "thicket_sequences_running",
            "thicket_sequences_waiting",
            "thicket_step_tokens",
            "thicket_prefix_cache_hits_total",
            "thicket_prefix_cache_misses_total",
            "thicket_prefix_cache_size_bytes",
            "thicket_kv_cache_utilization_ratio",
            "thicket_gpu_memory_used_bytes",
            "thicket_cpu_backend",
            "thicket_thi_questions_total",
            "thicket_gallery_vectors",
            "thicket_gallery_storage_faults_total",
            "thicket_replication_lag",
            "thicket_replication_lag_time_seconds",
            "thicket_replication_steps_total",
            "thicket_discovery_connected",
            "thicket_discovery_members",
            "thicket_discovery_ignored_total",
            "thicket_thi_ahead_total",
            "thicket_calls_resent_total",
            "thicket_replica_ejections_total",
            "thicket_clock_jumps_total",
            "thicket_jobs",
            "thicket_job_parts_total",
            "thicket_job_queries_total",
            "thicket_job_retries_total",
            "thicket_job_takeovers_total",
        ] {
            assert!(text.contains(&format!("# TYPE {name} ")), "{name} is missing in\n{text}");
        }
        let failed = text
            .lines()
            .find(|line| line.starts_with("rpc_server_call_duration_seconds_count"))
            .expect("the server call was recorded");
        assert!(failed.contains(r#"error_type="NOT_FOUND""#), "{failed}");
        assert!(failed.contains(r#"rpc_method="thicket.v1.GalleryService/Search""#), "{failed}");
    }
}
