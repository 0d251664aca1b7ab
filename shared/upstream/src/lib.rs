//! The replicas of another role, as a caller uses them: whoever of them serves is called, and a call that fails on one goes
//! to another.
//!
//! [`Upstream`] follows the cluster's members, watches the health of each, and drives a [`thicket_dispatch::Dispatcher`],
//! which decides where a question goes, and when. A replica that hangs is found out: by its health checks where the process
//! does, by the calls it leaves unanswered where only they do. Every copy of a question runs in its caller's own task:
//! dropping the call drops them all.

mod call;
mod place;
mod replica;
mod turn;
mod upstream;

pub use call::{broken, fault_of};
pub use place::Place;
pub use replica::Probing;
pub use turn::Turn;
pub use upstream::{Ask, Settings, Upstream, UpstreamError};
