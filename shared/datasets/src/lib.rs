//! thicket-datasets
