use std::borrow::Cow;
use std::num::NonZero;
use std::ops::Deref;
use std::sync::Arc;

use bytes::Bytes;
use thicket_imaging::{ImagingError, Limits, RgbImage};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::Fault;

/// Longest text that is taken, in bytes.
pub const MAX_TEXT_BYTES: usize = 20_000;
/// Memory that decoded images may take in one role, in MiB.
pub const DEFAULT_DECODED_MIB: usize = 512;

/// Checks that a text has something in it and is not too long.
///
/// # Errors
/// [`Fault::InvalidInput`], reason `TEXT_EMPTY` or `TEXT_TOO_LONG`.
pub fn check_text(field: impl Into<Cow<'static, str>>, text: &str) -> Result<(), Fault> {
    if text.len() > MAX_TEXT_BYTES {
        let message = format!("at most {MAX_TEXT_BYTES} bytes, got {}", text.len());
        return Err(Fault::invalid(field, "TEXT_TOO_LONG", message));
    }
    if text.chars().all(char::is_whitespace) {
        return Err(Fault::invalid(field, "TEXT_EMPTY", "at least one character that is not white space"));
    }
    Ok(())
}

/// Runs work that takes a processor, as many pieces at a time as there are cores, away from the async threads. Cheap to
/// clone.
#[derive(Debug, Clone)]
pub struct CpuWork {
    cores: Arc<Semaphore>,
}

impl Default for CpuWork {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
        Self { cores: Arc::new(Semaphore::new(cores)) }
    }
}

impl CpuWork {
    /// Runs a piece of work when a core is free for it.
    ///
    /// # Errors
    /// [`Fault::Internal`] where it panics.
    ///
    /// # Cancel safety
    /// Work that has begun goes on to its end and keeps its core until then.
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Fault> {
        let core = self.cores.clone().acquire_owned().await.map_err(Fault::internal)?;
        let done = tokio::task::spawn_blocking(move || {
            let result = work();
            drop(core);
            result
        });
        done.await.map_err(Fault::internal)
    }
}

/// What was made of an image, which counts against its decoder's memory until it is dropped.
#[derive(Debug)]
pub struct Held<T> {
    value: T,
    _memory: OwnedSemaphorePermit,
}

impl<T> Held<T> {
    /// Takes the value apart from what holds its memory's place; keep both as long as the value lives.
    pub fn into_parts(self) -> (T, OwnedSemaphorePermit) {
        (self.value, self._memory)
    }
}

impl<T> Deref for Held<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

/// Decodes images away from the async threads: as many at a time as there are cores, and no more pixels at a time than the
/// memory set aside for them. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ImageDecoder {
    limits: Limits,
    cpu: CpuWork,
    mebibytes: Arc<Semaphore>,
    budget: usize,
}

/// A decoded image, which counts against its decoder's memory until it is dropped.
pub type DecodedImage = Held<RgbImage>;

impl ImageDecoder {
    /// A decoder with `decoded_mib` MiB for pixels.
    pub fn new(limits: Limits, decoded_mib: usize) -> Self {
        let budget = decoded_mib.clamp(1, Semaphore::MAX_PERMITS);
        Self { limits, cpu: CpuWork::default(), mebibytes: Arc::new(Semaphore::new(budget)), budget }
    }

    /// Decodes one image and hands it to `prepare` on the same thread. What is counted is the result, of `bytes` bytes,
    /// which gets its place first; the picture lives only meanwhile, so that there are no more pictures in memory than
    /// cores. `field` is the image's path in the request.
    ///
    /// # Errors
    /// [`Fault::InvalidInput`] with a reason that starts with `IMAGE_`.
    pub async fn decode_into<T: Send + 'static>(
        &self,
        field: impl Into<Cow<'static, str>>,
        encoded: Bytes,
        bytes: usize,
        prepare: impl FnOnce(&RgbImage) -> T + Send + 'static,
    ) -> Result<Held<T>, Fault> {
        let memory = self.memory(bytes).await?;
        let limits = self.limits;
        let prepared = self.cpu.run(move || {
            // The bytes of the file go first, the picture next.
            let image = thicket_imaging::decode(&encoded, &limits);
            drop(encoded);
            image.map(|image| prepare(&image))
        });
        let value = prepared.await?.map_err(|error| bad_image(field, &error))?;
        Ok(Held { value, _memory: memory })
    }

    async fn memory(&self, bytes: usize) -> Result<OwnedSemaphorePermit, Fault> {
        let mebibytes = bytes.div_ceil(1 << 20).clamp(1, self.budget);
        let permits = u32::try_from(mebibytes).unwrap_or(u32::MAX);
        self.mebibytes.clone().acquire_many_owned(permits).await.map_err(Fault::internal)
    }

    /// Decodes one image; `field` is its path in the request.
    ///
    /// # Errors
    /// [`Fault::InvalidInput`] with a reason that starts with `IMAGE_`.
    pub async fn decode(
        &self,
        field: impl Into<Cow<'static, str>>,
        bytes: Bytes,
    ) -> Result<DecodedImage, Fault> {
        let _core = self.cpu.cores.acquire().await.map_err(Fault::internal)?;
        let limits = self.limits;
        let decoded = tokio::task::spawn_blocking(move || thicket_imaging::decode(&bytes, &limits)).await;
        let image = decoded.map_err(Fault::internal)?.map_err(|error| bad_image(field, &error))?;
        // The core is kept until there is room, so that decoding does not run ahead of what becomes of the images.
        let memory = self.memory(image.as_raw().len()).await?;
        Ok(Held { value: image, _memory: memory })
    }
}

