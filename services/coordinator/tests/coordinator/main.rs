//! The coordinator against other roles that the tests control, over real gRPC on loopback.

mod ahead;
mod bad_input;
mod equality;
mod failures;
mod fakes;
mod ingest;
mod job_objects;
mod job_rights;
mod jobs;
mod outcomes;
mod worlds;
