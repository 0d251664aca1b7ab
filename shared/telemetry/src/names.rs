//! Names of instruments, attributes and their values, in one place.
//!
//! The generic ones follow the OpenTelemetry semantic conventions; ours start with `thicket.`. They are constants of
//! our own because the conventions' crate marks the `gen_ai` ones deprecated.

/// Histogram, seconds: one gRPC call as its server saw it.
pub const RPC_SERVER_CALL_DURATION: &str = "rpc.server.call.duration";
/// Histogram, seconds: one gRPC call as its client saw it.
pub const RPC_CLIENT_CALL_DURATION: &str = "rpc.client.call.duration";
/// Histogram, seconds: one request to a model or an index, queueing included.
pub const REQUEST_DURATION: &str = "gen_ai.server.request.duration";
/// Histogram, seconds: from the arrival of a request to its first token.
pub const TIME_TO_FIRST_TOKEN: &str = "gen_ai.server.time_to_first_token";
/// Histogram, seconds: each token after the first.
pub const TIME_PER_OUTPUT_TOKEN: &str = "gen_ai.server.time_per_output_token";
/// Histogram, tokens: tokens of one request, by [`TOKEN_TYPE`].
pub const TOKEN_USAGE: &str = "gen_ai.client.token.usage";
/// Gauge, requests waiting.
pub const QUEUE_DEPTH: &str = "thicket.queue.depth";
/// Histogram, seconds: from the queue to the work.
pub const QUEUE_WAIT: &str = "thicket.queue.wait.duration";
/// Histogram, requests worked on together.
pub const BATCH_SIZE: &str = "thicket.batch.size";
/// Counter, requests refused at admission.
pub const ADMISSION_REJECTED: &str = "thicket.admission.rejected";
/// Gauge, 1 for the state that a replica is in.
pub const REPLICA_STATE: &str = "thicket.replica.state";
/// Gauge, questions that the answer model works on.
pub const SEQUENCES_RUNNING: &str = "thicket.sequences.running";
/// Gauge, questions that the answer model has taken up and not begun.
pub const SEQUENCES_WAITING: &str = "thicket.sequences.waiting";
/// Histogram, tokens of one step of the answer model.
pub const STEP_TOKENS: &str = "thicket.step.tokens";
/// Counter, questions that found the beginning of their prompt computed.
pub const PREFIX_CACHE_HITS: &str = "thicket.prefix_cache.hits";
/// Counter, questions whose beginning had to be computed.
pub const PREFIX_CACHE_MISSES: &str = "thicket.prefix_cache.misses";
/// Gauge, bytes of keys and values kept of the beginnings of prompts.
pub const PREFIX_CACHE_SIZE: &str = "thicket.prefix_cache.size";
/// Gauge, 0 to 1: share of the KV cache in use.
pub const KV_CACHE_UTILIZATION: &str = "thicket.kv_cache.utilization";
/// Gauge, bytes of device memory in use.
pub const GPU_MEMORY_USED: &str = "thicket.gpu.memory.used";
/// Gauge, 1 for what multiplies by a model's weights on the CPU, by [`BACKEND`].
pub const CPU_BACKEND: &str = "thicket.cpu.backend";
/// Counter, questions asked in the interaction.
pub const THI_QUESTIONS: &str = "thicket.thi.questions";
/// Gauge, vectors held by a collection.
pub const GALLERY_VECTORS: &str = "thicket.gallery.vectors";
/// Counter, faults of what a gallery stores, by [`REASON`].
pub const GALLERY_STORAGE_FAULTS: &str = "thicket.gallery.storage.faults";
/// Gauge, transactions that a read replica lacks.
pub const REPLICATION_LAG: &str = "thicket.replication.lag";
/// Gauge, seconds since a read replica was last known to be level with its writer.
pub const REPLICATION_LAG_TIME: &str = "thicket.replication.lag.time";
/// Counter, steps that a read replica took over, by [`KIND`].
pub const REPLICATION_STEPS: &str = "thicket.replication.steps";
/// Gauge, 1 while discovery is connected, by [`PART`].
pub const DISCOVERY_CONNECTED: &str = "thicket.discovery.connected";
/// Gauge, members known, by [`ROLE`].
pub const DISCOVERY_MEMBERS: &str = "thicket.discovery.members";
/// Counter, registrations and members ignored, by [`REASON`].
pub const DISCOVERY_IGNORED: &str = "thicket.discovery.ignored";
/// Counter, questions of later rounds asked ahead of their turn, by [`OUTCOME`].
pub const THI_AHEAD: &str = "thicket.thi.ahead";
/// Counter, calls sent to a replica once more, by [`ROLE`] and [`REASON`] (`retry` or `hedge`).
pub const CALLS_RESENT: &str = "thicket.calls.resent";
/// Counter, replicas taken out because they left calls or health checks unanswered, by [`ROLE`].
pub const REPLICA_EJECTIONS: &str = "thicket.replica.ejections";
/// Counter, jumps of the wall clock.
pub const CLOCK_JUMPS: &str = "thicket.clock.jumps";
/// Gauge, jobs known to this coordinator, by [`STATE`].
pub const JOBS: &str = "thicket.jobs";
/// Counter, parts of jobs that left this coordinator's hands, by [`OUTCOME`].
pub const JOB_PARTS: &str = "thicket.job.parts";
/// Counter, queries of jobs with a result of this coordinator, by [`OUTCOME`].
pub const JOB_QUERIES: &str = "thicket.job.queries";
/// Counter, queries of jobs that were tried again.
pub const JOB_RETRIES: &str = "thicket.job.retries";
/// Counter, parts of jobs that another coordinator had begun and left.
pub const JOB_TAKEOVERS: &str = "thicket.job.takeovers";
/// Counter, batches of spans that could not be exported.
pub const EXPORT_FAILURES: &str = "thicket.telemetry.export.failures";

