//! The gallery over gRPC.

mod access;
mod common;
mod contract;
mod crash_points;
mod damage;
mod durability;
mod elsewhere;
mod erasure;
mod filters;
mod forget;
mod full_disk;
mod images;
mod indexes;
#[path = "../../../../shared/blobs/tests/blobs/moto.rs"]
mod moto;
mod ranking;
mod refusals;
mod replicas;
