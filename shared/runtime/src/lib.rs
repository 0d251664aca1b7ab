//! thicket-runtime
