//! The public gRPC contract of Thicket as Rust types.
//!
//! Generated from `proto/thicket/v1/*.proto`; the comments there are the documentation of every field.

/// Version 1 of the contract.
#[allow(missing_docs, missing_debug_implementations, unreachable_pub, clippy::all)]
pub mod v1 {
    tonic::include_proto!("thicket.v1");

    /// The compiled descriptors, for gRPC reflection.
    pub const FILE_DESCRIPTOR_SET: &[u8] = tonic::include_file_descriptor_set!("thicket");
}
