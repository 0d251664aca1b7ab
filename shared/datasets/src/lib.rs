//! Loaders for the annotation files of the four public person-search benchmarks.
//!
//! Each data set is a folder of images and one JSON list of image records. [`Dataset::load`] reads the list, checks
//! every record and gives the three splits in one shape, whatever the data set calls its keys. Images are not opened;
//! [`Split::require_images`] tells whether they are there.
//!
//! In an evaluation every caption of a split is a query and every image of it is in the gallery.

mod dataset;
mod error;
mod format;
mod record;

pub use dataset::{Dataset, MAX_ANNOTATION_BYTES, Split};
pub use error::DatasetError;
pub use format::{Format, SplitName, UnknownName};
