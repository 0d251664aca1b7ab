//! One contract, whatever keeps the collections: every test here runs on the embedded store and, where there is one, on
//! Milvus.

mod bad_input;
mod erasure;
mod images;
mod milvus;
mod outages;
mod places;
mod ranking;
mod same;

pub(crate) use places::{config, start_milvus};
