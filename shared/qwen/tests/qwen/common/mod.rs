//! The fixtures in `tests/golden/qwen`.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use candle_core::{DType, Device, Tensor};
use image::RgbImage;
use serde::Deserialize;
use tempfile::TempDir;
use thicket_engine::{Prompt, Sampling};
use thicket_qwen::{LoadError, LoadOptions, QwenAnswerer};

/// All checkpoints, two of each family: other sizes, other file layouts.
pub(crate) const FIXTURES: [&str; 4] = ["tied", "untied", "tied-2.5", "untied-2.5"];

/// Those that an adapter stands beside.
pub(crate) const ADAPTED: [&str; 3] = ["tied", "untied", "tied-2.5"];

#[derive(Debug, Deserialize)]
pub(crate) struct Case {
    pub(crate) text: String,
    pub(crate) image: Option<String>,
    pub(crate) grid: Option<(usize, usize)>,
    pub(crate) tokens: Vec<u32>,
    pub(crate) positions: Vec<[u32; 3]>,
    pub(crate) generated: Vec<u32>,
    pub(crate) generated_text: String,
}

impl Case {
    pub(crate) fn image(&self) -> Option<Arc<RgbImage>> {
        self.image.as_ref().map(|name| {
            let bytes = fs::read(goldens().join(name)).unwrap();
            Arc::new(thicket_imaging::decode(&bytes, &thicket_imaging::Limits::default()).unwrap())
        })
    }

    pub(crate) fn prompt(&self) -> Prompt {
        Prompt::new(self.image(), self.text.clone())
    }
}

pub(crate) fn goldens() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/qwen")
}

pub(crate) fn fixture(name: &str) -> PathBuf {
    goldens().join(name)
}

pub(crate) fn cases(name: &str) -> Vec<Case> {
    serde_json::from_slice(&fs::read(fixture(name).join("goldens.json")).unwrap()).unwrap()
}

pub(crate) fn golden_tensors(name: &str) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(fixture(name).join("goldens.safetensors"), &Device::Cpu).unwrap()
}

pub(crate) fn load(dir: &Path) -> Result<QwenAnswerer, LoadError> {
    load_adapted(dir, None)
}

pub(crate) fn load_adapted(dir: &Path, adapter: Option<PathBuf>) -> Result<QwenAnswerer, LoadError> {
    load_as(dir, adapter, DType::F32)
}

pub(crate) fn load_as(dir: &Path, adapter: Option<PathBuf>, dtype: DType) -> Result<QwenAnswerer, LoadError> {
    QwenAnswerer::load(dir, LoadOptions { adapter, dtype, ..LoadOptions::reference("fixture") })
}

/// A copy of a fixture to damage.
pub(crate) fn copy(name: &str) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for file in fs::read_dir(fixture(name)).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), dir.path().join(file.file_name())).unwrap();
    }
    dir
}

/// Changes a JSON file of a copied fixture.
pub(crate) fn edit_json(path: &Path, change: impl FnOnce(&mut serde_json::Value)) {
    let mut value = fs::read(path)
        .map_or_else(|_| serde_json::json!({}), |bytes| serde_json::from_slice(&bytes).unwrap());
    change(&mut value);
    fs::write(path, value.to_string()).unwrap();
}

pub(crate) fn greedy(max_tokens: usize) -> Sampling {
    Sampling { max_tokens, temperature: 0.0, seed: 0 }
}

/// Asserts equality up to `tolerance` times the largest expected value.
pub(crate) fn assert_close(what: &str, actual: &Tensor, expected: &Tensor, tolerance: f32) {
    assert_eq!(actual.dims(), expected.dims(), "{what}");
    let values = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let (actual, expected) = (values(actual), values(expected));
    let scale = expected.iter().fold(0f32, |largest, value| largest.max(value.abs()));
    let mut worst = 0f32;
    for (a, e) in actual.iter().zip(&expected) {
        assert!(a.is_finite(), "{what}: {a}");
        worst = worst.max((a - e).abs());
    }
    assert!(worst <= tolerance * scale, "{what}: off by {worst} at a scale of {scale}");
}
