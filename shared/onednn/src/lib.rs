//! Linear maps through oneDNN, where the machine has it.
//!
//! The library is opened when it is first asked for and never linked against, so that a machine without it, or with a
//! version of another interface, is told so by [`Missing`] and can multiply by other means. This is the crate with the
//! foreign calls; what it offers is safe.
//!
//! In bf16 the library is left out where that is faster. With AMX a weight is kept in an order of this crate's own, whole or in three
//! quarters of its bytes, and multiplied in tiles, any number of rows of it: see [`TiledLinear`]. Without AMX few rows, as decoding has them, are
//! multiplied by the weight that the library packed: see [`PackedLinear`]. Attention in bf16 is done in tiles too, or its
//! exponentials at least in the processor's own instructions: see [`TiledAttention`] and [`exponentials`]; so are norms, see [`Norm`].
//!
//! oneDNN starts no threads here: a product is cut into blocks, and rayon's threads run one block each.

#[cfg(target_arch = "x86_64")]
mod amx;
mod api;
mod attention;
mod dense;
mod desc;
mod error;
mod exit;
mod exponentials;
mod library;
mod linear;
mod lines;
mod normalisation;
mod panels;
mod primitive;
mod product;
mod target;
mod tiled;
mod tiles;

pub use attention::{Part, Rows, TiledAttention};
pub use dense::DenseProduct;
pub use error::{Error, Missing};
pub use exponentials::exponentials;
pub use library::Library;
pub use linear::{Activation, PackedLinear, Value, rounded};
pub use normalisation::{Moments, Norm};
pub use tiled::{Keep, TiledLinear};
