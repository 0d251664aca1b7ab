//! A build without kernels.

use candle_core::{DType, Result, Tensor};

use crate::{Activation, Entry, Scale, Sequence};

/// `activation(y + bias) + residual`: none in this build.
///
/// # Errors
/// None.
pub fn finished(_: &Tensor, _: Option<&Tensor>, _: Activation, _: Option<&Tensor>) -> Result<Option<Tensor>> {
    Ok(None)
}

/// `silu(gate) * up`: none in this build.
///
/// # Errors
/// None.
pub fn gated(_: &Tensor, _: &Tensor) -> Result<Option<Tensor>> {
    Ok(None)
}

/// Layer or root-mean-square normalisation: none in this build.
///
/// # Errors
/// None.
pub fn normalised(_: &Tensor, _: Scale<'_>, _: f32, _: bool, _: DType) -> Result<Option<Tensor>> {
    Ok(None)
}

/// Rotary positions: none in this build.
///
/// # Errors
/// None.
pub fn rotated(_: &Tensor, _: &Tensor, _: &Tensor) -> Result<Option<Tensor>> {
    Ok(None)
}

/// Attention of a batch: none in this build.
///
/// # Errors
/// None.
pub fn attention(_: &Tensor, _: &Tensor, _: &Tensor, _: f32, _: bool) -> Result<Option<Tensor>> {
    Ok(None)
}

/// Attention of sequences of any lengths: none in this build.
///
/// # Errors
/// None.
pub fn attention_of_each(_: &[Sequence], _: f32, _: bool) -> Result<Option<Tensor>> {
    Ok(None)
}

/// Copies into caches: none in this build.
///
/// # Errors
/// None.
pub fn stored(_: &[Entry]) -> Result<Option<()>> {
    Ok(None)
}
