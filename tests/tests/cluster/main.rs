//! All four roles together, over real gRPC, on tiny checkpoints with random weights: what is checked is how the parts
//! fit, not what the models say.

mod infrastructure;
mod person_search;
