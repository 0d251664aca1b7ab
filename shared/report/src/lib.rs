//! thicket-report
