//! Strict reading of model weights.
//!
//! A [`Checkpoint`] is the named tensors of one model: a `model.safetensors` file, a sharded set with its
//! `model.safetensors.index.json`, or the state dict of a `torch.save` archive (read, never executed). A model takes
//! what it needs through a [`VarBuilder`]; a missing tensor, a wrong shape or a value that is not finite is an error
//! there, and [`Checkpoint::finish`] afterwards refuses tensors that nobody took. Nothing is ever filled in.

mod error;
mod pickle;
mod shard;
mod source;
mod survey;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::Arc,
};

use candle_core::{CpuStorage, DType, Device, Error, Result, Shape, Storage, Tensor};
use candle_nn::{Init, VarBuilder, var_builder::SimpleBackend};
use parking_lot::Mutex;

pub use error::CheckpointError;
use source::Source;
pub use survey::{Surveyed, survey, survey_file, survey_pth};

/// The named tensors of one model on disk.
#[derive(Debug)]
pub struct Checkpoint {
    source: Arc<Source>,
    tensors: BTreeMap<String, Entry>,
    used: Arc<Mutex<BTreeSet<String>>>,
    fingerprint: String,
}

#[derive(Debug, Clone)]
struct Entry {
    stored_name: String,
    shape: Vec<usize>,
    dtype: Option<DType>,
}

impl Checkpoint {
    /// Opens the safetensors weights of a folder, sharded or not. The files are memory-mapped.
    ///
    /// # Errors
    /// [`CheckpointError`] where there are none, a file is damaged, or the shard index and the shards disagree.
    pub fn open(dir: &Path) -> std::result::Result<Self, CheckpointError> {
        Self::from_source(source::open_safetensors(dir)?)
    }

    /// Opens one safetensors file. It is memory-mapped.
    ///
    /// # Errors
    /// [`CheckpointError`] where the file cannot be read or is damaged.
    pub fn open_file(path: &Path) -> std::result::Result<Self, CheckpointError> {
        Self::from_source(source::open_file(path)?)
    }

    /// Opens the state dict of a `torch.save` archive.
    ///
    /// `top_key` names the entry of the archive's top-level dict that is the state dict (`model` for RDE and IRRA run
    /// folders); without it the top level itself is.
    ///
    /// # Errors
    /// [`CheckpointError`] where the file cannot be read or holds no such state dict.
    pub fn open_pth(path: &Path, top_key: Option<&str>) -> std::result::Result<Self, CheckpointError> {
        Self::from_source(source::open_pth(path, top_key)?)
    }

    fn from_source((source, fingerprint): source::Opened) -> std::result::Result<Self, CheckpointError> {
        let tensors = source
            .entries()
            .into_iter()
            .map(|(name, shape, dtype)| (name.clone(), Entry { stored_name: name, shape, dtype }))
            .collect();
        Ok(Self { source: Arc::new(source), tensors, used: Arc::default(), fingerprint })
    }

    /// Names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Shape of a tensor, `None` where there is no such tensor.
    #[must_use]
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|entry| entry.shape.as_slice())
    }

    /// Stored dtype of a tensor, `None` where there is no such tensor or its dtype is one that is not read.
    #[must_use]
    pub fn dtype(&self, name: &str) -> Option<DType> {
        self.tensors.get(name).and_then(|entry| entry.dtype)
    }

    /// Hex BLAKE3 digest of the weight files.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        self.fingerprint.clone()
    }

    /// Gives every tensor a new name, to bring the spellings of different tools to one.
    ///
    /// # Errors
    /// [`CheckpointError::Duplicate`] where two tensors end up with one name.
    pub fn rename(
        &mut self,
        mut new_name: impl FnMut(&str) -> String,
    ) -> std::result::Result<(), CheckpointError> {
        let mut renamed = BTreeMap::new();
        for (name, entry) in std::mem::take(&mut self.tensors) {
            let name = new_name(&name);
            if renamed.insert(name.clone(), entry).is_some() {
                return Err(CheckpointError::Duplicate { name });
            }
        }
        self.tensors = renamed;
        Ok(())
    }

    /// A builder that hands out tensors converted to `dtype` on `device`.
    ///
    /// Reads fail on a missing tensor, a shape other than the asked one, and values that are not finite.
    #[must_use]
    pub fn var_builder(&self, dtype: DType, device: &Device) -> VarBuilder<'static> {
        self.builder(dtype, device, false)
    }

    /// As [`Self::var_builder`], for a model that computes in `dtype` but multiplies by matrices of a narrower type:
    /// in f32 on the CPU, tensors of two or more dimensions keep a 16-bit type they are stored in, so that a model
    /// occupies what its file does. Nothing is rounded either way.
    #[must_use]
    pub fn compact_var_builder(&self, dtype: DType, device: &Device) -> VarBuilder<'static> {
        self.builder(dtype, device, device.is_cpu() && dtype == DType::F32)
    }

    fn builder(&self, dtype: DType, device: &Device, compact: bool) -> VarBuilder<'static> {
        let backend = StrictTensors {
            source: Arc::clone(&self.source),
            tensors: self.tensors.clone(),
            used: Arc::clone(&self.used),
            compact,
        };
        VarBuilder::from_backend(Box::new(backend), dtype, device.clone())
    }

    /// Refuses tensors that no one has read, except those that `allow_unused` names.
    ///
    /// # Errors
    /// [`CheckpointError::Unused`].
    pub fn finish(&self, allow_unused: impl Fn(&str) -> bool) -> std::result::Result<(), CheckpointError> {
        let used = self.used.lock();
        let mut left = self.names().filter(|name| !used.contains(*name) && !allow_unused(name));
        match left.next() {
            None => Ok(()),
            Some(first) => Err(CheckpointError::Unused { first: first.to_string(), count: 1 + left.count() }),
        }
    }
}

