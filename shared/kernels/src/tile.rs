//! The inner loop of a matrix product: some rows of one matrix by a panel of sixteen columns of the other.

/// Columns of a panel: two vectors of eight f32.
pub(crate) const WIDTH: usize = 16;
/// Rows of a tile: with their twelve vectors of sums, two of a panel and one of a row the sixteen registers are all but
/// full.
pub(crate) const HEIGHT: usize = 6;
/// Inputs multiplied before the sums go to memory: a panel's part, 24 KiB in f32, stays in the first-level cache.
pub(crate) const DEPTH: usize = 384;

/// Products of the rows of a tile by a panel.
pub(crate) type Sums = [[f32; WIDTH]; HEIGHT];

/// Multiplies a tile of `height` rows, stored input by input, by a panel stored the same way. Rows beyond `height` of
/// the result are zero.
///
/// Each sum is taken input by input, so that a row's result does not depend on the height of its tile.
pub(crate) fn multiply_tile(height: usize, tile: &[f32], panel: &[f32]) -> Sums {
    match height {
        1 => padded(multiply_rows::<1>(tile, panel)),
        2 => padded(multiply_rows::<2>(tile, panel)),
        3 => padded(multiply_rows::<3>(tile, panel)),
        4 => padded(multiply_rows::<4>(tile, panel)),
        5 => padded(multiply_rows::<5>(tile, panel)),
        _ => multiply_rows::<HEIGHT>(tile, panel),
    }
}

fn padded<const ROWS: usize>(rows: [[f32; WIDTH]; ROWS]) -> Sums {
    let mut sums = [[0.0; WIDTH]; HEIGHT];
    sums[..ROWS].copy_from_slice(&rows);
    sums
}

/// Not inlined: on its own the compiler keeps all sums in registers.
#[inline(never)]
fn multiply_rows<const ROWS: usize>(tile: &[f32], panel: &[f32]) -> [[f32; WIDTH]; ROWS] {
    let mut sums = [[0.0f32; WIDTH]; ROWS];
    let (tile, _) = tile.as_chunks::<ROWS>();
    let (panel, _) = panel.as_chunks::<WIDTH>();
    for (values, weights) in tile.iter().zip(panel) {
        for (sums, value) in sums.iter_mut().zip(values) {
            for (sum, weight) in sums.iter_mut().zip(weights) {
                *sum = value.mul_add(*weight, *sum);
            }
        }
    }
    sums
}

/// Stores `rows`, all of one length, input by input: the first input of every row, then the second.
pub(crate) fn interleave_rows<'a>(rows: impl ExactSizeIterator<Item = &'a [f32]>, tile: &mut [f32]) {
    let height = rows.len();
    for (place, row) in rows.enumerate() {
        for (values, value) in tile.chunks_exact_mut(height).zip(row) {
            values[place] = *value;
        }
    }
}
