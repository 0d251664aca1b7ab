//! Where tensors lie on a GPU, and how a kernel is started over them.

use candle_core::{
    CudaDevice, CudaStorage, DType, Device, Result, Shape, Storage, StorageRef, Tensor,
    backend::BackendStorage,
    cuda_backend::cudarc::driver::{DevicePtr, LaunchConfig},
    op::BackpropOp,
};
use half::bf16;

/// What candle calls the compiled kernels.
pub(crate) const MODULE: &str = "thicket";
pub(crate) const PTX: &str = include_str!(concat!(env!("OUT_DIR"), "/kernels.ptx"));

/// Bytes that a thread reads at a time.
pub(crate) const ALIGNMENT: u64 = 16;

/// The GPU of a tensor that has no gradient and one of the kernels' types.
pub(crate) fn device(tensor: &Tensor) -> Option<CudaDevice> {
    match tensor.device() {
        Device::Cuda(device) if !tensor.track_op() && suffix(tensor.dtype()).is_some() => {
            Some(device.clone())
        }
        _ => None,
    }
}

/// How the kernels for a type end.
pub(crate) fn suffix(dtype: DType) -> Option<&'static str> {
    match dtype {
        DType::F32 => Some("f32"),
        DType::BF16 => Some("bf16"),
        _ => None,
    }
}

/// A grid of blocks of some threads each.
pub(crate) fn grid(blocks: (u32, u32, u32), threads: u32) -> LaunchConfig {
    LaunchConfig { grid_dim: blocks, block_dim: (threads, 1, 1), shared_mem_bytes: 0 }
}

/// A tensor that is being read: where its first value lies. It stays there as long as this lives.
pub(crate) struct Place<'a> {
    pub(crate) address: u64,
    _storage: StorageRef<'a>,
}

impl Place<'_> {
    /// Whether a thread may read several values at a time from here on.
    pub(crate) fn is_aligned(&self) -> bool {
        self.address.is_multiple_of(ALIGNMENT)
    }
}

/// Where a tensor on a GPU lies. All work of a device is queued on one stream, in order, so that what is queued before a tensor
/// is dropped still finds it.
pub(crate) fn place(tensor: &Tensor) -> Result<Place<'_>> {
    let (storage, layout) = tensor.storage_and_layout();
    let start = layout.start_offset() * tensor.dtype().size_in_bytes();
    let address = match &*storage {
        Storage::Cuda(storage) => base(storage)?,
        _ => candle_core::bail!("a tensor for a GPU kernel is not on a GPU"),
    };
    Ok(Place { address: address + start as u64, _storage: storage })
}

fn base(storage: &CudaStorage) -> Result<u64> {
    let stream = storage.device().cuda_stream();
    Ok(match storage.dtype() {
        DType::F32 => storage.as_cuda_slice::<f32>()?.device_ptr(&stream).0,
        DType::BF16 => storage.as_cuda_slice::<bf16>()?.device_ptr(&stream).0,
        other => candle_core::bail!("no GPU kernel takes {other:?}"),
    })
}

/// A new tensor of f32 or bf16 that `fill` writes every value of, given where the first lies.
pub(crate) fn filled(
    device: &CudaDevice,
    dtype: DType,
    shape: impl Into<Shape>,
    fill: impl FnOnce(u64) -> Result<()>,
) -> Result<Tensor> {
    let shape = shape.into();
    let count = shape.elem_count();
    // SAFETY: values of these types may hold any bits, and `fill` writes them before they are read.
    let storage = unsafe {
        match dtype {
            DType::F32 => CudaStorage::wrap_cuda_slice(device.alloc::<f32>(count)?, device.clone()),
            DType::BF16 => CudaStorage::wrap_cuda_slice(device.alloc::<bf16>(count)?, device.clone()),
            other => candle_core::bail!("no GPU kernel gives {other:?}"),
        }
    };
    fill(base(&storage)?)?;
    Ok(Tensor::from_storage(Storage::Cuda(storage), shape, BackpropOp::none(), false))
}

/// Starts a kernel with the values given as its arguments, in order.
macro_rules! launch {
    ($device:expr, $name:expr, $grid:expr, $($argument:expr),+ $(,)?) => {{
        use candle_core::cuda_backend::{WrapErr, cudarc::driver::PushKernelArg};
        let kernel = $device.get_or_load_custom_func($name, $crate::launch::MODULE, $crate::launch::PTX)?;
        let mut builder = kernel.builder();
        $(
            // Each lives until the launch.
            let argument = $argument;
            builder.arg(&argument);
        )+
        // SAFETY: the arguments are those of the kernel in `kernels.cu`, and it stays inside the tensors that they name.
        unsafe { builder.launch($grid) }.w().map(|_| ())
    }};
}
pub(crate) use launch;
