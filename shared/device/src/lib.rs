//! Where a model computes and in which type, as flags, and whether it can.

mod backend;
mod check;
mod copies;
mod driver;
mod error;
mod place;

use candle_core::DType;
use thicket_onednn::Library;

pub use backend::{ChosenBackend, CpuBackend};
pub use check::{Capability, Gigabytes, Gpu, Gpus, Need};
pub use copies::{Compute, Load, Opened, loaded};
pub use driver::Driver;
pub use error::DeviceError;
pub use place::{Place, Places};

/// Flags of a role that runs a model, for `#[command(flatten)]`.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct ComputeArgs {
    /// Type of weights and arithmetic; auto is f32 on the cpu and bf16 on cuda
    #[arg(long, env = "THICKET_DTYPE", value_enum, default_value_t = Precision::Auto)]
    pub dtype: Precision,
    /// Device to compute on: cpu, cuda, cuda:N, or cuda:N,N,... for a copy of the model on each
    #[arg(long, env = "THICKET_DEVICE", value_name = "DEVICE", default_value_t = Places::default())]
    pub device: Places,
    /// What multiplies on the CPU: oneDNN, Thicket's own products, or the faster of them
    #[arg(long, env = "THICKET_CPU_BACKEND", value_enum, default_value_t = CpuBackend::Auto)]
    pub cpu_backend: CpuBackend,
}

impl ComputeArgs {
    /// The type of the arithmetic.
    pub fn dtype(&self) -> DType {
        self.dtype.on(self.device.first())
    }

    /// What multiplies by the weights of a model that runs with these flags.
    ///
    /// # Errors
    /// [`DeviceError::Backend`] where oneDNN is asked for and cannot serve.
    pub fn backend(&self) -> Result<ChosenBackend, DeviceError> {
        self.cpu_backend.choose(self.dtype(), self.device.first(), Library::get())
    }
}

/// Type of weights and arithmetic.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Precision {
    /// 32-bit floats on the processor, brain floats on a GPU.
    #[default]
    Auto,
    /// 32-bit floats, the reference.
    F32,
    /// 16-bit IEEE floats.
    F16,
    /// 16-bit brain floats.
    Bf16,
}

impl Precision {
    /// The type as candle names it, on a device.
    pub fn on(self, place: Place) -> DType {
        match (self, place) {
            (Self::F32, _) | (Self::Auto, Place::Cpu) => DType::F32,
            (Self::F16, _) => DType::F16,
            (Self::Bf16, _) | (Self::Auto, Place::Cuda(_)) => DType::BF16,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_automatic_type_follows_the_device_and_a_chosen_one_does_not() {
        for (precision, cpu, cuda) in [
            (Precision::Auto, DType::F32, DType::BF16),
            (Precision::F32, DType::F32, DType::F32),
            (Precision::F16, DType::F16, DType::F16),
            (Precision::Bf16, DType::BF16, DType::BF16),
        ] {
            assert_eq!((precision.on(Place::Cpu), precision.on(Place::Cuda(1))), (cpu, cuda));
        }
    }
}
