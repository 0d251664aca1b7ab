//! thicket-thi
