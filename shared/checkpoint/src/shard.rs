use std::{
    collections::BTreeMap,
    fs::File,
    path::{Path, PathBuf},
};

use candle_core::{DType, Device, Error, Result, Tensor};
use memmap2::{Mmap, MmapOptions};
use safetensors::{Dtype, SafeTensors};

use crate::CheckpointError;

/// Bytes of a safetensors file before its header.
const LENGTH_BYTES: usize = 8;

/// The tensors of one or several safetensors files.
///
/// A tensor is mapped while it is copied and no longer: what a process has read of its weights is counted once, and a
/// file that is replaced later does not disturb it.
pub(crate) struct Shards {
    files: Vec<File>,
    tensors: BTreeMap<String, Place>,
}

/// Where a tensor lies.
struct Place {
    file: usize,
    /// From the start of the file.
    offset: u64,
    bytes: usize,
    dtype: Dtype,
    shape: Vec<usize>,
}

impl Shards {
    /// Reads the headers of some files.
    pub(crate) fn open(paths: &[PathBuf]) -> std::result::Result<Self, CheckpointError> {
        let mut shards = Self { files: Vec::with_capacity(paths.len()), tensors: BTreeMap::new() };
        for path in paths {
            shards.add(path)?;
        }
        Ok(shards)
    }

    fn add(&mut self, path: &Path) -> std::result::Result<(), CheckpointError> {
        let unreadable = |cause: std::io::Error| CheckpointError::Unreadable {
            path: path.to_path_buf(),
            reason: cause.to_string(),
        };
        let damaged = |reason: String| CheckpointError::Damaged { path: path.to_path_buf(), reason };
        let file = File::open(path).map_err(unreadable)?;
        let whole = map(&file, 0, file.metadata().map_err(unreadable)?.len() as usize).map_err(unreadable)?;
        let (header, metadata) =
            SafeTensors::read_metadata(&whole).map_err(|cause| damaged(cause.to_string()))?;
        for (name, info) in metadata.tensors() {
            let (start, end) = info.data_offsets;
            let place = Place {
                file: self.files.len(),
                offset: (LENGTH_BYTES + header + start) as u64,
                bytes: end - start,
                dtype: info.dtype,
                shape: info.shape.clone(),
            };
            if self.tensors.insert(name.clone(), place).is_some() {
                return Err(CheckpointError::Duplicate { name });
            }
        }
        self.files.push(file);
        Ok(())
    }

    /// Shape and dtype of every tensor.
    pub(crate) fn entries(&self) -> impl Iterator<Item = (&String, &Vec<usize>, Option<DType>)> {
        self.tensors.iter().map(|(name, place)| (name, &place.shape, DType::try_from(place.dtype).ok()))
    }

    /// Copies one tensor to memory in its stored dtype.
    pub(crate) fn load(&self, name: &str) -> Result<Tensor> {
        let place = self.tensors.get(name).ok_or_else(|| Error::Msg(format!("tensor {name} is missing")))?;
        let dtype = DType::try_from(place.dtype).map_err(|_| {
            Error::Msg(format!("tensor {name} is of type {:?}, which is not read", place.dtype))
        })?;
        if place.bytes == 0 {
            return Tensor::zeros(place.shape.as_slice(), dtype, &Device::Cpu);
        }
        let data = map(&self.files[place.file], place.offset, place.bytes)
            .map_err(|cause| Error::Msg(format!("tensor {name} cannot be read: {cause}")))?;
        Tensor::from_raw_buffer(&data, dtype, &place.shape, &Device::Cpu)
    }
}

#[allow(unsafe_code)]
fn map(file: &File, offset: u64, bytes: usize) -> std::io::Result<Mmap> {
    // SAFETY: a mapped file must not change while it is mapped. Checkpoint folders are read-only data by contract
    // (documented in the README); the same contract holds for every program that maps weights.
    unsafe { MmapOptions::new().offset(offset).len(bytes).map(file) }
}
