//! The operations that dominate a transformer, each as one pass forward and, for f32 on the CPU, one pass back.
//!
//! candle composes these from element-wise tensor operations, each of which walks memory once and allocates; its own
//! fused versions have no gradient. The functions here run fused and in parallel on the CPU, as the kernels of
//! [`thicket_cuda`] for inference on a GPU, and fall back to the composition elsewhere, so that one model serves training,
//! CPU inference and the GPU.

mod attention;
mod cast;
mod elementwise;
mod few_queries;
#[cfg(any(test, feature = "flash-attn"))]
mod flash;
mod linear;
mod memory;
mod narrow;
mod normalisation;
mod packed;
mod prepared;
mod product;
mod quantized;
mod reduction;
mod sequences;
mod tile;
mod tokens;
mod workers;

pub use attention::{Mask, attention};
pub use cast::{cast, widened};
pub use elementwise::{Activation, gated, quick_gelu, rotate, softmax};
pub use linear::{Linear, linear};
pub use normalisation::{layer_norm, rms_norm};
pub use packed::PackedMatrix;
pub use prepared::{Backend, PreparedLinear};
pub use quantized::{Quantization, QuantizedMatrix};
pub use sequences::{Entry, Sequence, attention_of_each, store};
pub use tokens::{patches, placed};
pub use workers::among_workers;
