//! The goldens of tests/golden/clip and how they are compared.

use std::{collections::HashMap, fs, path::PathBuf};

use candle_core::{DType, Device, Tensor};
use image::RgbImage;
use serde_json::Value;
use tempfile::TempDir;
use thicket_checkpoint::Checkpoint;
use thicket_clip::{ClipEmbedder, Config, LoadOptions, RunOptions};
use thicket_imaging::{Filter, Limits, clip_normalised, decode, resize};

pub(crate) fn folder(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/clip").join(name)
}

pub(crate) fn golden(name: &str) -> Value {
    serde_json::from_str(&fs::read_to_string(folder(name).join("golden.json")).unwrap()).unwrap()
}

pub(crate) fn load(name: &str) -> ClipEmbedder {
    ClipEmbedder::load(&folder(name), LoadOptions::reference(name)).unwrap()
}

pub(crate) fn floats(value: &Value) -> Vec<f32> {
    value.as_array().unwrap().iter().map(|value| value.as_f64().unwrap() as f32).collect()
}

pub(crate) fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|value| u32::try_from(value.as_u64().unwrap()).unwrap()).collect()
}

pub(crate) fn picture(model: &str, file: &str) -> RgbImage {
    decode(&fs::read(folder(model).join(file)).unwrap(), &Limits::default()).unwrap()
}

pub(crate) fn pixels(image: &RgbImage, (height, width): (usize, usize)) -> Tensor {
    let values = clip_normalised(&resize(image, height as u32, width as u32, Filter::Bilinear));
    Tensor::from_vec(values, (1, 3, height, width), &Device::Cpu).unwrap()
}

pub(crate) fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

pub(crate) fn row(tensor: &Tensor, index: usize) -> Vec<f32> {
    tensor.to_dtype(DType::F32).unwrap().to_vec2::<f32>().unwrap().swap_remove(index)
}

/// All tensors of the `trained` golden by name.
pub(crate) fn trained_tensors() -> HashMap<String, Tensor> {
    candle_core::safetensors::load(folder("trained").join("model.safetensors"), &Device::Cpu).unwrap()
}

/// A checkpoint folder like the `trained` golden but with these tensors.
pub(crate) fn checkpoint_with(tensors: &HashMap<String, Tensor>) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    candle_core::safetensors::save(tensors, dir.path().join("model.safetensors")).unwrap();
    for file in ["configs.yaml", "bpe_simple_vocab.txt"] {
        fs::copy(folder("trained").join(file), dir.path().join(file)).unwrap();
    }
    dir
}

pub(crate) fn config(name: &str) -> Config {
    let checkpoint = Checkpoint::open(&folder(name)).unwrap();
    Config::infer(&checkpoint, &RunOptions::read(&folder(name)).unwrap()).unwrap()
}
