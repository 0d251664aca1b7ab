//! thicket-gallery
