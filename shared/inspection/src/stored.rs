use std::collections::BTreeMap;
use std::path::Path;

use thicket_checkpoint::{CheckpointError, Surveyed, survey, survey_file, survey_pth};

/// Weights of a training run, and the entry that holds them.
const ARCHIVE: (&str, &str) = ("best.pth", "model");

/// What the weight files hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// Tensors.
    pub tensors: usize,
    /// Values of all floating-point tensors.
    pub parameters: u64,
    /// Bytes of all tensors.
    pub bytes: u64,
    /// Tensors of each type, by its name (`f32`, `bf16`).
    pub by_type: BTreeMap<String, usize>,
}

impl Stored {
    /// Reads the list of tensors of a model folder. The values are left alone: whoever loads the model has read them.
    pub(crate) fn of_model(dir: &Path) -> Result<Self, CheckpointError> {
        let archive = dir.join(ARCHIVE.0);
        let tensors = match survey(dir) {
            Err(CheckpointError::NoWeights { .. }) if archive.is_file() => {
                survey_pth(&archive, Some(ARCHIVE.1))?
            }
            other => other?,
        };
        Ok(Self::of(&tensors))
    }

    /// As [`Self::of_model`], of one safetensors file.
    pub(crate) fn of_file(path: &Path) -> Result<Self, CheckpointError> {
        Ok(Self::of(&survey_file(path)?))
    }

    fn of(tensors: &[Surveyed]) -> Self {
        let mut stored = Self { tensors: 0, parameters: 0, bytes: 0, by_type: BTreeMap::new() };
        for tensor in tensors {
            let kind = tensor.dtype.map_or("unknown", |dtype| dtype.as_str()).to_owned();
            let values = tensor.values();
            stored.tensors += 1;
            stored.bytes += values * width(&kind);
            if kind.contains('f') {
                stored.parameters += values;
            }
            *stored.by_type.entry(kind).or_default() += 1;
        }
        stored
    }
}

/// Bytes of a value: the digits of a type's name are its bits.
fn width(kind: &str) -> u64 {
    let digits: String =
        kind.chars().skip_while(|letter| !letter.is_ascii_digit()).take_while(char::is_ascii_digit).collect();
    digits.parse::<u64>().map_or(1, |bits| bits.div_ceil(8))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_width_of_a_type_is_in_its_name() {
        for (kind, bytes) in
            [("f32", 4), ("bf16", 2), ("f16", 2), ("i64", 8), ("u8", 1), ("f8_e4m3", 1), ("bool", 1)]
        {
            assert_eq!(width(kind), bytes, "{kind}");
        }
    }
}