struct StrictTensors {
    source: Arc<Source>,
    tensors: BTreeMap<String, Entry>,
    used: Arc<Mutex<BTreeSet<String>>>,
    /// Matrices keep a 16-bit type.
    compact: bool,
}

impl SimpleBackend for StrictTensors {
    fn get(&self, expected: Shape, name: &str, _: Init, dtype: DType, device: &Device) -> Result<Tensor> {
        if let Some(entry) = self.tensors.get(name)
            && entry.shape != expected.dims()
        {
            return Err(Error::Msg(format!(
                "tensor {name} has shape {:?}, the model expects {:?}",
                entry.shape,
                expected.dims()
            )));
        }
        self.get_unchecked(name, dtype, device)
    }

    fn get_unchecked(&self, name: &str, dtype: DType, device: &Device) -> Result<Tensor> {
        let entry = self.tensors.get(name).ok_or_else(|| Error::Msg(format!("tensor {name} is missing")))?;
        let tensor = self.source.load(&entry.stored_name)?;
        if !all_finite(&tensor) {
            return Err(Error::Msg(format!("tensor {name} holds a value that is not finite")));
        }
        self.used.lock().insert(name.to_string());
        if self.compact && tensor.rank() >= 2 && matches!(tensor.dtype(), DType::F16 | DType::BF16) {
            return Ok(tensor);
        }
        tensor.to_dtype(dtype)?.to_device(device)
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }
}

