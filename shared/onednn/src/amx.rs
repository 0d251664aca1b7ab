//! The tiles of AMX: whether they are there, and what is done with them.
//!
//! A tile is 16 rows of 64 bytes. A factor's rows are those of the left one, of 32 inputs; of the right one a tile has 16 pairs of
//! inputs of 16 outputs, and lies in memory in one piece: the processor reads it faster so than line by line from different places.

use std::{
    arch::{
        asm,
        x86_64::{__cpuid_count, _mm_prefetch},
    },
    sync::OnceLock,
};

/// Rows of a tile.
pub(crate) const TILE: usize = 16;
/// Rows and outputs of a block of a result: four tiles of sums.
pub(crate) const BLOCK: usize = 2 * TILE;
/// Inputs of a row of a tile: as many are multiplied in a step.
pub(crate) const DEPTH: usize = 32;
/// Bytes that memory gives at a time.
pub(crate) const LINE: usize = 64;
/// Bytes of a tile, of which each row is a line.
pub(crate) const TILE_BYTES: usize = TILE * LINE;

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
        && std::is_x86_feature_detected!("avx512dq")
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
    /// AMX is [`available`], and rows are 1 to [`BLOCK`].
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
        shapes.bytes_per_row[..8].fill(LINE as u16);
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

/// Sums of zero. The compiler has no use for tiles: they hold what they hold from one of these blocks to the next.
///
/// # Safety
/// Here and below: the thread's tiles have the shapes that are used, and what is read or written is there.
#[inline(always)]
pub(crate) unsafe fn clear_sums() {
    // SAFETY: the caller answers for it.
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
///
/// # Safety
/// As [`clear_sums`].
#[inline(always)]
pub(crate) unsafe fn load_sums(first: *const u8, second: *const u8, row_bytes: usize) {
    // SAFETY: the caller answers for it.
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
///
/// # Safety
/// As [`clear_sums`].
#[inline(always)]
pub(crate) unsafe fn store_sums(first: *mut u8, second: *mut u8, row_bytes: usize) {
    // SAFETY: the caller answers for it.
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

/// Adds the products of a step of up to 16 rows by four tiles of weights to the sums 0 to 3.
///
/// # Safety
/// As [`clear_sums`].
#[inline(always)]
pub(crate) unsafe fn multiply_one_tile(x: *const u8, x_row: usize, weights: *const u8) {
    // SAFETY: the caller answers for it.
    unsafe {
        asm!(
            "tileloadd tmm4, [{x} + {x_row}*1]",
            "tileloadd tmm5, [{w} + {line}*1]",
            "tileloadd tmm6, [{w} + {line}*1 + 1024]",
            "tdpbf16ps tmm0, tmm4, tmm5",
            "tileloadd tmm7, [{w} + {line}*1 + 2048]",
            "tdpbf16ps tmm1, tmm4, tmm6",
            "tileloadd tmm5, [{w} + {line}*1 + 3072]",
            "tdpbf16ps tmm2, tmm4, tmm7",
            "tdpbf16ps tmm3, tmm4, tmm5",
            x = in(reg) x,
            x_row = in(reg) x_row,
            w = in(reg) weights,
            line = in(reg) LINE,
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

/// Adds the products of a step of two tiles of rows, from `x` and from `y` on, by two tiles of weights, which lie side by side, to the
/// sums: the first rows' are 0 and 1. Rows are so many bytes apart.
/// The rows, which are used again soon, are read through the first cache, and the weights past it.
///
/// # Safety
/// As [`clear_sums`].
#[inline(always)]
pub(crate) unsafe fn multiply_two_tiles(x: *const u8, y: *const u8, row: usize, weights: *const u8) {
    // SAFETY: the caller answers for it.
    unsafe {
        asm!(
            "tileloadd tmm4, [{x} + {row}*1]",
            "tileloaddt1 tmm6, [{w} + {line}*1]",
            "tileloaddt1 tmm7, [{w} + {line}*1 + 1024]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tileloadd tmm5, [{y} + {row}*1]",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            x = in(reg) x,
            y = in(reg) y,
            row = in(reg) row,
            w = in(reg) weights,
            line = in(reg) LINE,
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

/// Sums of 16 rows by 32 columns, of which there are two: while those of one product are added up, the ones of the product before are
/// stored.
macro_rules! pair_of_sums {
    ($name:ident, $left:tt, $right:tt) => {
        pub(crate) mod $name {
            use std::arch::asm;

            use super::LINE;

            /// Adds the products of a step, of a tile of rows, so many bytes apart, by two tiles one after the other, to the sums, or to
            /// none.
            ///
            /// # Safety
            /// As [`super::clear_sums`].
            #[inline(always)]
            pub(crate) unsafe fn multiply(begin: bool, x: *const u8, row: usize, factor: *const u8) {
                // SAFETY: the caller answers for it.
                unsafe {
                    if begin {
                        asm!(
                            concat!("tilezero ", $left),
                            concat!("tilezero ", $right),
                            out($left) _,
                            out($right) _,
                            options(nostack, nomem),
                        );
                    }
                    asm!(
                        "tileloadd tmm4, [{x} + {row}*1]",
                        "tileloadd tmm6, [{factor} + {line}*1]",
                        concat!("tdpbf16ps ", $left, ", tmm4, tmm6"),
                        "tileloadd tmm7, [{factor} + {line}*1 + 1024]",
                        concat!("tdpbf16ps ", $right, ", tmm4, tmm7"),
                        x = in(reg) x,
                        row = in(reg) row,
                        factor = in(reg) factor,
                        line = in(reg) LINE,
                        out($left) _,
                        out($right) _,
                        out("tmm4") _,
                        out("tmm6") _,
                        out("tmm7") _,
                        options(nostack, readonly),
                    );
                }
            }

            /// Stores the sums from `first` on, their rows `row` bytes apart.
            ///
            /// # Safety
            /// As [`super::clear_sums`].
            #[inline(always)]
            pub(crate) unsafe fn store(first: *mut u8, row: usize) {
                // SAFETY: the caller answers for it.
                unsafe {
                    asm!(
                        concat!("tilestored [{first} + {row}*1], ", $left),
                        concat!("tilestored [{first} + {row}*1 + 64], ", $right),
                        first = in(reg) first,
                        row = in(reg) row,
                        options(nostack),
                    );
                }
            }
        }
    };
}

pair_of_sums!(even, "tmm0", "tmm1");
pair_of_sums!(odd, "tmm2", "tmm3");

/// Asks for a line of memory.
#[inline(always)]
pub(crate) fn ask_for<const HINT: i32>(place: *const u8) {
    // SAFETY: a hint, which need not be an address of memory.
    unsafe { _mm_prefetch::<HINT>(place.cast()) };
}
