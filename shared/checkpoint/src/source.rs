use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    fs::File,
    path::{Path, PathBuf},
};

use candle_core::{DType, Result, Tensor, pickle::PthTensors};
use serde::Deserialize;

use crate::{CheckpointError, pickle, shard::Shards};

/// Where tensors are read from.
pub(crate) enum Source {
    Safetensors(Shards),
    Pickle(PthTensors),
}

/// A source and the digest of its files.
pub(crate) type Opened = (Source, String);

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Safetensors(_) => "Safetensors",
            Self::Pickle(_) => "Pickle",
        })
    }
}

impl Source {
    /// Name, shape and stored dtype of every tensor; no dtype where it is one that is not read.
    pub(crate) fn entries(&self) -> Vec<(String, Vec<usize>, Option<DType>)> {
        match self {
            Self::Safetensors(shards) => {
                shards.entries().map(|(name, shape, dtype)| (name.clone(), shape.clone(), dtype)).collect()
            }
            Self::Pickle(archive) => archive
                .tensor_infos()
                .iter()
                .map(|(name, info)| (name.clone(), info.layout.shape().dims().to_vec(), Some(info.dtype)))
                .collect(),
        }
    }

    /// Reads one tensor to the CPU in its stored dtype.
    pub(crate) fn load(&self, name: &str) -> Result<Tensor> {
        match self {
            Self::Safetensors(shards) => shards.load(name),
            Self::Pickle(archive) => archive
                .get(name)?
                .ok_or_else(|| candle_core::Error::Msg(format!("tensor {name} is missing")))?
                .contiguous(),
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
    let (shards, files) = open_shards(dir)?;
    Ok((Source::Safetensors(shards), digest(&files)?))
}

/// The weight files of a folder, and where they are.
pub(crate) fn open_shards(dir: &Path) -> std::result::Result<(Shards, Vec<PathBuf>), CheckpointError> {
    let index_path = dir.join(SHARD_INDEX);
    let index = if is_file(&index_path)? { Some(read_index(&index_path)?) } else { None };
    let files = match &index {
        Some(index) => shard_paths(dir, &index_path, index)?,
        None if is_file(&dir.join(SINGLE_FILE))? => vec![dir.join(SINGLE_FILE)],
        None => return Err(CheckpointError::NoWeights { path: dir.to_path_buf() }),
    };
    let shards = Shards::open(&files)?;
    let held: BTreeSet<&String> = shards.entries().map(|(name, ..)| name).collect();
    if let Some(index) = index
        && let Some((tensor, file)) = index.weight_map.iter().find(|(name, _)| !held.contains(name))
    {
        return Err(CheckpointError::AbsentTensor {
            index: index_path,
            tensor: tensor.clone(),
            file: file.clone(),
        });
    }
    Ok((shards, files))
}

pub(crate) fn open_file(path: &Path) -> std::result::Result<Opened, CheckpointError> {
    Ok((Source::Safetensors(open_one(path)?), digest(&[path.to_path_buf()])?))
}

/// One weight file.
pub(crate) fn open_one(path: &Path) -> std::result::Result<Shards, CheckpointError> {
    require_file(path)?;
    Shards::open(&[path.to_path_buf()])
}

pub(crate) fn open_pth(path: &Path, top_key: Option<&str>) -> std::result::Result<Opened, CheckpointError> {
    Ok((Source::Pickle(open_archive(path, top_key)?), digest(&[path.to_path_buf()])?))
}

pub(crate) fn open_archive(
    path: &Path,
    top_key: Option<&str>,
) -> std::result::Result<PthTensors, CheckpointError> {
    require_file(path)?;
    pickle::inspect(path)?;
    let archive = PthTensors::new(path, top_key)
        .map_err(|cause| CheckpointError::Damaged { path: path.to_path_buf(), reason: one_line(&cause) })?;
    if archive.tensor_infos().is_empty() {
        let reason = match top_key {
            Some(key) => format!("it holds no tensors under `{key}`"),
            None => "it holds no tensors".to_string(),
        };
        return Err(CheckpointError::Damaged { path: path.to_path_buf(), reason });
    }
    Ok(archive)
}

fn require_file(path: &Path) -> std::result::Result<(), CheckpointError> {
    if is_file(path)? {
        return Ok(());
    }
    Err(CheckpointError::Unreadable { path: path.to_path_buf(), reason: "no such file".to_string() })
}

/// True where there is such a file; that it cannot be told, as for want of permission, is an error.
fn is_file(path: &Path) -> std::result::Result<bool, CheckpointError> {
    match std::fs::metadata(path) {
        Ok(found) => Ok(found.is_file()),
        Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(cause) => Err(unreadable(path, &cause)),
    }
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
        if !is_file(&path)? {
            return Err(CheckpointError::AbsentShard {
                index: index_path.to_path_buf(),
                file: name.to_string(),
            });
        }
        paths.push(path);
    }
    Ok(paths)
}

/// Reads the files piece by piece: mapped whole they would count as memory of the process.
fn digest(paths: &[PathBuf]) -> std::result::Result<String, CheckpointError> {
    let mut hasher = blake3::Hasher::new();
    for path in paths {
        let file = File::open(path).map_err(|cause| unreadable(path, &cause))?;
        hasher.update_reader(file).map_err(|cause| unreadable(path, &cause))?;
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
