//! Fused attention on a GPU, where the `flash-attn` feature brings its kernels along.

use candle_core::DType;
#[cfg(feature = "flash-attn")]
use candle_core::{Result, Tensor};

use crate::Mask;

/// Widest head that every generation of GPU has a kernel for.
const MOST_DIM: usize = 256;
/// Head widths are multiples of it.
const DIM_STEP: usize = 8;

/// Whether the kernels compute attention of this type, head width and mask. They have no mask by sections.
pub(crate) fn suits(dtype: DType, dim: usize, mask: &Mask) -> bool {
    let half = matches!(dtype, DType::F16 | DType::BF16);
    let width = dim > 0 && dim <= MOST_DIM && dim.is_multiple_of(DIM_STEP);
    half && width && matches!(mask, Mask::Full | Mask::Causal)
}

/// Attention of tensors `[batch, heads, positions, dim]` for which [`suits`] holds, as [`crate::attention`] gives it. The
/// kernels' causal mask is that of [`Mask::Causal`]: the queries are the last of the keys' positions.
#[cfg(feature = "flash-attn")]
pub(crate) fn attention(q: &Tensor, k: &Tensor, v: &Tensor, scale: f64, mask: &Mask) -> Result<Tensor> {
    // The kernels take positions before heads, and any strides but the last.
    let [q, k, v] = [q, k, v].map(|heads| heads.transpose(1, 2));
    let causal = matches!(mask, Mask::Causal);
    candle_flash_attn::flash_attn(&q?, &k?, &v?, scale as f32, causal)?.transpose(1, 2)
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};

    use super::*;

    #[test]
    fn half_precision_with_a_full_or_causal_mask_suits_and_nothing_else_does() {
        for dtype in [DType::F16, DType::BF16] {
            assert!(suits(dtype, 128, &Mask::Full) && suits(dtype, 80, &Mask::Causal));
            assert!(
                !suits(dtype, 257, &Mask::Full)
                    && !suits(dtype, 20, &Mask::Full)
                    && !suits(dtype, 0, &Mask::Full)
            );
        }
        assert!(!suits(DType::F32, 128, &Mask::Full));
        let sections = Tensor::zeros((1, 4), DType::U32, &Device::Cpu).unwrap();
        assert!(!suits(DType::BF16, 128, &Mask::Sections(sections)));
    }
}
