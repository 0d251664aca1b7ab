//! thicket-training
