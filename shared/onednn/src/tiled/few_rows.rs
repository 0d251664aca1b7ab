//! Products of up to 32 rows in tiles: as fast as memory gives the weights, where vectors are busy with the rows.

use std::{arch::x86_64::_MM_HINT_T1, ops::Range};

use half::bf16;

use super::weight::{STEP_BYTES, WIDTH};
use crate::amx::{self, BLOCK, DEPTH, LINE, TILE, TILE_BYTES, Tiles, ask_for};

/// Bytes of a row of a tile of rows.
const ROW: usize = DEPTH * size_of::<bf16>();
/// Bytes of a row of sums.
const ROW_OF_SUMS: usize = WIDTH * size_of::<f32>();
/// Most steps that are multiplied before the other half of a panel has its turn: as much is asked for ahead, and stays in the second
/// cache with it.
const MOST_STEPS: usize = 48;
/// Places of the weight that are asked for side by side.
const STREAMS: usize = 8;

/// Rows in the order in which they are multiplied: `[inputs / 32][rows][32]`.
pub(crate) fn packed(x: &[bf16], rows: usize) -> Vec<bf16> {
    let input = x.len() / rows;
    let mut packed = vec![bf16::ZERO; x.len()];
    for (row, values) in x.chunks_exact(input).enumerate() {
        for (step, values) in values.chunks_exact(DEPTH).enumerate() {
            packed[(step * rows + row) * DEPTH..][..DEPTH].copy_from_slice(values);
        }
    }
    packed
}

/// Where the values of a panel come from.
pub(super) trait Source {
    /// Where a step lies in memory, and its bytes. What lies behind the last one need not be there.
    fn place(&self, step: usize) -> (*const u8, usize);

    /// Some of the four tiles of a step, side by side. They stay there until the step after the next one is asked for.
    fn step(&mut self, step: usize, tiles: Range<usize>) -> *const u8;
}

/// A panel as it lies in memory.
impl Source for &[bf16] {
    fn place(&self, step: usize) -> (*const u8, usize) {
        (self.as_ptr().cast::<u8>().wrapping_add(step * STEP_BYTES), STEP_BYTES)
    }

    fn step(&mut self, step: usize, tiles: Range<usize>) -> *const u8 {
        let values = &self[step * STEP_BYTES / size_of::<bf16>()..][..STEP_BYTES / size_of::<bf16>()];
        values[tiles.start * TILE_BYTES / size_of::<bf16>()..].as_ptr().cast()
    }
}

/// The product of `rows` rows, as [`packed`], with a panel, as `[rows][64]`, overwritten.
///
/// # Panics
/// Without AMX, for slices of another length, and for a panel of fewer inputs than the rows have.
pub(super) fn multiply(panel: &mut impl Source, x: &[bf16], rows: usize, sums: &mut [f32]) {
    assert!(amx::available() && (1..=BLOCK).contains(&rows));
    let all = x.len() / (rows * DEPTH);
    assert!(x.len() == all * rows * DEPTH && sums.len() == rows * WIDTH);
    // SAFETY: asserted.
    let _tiles = unsafe { Tiles::shaped(rows) };
    for first in (0..all).step_by(MOST_STEPS) {
        let steps = first..(first + MOST_STEPS).min(all);
        let mut part = Part { panel, x: x.as_ptr().cast(), rows, steps };
        let sums = sums.as_mut_ptr().cast();
        // SAFETY: what is read and written lies within the slices, whose lengths were asserted. The tiles have the shapes that are
        // used, and nobody else uses this thread's.
        unsafe {
            if rows <= TILE {
                part.one_tile(sums);
            } else {
                part.two_tiles(0, sums);
                part.two_tiles(1, sums);
            }
        }
    }
}

/// Some steps of a product.
struct Part<'a, S> {
    panel: &'a mut S,
    /// From the first step of all on.
    x: *const u8,
    rows: usize,
    steps: Range<usize>,
}

impl<S: Source> Part<'_, S> {
    unsafe fn begin(&self, first: *const u8, second: *const u8) {
        // SAFETY: see [`multiply`].
        unsafe {
            if self.steps.start > 0 {
                amx::load_sums(first, second, ROW_OF_SUMS);
            } else {
                amx::clear_sums();
            }
        }
    }

    /// Calls `multiply` with the inputs of each step and some tiles of the weight. The next step is made ready before, so that the one
    /// does not wait for the other.
    fn each_step(
        &mut self,
        tiles: Range<usize>,
        pass: usize,
        passes: usize,
        mut multiply: impl FnMut(*const u8, *const u8),
    ) {
        let (behind, step_bytes) = self.panel.place(self.steps.end);
        let mut next = self.panel.step(self.steps.start, tiles.clone());
        for (index, step) in self.steps.clone().enumerate() {
            self.ask_ahead(behind, step_bytes, pass * self.steps.len() + index, passes);
            let weights = next;
            if step + 1 < self.steps.end {
                next = self.panel.step(step + 1, tiles.clone());
            }
            multiply(self.x.wrapping_add(step * self.rows * ROW), weights);
        }
    }

    /// Up to 16 rows by the whole panel.
    unsafe fn one_tile(&mut self, sums: *mut u8) {
        // SAFETY: see [`multiply`].
        unsafe {
            let second = sums.add(ROW_OF_SUMS / 2);
            self.begin(sums, second);
            self.each_step(0..4, 0, 1, |x, weights| amx::multiply_one_tile(x, ROW, weights));
            amx::store_sums(sums, second, ROW_OF_SUMS);
        }
    }

    /// 17 to 32 rows by half of the panel.
    unsafe fn two_tiles(&mut self, half: usize, sums: *mut u8) {
        // SAFETY: see [`multiply`].
        unsafe {
            let first = sums.add(half * ROW_OF_SUMS / 2);
            let second = first.add(TILE * ROW_OF_SUMS);
            self.begin(first, second);
            self.each_step(2 * half..2 * half + 2, half, 2, |x, weights| {
                amx::multiply_two_tiles(x, x.wrapping_add(TILE * ROW), ROW, weights);
            });
            amx::store_sums(first, second, ROW_OF_SUMS);
        }
    }

    /// Asks for some of as much of the weight as this part is of it, behind it, from several places: memory gives more to several
    /// readings than to one. The steps are gone through so many `times`, and what is asked for is spread evenly over all: in one
    /// go it would wait for memory.
    fn ask_ahead(&self, behind: *const u8, step_bytes: usize, turn: usize, times: usize) {
        let share = step_bytes / STREAMS / times;
        for stream in 0..STREAMS {
            let place = behind.wrapping_add((stream * self.steps.len() * times + turn) * share);
            for line in (0..share).step_by(LINE) {
                ask_for::<_MM_HINT_T1>(place.wrapping_add(line));
            }
        }
    }
}