/// Refuses an image with a reason that callers can tell apart.
pub fn bad_image(field: impl Into<Cow<'static, str>>, error: &ImagingError) -> Fault {
    let reason = match error {
        ImagingError::Empty => "IMAGE_EMPTY",
        ImagingError::EncodedSize { .. }
        | ImagingError::Dimensions { .. }
        | ImagingError::DecodedSize { .. } => "IMAGE_TOO_LARGE",
        ImagingError::Format { .. } => "IMAGE_FORMAT_UNKNOWN",
        ImagingError::Animated { .. } => "IMAGE_ANIMATED",
        ImagingError::ZeroArea { .. } => "IMAGE_WITHOUT_AREA",
        _ => "IMAGE_UNDECODABLE",
    };
    Fault::invalid(field, reason, error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A valid 1x1 PNG.
    const PIXEL: &[u8] = &[
        137, 80, 78, 71, 13, 10, 26, 10, 0, 0, 0, 13, 73, 72, 68, 82, 0, 0, 0, 1, 0, 0, 0, 1, 8, 2, 0, 0, 0,
        144, 119, 83, 222, 0, 0, 0, 12, 73, 68, 65, 84, 120, 156, 99, 248, 207, 192, 0, 0, 3, 1, 1, 0, 201,
        254, 146, 239, 0, 0, 0, 0, 73, 69, 78, 68, 174, 66, 96, 130,
    ];

    fn reason(result: Result<(), Fault>) -> String {
        result.expect_err("refused").reason().into_owned()
    }

    #[test]
    fn a_text_of_any_white_space_is_empty() {
        assert_eq!(reason(check_text("text", "")), "TEXT_EMPTY");
        assert_eq!(reason(check_text("text", " \t\n\u{3000}\u{a0}")), "TEXT_EMPTY");
    }

    #[test]
    fn a_text_is_measured_in_bytes() {
        assert_eq!(check_text("text", &"x".repeat(MAX_TEXT_BYTES)), Ok(()));
        assert_eq!(check_text("text", "رجل يرتدي معطفا 🧥"), Ok(()));
        assert_eq!(reason(check_text("text", &"é".repeat(MAX_TEXT_BYTES / 2 + 1))), "TEXT_TOO_LONG");
    }

    #[tokio::test]
    async fn more_images_than_fit_in_memory_wait_for_one_another() {
        let decoder = ImageDecoder::new(Limits::default(), 1);
        let first = decoder.decode("image", Bytes::from_static(PIXEL)).await.expect("an image");
        assert_eq!(first.dimensions(), (1, 1));
        let mut second = std::pin::pin!(decoder.decode("image", Bytes::from_static(PIXEL)));
        let waits = tokio::time::timeout(std::time::Duration::from_millis(50), &mut second).await;
        assert!(waits.is_err(), "there is room for one");
        drop(first);
        assert!(second.await.is_ok());
    }

    #[tokio::test]
    async fn a_text_file_is_no_image() {
        let decoder = ImageDecoder::new(Limits::default(), 1);
        let fault = decoder.decode("images[2]", Bytes::from_static(b"hello there, reader")).await;
        let fault = fault.expect_err("refused");
        assert_eq!(fault.reason(), "IMAGE_FORMAT_UNKNOWN");
        assert!(fault.to_string().starts_with("images[2]: "), "{fault}");
    }
}
