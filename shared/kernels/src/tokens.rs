//! The first tokens of a transformer, for inference in bf16 on the CPU each as one parallel pass: candle composes them of several, most
//! on one thread.

use std::ops::Range;

use candle_core::{CpuStorage, CustomOp1, CustomOp2, DType, Error, Layout, Result, Shape, Tensor};
use half::bf16;

use crate::{
    cast::{cast, rounded, widened},
    memory::{contiguous, in_order, is_cpu_f32, made},
};

/// The pixels of square patches that do not overlap, `size` wide: `[batch, channels, height, width]` to `[batch, patches, channels * size *
/// size]` in the type `dtype`, patches row by row, without the margin that fills none. From f32 to bf16 on the CPU it has no gradient.
///
/// # Errors
/// Pixels of another rank, or a size of zero.
pub fn patches(pixels: &Tensor, size: usize, dtype: DType) -> Result<Tensor> {
    let (batch, channels, height, width) = pixels.dims4()?;
    if size == 0 {
        return Err(Error::Msg("patches of no pixels".to_string()));
    }
    let (rows, columns) = (height / size, width / size);
    if is_cpu_f32(pixels) && dtype == DType::BF16 {
        return pixels.contiguous()?.apply_op1_no_bwd(&Patches { size, shape: [channels, height, width] });
    }
    cast(pixels, dtype)?
        .narrow(2, 0, rows * size)?
        .narrow(3, 0, columns * size)?
        .contiguous()?
        .reshape((batch, channels, rows, size, columns, size))?
        .permute((0, 2, 4, 1, 3, 5))?
        .reshape((batch, rows * columns, channels * size * size))
}

struct Patches {
    size: usize,
    /// Channels, height and width.
    shape: [usize; 3],
}

impl Patches {
    fn run(&self, pixels: &[f32], images: usize) -> Vec<bf16> {
        let &Self { size, shape: [channels, height, width] } = self;
        let (rows, columns) = (height / size, width / size);
        let of_patch = channels * size * size;
        let make = |(): &mut (), places: Range<usize>, output: &mut [bf16]| {
            let mut place = places.start;
            while place < places.end {
                let (patch, pixel) = (place / of_patch, place % of_patch);
                let (image, row, column) =
                    (patch / (rows * columns), patch / columns % rows, patch % columns);
                let (channel, y, x) = (pixel / (size * size), pixel / size % size, pixel % size);
                // As many as lie side by side.
                let count = (size - x).min(places.end - place);
                let line = (image * channels + channel) * height + row * size + y;
                let line = &pixels[line * width + column * size + x..][..count];
                let target = &mut output[place - places.start..][..count];
                for (target, &pixel) in target.iter_mut().zip(line) {
                    *target = rounded(pixel);
                }
                place += count;
            }
        };
        made(images * rows * columns * of_patch, || (), make)
    }
}

impl CustomOp1 for Patches {
    fn name(&self) -> &'static str {
        "patches"
    }

    fn cpu_fwd(&self, pixels: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (batch, channels, height, width) = layout.shape().dims4()?;
        let values = self.run(contiguous(pixels, layout)?, batch);
        let size = self.size;
        let shape = (batch, (height / size) * (width / size), channels * size * size);
        Ok((CpuStorage::BF16(values), shape.into()))
    }
}

/// Tokens at their places, in f32: `[batch, n, d]`, each plus its row of `table`, f32 `[n, d]` or `[n + 1, d]`. The first row of a table of
/// one more is a token of its own, which every sequence begins with. From bf16 on the CPU it has no gradient.
///
/// # Errors
/// Shapes that do not fit.
pub fn placed(tokens: &Tensor, table: &Tensor) -> Result<Tensor> {
    let (batch, count, width) = tokens.dims3()?;
    let (places, table_width) = table.dims2()?;
    if table_width != width || !(count..=count + 1).contains(&places) {
        return Err(Error::Msg(format!("a table {:?} for tokens {:?}", table.dims(), tokens.dims())));
    }
    if tokens.device().is_cpu() && tokens.dtype() == DType::BF16 && table.dtype() == DType::F32 {
        return tokens.contiguous()?.apply_op2_no_bwd(&table.contiguous()?, &Placed);
    }
    let (tokens, table) = (tokens.to_dtype(DType::F32)?, table.to_dtype(DType::F32)?);
    let placed = tokens.broadcast_add(&table.narrow(0, places - count, count)?)?;
    if places == count {
        return Ok(placed);
    }
    Tensor::cat(&[&table.narrow(0, 0, 1)?.broadcast_as((batch, 1, width))?, &placed], 1)
}

