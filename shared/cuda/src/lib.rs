//! GPU kernels that candle lacks: what a transformer does between its matrix products, each as one pass over memory, and
//! attention whose scores never leave the registers. For inference: nothing here has a gradient.
//!
//! Every function returns `None` where its kernels do not compute what is asked for: in a build without the feature `cuda`,
//! for tensors that are not on a GPU or whose gradients are tracked, and for the types and sizes that it names. The caller
//! then composes the same from tensor operations.

use candle_core::Tensor;

#[cfg(not(feature = "cuda"))]
mod absent;
#[cfg(feature = "cuda")]
mod attention;
#[cfg(feature = "cuda")]
mod launch;
#[cfg(feature = "cuda")]
mod passes;

#[cfg(not(feature = "cuda"))]
pub use absent::{attention, attention_of_each, finished, gated, normalised, rotated, stored};
#[cfg(feature = "cuda")]
pub use attention::{attention, attention_of_each, stored};
#[cfg(feature = "cuda")]
pub use passes::{finished, gated, normalised, rotated};

/// Whether this build has the kernels.
pub const BUILT: bool = cfg!(feature = "cuda");

/// What follows a linear map.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Activation {
    /// Nothing.
    #[default]
    None,
    /// `x * sigmoid(1.702 x)`
    QuickGelu,
    /// `x * sigmoid(x)`
    Silu,
}

impl Activation {
    /// Every one.
    pub const ALL: [Self; 3] = [Self::None, Self::QuickGelu, Self::Silu];
}

/// The affine part of a normalisation, f32 `[d]` each.
#[derive(Debug, Clone, Copy)]
pub struct Scale<'a> {
    /// What the normal values are multiplied by.
    pub weight: &'a Tensor,
    /// What is added then.
    pub bias: Option<&'a Tensor>,
}

/// Queries that attend to the same keys.
#[derive(Debug, Clone)]
pub struct Sequence {
    /// `[n, heads, d]`, the last n positions of the sequence.
    pub queries: Tensor,
    /// Keys and values of a beginning that it shares with others, `[rows, kv heads, d]` each.
    pub beginning: Option<(Tensor, Tensor)>,
    /// The keys behind it, `[rows, kv heads, d]`.
    pub keys: Tensor,
    /// Their values.
    pub values: Tensor,
}

/// Keys and values on their way into a cache.
#[derive(Debug, Clone)]
pub struct Entry {
    /// `[rows, kv heads, d]`, contiguous.
    pub keys: Tensor,
    /// Their values.
    pub values: Tensor,
    /// The cache's keys, `[capacity, kv heads, d]`.
    pub held_keys: Tensor,
    /// The cache's values.
    pub held_values: Tensor,
    /// The row of the cache that the first goes to.
    pub at: usize,
}

#[cfg(all(test, not(feature = "cuda")))]
mod tests {
    use candle_core::{DType, Device, Result};

    use super::*;

    #[test]
    fn a_build_without_kernels_leaves_everything_to_the_caller() -> Result<()> {
        let x = Tensor::zeros((1, 2, 8), DType::F32, &Device::Cpu)?;
        assert!(finished(&x, None, Activation::None, None)?.is_none() && gated(&x, &x)?.is_none());
        assert!(normalised(&x, Scale { weight: &x, bias: None }, 1e-5, true, DType::F32)?.is_none());
        assert!(rotated(&x, &x, &x)?.is_none() && attention(&x, &x, &x, 1.0, true)?.is_none());
        assert!(attention_of_each(&[], 1.0, true)?.is_none() && stored(&[])?.is_none());
        Ok(())
    }
}
