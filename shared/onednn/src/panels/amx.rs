//! Products of up to 32 rows in the tiles of AMX: as fast as memory gives the weights, where vectors are busy with the rows.

use std::{
    arch::{
        asm,
        x86_64::{__cpuid_count, _MM_HINT_T1, _mm_prefetch},
    },
    ops::Range,
    sync::OnceLock,
};

use half::bf16;

use super::LANES;

/// Most rows: two tiles of 16.
pub(crate) const MOST_ROWS: usize = 2 * TILE;
/// Rows of a tile.
pub(crate) const TILE: usize = 16;
/// Inputs of a row of a tile.
pub(crate) const DEPTH: usize = 32;
/// Outputs of a panel, four tiles side by side.
pub(crate) const WIDTH: usize = 4 * LANES;
/// Bytes of the part of a panel that [`DEPTH`] inputs are multiplied by.
pub(crate) const STEP: usize = DEPTH * WIDTH * size_of::<bf16>();
/// Bytes between two pairs of inputs of a panel, and between two rows of sums.
pub(crate) const ROW: usize = 4 * WIDTH;
/// Bytes that memory gives at a time.
pub(crate) const LINE: usize = 64;
/// Bytes of a row of a tile.
const ROW_OF_TILE: usize = DEPTH * size_of::<bf16>();
/// Most steps that are multiplied before the other half of a panel has its turn: as much is asked for ahead, and stays in the second
/// cache with it.
const MOST_STEPS: usize = 48;
/// Places of the weight that are asked for side by side.
const STREAMS: usize = 8;

/// Whether this process may use AMX in bf16.
pub(crate) fn available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| processor_has_it() && permitted())
}

fn processor_has_it() -> bool {
    const EXTENDED_FEATURES: u32 = 7;
    const BF16_AND_TILES: u32 = 1 << 22 | 1 << 24;
    // Vectors go with the tiles. A processor without the leaf has none of them either.
    let vectors = std::is_x86_feature_detected!("avx512f")
        && std::is_x86_feature_detected!("avx512bw")
        && std::is_x86_feature_detected!("avx512vl")
        && std::is_x86_feature_detected!("avx512bf16");
    if !vectors {
        return false;
    }
    // SAFETY: every processor with AVX-512 has the instruction and the leaf. Newer compilers know that the call is safe.
    #[allow(unused_unsafe)]
    let leaf = unsafe { __cpuid_count(EXTENDED_FEATURES, 0) };
    leaf.edx & BF16_AND_TILES == BF16_AND_TILES
}

