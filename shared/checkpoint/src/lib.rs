//! thicket-checkpoint
