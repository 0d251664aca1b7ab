//! Qwen2-VL and Qwen2.5-VL against their reference, and what it refuses.

mod adapter;
mod backends;
mod bad_input;
mod batching;
mod common;
mod compact;
mod continuous;
mod layouts;
mod precision;
mod reference;
mod tokenisation;
mod training;
