use std::ops::{Deref, DerefMut};

use half::bf16;
use memmap2::{MmapMut, MmapOptions};

use crate::Error;

/// Bytes that begin on a cache line, as the library's code likes them.
#[derive(Clone, Copy, PartialEq)]
#[repr(C, align(64))]
pub(crate) struct Line(pub(crate) [u8; 64]);

/// Memory of whole lines, in huge pages where the system has them: a weight is read from end to end, and the addresses of small
/// pages cost a single thread a third of what memory gives.
pub(crate) struct Lines(MmapMut);

impl Lines {
    /// Zeros.
    ///
    /// # Errors
    /// [`Error::Memory`]
    pub(crate) fn zeros(bytes: usize) -> Result<Self, Error> {
        let bytes = bytes.next_multiple_of(size_of::<Line>()).max(size_of::<Line>());
        let map = MmapOptions::new()
            .len(bytes)
            .map_anon()
            .map_err(|cause| Error::Memory { bytes, reason: cause.to_string() })?;
        // A kernel without huge pages refuses: then the pages are small.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        Ok(Self(map))
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }

    pub(crate) fn values(&self) -> &[bf16] {
        // SAFETY: lines are plain bytes without gaps, and aligned to more than a value; any bits are one.
        unsafe { std::slice::from_raw_parts(self.0.as_ptr().cast(), self.0.len() / size_of::<bf16>()) }
    }

    pub(crate) fn values_mut(&mut self) -> &mut [bf16] {
        // SAFETY: as above.
        unsafe {
            std::slice::from_raw_parts_mut(self.0.as_mut_ptr().cast(), self.0.len() / size_of::<bf16>())
        }
    }
}

impl Deref for Lines {
    type Target = [Line];

    fn deref(&self) -> &[Line] {
        // SAFETY: a mapping begins on a page and is whole lines long; any bytes are a line.
        unsafe { std::slice::from_raw_parts(self.0.as_ptr().cast(), self.0.len() / size_of::<Line>()) }
    }
}

impl DerefMut for Lines {
    fn deref_mut(&mut self) -> &mut [Line] {
        // SAFETY: as above.
        unsafe {
            std::slice::from_raw_parts_mut(self.0.as_mut_ptr().cast(), self.0.len() / size_of::<Line>())
        }
    }
}
