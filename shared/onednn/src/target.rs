use std::{mem::MaybeUninit, ops::Range};

/// A result `[rows, width]` that is being written, by several threads at different places.
pub(crate) struct Target<R> {
    start: *mut R,
    rows: usize,
    width: usize,
}

// SAFETY: its memory is reached through unsafe functions alone, whose callers answer for it.
unsafe impl<R: Send> Sync for Target<R> {}

impl<R> Target<R> {
    /// A result of so many rows in the room of `values`, which begins empty.
    ///
    /// # Panics
    /// Where there is less room.
    pub(crate) fn new(values: &mut Vec<R>, rows: usize, width: usize) -> Self {
        assert!(values.is_empty() && values.capacity() >= rows * width, "room for {rows} rows of {width}");
        Self { start: values.as_mut_ptr(), rows, width }
    }

    /// # Safety
    /// Nobody else may hold these rows.
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn rows(&self, rows: Range<usize>) -> &mut [MaybeUninit<R>] {
        assert!(rows.start <= rows.end && rows.end <= self.rows, "rows {rows:?} of {}", self.rows);
        // SAFETY: within the memory that was reserved for the result, which the caller alone holds.
        unsafe {
            std::slice::from_raw_parts_mut(
                self.start.add(rows.start * self.width).cast(),
                rows.len() * self.width,
            )
        }
    }

    /// Where a value lies. Whoever writes there answers for it that nobody else holds the value.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    pub(crate) fn place(&self, row: usize, column: usize) -> *mut R {
        assert!(row < self.rows && column < self.width, "value {row}, {column}");
        self.start.wrapping_add(row * self.width + column)
    }

    /// # Safety
    /// Nobody else may hold these values.
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn part(&self, row: usize, columns: Range<usize>) -> &mut [MaybeUninit<R>] {
        assert!(row < self.rows && columns.start <= columns.end && columns.end <= self.width, "row {row}");
        // SAFETY: as above.
        unsafe {
            std::slice::from_raw_parts_mut(
                self.start.add(row * self.width + columns.start).cast(),
                columns.len(),
            )
        }
    }
}