/// `grpc`.
pub const RPC_SYSTEM: &str = "rpc.system.name";
/// `thicket.v1.GalleryService/Search`, or [`OTHER_METHOD`].
pub const RPC_METHOD: &str = "rpc.method";
/// Status of a call as the conventions spell it (`OK`, `NOT_FOUND`).
pub const RPC_STATUS_CODE: &str = "rpc.response.status_code";
/// Set on failures only.
pub const ERROR_TYPE: &str = "error.type";
/// Logical target of a client call.
pub const SERVER_ADDRESS: &str = "server.address";
/// Port of the logical target.
pub const SERVER_PORT: &str = "server.port";
/// `chat`, `embeddings` or `retrieval`.
pub const OPERATION: &str = "gen_ai.operation.name";
/// `thicket`.
pub const PROVIDER: &str = "gen_ai.provider.name";
/// Name the model is served under.
pub const MODEL: &str = "gen_ai.request.model";
/// `input` or `output`.
pub const TOKEN_TYPE: &str = "gen_ai.token.type";
/// Lane of a queue.
pub const LANE: &str = "lane";
/// `plain` or `onednn`.
pub const BACKEND: &str = "backend";
/// Which replica.
pub const REPLICA: &str = "replica";
/// Stage of the work that is batched.
pub const STAGE: &str = "stage";
/// `members` (the list of the others) or `registration` (this process in it).
pub const PART: &str = "part";
/// `embedding`, `gallery`, `answer` or `coordinator`.
pub const ROLE: &str = "role";
/// Why a request was refused, or a registration ignored.
pub const REASON: &str = "reason";
/// What became of something: of a question asked ahead `used`, `unneeded` (answered in vain), `cancelled` or `failed`, of a part
/// of a job `done`, `given_back` or `lost`, of a query of a job `succeeded` or `failed`.
pub const OUTCOME: &str = "outcome";
/// State of a replica.
pub const STATE: &str = "state";
/// Round of the interaction, from 1.
pub const ROUND: &str = "round";
/// Answer to a question.
pub const ANSWER: &str = "answer";
/// `model` or `cache`.
pub const SOURCE: &str = "source";
/// `whole` or `changes`.
pub const KIND: &str = "kind";
/// Name of a collection.
pub const COLLECTION: &str = "collection";

/// Value of [`RPC_METHOD`] for a method that the server does not know, so that callers cannot create series.
pub const OTHER_METHOD: &str = "_OTHER";
