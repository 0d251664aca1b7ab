use candle_core::DType;
use opentelemetry::KeyValue;
use thicket_kernels::Backend;
use thicket_onednn::{Library, Missing};
use thicket_telemetry::{instruments, names};

use crate::{DeviceError, Place};

/// What multiplies by the weights of a model on the CPU.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum CpuBackend {
    /// oneDNN where it is installed and has instructions for the model's type that Thicket's own products do not use:
    /// AVX-512, or bf16. Thicket's own products elsewhere.
    #[default]
    Auto,
    /// oneDNN; a machine without it is an error.
    Onednn,
    /// Thicket's own products in f32, candle's in other types.
    Plain,
}

/// A backend and why it was taken.
#[derive(Debug, Clone)]
pub struct ChosenBackend {
    /// The backend.
    pub backend: Backend,
    /// Why, in a few words.
    pub reason: String,
}

impl CpuBackend {
    /// Chooses for a model of a type on a device; `library` is what became of opening oneDNN.
    ///
    /// # Errors
    /// [`DeviceError::Backend`] where oneDNN is asked for and cannot serve.
    pub fn choose(
        self,
        dtype: DType,
        place: Place,
        library: Result<&'static Library, &Missing>,
    ) -> Result<ChosenBackend, DeviceError> {
        if self == Self::Plain {
            return Ok(plain("asked for".to_owned()));
        }
        match one_dnn(dtype, place, library) {
            Ok((library, wins)) if wins || self == Self::Onednn => {
                let reason = format!("oneDNN {}", library.version());
                Ok(ChosenBackend { backend: Backend::OneDnn(library), reason })
            }
            Ok((library, _)) => {
                let version = library.version();
                Ok(plain(format!("oneDNN {version} has no faster instructions on this processor")))
            }
            Err(reason) if self == Self::Onednn => Err(DeviceError::Backend { reason }),
            Err(reason) => Ok(plain(reason)),
        }
    }
}

/// The library, where it can serve, and whether it is expected to be the faster.
fn one_dnn(
    dtype: DType,
    place: Place,
    library: Result<&'static Library, &Missing>,
) -> Result<(&'static Library, bool), String> {
    if place != Place::Cpu {
        return Err(format!("the model computes on {place}"));
    }
    let library = library.map_err(ToString::to_string)?;
    match dtype {
        DType::BF16 => library.check_bf16().map(|()| (library, true)).map_err(|missing| missing.to_string()),
        DType::F32 => Ok((library, library.has_avx512())),
        _ => Err("oneDNN multiplies in f32 and bf16 only".to_owned()),
    }
}

fn plain(reason: String) -> ChosenBackend {
    ChosenBackend { backend: Backend::Plain, reason }
}

impl ChosenBackend {
    /// Its name in logs and metrics.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self.backend {
            Backend::Plain => "plain",
            Backend::OneDnn(_) => "onednn",
        }
    }

    /// Says in the log and in a metric what multiplies for a model.
    pub fn announce(&self, model: &str) {
        let (name, reason) = (self.name(), &self.reason);
        tracing::info!(model, cpu_backend = name, reason, "what multiplies on the CPU");
        for backend in ["plain", "onednn"] {
            let attributes =
                [KeyValue::new(names::MODEL, model.to_owned()), KeyValue::new(names::BACKEND, backend)];
            instruments().cpu_backend.record(u64::from(backend == name), &attributes);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn nowhere() -> Missing {
        Library::open(&[Path::new("/nowhere/libdnnl.so.2")]).unwrap_err()
    }

    #[test]
    fn without_the_library_auto_falls_back_and_says_why() {
        let missing = nowhere();
        let chosen = CpuBackend::Auto.choose(DType::F32, Place::Cpu, Err(&missing)).unwrap();
        assert!(matches!(chosen.backend, Backend::Plain));
        assert!(chosen.reason.contains("/nowhere/libdnnl.so.2"), "{}", chosen.reason);
    }

    #[test]
    fn without_the_library_a_wish_for_it_is_an_error_in_one_line() {
        let missing = nowhere();
        let error = CpuBackend::Onednn.choose(DType::F32, Place::Cpu, Err(&missing)).unwrap_err();
        let error = error.to_string();
        assert!(error.starts_with("--cpu-backend onednn cannot be served: "), "{error}");
        assert_eq!(error.lines().count(), 1, "{error}");
    }

    #[test]
    fn a_model_on_a_gpu_or_in_f16_has_no_use_for_it() {
        let missing = nowhere();
        for (dtype, place) in [(DType::F32, Place::Cuda(0)), (DType::F16, Place::Cpu)] {
            let library = Library::get().map_err(|_| &missing);
            assert!(CpuBackend::Onednn.choose(dtype, place, library).is_err());
            let chosen = CpuBackend::Auto.choose(dtype, place, library).unwrap();
            assert!(matches!(chosen.backend, Backend::Plain));
        }
    }

    #[test]
    fn the_metric_tells_the_backend_of_a_model() {
        plain("asked for".to_owned()).announce("tested");
        let text = thicket_telemetry::prometheus_text();
        let value = |backend: &str| {
            let line = text.lines().find(|line| {
                line.starts_with("thicket_cpu_backend{")
                    && line.contains(r#""tested""#)
                    && line.contains(&format!(r#"backend="{backend}""#))
            });
            line.unwrap_or_else(|| panic!("{backend} is missing in\n{text}"))
                .rsplit(' ')
                .next()
                .unwrap()
                .to_owned()
        };
        assert_eq!((value("plain").as_str(), value("onednn").as_str()), ("1", "0"));
    }
}
