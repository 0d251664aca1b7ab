//! Objects by name in a place that a URL names: a folder (`file:///var/lib/thicket`) or a bucket of an S3-compatible server
//! (`s3://bucket/prefix`).
//!
//! What every caller may rely on, whichever place it is:
//!
//! - an object is there whole or not at all, and durable when a write returns;
//! - nothing waits beyond the moment that the caller names, and nothing larger than [`Settings::max_bytes`] is written or
//!   read at once; what is larger goes in pieces ([`Blobs::upload`], [`Blobs::read`]);
//! - a deletion that has returned outlives a power failure; deleting what is not there is no error.
//!
//! ```
//! # use std::time::{Duration, Instant};
//! # use thicket_blobs::{Blobs, Settings};
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let folder = tempfile::tempdir()?;
//! # let url = format!("file://{}", folder.path().display());
//! let blobs = Blobs::open(&url, Settings::from_env())?;
//! let soon = || Instant::now() + Duration::from_secs(5);
//! blobs.put("results/0001.parquet", "bytes".into(), soon()).await?;
//! assert_eq!(blobs.get("results/0001.parquet", soon()).await?, "bytes");
//! # Ok(())
//! # }
//! ```

mod blobs;
mod error;
mod open;
mod pieces;
mod transport;

pub use blobs::{Blobs, Entry, MAX_KEY_BYTES};
pub use error::{BlobError, OpenError};
pub use open::{DEFAULT_MAX_BYTES, Settings};
pub use pieces::{PIECE_BYTES, Upload};
