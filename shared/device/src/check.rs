//! The look at a GPU before a model is loaded to it.

use std::fmt;

use candle_core::DType;

use crate::{DeviceError, Place, Places};

/// First generation with bf16 in hardware.
const BF16_SINCE: Capability = Capability { major: 8, minor: 0 };
/// From this generation on, a build is for one generation alone.
const EXACT_SINCE: Capability = Capability { major: 9, minor: 0 };

/// NVIDIA's number of a GPU generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Capability {
    /// Before the point.
    pub major: u32,
    /// Behind it.
    pub minor: u32,
}

impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

impl Capability {
    /// Reads `CUDA_COMPUTE_CAP`: 86 is 8.6, 120 is 12.0.
    pub fn of_build(setting: &str) -> Option<Self> {
        let digits = setting.trim_end_matches(['a', 'f']);
        let (major, minor) = digits.split_at_checked(digits.len().checked_sub(1)?)?;
        Some(Self { major: major.parse().ok()?, minor: minor.parse().ok()? })
    }

    /// Whether code compiled for `built` runs on a GPU of this generation: the driver translates what is compiled for an
    /// older one, except that what is compiled for 9.0 or later runs on that very generation.
    pub fn runs(self, built: Self) -> bool {
        if built >= EXACT_SINCE { self == built } else { self >= built }
    }
}

/// What a GPU is, and what is free of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gpu {
    /// Product name, as the driver tells it.
    pub name: String,
    /// Its generation.
    pub capability: Capability,
    /// Free memory in bytes.
    pub free: u64,
    /// All of its memory in bytes.
    pub total: u64,
}

/// The memory that one copy of a model takes on its device, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Need {
    /// The weights, in the type they are kept in.
    pub weights: u64,
    /// The most that key-value caches take; 0 for a model that generates nothing.
    pub caches: u64,
    /// Room for what a forward pass computes.
    pub work: u64,
}

impl Need {
    /// All of it.
    pub fn total(&self) -> u64 {
        self.weights.saturating_add(self.caches).saturating_add(self.work)
    }
}

impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of weights", Gigabytes(self.weights))?;
        if self.caches > 0 {
            write!(f, ", {} of key-value caches", Gigabytes(self.caches))?;
        }
        write!(f, ", {} to compute in", Gigabytes(self.work))
    }
}

/// Bytes in 10^9 with one digit behind the point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gigabytes(pub u64);

impl fmt::Display for Gigabytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1} GB", self.0 as f64 / 1e9)
    }
}

/// Where facts about GPUs come from.
pub trait Gpus {
    /// The generation that this build's kernels are compiled for.
    ///
    /// # Errors
    /// Why this build has none.
    fn built_for(&self) -> Result<Capability, String>;

    /// Looks at the GPU of this number.
    ///
    /// # Errors
    /// What the driver says.
    fn look(&self, ordinal: usize) -> Result<Gpu, String>;
}

impl Places {
    /// Sees whether a copy of a model can be loaded to every device: its generation runs this build and knows the type of
    /// the arithmetic, and there is room. The processor always passes. Returns the GPUs.
    ///
    /// # Errors
    /// [`DeviceError::Absent`], [`DeviceError::Generation`], [`DeviceError::NoBf16`] or [`DeviceError::Memory`] of the
    /// first device that does not do.
    pub fn check(
        &self,
        dtype: DType,
        need: &Need,
        gpus: &dyn Gpus,
    ) -> Result<Vec<(Place, Gpu)>, DeviceError> {
        let mut found = Vec::new();
        for place in self.iter() {
            if let Place::Cuda(ordinal) = place {
                let absent = |reason| DeviceError::Absent { place, reason };
                let built = gpus.built_for().map_err(absent)?;
                let gpu = gpus.look(ordinal).map_err(absent)?;
                judge(place, &gpu, built, dtype, need)?;
                found.push((place, gpu));
            }
        }
        Ok(found)
    }
}

