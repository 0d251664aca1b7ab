//! The embedding service over real gRPC.

mod batching;
mod replicas;
mod service;
mod support;
