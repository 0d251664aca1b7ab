//! thicket-clip
