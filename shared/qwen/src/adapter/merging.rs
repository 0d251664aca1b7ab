use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use candle_core::{DType, Device, Error, Result, Shape, Tensor, bail};
use candle_nn::{Init, VarBuilder, var_builder::SimpleBackend};
use parking_lot::Mutex;

use super::{AdapterError, unmatched};
use crate::linear::LowRank;

/// A base and an adapter while a model is built from them.
#[derive(Clone)]
pub(crate) struct Merging {
    base: VarBuilder<'static>,
    parts: Arc<BTreeMap<String, LowRank>>,
    merged: Arc<Mutex<BTreeSet<String>>>,
}

impl Merging {
    pub(super) fn new(base: VarBuilder<'static>, parts: BTreeMap<String, LowRank>) -> Self {
        Self { base, parts: Arc::new(parts), merged: Arc::default() }
    }

    /// Hands out merged tensors.
    pub(crate) fn var_builder(&self) -> VarBuilder<'static> {
        let (dtype, device) = (self.base.dtype(), self.base.device().clone());
        VarBuilder::from_backend(Box::new(self.clone()), dtype, device)
    }

    /// Refuses an adapter of which a part was not merged.
    ///
    /// # Errors
    /// [`AdapterError::Unmatched`].
    pub(crate) fn finish(&self) -> std::result::Result<(), AdapterError> {
        let merged = self.merged.lock();
        unmatched(self.parts.keys().filter(|module| !merged.contains(*module)))
    }
}

impl SimpleBackend for Merging {
    fn get(&self, shape: Shape, name: &str, init: Init, dtype: DType, _: &Device) -> Result<Tensor> {
        let Some((module, part)) =
            name.strip_suffix(".weight").and_then(|module| self.parts.get_key_value(module))
        else {
            return self.base.get_with_hints_dtype(shape, name, init, dtype);
        };
        let weight = self.base.get_with_hints_dtype(shape, name, init, dtype)?;
        let fits = [part.b.dim(0)?, part.a.dim(1)?];
        if weight.dims() != fits {
            bail!("the adapter's part for {name} has shape {fits:?}, the base {:?}", weight.dims());
        }
        let change = (part.b.matmul(&part.a)? * part.scale)?.to_device(weight.device())?;
        self.merged.lock().insert(module.clone());
        // The type of the weight, which may be narrower than the arithmetic.
        (weight.to_dtype(DType::F32)? + change)?.to_dtype(weight.dtype())
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> Result<Tensor> {
        // The model asks for every tensor with its shape.
        Err(Error::Msg(format!("tensor {name} is asked for without a shape")))
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.base.contains_tensor(name)
    }
}