fn judge(place: Place, gpu: &Gpu, built: Capability, dtype: DType, need: &Need) -> Result<(), DeviceError> {
    let Gpu { name, capability, free, total } = gpu.clone();
    if !capability.runs(built) {
        let exact = built >= EXACT_SINCE;
        return Err(DeviceError::Generation { place, name, capability, built, exact });
    }
    if dtype == DType::BF16 && capability < BF16_SINCE {
        return Err(DeviceError::NoBf16 { place, name, capability });
    }
    if need.total() > free {
        return Err(DeviceError::Memory {
            place,
            free: Gigabytes(free),
            total: Gigabytes(total),
            need: *need,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RTX_3090: Capability = Capability { major: 8, minor: 6 };

    /// One machine's GPUs, as they are asked for.
    struct Machine {
        built: Capability,
        gpus: Vec<Gpu>,
    }

    impl Gpus for Machine {
        fn built_for(&self) -> Result<Capability, String> {
            Ok(self.built)
        }

        fn look(&self, ordinal: usize) -> Result<Gpu, String> {
            self.gpus.get(ordinal).cloned().ok_or_else(|| format!("there are {} GPUs", self.gpus.len()))
        }
    }

    fn gpu(capability: Capability, free: u64) -> Gpu {
        Gpu { name: "A GPU".to_owned(), capability, free, total: 24_000_000_000 }
    }

    fn refusal(places: &str, machine: &Machine, dtype: DType, need: &Need) -> String {
        let places: Places = places.parse().expect("devices");
        let error = places.check(dtype, need, machine).expect_err("refused").to_string();
        assert_eq!(error.lines().count(), 1, "{error}");
        error
    }

    const NEED: Need = Need { weights: 2_600_000_000, caches: 2_000_000_000, work: 100_000_000 };

    #[test]
    fn a_device_without_room_tells_what_is_free_and_what_is_needed() {
        let machine = Machine {
            built: RTX_3090,
            gpus: vec![gpu(RTX_3090, 20_000_000_000), gpu(RTX_3090, 3_100_000_000)],
        };
        assert_eq!(
            refusal("cuda:0,1", &machine, DType::BF16, &NEED),
            "cuda:1: 3.1 GB free of 24.0 GB, the model needs 4.7 GB: 2.6 GB of weights, 2.0 GB of key-value caches, \
             0.1 GB to compute in"
        );
    }

    #[test]
    fn an_older_generation_than_the_build_is_for_is_refused_with_both() {
        let machine =
            Machine { built: RTX_3090, gpus: vec![gpu(Capability { major: 7, minor: 5 }, u64::MAX)] };
        let error = refusal("cuda:0", &machine, DType::F16, &NEED);
        assert!(
            error.contains("7.5") && error.contains("8.6") && error.contains("CUDA_COMPUTE_CAP=75"),
            "{error}"
        );
    }

    #[test]
    fn a_newer_generation_runs_a_build_for_an_older_one_unless_that_is_for_one_generation_alone() {
        let capability = |major, minor| Capability { major, minor };
        assert!(capability(9, 0).runs(RTX_3090));
        assert!(capability(8, 6).runs(RTX_3090));
        assert!(!capability(8, 0).runs(RTX_3090));
        assert!(capability(9, 0).runs(capability(9, 0)));
        assert!(!capability(10, 0).runs(capability(9, 0)));
    }

    #[test]
    fn bf16_is_refused_where_the_hardware_lacks_it_and_f16_is_not() {
        let turing = Capability { major: 7, minor: 5 };
        let machine = Machine { built: turing, gpus: vec![gpu(turing, u64::MAX)] };
        assert!(refusal("cuda:0", &machine, DType::BF16, &NEED).contains("f16"));
        let places = Places::from(Place::Cuda(0));
        assert!(places.check(DType::F16, &NEED, &machine).is_ok());
    }

    #[test]
    fn a_device_that_is_not_there_says_why_and_the_processor_needs_no_gpu() {
        let machine = Machine { built: RTX_3090, gpus: Vec::new() };
        let error = refusal("cuda:5", &machine, DType::F32, &NEED);
        assert_eq!(error, "device cuda:5 cannot be used: there are 0 GPUs");
        assert_eq!(Places::default().check(DType::F32, &NEED, &machine).ok(), Some(Vec::new()));
    }

    #[test]
    fn the_setting_of_a_build_is_read() {
        let read = |setting| Capability::of_build(setting).map(|read| (read.major, read.minor));
        assert_eq!(read("86"), Some((8, 6)));
        assert_eq!(read("90"), Some((9, 0)));
        assert_eq!(read("120"), Some((12, 0)));
        assert_eq!(read("90a"), Some((9, 0)));
        for setting in ["", "8", "x", "8.6", "a"] {
            assert_eq!(read(setting), None, "{setting}");
        }
    }

    proptest! {
        #[test]
        fn a_model_is_let_in_exactly_where_its_need_is_free(
            free in any::<u64>(),
            weights in any::<u64>(),
            caches in any::<u64>(),
            work in any::<u64>(),
        ) {
            let machine = Machine { built: RTX_3090, gpus: vec![gpu(RTX_3090, free)] };
            let need = Need { weights, caches, work };
            let fits = u128::from(weights) + u128::from(caches) + u128::from(work) <= u128::from(free);
            let let_in = Places::from(Place::Cuda(0)).check(DType::BF16, &need, &machine).is_ok();
            // A need beyond 64 bits counts as the largest number of 64 bits.
            prop_assert!(let_in == fits || (let_in && free == u64::MAX));
        }
    }
}
