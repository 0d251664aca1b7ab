//! Views of tensor memory for code that runs on the CPU, and new memory.

use std::ops::Range;

use candle_core::{CpuStorage, DType, Error, Layout, Result, Storage, Tensor};
use rayon::prelude::*;

/// Values that are made at a time, side by side in vectors.
const PIECE: usize = 128;
/// Values handled by one task: enough work to be worth a task switch.
const VALUES_PER_TASK: usize = 16 * 1024;

/// True where the fused f32 code can run.
pub(crate) fn is_cpu_f32(tensor: &Tensor) -> bool {
    tensor.device().is_cpu() && tensor.dtype() == DType::F32
}

/// The f32 values of a storage, whatever the layout says of their order.
pub(crate) fn values(storage: &CpuStorage) -> Result<&[f32]> {
    storage.as_slice::<f32>()
}

/// The values of a contiguous layout.
pub(crate) fn contiguous<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    in_order(values(storage)?, layout)
}

/// The part of `values` that a contiguous layout covers.
pub(crate) fn in_order<'a, T>(values: &'a [T], layout: &Layout) -> Result<&'a [T]> {
    let (start, end) = layout
        .contiguous_offsets()
        .ok_or_else(|| Error::Msg("a fused operation needs a contiguous input".to_string()))?;
    Ok(&values[start..end])
}

/// Calls `read` with the values of a tensor, made contiguous first.
pub(crate) fn with_values<T>(tensor: &Tensor, read: impl FnOnce(&[f32]) -> Result<T>) -> Result<T> {
    let tensor = tensor.contiguous()?;
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cpu(storage) => read(contiguous(storage, layout)?),
        _ => Err(Error::Msg("a fused operation ran off the CPU".to_string())),
    }
}

/// Rows handled by one task: enough work to be worth a task switch.
pub(crate) fn rows_per_task(row_length: usize) -> usize {
    (VALUES_PER_TASK / row_length.max(1)).max(1)
}

/// So many values, made in parallel piece by piece: `make` is given the places of a piece's values and the values themselves, all at
/// their default, and something of the thread's own, which `begin` makes. Nothing is written twice: memory that is filled on one thread
/// first, as `vec!` does it, takes as long as some of the operations that fill it.
pub(crate) fn made<T: Copy + Default + Send, S>(
    count: usize,
    begin: impl Fn() -> S + Sync + Send,
    make: impl Fn(&mut S, Range<usize>, &mut [T]) + Sync + Send,
) -> Vec<T> {
    let mut pieces: Vec<[T; PIECE]> = Vec::with_capacity(count.div_ceil(PIECE));
    (0..count / PIECE)
        .into_par_iter()
        .with_min_len(VALUES_PER_TASK / PIECE)
        .map_init(&begin, |own, piece| {
            let mut values = [T::default(); PIECE];
            make(own, piece * PIECE..(piece + 1) * PIECE, &mut values);
            values
        })
        .collect_into_vec(&mut pieces);
    let mut values = pieces.into_flattened();
    let whole = values.len();
    values.resize(count, T::default());
    if whole < count {
        make(&mut begin(), whole..count, &mut values[whole..]);
    }
    values
}

/// So many values of zero, filled in parallel.
pub(crate) fn zeros<T: Copy + Default + Send>(count: usize) -> Vec<T> {
    made(count, || (), |(), _, _| ())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_value_is_made_once_at_its_place(count in 0usize..100_000) {
            let values = made(count, || 0, |before, places, values: &mut [usize]| {
                for (value, place) in values.iter_mut().zip(places) {
                    *before += 1;
                    *value += place;
                }
            });
            prop_assert!(values.into_iter().eq(0..count));
        }
    }
}
