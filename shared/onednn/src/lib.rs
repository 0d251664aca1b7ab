//! Linear maps through oneDNN, where the machine has it.
//!
//! The library is opened when it is first asked for and never linked against, so that a machine without it, or with a
//! version of another interface, is told so by [`Missing`] and can multiply by other means. This is the crate with the
//! foreign calls; what it offers is safe.
//!
//! In bf16 the library's packed weight is multiplied without the library where that is faster: few rows, as decoding has them, on
//! any processor, and any number of them in the tiles of AMX. Attention in bf16 is done in those tiles too, or its exponentials at least
//! in the processor's own instructions: see [`PackedLinear`], [`TiledAttention`] and [`exponentials`]. A weight that is read for a row or a few
//! at a time can be kept in fewer bytes, see [`CompactLinear`].
//!
//! oneDNN starts no threads here: a product is cut into blocks, and rayon's threads run one block each.

mod api;
mod attention;
mod compact;
mod dense;
mod desc;
mod error;
mod exit;
mod exponentials;
mod library;
mod linear;
mod lines;
mod panels;
mod primitive;
mod target;
mod tiles;

pub use attention::{Head, TiledAttention};
pub use compact::CompactLinear;
pub use dense::DenseProduct;
pub use error::{Error, Missing};
pub use exponentials::exponentials;
pub use library::Library;
pub use linear::{Activation, PackedLinear, Value, rounded};
