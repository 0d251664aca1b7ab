//! thicket-imaging