/// Asks the system to keep the tiles of this process's threads, as every process has to that uses them.
#[cfg(target_os = "linux")]
fn permitted() -> bool {
    const REQUEST_PERMISSION: libc::c_int = 0x1023;
    const TILE_DATA: libc::c_int = 18;
    // SAFETY: changes a setting of this process alone; a kernel that does not know it refuses.
    unsafe { libc::syscall(libc::SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0 }
}

#[cfg(not(target_os = "linux"))]
fn permitted() -> bool {
    false
}

/// Rows in the order in which they are multiplied: `[inputs / 32][rows][32]`, filled up with zeros.
pub(super) fn packed(x: &[bf16], rows: usize) -> Vec<bf16> {
    let input = x.len() / rows;
    let steps = input.div_ceil(DEPTH);
    let mut packed = vec![bf16::ZERO; steps * rows * DEPTH];
    for (row, values) in x.chunks_exact(input).enumerate() {
        for (step, values) in values.chunks(DEPTH).enumerate() {
            packed[(step * rows + row) * DEPTH..][..values.len()].copy_from_slice(values);
        }
    }
    packed
}

/// The shapes of the eight tiles, as the processor reads them.
#[repr(C, align(64))]
struct Shapes {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    bytes_per_row: [u16; 16],
    rows: [u8; 16],
}

/// The tiles of this thread, as long as it lives.
pub(crate) struct Tiles;

impl Tiles {
    /// Sums in 0 to 3 and inputs in 4, of `rows`, weights in 5 to 7; of more than a tile's rows the second 16 have the sums 2 and
    /// 3 and the inputs 5.
    ///
    /// # Safety
    /// AMX is [`available`], and rows are 1 to [`MOST_ROWS`].
    pub(crate) unsafe fn shaped(rows: usize) -> Self {
        let (first, second) = (rows.min(TILE) as u8, rows.saturating_sub(TILE) as u8);
        let whole = TILE as u8;
        let heights = match second {
            0 => [first, first, first, first, first, whole, whole, whole],
            _ => [first, first, second, second, first, second, whole, whole],
        };
        let mut shapes =
            Shapes { palette: 1, start_row: 0, reserved: [0; 14], bytes_per_row: [0; 16], rows: [0; 16] };
        shapes.rows[..8].copy_from_slice(&heights);
        shapes.bytes_per_row[..8].fill(2 * DEPTH as u16);
        // SAFETY: reads the shapes, which are within what the processor has.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const shapes, options(nostack, readonly)) };
        Self
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: they are this thread's, and nobody's any more.
        unsafe { asm!("tilerelease", options(nostack, nomem)) };
    }
}

/// Where the values of a panel come from.
pub(super) trait Source {
    /// Where a step lies in memory, and its bytes. What lies behind the last one need not be there.
    fn place(&self, step: usize) -> (*const u8, usize);

    /// The values of some of the four tiles of a step, side by side, and the bytes between two pairs of inputs. They stay there until
    /// the step after the next one is asked for.
    fn step(&mut self, step: usize, tiles: Range<usize>) -> (*const u8, usize);
}

/// A panel as it lies in memory.
impl Source for &[bf16] {
    fn place(&self, step: usize) -> (*const u8, usize) {
        (self.as_ptr().cast::<u8>().wrapping_add(step * STEP), STEP)
    }

    fn step(&mut self, step: usize, tiles: Range<usize>) -> (*const u8, usize) {
        let values = &self[step * STEP / size_of::<bf16>()..(step + 1) * STEP / size_of::<bf16>()];
        (values[2 * LANES * tiles.start..].as_ptr().cast(), ROW)
    }
}

/// The product of `rows` rows, as [`packed`], with a panel, as `[rows][64]`, overwritten.
///
/// # Panics
/// Without AMX, for slices of another length, and for a panel of fewer inputs than the rows have.
pub(super) fn multiply(panel: &mut impl Source, x: &[bf16], rows: usize, sums: &mut [f32]) {
    assert!(available() && (1..=MOST_ROWS).contains(&rows));
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

/// Sums of zero. The compiler has no use for tiles: they hold what they hold from one of these blocks to the next.
pub(crate) unsafe fn clear_sums() {
    // SAFETY: see [`multiply`].
    unsafe {
        asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            out("tmm0") _,
            out("tmm1") _,
            out("tmm2") _,
            out("tmm3") _,
            options(nostack, nomem),
        );
    }
}

/// Takes up the sums 0 and 1 that lie side by side from `first` on, and 2 and 3 from `second` on, their rows `row_bytes` apart.
#[inline(always)]
pub(crate) unsafe fn load_sums(first: *const u8, second: *const u8, row_bytes: usize) {
    // SAFETY: see [`multiply`].
    unsafe {
        asm!(
            "tileloadd tmm0, [{first} + {row}*1]",
            "tileloadd tmm1, [{first} + {row}*1 + 64]",
            "tileloadd tmm2, [{second} + {row}*1]",
            "tileloadd tmm3, [{second} + {row}*1 + 64]",
            first = in(reg) first,
            second = in(reg) second,
            row = in(reg) row_bytes,
            out("tmm0") _,
            out("tmm1") _,
            out("tmm2") _,
            out("tmm3") _,
            options(nostack, readonly),
        );
    }
}

/// Puts the sums where [`load_sums`] takes them up.
#[inline(always)]
pub(crate) unsafe fn store_sums(first: *mut u8, second: *mut u8, row_bytes: usize) {
    // SAFETY: see [`multiply`].
    unsafe {
        asm!(
            "tilestored [{first} + {row}*1], tmm0",
            "tilestored [{first} + {row}*1 + 64], tmm1",
            "tilestored [{second} + {row}*1], tmm2",
            "tilestored [{second} + {row}*1 + 64], tmm3",
            first = in(reg) first,
            second = in(reg) second,
            row = in(reg) row_bytes,
            options(nostack),
        );
    }
}

/// Adds the products of a step of two tiles of rows and two of weights, half a panel, to the sums: the first tile's are 0 and 1. Rows of
/// `x` and pairs of inputs of the weights are so many bytes apart.
/// The rows, which are used again soon, are read through the first cache, and the weights past it.
#[inline(always)]
pub(crate) unsafe fn multiply_step(x: *const u8, x_row: usize, weights: *const u8, weights_row: usize) {
    // SAFETY: see [`multiply`].
    unsafe {
        asm!(
            "tileloadd tmm4, [{x} + {x_row}*1]",
            "tileloaddt1 tmm6, [{w} + {w_row}*1]",
            "tileloaddt1 tmm7, [{w} + {w_row}*1 + 64]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tileloadd tmm5, [{y} + {x_row}*1]",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            x = in(reg) x,
            y = in(reg) x.wrapping_add(TILE * x_row),
            x_row = in(reg) x_row,
            w = in(reg) weights,
            w_row = in(reg) weights_row,
            out("tmm0") _,
            out("tmm1") _,
            out("tmm2") _,
            out("tmm3") _,
            out("tmm4") _,
            out("tmm5") _,
            out("tmm6") _,
            out("tmm7") _,
            options(nostack, readonly),
        );
    }
}

/// Asks for a line of memory.
#[inline(always)]
pub(crate) fn ask_for<const HINT: i32>(place: *const u8) {
    // SAFETY: a hint, which need not be an address of memory.
    unsafe { _mm_prefetch::<HINT>(place.cast()) };
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
                load_sums(first, second, ROW);
            } else {
                clear_sums();
            }
        }
    }

    /// Calls `multiply` with the inputs of each step and the values of some tiles of the weight, and the bytes between its pairs. The next
    /// step is made ready before, so that the one does not wait for the other.
    fn each_step(
        &mut self,
        tiles: Range<usize>,
        pass: usize,
        passes: usize,
        mut multiply: impl FnMut(*const u8, *const u8, usize),
    ) {
        let (behind, step_bytes) = self.panel.place(self.steps.end);
        let mut next = self.panel.step(self.steps.start, tiles.clone());
        for (index, step) in self.steps.clone().enumerate() {
            self.ask_ahead(behind, step_bytes, pass * self.steps.len() + index, passes);
            let (weights, row) = next;
            if step + 1 < self.steps.end {
                next = self.panel.step(step + 1, tiles.clone());
            }
            multiply(self.x.wrapping_add(step * self.rows * ROW_OF_TILE), weights, row);
        }
    }

    /// Up to 16 rows by the whole panel.
    unsafe fn one_tile(&mut self, sums: *mut u8) {
        // SAFETY: see [`multiply`].
        unsafe {
            let second = sums.add(ROW / 2);
            self.begin(sums, second);
            self.each_step(0..4, 0, 1, |x, weights, row| {
                asm!(
                    "tileloadd tmm4, [{x} + {x_row}*1]",
                    "tileloadd tmm5, [{w} + {w_row}*1]",
                    "tileloadd tmm6, [{w} + {w_row}*1 + 64]",
                    "tdpbf16ps tmm0, tmm4, tmm5",
                    "tileloadd tmm7, [{w} + {w_row}*1 + 128]",
                    "tdpbf16ps tmm1, tmm4, tmm6",
                    "tileloadd tmm5, [{w} + {w_row}*1 + 192]",
                    "tdpbf16ps tmm2, tmm4, tmm7",
                    "tdpbf16ps tmm3, tmm4, tmm5",
                    x = in(reg) x,
                    x_row = in(reg) ROW_OF_TILE,
                    w = in(reg) weights,
                    w_row = in(reg) row,
                    out("tmm0") _,
                    out("tmm1") _,
                    out("tmm2") _,
                    out("tmm3") _,
                    out("tmm4") _,
                    out("tmm5") _,
                    out("tmm6") _,
                    out("tmm7") _,
                    options(nostack, readonly),
                );
            });
            store_sums(sums, second, ROW);
        }
    }

    /// 17 to 32 rows by half of the panel.
    unsafe fn two_tiles(&mut self, half: usize, sums: *mut u8) {
        // SAFETY: see [`multiply`].
        unsafe {
            let (first, second) = (sums.add(half * ROW / 2), sums.add(half * ROW / 2 + TILE * ROW));
            self.begin(first, second);
            self.each_step(2 * half..2 * half + 2, half, 2, |x, weights, row| {
                multiply_step(x, ROW_OF_TILE, weights, row);
            });
            store_sums(first, second, ROW);
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
