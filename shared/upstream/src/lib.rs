//! The replicas of another role, as a caller uses them: whoever of them serves is called, and a call that fails on one goes
//! to another.
//!
//! [`Upstream`] follows the cluster's members, watches the health of each, and drives a [`thicket_dispatch::Dispatcher`],
//! which decides where a question goes, and when. Every copy of a question runs in its caller's own task: dropping the call
//! drops them all.

mod call;
mod replica;
mod upstream;

pub use call::{broken, fault_of};
pub use upstream::{Ask, Settings, Upstream, UpstreamError};
