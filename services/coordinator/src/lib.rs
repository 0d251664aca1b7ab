//! thicket-coordinator