struct Placed;

impl CustomOp2 for Placed {
    fn name(&self) -> &'static str {
        "placed"
    }

    fn cpu_fwd(
        &self,
        tokens: &CpuStorage,
        tokens_layout: &Layout,
        table: &CpuStorage,
        table_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (batch, count, width) = tokens_layout.shape().dims3()?;
        let tokens = in_order(tokens.as_slice::<bf16>()?, tokens_layout)?;
        let table = contiguous(table, table_layout)?;
        let (of_table, of_tokens) = (table.len(), count * width);
        let first = of_table - of_tokens;
        let make = |(): &mut (), places: Range<usize>, output: &mut [f32]| {
            let mut place = places.start;
            while place < places.end {
                let (sequence, at) = (place / of_table, place % of_table);
                let end = if at < first { first } else { of_table };
                let count = (end - at).min(places.end - place);
                let target = &mut output[place - places.start..][..count];
                target.copy_from_slice(&table[at..at + count]);
                if let Some(at) = at.checked_sub(first) {
                    let tokens = &tokens[sequence * of_tokens + at..][..count];
                    for (target, &token) in target.iter_mut().zip(tokens) {
                        *target += widened(token);
                    }
                }
                place += count;
            }
        };
        let values = made(batch * of_table, || (), make);
        Ok((CpuStorage::F32(values), (batch, of_table / width, width).into()))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use proptest::prelude::*;

    use super::*;

    fn random(shape: &[usize]) -> Result<Tensor> {
        Tensor::randn(0f32, 1.0, shape, &Device::Cpu)
    }

    fn values(tensor: &Tensor) -> Result<Vec<f32>> {
        tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn patches_in_one_pass_are_those_of_the_composition(
            batch in 1usize..4,
            channels in 1usize..4,
            size in 1usize..20,
            rows in 1usize..5,
            columns in 1usize..5,
            margin in 0usize..3,
        ) {
            let pixels = random(&[batch, channels, rows * size + margin.min(size - 1), columns * size]).unwrap();
            let narrow = patches(&pixels, size, DType::BF16).unwrap();
            let composed = patches(&pixels, size, DType::F32).unwrap().to_dtype(DType::BF16).unwrap();
            prop_assert_eq!(narrow.dims(), &[batch, rows * columns, channels * size * size]);
            prop_assert_eq!(values(&narrow).unwrap(), values(&composed).unwrap());
        }

        #[test]
        fn tokens_placed_in_one_pass_are_those_of_the_composition(
            batch in 1usize..5,
            count in 1usize..30,
            width in 1usize..70,
            first in 0usize..2,
        ) {
            let tokens = random(&[batch, count, width]).unwrap().to_dtype(DType::BF16).unwrap();
            let table = random(&[count + first, width]).unwrap();
            let one_pass = placed(&tokens, &table).unwrap();
            let composed = placed(&tokens.to_dtype(DType::F32).unwrap(), &table).unwrap();
            prop_assert_eq!((one_pass.dtype(), one_pass.dims()), (DType::F32, composed.dims()));
            prop_assert_eq!(values(&one_pass).unwrap(), values(&composed).unwrap());
        }
    }

    #[test]
    fn shapes_that_do_not_fit_are_refused() -> Result<()> {
        let tokens = random(&[2, 5, 8])?;
        for table in [[4, 8], [7, 8], [5, 7]] {
            let refused = placed(&tokens, &random(&table)?).unwrap_err().to_string();
            assert!(refused.contains("for tokens [2, 5, 8]"), "{refused}");
        }
        assert!(patches(&random(&[1, 3, 8, 8])?, 0, DType::BF16).is_err());
        assert!(patches(&tokens, 2, DType::BF16).is_err());
        Ok(())
    }
}
