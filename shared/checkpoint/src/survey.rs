//! What weight files hold, told from their headers alone.

use std::path::Path;

use candle_core::DType;

use crate::{
    CheckpointError,
    source::{Source, open_archive, open_one, open_shards},
};

/// A tensor by its header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Surveyed {
    /// Its name in the file.
    pub name: String,
    /// Its sizes.
    pub shape: Vec<usize>,
    /// Its stored type; `None` for one that is not read.
    pub dtype: Option<DType>,
}

impl Surveyed {
    /// How many values it holds.
    #[must_use]
    pub fn values(&self) -> u64 {
        self.shape.iter().map(|&size| size as u64).product()
    }
}

/// Lists the tensors of a folder's safetensors files without reading their values, which [`crate::Checkpoint::open`] does
/// once for its digest.
///
/// # Errors
/// As [`crate::Checkpoint::open`].
pub fn survey(dir: &Path) -> Result<Vec<Surveyed>, CheckpointError> {
    Ok(list(&Source::Safetensors(open_shards(dir)?.0)))
}

/// As [`survey`], of one safetensors file.
///
/// # Errors
/// As [`crate::Checkpoint::open_file`].
pub fn survey_file(path: &Path) -> Result<Vec<Surveyed>, CheckpointError> {
    Ok(list(&Source::Safetensors(open_one(path)?)))
}

/// As [`survey`], of an archive of `torch.save`.
///
/// # Errors
/// As [`crate::Checkpoint::open_pth`].
pub fn survey_pth(path: &Path, top_key: Option<&str>) -> Result<Vec<Surveyed>, CheckpointError> {
    Ok(list(&Source::Pickle(open_archive(path, top_key)?)))
}

fn list(source: &Source) -> Vec<Surveyed> {
    source.entries().into_iter().map(|(name, shape, dtype)| Surveyed { name, shape, dtype }).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use candle_core::{Device, Tensor};

    use super::*;

    #[test]
    fn a_survey_tells_every_tensor_and_its_values() {
        let dir = tempfile::tempdir().unwrap();
        let tensor = Tensor::zeros((2, 3), DType::BF16, &Device::Cpu).unwrap();
        let tensors = HashMap::from([("a.weight".to_string(), tensor)]);
        candle_core::safetensors::save(&tensors, dir.path().join("model.safetensors")).unwrap();
        let found = survey(dir.path()).unwrap();
        let expected = Surveyed { name: "a.weight".to_string(), shape: vec![2, 3], dtype: Some(DType::BF16) };
        assert_eq!(found, [expected]);
        assert_eq!(found[0].values(), 6);
    }

    #[test]
    fn one_file_is_surveyed_like_a_folder() {
        let dir = tempfile::tempdir().unwrap();
        let tensor = Tensor::zeros(4, DType::F32, &Device::Cpu).unwrap();
        let file = dir.path().join("model.safetensors");
        candle_core::safetensors::save(&HashMap::from([("a".to_string(), tensor)]), &file).unwrap();
        assert_eq!(survey_file(&file).unwrap(), survey(dir.path()).unwrap());
        let missing = survey_file(&dir.path().join("other.safetensors"));
        assert!(matches!(missing, Err(CheckpointError::Unreadable { .. })));
    }

    #[test]
    fn a_folder_without_weights_has_nothing_to_survey() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(survey(dir.path()), Err(CheckpointError::NoWeights { .. })));
    }
}
