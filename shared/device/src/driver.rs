//! What the driver tells about GPUs.

use crate::check::{Capability, Gpu, Gpus};

/// The GPUs of this machine. A build without CUDA has none and says so.
#[derive(Debug, Clone, Copy, Default)]
pub struct Driver;

#[cfg(feature = "cuda")]
impl Gpus for Driver {
    fn built_for(&self) -> Result<Capability, String> {
        let setting = env!("CUDA_COMPUTE_CAP", "set it to the GPU generation to build for, such as 86");
        Capability::of_build(setting)
            .ok_or_else(|| format!("the build is for an unknown generation, {setting}"))
    }

    fn look(&self, ordinal: usize) -> Result<Gpu, String> {
        use candle_core::cuda_backend::cudarc::driver::{CudaContext, DriverError};

        let said = |error: DriverError| format!("the driver says {:?}", error.0);
        let context = CudaContext::new(ordinal).map_err(said)?;
        let (major, minor) = context.compute_capability().map_err(said)?;
        let (free, total) = context.mem_get_info().map_err(said)?;
        let number = |number: i32| u32::try_from(number).unwrap_or_default();
        Ok(Gpu {
            name: context.name().map_err(said)?,
            capability: Capability { major: number(major), minor: number(minor) },
            free: free as u64,
            total: total as u64,
        })
    }
}

#[cfg(not(feature = "cuda"))]
impl Gpus for Driver {
    fn built_for(&self) -> Result<Capability, String> {
        Err("this build has no CUDA: build with the feature `cuda`".to_owned())
    }

    fn look(&self, _: usize) -> Result<Gpu, String> {
        Err("this build has no CUDA: build with the feature `cuda`".to_owned())
    }
}
