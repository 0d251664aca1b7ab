//! The gallery over gRPC.

mod access;
mod common;
mod contract;
mod durability;
mod elsewhere;
mod erasure;
mod filters;
mod forget;
mod full_disk;
mod images;
#[path = "../../../../shared/blobs/tests/blobs/moto.rs"]
mod moto;
mod ranking;
mod refusals;
