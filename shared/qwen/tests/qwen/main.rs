//! Qwen2-VL against its reference, and what it refuses.

mod adapter;
mod bad_input;
mod batching;
mod common;
mod precision;
mod reference;
mod tokenisation;
mod training;
