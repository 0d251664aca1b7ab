use std::{
    collections::{BTreeMap, HashMap},
    os::unix::fs::PermissionsExt,
    path::Path,
    sync::Arc,
};

use candle_core::{DType, Device, Error, Result, Shape, Tensor, Var};
use candle_nn::{
    Init, VarBuilder,
    init::{FanInOut, NonLinearity, NormalOrUniform},
    var_builder::SimpleBackend,
};
use parking_lot::Mutex;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use thicket_checkpoint::Checkpoint;

use crate::TrainingError;

/// The trainable tensors of one model, f32 on the CPU, in name order.
///
/// A tensor is drawn when a model first asks for it, from a stream of its own that depends on the seed and its name
/// alone: the same seed gives the same start whatever the order of construction. (candle's own CPU generator cannot be
/// seeded.)
#[derive(Debug, Clone)]
pub(crate) struct Parameters {
    seed: u64,
    variables: Arc<Mutex<BTreeMap<String, Var>>>,
}

impl Parameters {
    /// No tensors yet.
    #[must_use]
    pub(crate) fn new(seed: u64) -> Self {
        Self { seed, variables: Arc::default() }
    }

    /// A builder that hands out, and where needed draws, the tensors.
    #[must_use]
    pub(crate) fn builder(&self) -> VarBuilder<'static> {
        VarBuilder::from_backend(Box::new(self.clone()), DType::F32, Device::Cpu)
    }

    /// The tensors whose names pass `wanted`, in name order.
    #[must_use]
    pub(crate) fn select(&self, wanted: impl Fn(&str) -> bool) -> Vec<Var> {
        self.variables.lock().iter().filter(|(name, _)| wanted(name)).map(|(_, var)| var.clone()).collect()
    }

    /// Number of trainable values.
    #[must_use]
    pub(crate) fn count(&self) -> usize {
        self.variables.lock().values().map(|variable| variable.elem_count()).sum()
    }

    /// Takes the values of the tensors whose names begin with `prefix`, all for an empty one, from a model folder, which
    /// must hold these tensors and no others of such a name.
    ///
    /// # Errors
    /// A tensor that is missing, left over or of another shape.
    pub(crate) fn restore(&self, folder: &Path, prefix: &str) -> std::result::Result<(), TrainingError> {
        let failed = |cause: String| TrainingError::model("going on from an earlier model", cause);
        let checkpoint = Checkpoint::open(folder).map_err(|cause| failed(cause.to_string()))?;
        let stored = checkpoint.var_builder(DType::F32, &Device::Cpu);
        for (name, variable) in self.variables.lock().iter().filter(|(name, _)| name.starts_with(prefix)) {
            let tensor = stored.get(variable.shape(), name).map_err(|cause| failed(cause.to_string()))?;
            variable.set(&tensor)?;
        }
        checkpoint.finish(|name| !name.starts_with(prefix)).map_err(|cause| failed(cause.to_string()))
    }

    /// Gives a tensor other values of the same shape.
    ///
    /// # Errors
    /// No such tensor yet, or one of another shape.
    pub(crate) fn assign(&self, name: &str, values: &Tensor) -> Result<()> {
        match self.variables.lock().get(name) {
            Some(variable) => variable.set(values),
            None => Err(Error::Msg(format!("tensor {name} is missing"))),
        }
    }

    /// Writes all tensors to a safetensors file, through a temporary name.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(crate) fn save(&self, path: &Path) -> Result<()> {
        let tensors: HashMap<String, Tensor> = self
            .variables
            .lock()
            .iter()
            .map(|(name, variable)| (name.clone(), variable.as_tensor().clone()))
            .collect();
        let partial = path.with_extension("partial");
        candle_core::safetensors::save(&tensors, &partial)?;
        // The writer makes its file private; a model is no secret.
        std::fs::set_permissions(&partial, std::fs::Permissions::from_mode(0o644))?;
        std::fs::rename(&partial, path)?;
        Ok(())
    }

    fn draw(&self, name: &str, shape: &Shape, init: Init) -> Result<Tensor> {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.seed.to_le_bytes()).update(name.as_bytes());
        let mut rng = ChaCha8Rng::from_seed(*hasher.finalize().as_bytes());
        let count = shape.elem_count();
        let values: Vec<f32> = match init {
            Init::Const(value) => vec![value as f32; count],
            Init::Uniform { lo, up } => (0..count).map(|_| rng.random_range(lo as f32..=up as f32)).collect(),
            Init::Randn { mean, stdev } => normals(&mut rng, count, mean, stdev),
            Init::Kaiming { dist, fan, non_linearity } => {
                let spread = gain(non_linearity) / (fan_size(shape, fan) as f64).sqrt();
                match dist {
                    NormalOrUniform::Normal => normals(&mut rng, count, 0.0, spread),
                    NormalOrUniform::Uniform => {
                        let bound = (3f64.sqrt() * spread) as f32;
                        (0..count).map(|_| rng.random_range(-bound..=bound)).collect()
                    }
                }
            }
        };
        Tensor::from_vec(values, shape.clone(), &Device::Cpu)
    }
}

