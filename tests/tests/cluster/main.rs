//! All four roles together, over real gRPC, on tiny checkpoints with random weights: what is checked is how the parts
//! fit, not what the models say. [`quantization`] alone asks the sample's trained model.

mod infrastructure;
mod jobs;
mod overload;
mod person_search;
mod processes;
mod quantization;
mod trace;
