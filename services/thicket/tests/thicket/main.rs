//! The command, as a shell runs it.

mod ask;
mod capacity;
mod cluster;
mod demo;
mod embed;
mod eval;
mod job;
mod models;
mod rerank;
mod schedule;
mod support;
mod synth;
mod train;
mod usage;
