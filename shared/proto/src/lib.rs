//! thicket-proto
