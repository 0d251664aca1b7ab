use crate::{Capability, Gigabytes, Need, Place, Places};

/// Why a device cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The name is not one of a device.
    #[error("`{name}` is not a device: cpu, cuda, cuda:N or cuda:N,N,... expected")]
    Name {
        /// The name as given.
        name: String,
    },
    /// No device is named.
    #[error("at least one device expected")]
    None,
    /// A device is named more than once.
    #[error("device {place} is named twice")]
    Twice {
        /// The device.
        place: Place,
    },
    /// The processor is named beside a GPU.
    #[error("cpu and cuda devices do not go together: a model computes on the one or on the others")]
    Mixed,
    /// More devices than what is to run can use.
    #[error("one device expected here, got {places}")]
    Several {
        /// The devices.
        places: Places,
    },
    /// oneDNN was asked for.
    #[error("--cpu-backend onednn cannot be served: {reason}")]
    Backend {
        /// Why not.
        reason: String,
    },
    /// What a copy of the model takes cannot be told.
    #[error("the memory that the model needs cannot be told: {reason}")]
    Unmeasured {
        /// Why not.
        reason: String,
    },
    /// This build or this machine has no such device.
    #[error("device {place} cannot be used: {reason}")]
    Absent {
        /// The device.
        place: Place,
        /// What the driver, or the lack of it, says.
        reason: String,
    },
    /// The GPU's generation does not run the kernels of this build.
    #[error(
        "{place}: {name} is of compute capability {capability}, this build is for {built}{}: build with \
         CUDA_COMPUTE_CAP={}{}",
        if *exact { " alone" } else { " and later" },
        capability.major,
        capability.minor
    )]
    Generation {
        /// The device.
        place: Place,
        /// The GPU's product name.
        name: String,
        /// The GPU's generation.
        capability: Capability,
        /// The generation that the build is for.
        built: Capability,
        /// Whether it is for that generation alone.
        exact: bool,
    },
    /// The GPU's generation has no bf16.
    #[error("{place}: {name} is of compute capability {capability}, bf16 needs 8.0: use f16 or f32")]
    NoBf16 {
        /// The device.
        place: Place,
        /// The GPU's product name.
        name: String,
        /// The GPU's generation.
        capability: Capability,
    },
    /// The model does not fit what is free.
    #[error("{place}: {free} free of {total}, the model needs {}: {need}", Gigabytes(need.total()))]
    Memory {
        /// The device.
        place: Place,
        /// Free memory.
        free: Gigabytes,
        /// All memory.
        total: Gigabytes,
        /// What the model takes.
        need: Need,
    },
}
