//! A client of Milvus for what a gallery asks of it: collections, rows written by key, inner-product searches, queries.
//!
//! There is `milvus-sdk-rust`, and it is alive. It is not used because it would bring a second gRPC stack (tonic 0.13 beside
//! 0.14), a second HTTP client and certificates under a licence that we do not take, runs a program that it carries while it
//! is built, sends heartbeats of its own, and does not bound the messages that it takes. Fourteen calls of the public
//! interface, over the gRPC stack that every other service here uses, are less.
//!
//! Every call ends by the moment that it is given. A call that only reads, or whose repetition changes nothing, is made again
//! when Milvus says that it is not available. Reads see every write that was acknowledged before, whoever made it (consistency
//! `Strong`).

mod call;
mod client;
mod columns;
mod error;
mod expression;
mod schema;
mod search;

#[allow(missing_docs, missing_debug_implementations, unreachable_pub, clippy::all)]
mod proto {
    tonic::include_proto!("milvus.proto.milvus");
}

pub use client::{Client, Collection, MAX_MESSAGE_BYTES, MAX_RESULTS, Page, Settings};
pub use columns::{Column, Columns, Values};
pub use error::MilvusError;
pub use expression::{Expression, Token};
pub use schema::{Field, Index, Kind};
pub use search::{Candidates, Search};
