//! thicket-embedding
