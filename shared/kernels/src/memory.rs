//! Views of tensor memory for code that runs on the CPU.

use candle_core::{CpuStorage, DType, Error, Layout, Result, Storage, Tensor};

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
    const VALUES_PER_TASK: usize = 16 * 1024;
    (VALUES_PER_TASK / row_length.max(1)).max(1)
}
