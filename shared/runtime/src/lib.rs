//! What every role of Thicket has in common around its own work: settings, listeners, health, drain, deadlines,
//! authentication, errors, the thread that owns an engine, and the way to call another role.
//!
//! A role in outline:
//!
//! ```no_run
//! # use thicket_runtime::{Failure, Role, RoleConfig, Server, Services, Stop};
//! # async fn role(config: RoleConfig, stop: Stop, services: Services) -> Result<(), Failure> {
//! let server = Server::bind(Role::Gallery, &config).await?;
//! let address = server.grpc_addr();
//! server.serve(services, stop.requested()).await?.into_result()
//! # }
//! ```

mod admin;
mod audit;
mod auth;
mod batches;
mod body;
mod call;
mod client;
mod clock;
mod grpc_health;
mod health;
mod input;
mod layer;
mod methods;
mod queue;
mod replicas;
mod role;
mod server;
mod shutdown;
mod status;
mod time;
mod watchdog;
mod worker;

pub use auth::{Caller, Right, TokensError};
pub use batches::{Batches, Work};
pub use call::{Call, Deadline, MAX_DEADLINE, request_by};
pub use client::{CONNECT_TIMEOUT, Peer, PeerError};
pub use health::{Check, Health, Probe, Snapshot, State};
pub use input::{
    CpuWork, DEFAULT_DECODED_MIB, DecodedImage, Held, ImageDecoder, MAX_TEXT_BYTES, bad_image, check_text,
};
pub use replicas::Replicas;
pub use role::{
    DEFAULT_DRAIN_DELAY, DEFAULT_DRAIN_TIMEOUT, DEFAULT_STREAM_DEADLINE, DEFAULT_UNARY_DEADLINE, Role,
    RoleArgs, RoleConfig, parse_duration,
};
pub use server::{
    Drained, KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT, MAX_CONCURRENT_STREAMS, MAX_CONNECTION_AGE,
    MAX_MESSAGE_BYTES, Server, Services, StartError,
};
pub use shutdown::{Failure, Stop, StopHandle, run};
pub use status::{ERROR_DOMAIN, Fault, PUSHBACK, Reason};
pub use time::unix_ms;
pub use watchdog::DEFAULT_STUCK_AFTER;
pub use worker::{DEFAULT_MAX_DELAY, DEFAULT_QUEUE_LIMIT, Done, Stepped, Steps, Worker, WorkerOptions};
