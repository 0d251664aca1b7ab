//! Conversions between f32 and bf16 on the CPU, in parallel; candle's run on one thread.

use std::ops::Range;

use candle_core::{CpuStorage, CustomOp1, DType, Error, Layout, Result, Shape, Tensor};
use half::bf16;
pub(crate) use thicket_onednn::rounded;

use crate::memory::{in_order, made};

/// The tensor in another type. Between f32 and bf16 on the CPU it is for inference and has no gradient.
///
/// # Errors
/// Those of candle.
pub fn cast(x: &Tensor, dtype: DType) -> Result<Tensor> {
    if x.device().is_cpu()
        && matches!((x.dtype(), dtype), (DType::F32, DType::BF16) | (DType::BF16, DType::F32))
    {
        return x.contiguous()?.apply_op1_no_bwd(&Cast);
    }
    x.to_dtype(dtype)
}

/// From f32 to bf16 and back.
struct Cast;

impl CustomOp1 for Cast {
    fn name(&self) -> &'static str {
        "cast"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let storage = match storage {
            CpuStorage::F32(values) => CpuStorage::BF16(converted(in_order(values, layout)?, rounded)),
            CpuStorage::BF16(values) => CpuStorage::F32(converted(in_order(values, layout)?, widened)),
            _ => return Err(Error::Msg("a cast of neither f32 nor bf16".to_string())),
        };
        Ok((storage, layout.shape().clone()))
    }
}

pub(crate) fn converted<A: Copy + Sync, B: Copy + Default + Send>(
    values: &[A],
    convert: impl Fn(A) -> B + Sync,
) -> Vec<B> {
    let convert_piece = |(): &mut (), places: Range<usize>, output: &mut [B]| {
        for (target, &value) in output.iter_mut().zip(&values[places]) {
            *target = convert(value);
        }
    };
    made(values.len(), || (), convert_piece)
}

/// The same value in f32.
#[inline(always)]
#[must_use]
pub fn widened(value: bf16) -> f32 {
    f32::from_bits(u32::from(value.to_bits()) << 16)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn a_cast_is_that_of_the_framework_in_any_layout() -> Result<()> {
        let x = Tensor::randn(0f32, 1.0, (70, 300), &Device::Cpu)?.t()?;
        let narrow = cast(&x, DType::BF16)?;
        let expected = x.to_dtype(DType::BF16)?;
        assert_eq!(narrow.to_vec2::<bf16>()?, expected.to_vec2::<bf16>()?);
        let wide = cast(&expected.narrow(0, 3, 5)?, DType::F32)?;
        assert_eq!(wide.to_vec2::<f32>()?, expected.narrow(0, 3, 5)?.to_dtype(DType::F32)?.to_vec2::<f32>()?);
        Ok(())
    }
}
