//! thicket-telemetry
