//! thicket-answer
