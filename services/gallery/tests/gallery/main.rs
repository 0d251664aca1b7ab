//! The gallery over gRPC.

mod access;
mod common;
mod durability;
mod erasure;
mod filters;
mod full_disk;
mod images;
mod ranking;
mod refusals;
