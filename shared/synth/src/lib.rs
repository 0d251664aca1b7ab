//! thicket-synth
