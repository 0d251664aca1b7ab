//! The two-tower encoder against its reference, and what it refuses.

mod backends;
mod hugging_face;
mod loading;
mod network;
mod reference;
mod support;
mod tokenisation;
mod vocabulary;
