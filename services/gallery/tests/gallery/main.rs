//! The gallery over gRPC.

mod access;
mod common;
mod durability;
mod filters;
mod full_disk;
mod images;
mod ranking;
mod refusals;
