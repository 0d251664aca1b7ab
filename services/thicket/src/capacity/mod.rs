//! How much a cluster can do, simulated: what is known of the machines goes in, curves come out.

mod inputs;
mod sweep;

pub(crate) use inputs::Inputs;
pub(crate) use sweep::{Need, Point, curves, needs};