fn all_finite(tensor: &Tensor) -> bool {
    let (storage, _) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cpu(CpuStorage::F32(values)) => values.iter().all(|value| value.is_finite()),
        Storage::Cpu(CpuStorage::F64(values)) => values.iter().all(|value| value.is_finite()),
        Storage::Cpu(CpuStorage::F16(values)) => values.iter().all(|value| value.is_finite()),
        Storage::Cpu(CpuStorage::BF16(values)) => values.iter().all(|value| value.is_finite()),
        // Integers are always finite, and tensors are read on the CPU.
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::HashMap, fs};

    use super::*;

    fn write(dir: &Path, name: &str, tensors: &[(&str, Tensor)]) {
        let map: HashMap<String, Tensor> =
            tensors.iter().map(|(name, tensor)| ((*name).to_string(), tensor.clone())).collect();
        candle_core::safetensors::save(&map, dir.join(name)).unwrap();
    }

    fn ones(shape: &[usize]) -> Tensor {
        Tensor::ones(shape, DType::F32, &Device::Cpu).unwrap()
    }

    #[test]
    fn a_missing_tensor_is_named() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "model.safetensors", &[("a.weight", ones(&[2, 3]))]);
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        let error = checkpoint.var_builder(DType::F32, &Device::Cpu).get(4, "b").unwrap_err();
        assert!(error.to_string().contains("tensor b is missing"), "{error}");
    }

    #[test]
    fn a_wrong_shape_names_both_shapes() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "model.safetensors", &[("a.weight", ones(&[2, 3]))]);
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        let builder = checkpoint.var_builder(DType::F32, &Device::Cpu);
        let error = builder.pp("a").get((3, 2), "weight").unwrap_err().to_string();
        assert!(error.contains("a.weight has shape [2, 3], the model expects [3, 2]"), "{error}");
    }

    #[test]
    fn one_file_of_any_name_is_read() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "adapter.safetensors", &[("a", ones(&[2]))]);
        let checkpoint = Checkpoint::open_file(&dir.path().join("adapter.safetensors")).unwrap();
        assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["a"]);
    }

    #[test]
    fn a_file_that_is_not_there_is_unreadable() {
        let error = Checkpoint::open_file(Path::new("/nowhere.safetensors")).unwrap_err();
        assert!(matches!(&error, CheckpointError::Unreadable { .. }), "{error}");
    }

    #[test]
    fn a_tensor_that_nobody_reads_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "model.safetensors", &[("a", ones(&[2])), ("b", ones(&[2])), ("c", ones(&[2]))]);
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        checkpoint.var_builder(DType::F32, &Device::Cpu).get(2, "a").unwrap();
        let error = checkpoint.finish(|name| name == "c").unwrap_err();
        assert!(matches!(&error, CheckpointError::Unused { count: 1, first } if first == "b"), "{error}");
        checkpoint.finish(|name| name != "a").unwrap();
    }

    #[test]
    fn a_value_that_is_not_finite_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let tensor = Tensor::new(&[1.0f32, f32::NAN], &Device::Cpu).unwrap();
        write(dir.path(), "model.safetensors", &[("a", tensor)]);
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        let error = checkpoint.var_builder(DType::F32, &Device::Cpu).get(2, "a").unwrap_err();
        assert!(error.to_string().contains("not finite"), "{error}");
    }

    #[test]
    fn shards_are_read_through_their_index() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "one.safetensors", &[("a", ones(&[2]))]);
        write(dir.path(), "two.safetensors", &[("b", ones(&[3]))]);
        fs::write(
            dir.path().join("model.safetensors.index.json"),
            r#"{"weight_map":{"a":"one.safetensors","b":"two.safetensors"}}"#,
        )
        .unwrap();
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(checkpoint.dtype("b"), Some(DType::F32));
        assert_eq!(checkpoint.dtype("c"), None);
        assert_eq!(checkpoint.shape("b"), Some(&[3][..]));
    }

    #[test]
    fn an_index_that_names_an_absent_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let index = r#"{"weight_map":{"a":"gone.safetensors"}}"#;
        fs::write(dir.path().join("model.safetensors.index.json"), index).unwrap();
        let error = Checkpoint::open(dir.path()).unwrap_err();
        assert!(
            matches!(&error, CheckpointError::AbsentShard { file, .. } if file == "gone.safetensors"),
            "{error}"
        );
    }

    #[test]
    fn an_index_that_leaves_the_folder_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let index = r#"{"weight_map":{"a":"../model.safetensors"}}"#;
        fs::write(dir.path().join("model.safetensors.index.json"), index).unwrap();
        assert!(matches!(Checkpoint::open(dir.path()).unwrap_err(), CheckpointError::Damaged { .. }));
    }

    #[test]
    fn a_truncated_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "model.safetensors", &[("a", ones(&[64]))]);
        let path = dir.path().join("model.safetensors");
        let bytes = fs::read(&path).unwrap();
        fs::write(&path, &bytes[..bytes.len() - 8]).unwrap();
        assert!(matches!(Checkpoint::open(dir.path()).unwrap_err(), CheckpointError::Damaged { .. }));
    }

    #[test]
    fn equal_weights_have_equal_fingerprints_and_changed_weights_do_not() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "model.safetensors", &[("a", ones(&[4]))]);
        let first = Checkpoint::open(dir.path()).unwrap().fingerprint();
        assert_eq!(Checkpoint::open(dir.path()).unwrap().fingerprint(), first);
        write(dir.path(), "model.safetensors", &[("a", Tensor::zeros(4, DType::F32, &Device::Cpu).unwrap())]);
        assert_ne!(Checkpoint::open(dir.path()).unwrap().fingerprint(), first);
    }

    #[test]
    fn a_compact_builder_keeps_matrices_in_16_bits_and_widens_vectors() {
        let dir = tempfile::tempdir().unwrap();
        let half = |shape: &[usize]| ones(shape).to_dtype(DType::BF16).unwrap();
        write(dir.path(), "model.safetensors", &[("matrix", half(&[2, 3])), ("vector", half(&[3]))]);
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        let dtypes = |builder: VarBuilder<'static>| {
            let matrix = builder.get((2, 3), "matrix").unwrap().dtype();
            (matrix, builder.get(3, "vector").unwrap().dtype())
        };
        let compact = |dtype| dtypes(checkpoint.compact_var_builder(dtype, &Device::Cpu));
        assert_eq!(compact(DType::F32), (DType::BF16, DType::F32));
        assert_eq!(compact(DType::F16), (DType::F16, DType::F16));
        assert_eq!(dtypes(checkpoint.var_builder(DType::F32, &Device::Cpu)), (DType::F32, DType::F32));
        assert_eq!(checkpoint.dtype("matrix"), Some(DType::BF16));
    }

    #[test]
    fn a_tensor_in_two_shards_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "one.safetensors", &[("a", ones(&[2]))]);
        write(dir.path(), "two.safetensors", &[("a", ones(&[2])), ("b", ones(&[3]))]);
        fs::write(
            dir.path().join("model.safetensors.index.json"),
            r#"{"weight_map":{"a":"one.safetensors","b":"two.safetensors"}}"#,
        )
        .unwrap();
        let error = Checkpoint::open(dir.path()).unwrap_err();
        assert!(matches!(&error, CheckpointError::Duplicate { name } if name == "a"), "{error}");
    }

    #[test]
    fn renaming_two_tensors_to_one_name_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "model.safetensors", &[("a", ones(&[2])), ("module.a", ones(&[2]))]);
        let mut checkpoint = Checkpoint::open(dir.path()).unwrap();
        let error = checkpoint.rename(|name| name.trim_start_matches("module.").to_string()).unwrap_err();
        assert!(matches!(&error, CheckpointError::Duplicate { name } if name == "a"), "{error}");
    }
}
