//! The memory of a GPU, and what a model takes of it.
//!
//! With 2 bytes a value (bf16, or f16 where the GPU has no bf16):
//!
//! ```text
//! need = parameters x 2 bytes + key-value caches + activations + driver
//! ```
//!
//! Qwen2-VL-7B: 8,291,375,616 x 2 = 16,582,751,232 bytes = 15.44 GiB of weights; with 2 GiB of caches, 1 GiB of
//! activations and 1.5 GiB for the driver 19.94 GiB, which fits 24 GiB and does not fit 16 GiB.

/// One GiB.
const GIB: u64 = 1 << 30;

/// The most that the answer engine gives to the key-value caches of all sequences it decodes at a time: 2 GiB. At 57,344
/// bytes a token (Qwen2-VL-7B) that is 37,449 tokens.
pub const CACHE_RESERVE: u64 = 2 * GIB;
/// Room for what a forward pass computes: 1 GiB. The largest part of a 7B model is the feed-forward layer of a prefill of
/// 4,096 tokens: 3 x 4,096 x 18,944 x 2 bytes = 0.43 GiB.
pub const ACTIVATION_RESERVE: u64 = GIB;
/// What is not there for tensors: 1.5 GiB for the driver's context, and on an L4 or a T4 for error correction, which
/// takes 1/16 of the memory.
pub const DRIVER_RESERVE: u64 = 3 * GIB / 2;

/// A GPU that operators ask about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gpu {
    /// Name.
    pub name: &'static str,
    /// Nominal memory in bytes.
    pub memory: u64,
    /// Whether it computes in bf16; f16 takes the same memory.
    pub bf16: bool,
}

/// GPUs from small to large.
pub const GPUS: [Gpu; 6] = [
    Gpu { name: "T4", memory: 16 * GIB, bf16: false },
    Gpu { name: "L4", memory: 24 * GIB, bf16: true },
    Gpu { name: "RTX 3090", memory: 24 * GIB, bf16: true },
    Gpu { name: "RTX 4090", memory: 24 * GIB, bf16: true },
    Gpu { name: "A100 40", memory: 40 * GIB, bf16: true },
    Gpu { name: "A100 80", memory: 80 * GIB, bf16: true },
];

/// What a model takes of a GPU's memory, in bytes, at 2 bytes a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Need {
    /// The weights.
    pub weights: u64,
    /// Key-value caches; 0 for a model that generates nothing.
    pub cache: u64,
    /// What a forward pass computes.
    pub activations: u64,
    /// What the driver takes.
    pub driver: u64,
}

impl Need {
    pub(crate) fn of(parameters: u64, generates: bool) -> Self {
        Self {
            weights: 2 * parameters,
            cache: if generates { CACHE_RESERVE } else { 0 },
            activations: ACTIVATION_RESERVE,
            driver: DRIVER_RESERVE,
        }
    }

    /// All of it.
    #[must_use]
    pub const fn total(&self) -> u64 {
        self.weights + self.cache + self.activations + self.driver
    }

    /// Whether it fits.
    #[must_use]
    pub const fn fits(&self, gpu: &Gpu) -> bool {
        self.total() <= gpu.memory
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::find;

    #[test]
    fn the_documented_arithmetic_is_what_is_computed() {
        let need = find("qwen2-vl-7b-instruct").unwrap().need();
        assert_eq!(need.weights, 16_582_751_232);
        let gib = need.total() as f64 / GIB as f64;
        assert!((gib - 19.94).abs() < 0.005, "{gib}");
        assert_eq!(CACHE_RESERVE / 57_344, 37_449);
    }

    #[test]
    fn a_7b_model_fits_24_gib_and_not_16() {
        for name in ["qwen2-vl-7b-instruct", "qwen2.5-vl-7b-instruct", "icl-lora"] {
            let need = find(name).unwrap().need();
            let fits: Vec<&str> = GPUS.iter().filter(|gpu| need.fits(gpu)).map(|gpu| gpu.name).collect();
            assert_eq!(fits, ["L4", "RTX 3090", "RTX 4090", "A100 40", "A100 80"], "{name}");
        }
    }

    #[test]
    fn the_smaller_models_fit_every_gpu() {
        for name in ["rde", "clip-vit-large-patch14", "qwen2-vl-2b-instruct", "qwen2.5-vl-3b-instruct"] {
            assert!(GPUS.iter().all(|gpu| find(name).unwrap().need().fits(gpu)), "{name}");
        }
    }
}
