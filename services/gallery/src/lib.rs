//! The gallery of Thicket: collections of pedestrian images with their vectors, ranked by exact scores.
//!
//! A data folder holds the truth in an embedded transactional store (`gallery.redb`), the images by their BLAKE3 hash
//! (`images/`), and snapshots of the search indexes (`snapshots/`), which only save time and are rebuilt from the store
//! whenever they are missing, damaged or of another version.
//!
//! Nothing that was acknowledged is lost: an image is synced to disk first, then one transaction stores the item, and
//! only a durable transaction is answered. An image that no item uses, after a deletion or a crash, is deleted.
//!
//! What is deleted or replaced is out of reach at once. Its bytes leave the files when the store is compacted, that is,
//! copied into a new file: some time after a deletion, or when a caller asks for it.
//!
//! The images may be in an object store instead ([`Config::image_store`]), and vectors and metadata in a Milvus cluster
//! ([`BackendConfig::Milvus`]): then a gallery keeps nothing, and there may be several of it.
//!
//! ```no_run
//! # use thicket_gallery::{App, Config};
//! # use thicket_runtime::{Failure, Stop};
//! # async fn example() -> Result<(), Failure> {
//! let app = App::build(Config::in_process("data")).await?;
//! let (stop_handle, stop) = Stop::by_hand();
//! println!("serving on {}", app.grpc_addr());
//! app.run(stop).await
//! # }
//! ```

mod app;
mod backend;
mod check;
mod collection;
mod config;
#[doc(hidden)]
pub mod crash;
mod embedded;
mod error;
mod facets;
mod fault;
mod filter;
mod follower;
mod forget;
mod gallery;
mod images;
mod indexer;
mod log;
mod milvus;
mod moving;
mod pool;
mod queue;
mod record;
mod replication;
mod request;
mod rpc;
mod source;
mod store;
mod tables;
mod takeover;
mod upsert;
mod write;
mod writer;

pub use app::App;
pub use config::{
    Args, BackendConfig, BackendKind, Config, DEFAULT_BATCH_LIMIT, DEFAULT_CACHE_MIB, DEFAULT_COMPACT_AFTER,
    DEFAULT_DATA, DEFAULT_QUEUE_LIMIT, DEFAULT_READ_QUEUE_LIMIT, DEFAULT_READERS, DEFAULT_UPSERT_MIB,
    GalleryArgs, ImagesConfig, MilvusIndex, PlaceArgs,
};
pub use error::OpenError;
pub use forget::{ForgetConfig, Told};
pub use milvus::{DEFAULT_GRACE, MilvusConfig};
