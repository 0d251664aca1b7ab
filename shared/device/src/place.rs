use std::fmt;
use std::str::FromStr;

use candle_core::Device;

use crate::DeviceError;

/// A device by name.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Place {
    /// The processor.
    #[default]
    Cpu,
    /// The CUDA device of this number.
    Cuda(usize),
}

impl Place {
    /// Opens the device. Work is queued on the calling thread's own stream, so the thread that opens a GPU should be the
    /// one that computes on it.
    ///
    /// # Errors
    /// [`DeviceError::Absent`] where this build or this machine has no such device.
    pub fn open(self) -> Result<Device, DeviceError> {
        match self {
            Self::Cpu => Ok(Device::Cpu),
            Self::Cuda(ordinal) => Device::new_cuda(ordinal).map_err(|error| {
                // What follows the first line is a backtrace.
                let reason = error.to_string().lines().next().unwrap_or_default().to_owned();
                DeviceError::Absent { place: self, reason }
            }),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
        }
    }
}

/// The devices of a role: the processor, or one or more GPUs, each of them once. One copy of the model computes on each.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Places(Vec<Place>);

impl Places {
    /// Devices in this order.
    ///
    /// # Errors
    /// [`DeviceError::None`], [`DeviceError::Mixed`] and [`DeviceError::Twice`].
    pub fn new(places: Vec<Place>) -> Result<Self, DeviceError> {
        let cpus = places.iter().filter(|place| **place == Place::Cpu).count();
        if places.is_empty() {
            return Err(DeviceError::None);
        }
        if cpus > 0 && cpus < places.len() {
            return Err(DeviceError::Mixed);
        }
        match places.iter().enumerate().find(|(index, place)| places[..*index].contains(place)) {
            Some((_, &place)) => Err(DeviceError::Twice { place }),
            None => Ok(Self(places)),
        }
    }

    /// Every device, in the order given.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Place> {
        self.0.iter().copied()
    }

    /// The first device; the type of the arithmetic follows it, as all are of one kind.
    pub fn first(&self) -> Place {
        self.0.first().copied().unwrap_or_default()
    }

    /// The device of something that runs on one.
    ///
    /// # Errors
    /// [`DeviceError::Several`].
    pub fn only(&self) -> Result<Place, DeviceError> {
        match self.0.as_slice() {
            [place] => Ok(*place),
            _ => Err(DeviceError::Several { places: self.clone() }),
        }
    }
}

impl Default for Places {
    /// The processor.
    fn default() -> Self {
        Self::from(Place::Cpu)
    }
}

impl From<Place> for Places {
    fn from(place: Place) -> Self {
        Self(vec![place])
    }
}

impl fmt::Display for Places {
    /// As [`FromStr`] reads it: `cpu`, `cuda:0`, `cuda:0,2`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, place) in self.0.iter().enumerate() {
            match place {
                Place::Cuda(ordinal) if index > 0 => write!(f, ",{ordinal}")?,
                place => write!(f, "{place}")?,
            }
        }
        Ok(())
    }
}

impl FromStr for Places {
    type Err = DeviceError;

    /// `cpu`, `cuda` (the first GPU), `cuda:N` or `cuda:N,N,...`, where `cuda:` may stand before every number.
    fn from_str(names: &str) -> Result<Self, DeviceError> {
        let mut places: Vec<Place> = Vec::new();
        for name in names.split(',') {
            let number = match (name.strip_prefix("cuda:"), places.last()) {
                (Some(number), _) => number,
                // A bare number goes on with the list that a `cuda:N` began.
                (None, Some(Place::Cuda(_))) => name,
                (None, _) => "",
            };
            let place = match name {
                "cpu" => Some(Place::Cpu),
                "cuda" => Some(Place::Cuda(0)),
                _ => ordinal(number).map(Place::Cuda),
            };
            places.push(place.ok_or_else(|| DeviceError::Name { name: name.to_owned() })?);
        }
        Self::new(places)
    }
}

/// Digits alone: a sign that `parse` would take is no part of a device's name.
fn ordinal(digits: &str) -> Option<usize> {
    digits.bytes().all(|digit| digit.is_ascii_digit()).then(|| digits.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(names: &str) -> Result<Places, String> {
        names.parse().map_err(|error: DeviceError| error.to_string())
    }

    fn gpus(ordinals: &[usize]) -> Result<Places, String> {
        Ok(Places(ordinals.iter().copied().map(Place::Cuda).collect()))
    }

    #[test]
    fn devices_are_read_by_name() {
        assert_eq!(read("cpu"), Ok(Places::default()));
        assert_eq!(read("cuda"), gpus(&[0]));
        assert_eq!(read("cuda:3"), gpus(&[3]));
        assert_eq!(read("cuda:0,1,2"), gpus(&[0, 1, 2]));
        assert_eq!(read("cuda:2,cuda:0"), gpus(&[2, 0]));
    }

    #[test]
    fn what_is_no_device_is_named() {
        for name in
            ["", "gpu", "cuda:", "cuda:-1", "cuda:+1", "CPU", "cuda3", "1", "cuda:0,", "cuda:0,x", " cpu"]
        {
            let error = read(name).expect_err(name);
            assert!(error.contains("is not a device"), "{name}: {error}");
        }
        assert!(read("cuda:0,x").expect_err("no number").contains("`x`"));
    }

    #[test]
    fn a_device_that_is_named_twice_is_refused() {
        assert_eq!(read("cuda:1,0,1"), Err("device cuda:1 is named twice".to_owned()));
        assert_eq!(read("cuda,0"), Err("device cuda:0 is named twice".to_owned()));
        assert_eq!(read("cpu,cpu"), Err("device cpu is named twice".to_owned()));
    }

    #[test]
    fn the_processor_and_a_gpu_together_are_refused() {
        for names in ["cpu,cuda:0", "cuda:0,cpu", "cuda:0,1,cpu"] {
            assert!(read(names).expect_err(names).contains("cpu and cuda"), "{names}");
        }
    }

    #[test]
    fn one_device_is_asked_of_a_list_of_one_only() {
        assert_eq!(Places::from(Place::Cuda(4)).only().ok(), Some(Place::Cuda(4)));
        let error = read("cuda:0,1").expect("two").only().expect_err("two").to_string();
        assert_eq!(error, "one device expected here, got cuda:0,1");
    }

    proptest! {
        #[test]
        fn distinct_gpus_print_as_they_are_read(ordinals in prop::collection::hash_set(any::<usize>(), 1..9)) {
            let places = Places::new(ordinals.into_iter().map(Place::Cuda).collect()).expect("distinct");
            prop_assert_eq!(read(&places.to_string()), Ok(places));
        }

        #[test]
        fn any_text_is_read_or_refused_in_one_line(names in "(cpu|cuda|:|,|[0-9]|.){0,12}") {
            match read(&names) {
                Ok(places) => {
                    let distinct: std::collections::HashSet<_> = places.iter().collect();
                    prop_assert_eq!(distinct.len(), places.iter().len());
                    prop_assert!(places.iter().len() == 1 || !distinct.contains(&Place::Cpu));
                }
                Err(error) => prop_assert_eq!(error.lines().count(), 1, "{}", error),
            }
        }
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn a_build_without_cuda_says_so_in_one_line() {
        let error = Place::Cuda(0).open().expect_err("not compiled in").to_string();
        assert!(error.starts_with("device cuda:0 cannot be used: "), "{error}");
        assert_eq!(error.lines().count(), 1, "{error}");
    }
}
