//! thicket-evaluation
