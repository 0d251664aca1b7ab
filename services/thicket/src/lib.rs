//! thicket