fn gain(non_linearity: NonLinearity) -> f64 {
    non_linearity.gain()
}

fn fan_size(shape: &Shape, fan: FanInOut) -> usize {
    fan.for_shape(shape).max(1)
}

/// Normal values by the Box-Muller transform.
fn normals(rng: &mut ChaCha8Rng, count: usize, mean: f64, stdev: f64) -> Vec<f32> {
    let mut values = Vec::with_capacity(count + 1);
    while values.len() < count {
        let radius = (-2.0 * (1.0 - rng.random::<f64>()).ln()).sqrt() * stdev;
        let angle = std::f64::consts::TAU * rng.random::<f64>();
        values.push((mean + radius * angle.cos()) as f32);
        values.push((mean + radius * angle.sin()) as f32);
    }
    values.truncate(count);
    values
}

impl SimpleBackend for Parameters {
    fn get(&self, shape: Shape, name: &str, init: Init, dtype: DType, _: &Device) -> Result<Tensor> {
        if dtype != DType::F32 {
            return Err(Error::Msg(format!("tensor {name} is asked for as {dtype:?}; training is f32")));
        }
        let mut variables = self.variables.lock();
        if let Some(variable) = variables.get(name) {
            if variable.shape() != &shape {
                return Err(Error::Msg(format!(
                    "tensor {name} has shape {:?}, the model expects {:?}",
                    variable.dims(),
                    shape.dims()
                )));
            }
            return Ok(variable.as_tensor().clone());
        }
        let variable = Var::from_tensor(&self.draw(name, &shape, init)?)?;
        let tensor = variable.as_tensor().clone();
        variables.insert(name.to_string(), variable);
        Ok(tensor)
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> Result<Tensor> {
        match self.variables.lock().get(name) {
            Some(variable) => Ok(variable.as_tensor().clone()),
            None => Err(Error::Msg(format!("tensor {name} is missing"))),
        }
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.variables.lock().contains_key(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_and_name_give_the_same_values_in_any_order() {
        let draw = |names: &[&str]| {
            let parameters = Parameters::new(7);
            for name in names {
                let init = Init::Randn { mean: 0.0, stdev: 1.0 };
                parameters.builder().get_with_hints((3, 5), name, init).unwrap();
            }
            parameters.get_unchecked("b", DType::F32, &Device::Cpu).unwrap().to_vec2::<f32>().unwrap()
        };
        assert_eq!(draw(&["a", "b"]), draw(&["b", "a"]));
    }

    fn drawn(seed: u64, names: &[&str]) -> Parameters {
        let parameters = Parameters::new(seed);
        for name in names {
            let init = Init::Randn { mean: 0.0, stdev: 1.0 };
            parameters.builder().get_with_hints((3, 5), name, init).unwrap();
        }
        parameters
    }

    fn values(parameters: &Parameters, name: &str) -> Vec<Vec<f32>> {
        parameters.get_unchecked(name, DType::F32, &Device::Cpu).unwrap().to_vec2().unwrap()
    }

    #[test]
    fn saved_values_come_back() {
        let folder = tempfile::tempdir().unwrap();
        let (first, second) = (drawn(1, &["a", "b"]), drawn(2, &["a", "b"]));
        first.save(&folder.path().join("model.safetensors")).unwrap();
        second.restore(folder.path(), "").unwrap();
        assert_eq!(values(&second, "b"), values(&first, "b"));
    }

    #[test]
    fn only_the_part_asked_for_comes_back() {
        let folder = tempfile::tempdir().unwrap();
        let (first, second) = (drawn(1, &["tower.a", "b"]), drawn(2, &["tower.a", "c"]));
        let kept = values(&second, "c");
        first.save(&folder.path().join("model.safetensors")).unwrap();
        second.restore(folder.path(), "tower.").unwrap();
        assert_eq!(values(&second, "tower.a"), values(&first, "tower.a"));
        assert_eq!(values(&second, "c"), kept);
    }

    #[test]
    fn a_model_with_other_tensors_is_not_gone_on_from() {
        let folder = tempfile::tempdir().unwrap();
        drawn(1, &["a", "b"]).save(&folder.path().join("model.safetensors")).unwrap();
        for (names, word) in [(&["a"][..], "belong to no part"), (&["a", "b", "c"][..], "c is missing")] {
            let error = drawn(2, names).restore(folder.path(), "").unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }

    #[test]
    fn normal_values_have_the_asked_mean_and_spread() {
        let values = normals(&mut ChaCha8Rng::seed_from_u64(1), 40_000, 2.0, 0.5);
        let mean = values.iter().sum::<f32>() / values.len() as f32;
        let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f32>() / values.len() as f32;
        assert!((mean - 2.0).abs() < 0.02 && (variance.sqrt() - 0.5).abs() < 0.02, "{mean} {variance}");
    }
}
