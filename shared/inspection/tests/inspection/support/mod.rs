//! The fixtures in `tests/golden`, and copies of them to damage.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use tempfile::TempDir;
use thicket_inspection::{InspectError, Inspection, Options, inspect};
use thicket_kernels::Backend;

pub(crate) fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name)
}

pub(crate) fn options(adapter: Option<&Path>) -> Options {
    Options {
        adapter: adapter.map(Path::to_path_buf),
        dtype: DType::F32,
        device: Device::Cpu,
        backend: Backend::Plain,
    }
}

pub(crate) fn look(dir: &Path) -> Result<Inspection, InspectError> {
    inspect(dir, &options(None))
}

/// A copy of a fixture's files.
pub(crate) fn copy(name: &str) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for file in fs::read_dir(golden(name)).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), dir.path().join(file.file_name())).unwrap();
    }
    dir
}

pub(crate) fn edit_json(path: &Path, change: impl FnOnce(&mut serde_json::Value)) {
    let mut value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    change(&mut value);
    fs::write(path, value.to_string()).unwrap();
}

/// Changes the tensors of a `model.safetensors`.
pub(crate) fn edit_tensors(path: &Path, change: impl FnOnce(&mut HashMap<String, Tensor>)) {
    let mut tensors = candle_core::safetensors::load(path, &Device::Cpu).unwrap();
    change(&mut tensors);
    candle_core::safetensors::save(&tensors, path).unwrap();
}

/// The message of a folder that does not pass, which is one line.
#[track_caller]
pub(crate) fn refusal(dir: &Path) -> String {
    let text = look(dir).unwrap_err().to_string();
    assert_eq!(text.lines().count(), 1, "{text}");
    text
}
