//! thicket-index
