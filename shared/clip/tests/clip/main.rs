//! The two-tower encoder against its reference, and what it refuses.

mod loading;
mod network;
mod reference;
mod support;
mod vocabulary;
