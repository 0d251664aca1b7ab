//! thicket-tests
