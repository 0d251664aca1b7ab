//! thicket-kernels
