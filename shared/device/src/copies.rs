use std::sync::Arc;

use candle_core::{DType, Device};
use thicket_kernels::Backend;

use crate::{ComputeArgs, DeviceError, Driver, Need, Place, Places};

/// Loads a copy of a model, on the thread that will own it.
pub type Load<M> = Box<dyn FnOnce() -> Result<Box<M>, String> + Send>;

/// Where and how a copy of a model computes.
#[derive(Debug)]
pub struct Opened {
    /// Its device, opened on the thread that computes.
    pub device: Device,
    /// Type of the arithmetic.
    pub dtype: DType,
    /// What multiplies by the weights.
    pub backend: Backend,
}

/// What the flags come to for one model, with room for a copy on every device.
#[derive(Debug)]
pub struct Compute {
    places: Places,
    dtype: DType,
    backend: Backend,
}

impl ComputeArgs {
    /// Chooses what multiplies, says so, and sees whether every GPU has room for a copy. `need` tells what one takes in a
    /// type; it is not asked on the processor.
    ///
    /// # Errors
    /// [`DeviceError`] for a backend that cannot serve or a device that does not do, [`DeviceError::Unmeasured`] where
    /// `need` fails.
    pub fn prepare(
        &self,
        model: &str,
        need: impl FnOnce(DType) -> Result<Need, String>,
    ) -> Result<Compute, DeviceError> {
        let chosen = self.backend()?;
        chosen.announce(model);
        let dtype = self.dtype();
        if self.device.first() != Place::Cpu {
            let need = need(dtype).map_err(|reason| DeviceError::Unmeasured { reason })?;
            for (place, gpu) in self.device.check(dtype, &need, &Driver)? {
                tracing::info!(
                    device = %place,
                    gpu = gpu.name,
                    capability = %gpu.capability,
                    free_bytes = gpu.free,
                    needed_bytes = need.total(),
                    dtype = dtype.as_str(),
                    "device has room for the model"
                );
            }
        }
        Ok(Compute { places: self.device.clone(), dtype, backend: chosen.backend })
    }
}

impl Compute {
    /// A load for every device, each with the device's name.
    pub fn loads<M: ?Sized + 'static>(
        &self,
        load: impl Fn(Opened) -> Result<Box<M>, String> + Send + Sync + 'static,
    ) -> Vec<(String, Load<M>)> {
        let (load, dtype, backend) = (Arc::new(load), self.dtype, self.backend);
        let of = |place: Place| {
            let load = load.clone();
            let on_its_thread: Load<M> = Box::new(move || {
                let device = place.open().map_err(|error| error.to_string())?;
                load(Opened { device, dtype, backend })
            });
            (place.to_string(), on_its_thread)
        };
        self.places.iter().map(of).collect()
    }
}

/// Loads of copies that are there already, named by number.
pub fn loaded<M: ?Sized + Send + 'static>(models: Vec<Box<M>>) -> Vec<(String, Load<M>)> {
    let of = |(number, model): (usize, Box<M>)| {
        let load: Load<M> = Box::new(move || Ok(model));
        (number.to_string(), load)
    };
    models.into_iter().enumerate().map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_processor_is_not_asked_for_room_and_gets_one_load() {
        let need = |_| Err("asked".to_owned());
        let compute = ComputeArgs::default().prepare("tiny", need).unwrap();
        let mut loads = compute.loads(|opened| Ok(Box::new(opened.dtype)));
        let (name, load) = loads.pop().unwrap();
        assert_eq!((name.as_str(), *load().unwrap(), loads.len()), ("cpu", DType::F32, 0));
    }

    #[test]
    fn a_model_whose_memory_cannot_be_told_is_refused_on_a_gpu() {
        let args = ComputeArgs { device: Place::Cuda(0).into(), ..ComputeArgs::default() };
        let error = args.prepare("tiny", |_| Err("config.json is missing".to_owned())).unwrap_err();
        assert!(matches!(error, DeviceError::Unmeasured { .. }), "{error}");
    }
}
