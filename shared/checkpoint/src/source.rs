use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::{Path, PathBuf},
};

use candle_core::{Device, Result, Tensor, pickle::PthTensors, safetensors::MmapedSafetensors};
use serde::Deserialize;

use crate::CheckpointError;

/// Where tensors are read from.
pub(crate) enum Source {
    Safetensors(MmapedSafetensors),
    Pickle(PthTensors),
}

/// A source, the shapes of its tensors and the digest of its files.
pub(crate) type Opened = (Source, BTreeMap<String, Vec<usize>>, String);

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Safetensors(_) => "Safetensors",
            Self::Pickle(_) => "Pickle",
        })
    }
}

impl Source {
    /// Reads one tensor to the CPU in its stored dtype.
    pub(crate) fn load(&self, name: &str) -> Result<Tensor> {
        match self {
            Self::Safetensors(files) => files.load(name, &Device::Cpu),
            Self::Pickle(archive) => archive
                .get(name)?
                .ok_or_else(|| candle_core::Error::Msg(format!("tensor {name} is missing")))?
                .contiguous(),
        }
    }
}

impl Source {
    /// The type that a tensor is stored in, in lower case: `f32`, `bf16`, `i64`.
    pub(crate) fn stored_type(&self, name: &str) -> Option<String> {
        match self {
            Self::Safetensors(files) => {
                files.get(name).ok().map(|view| format!("{:?}", view.dtype()).to_lowercase())
            }
            Self::Pickle(archive) => {
                archive.tensor_infos().get(name).map(|info| info.dtype.as_str().to_owned())
            }
        }
    }
}

const SINGLE_FILE: &str = "model.safetensors";
const SHARD_INDEX: &str = "model.safetensors.index.json";

#[derive(Deserialize)]
struct ShardIndex {
    weight_map: BTreeMap<String, String>,
}

pub(crate) fn open_safetensors(dir: &Path) -> std::result::Result<Opened, CheckpointError> {
    let index_path = dir.join(SHARD_INDEX);
    let index = if index_path.is_file() { Some(read_index(&index_path)?) } else { None };
    let files = match &index {
        Some(index) => shard_paths(dir, &index_path, index)?,
        None if dir.join(SINGLE_FILE).is_file() => vec![dir.join(SINGLE_FILE)],
        None => return Err(CheckpointError::NoWeights { path: dir.to_path_buf() }),
    };
    let (source, shapes) = map_files(&files)?;
    if let Some(index) = index
        && let Some((tensor, file)) = index.weight_map.iter().find(|(name, _)| !shapes.contains_key(*name))
    {
        return Err(CheckpointError::AbsentTensor {
            index: index_path,
            tensor: tensor.clone(),
            file: file.clone(),
        });
    }
    Ok((source, shapes, digest(&files)?))
}

pub(crate) fn open_file(path: &Path) -> std::result::Result<Opened, CheckpointError> {
    require_file(path)?;
    let files = [path.to_path_buf()];
    let (source, shapes) = map_files(&files)?;
    Ok((source, shapes, digest(&files)?))
}

pub(crate) fn open_pth(path: &Path, top_key: Option<&str>) -> std::result::Result<Opened, CheckpointError> {
    require_file(path)?;
    let archive = PthTensors::new(path, top_key)
        .map_err(|cause| CheckpointError::Damaged { path: path.to_path_buf(), reason: one_line(&cause) })?;
    let shapes: BTreeMap<_, _> = archive
        .tensor_infos()
        .iter()
        .map(|(name, info)| (name.clone(), info.layout.shape().dims().to_vec()))
        .collect();
    if shapes.is_empty() {
        let reason = match top_key {
            Some(key) => format!("it holds no tensors under `{key}`"),
            None => "it holds no tensors".to_string(),
        };
        return Err(CheckpointError::Damaged { path: path.to_path_buf(), reason });
    }
    Ok((Source::Pickle(archive), shapes, digest(&[path.to_path_buf()])?))
}

fn require_file(path: &Path) -> std::result::Result<(), CheckpointError> {
    if path.is_file() {
        return Ok(());
    }
    Err(CheckpointError::Unreadable { path: path.to_path_buf(), reason: "no such file".to_string() })
}

fn read_index(path: &Path) -> std::result::Result<ShardIndex, CheckpointError> {
    let text = std::fs::read_to_string(path).map_err(|cause| unreadable(path, &cause))?;
    serde_json::from_str(&text)
        .map_err(|cause| CheckpointError::Damaged { path: path.to_path_buf(), reason: cause.to_string() })
}

fn shard_paths(
    dir: &Path,
    index_path: &Path,
    index: &ShardIndex,
) -> std::result::Result<Vec<PathBuf>, CheckpointError> {
    let names: BTreeSet<&str> = index.weight_map.values().map(String::as_str).collect();
    let mut paths = Vec::with_capacity(names.len());
    for name in names {
        if Path::new(name).components().count() != 1 || name == ".." {
            return Err(CheckpointError::Damaged {
                path: index_path.to_path_buf(),
                reason: format!("shard name `{name}` is not a plain file name"),
            });
        }
        let path = dir.join(name);
        if !path.is_file() {
            return Err(CheckpointError::AbsentShard {
                index: index_path.to_path_buf(),
                file: name.to_string(),
            });
        }
        paths.push(path);
    }
    Ok(paths)
}

type Mapped = (Source, BTreeMap<String, Vec<usize>>);

fn map_files(paths: &[PathBuf]) -> std::result::Result<Mapped, CheckpointError> {
    // Each file is opened alone first, so that the error of a damaged one names it.
    for path in paths {
        map(std::slice::from_ref(path))
            .map_err(|cause| CheckpointError::Damaged { path: path.clone(), reason: one_line(&cause) })?;
    }
    let files = map(paths).map_err(|cause| CheckpointError::Damaged {
        path: paths.first().cloned().unwrap_or_default(),
        reason: one_line(&cause),
    })?;
    let shapes = files.tensors().into_iter().map(|(name, view)| (name, view.shape().to_vec())).collect();
    Ok((Source::Safetensors(files), shapes))
}

#[allow(unsafe_code)]
fn map(paths: &[PathBuf]) -> Result<MmapedSafetensors> {
    // SAFETY: a mapped file must not change while it is mapped. Checkpoint folders are read-only data by contract
    // (documented in the README); the same contract holds for every program that maps weights.
    unsafe { MmapedSafetensors::multi(paths) }
}

fn digest(paths: &[PathBuf]) -> std::result::Result<String, CheckpointError> {
    let mut hasher = blake3::Hasher::new();
    for path in paths {
        hasher.update_mmap(path).map_err(|cause| unreadable(path, &cause))?;
    }
    Ok(hasher.finalize().to_hex().to_string())
}

fn unreadable(path: &Path, cause: &std::io::Error) -> CheckpointError {
    CheckpointError::Unreadable { path: path.to_path_buf(), reason: cause.to_string() }
}

/// The first line of an error: some of candle's carry a backtrace.
fn one_line(cause: &impl ToString) -> String {
    cause.to_string().lines().next().unwrap_or_default().to_string()
}
