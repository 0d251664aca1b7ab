//! Where a model computes and in which type, as flags.

mod backend;

use std::fmt;
use std::str::FromStr;

use candle_core::{DType, Device};
use thicket_onednn::Library;

pub use backend::{ChosenBackend, CpuBackend};

/// Flags of a role that runs a model, for `#[command(flatten)]`.
#[derive(Debug, Clone, Copy, Default, clap::Args)]
pub struct ComputeArgs {
    /// Type of weights and arithmetic
    #[arg(long, env = "THICKET_DTYPE", value_enum, default_value_t = Precision::F32)]
    pub dtype: Precision,
    /// Device to compute on: cpu, cuda or cuda:N
    #[arg(long, env = "THICKET_DEVICE", value_name = "DEVICE", default_value_t = Place::Cpu)]
    pub device: Place,
    /// What multiplies on the CPU: oneDNN, Thicket's own products, or the faster of them
    #[arg(long, env = "THICKET_CPU_BACKEND", value_enum, default_value_t = CpuBackend::Auto)]
    pub cpu_backend: CpuBackend,
}

impl ComputeArgs {
    /// What multiplies by the weights of a model that runs with these flags.
    ///
    /// # Errors
    /// [`DeviceError::Backend`] where oneDNN is asked for and cannot serve.
    pub fn backend(&self) -> Result<ChosenBackend, DeviceError> {
        self.cpu_backend.choose(self.dtype, self.device, Library::get())
    }
}

/// Type of weights and arithmetic.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Precision {
    /// 32-bit floats, the reference.
    #[default]
    F32,
    /// 16-bit IEEE floats.
    F16,
    /// 16-bit brain floats.
    Bf16,
}

impl Precision {
    /// The type as candle names it.
    pub fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::F16 => DType::F16,
            Self::Bf16 => DType::BF16,
        }
    }
}

/// A device by name.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Place {
    /// The processor.
    #[default]
    Cpu,
    /// The CUDA device of this number.
    Cuda(usize),
}

/// Why a device cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The name is not one of a device.
    #[error("`{name}` is not a device: cpu, cuda or cuda:N expected")]
    Name {
        /// The name as given.
        name: String,
    },
    /// This build or this machine has no such device.
    #[error("device {place} cannot be used: {reason}")]
    Absent {
        /// The device.
        place: Place,
        /// What the driver, or the lack of it, says.
        reason: String,
    },
    /// oneDNN was asked for.
    #[error("--cpu-backend onednn cannot be served: {reason}")]
    Backend {
        /// Why not.
        reason: String,
    },
}

impl Place {
    /// Opens the device.
    ///
    /// # Errors
    /// [`DeviceError::Absent`] where this build or this machine has no such device.
    pub fn open(self) -> Result<Device, DeviceError> {
        match self {
            Self::Cpu => Ok(Device::Cpu),
            Self::Cuda(ordinal) => Device::new_cuda(ordinal).map_err(|error| {
                // What follows the first line is a backtrace.
                let reason = error.to_string().lines().next().unwrap_or_default().to_owned();
                DeviceError::Absent { place: self, reason }
            }),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
        }
    }
}

impl FromStr for Place {
    type Err = DeviceError;

    fn from_str(name: &str) -> Result<Self, DeviceError> {
        let ordinal = |number: &str| number.parse().ok().map(Self::Cuda);
        match name {
            "cpu" => Some(Self::Cpu),
            "cuda" => Some(Self::Cuda(0)),
            _ => name.strip_prefix("cuda:").and_then(ordinal),
        }
        .ok_or_else(|| DeviceError::Name { name: name.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_read_by_name_and_print_as_they_are_read() {
        for (name, place) in [("cpu", Place::Cpu), ("cuda", Place::Cuda(0)), ("cuda:3", Place::Cuda(3))] {
            assert_eq!(name.parse::<Place>().expect("a device"), place);
            assert_eq!(place.to_string().parse::<Place>().expect("a device"), place);
        }
        for name in ["", "gpu", "cuda:", "cuda:-1", "CPU", "cuda3"] {
            assert!(name.parse::<Place>().is_err(), "{name}");
        }
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn a_build_without_cuda_says_so_in_one_line() {
        let error = Place::Cuda(0).open().expect_err("not compiled in").to_string();
        assert!(error.starts_with("device cuda:0 cannot be used: "), "{error}");
        assert_eq!(error.lines().count(), 1, "{error}");
    }
}
