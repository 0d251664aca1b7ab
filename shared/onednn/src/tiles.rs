//! How the rows and outputs of a product are shared out: pure arithmetic.

use std::ops::Range;

/// Rows that a product in bf16 has at most: beyond it nothing is gained, and the threads' shares become uneven.
const TALLEST: usize = 256;
/// Heights of tall products are multiples of this, the rows of two tiles of AMX.
const STEP: usize = 32;
/// Heights of short ones.
const SHORT: [usize; 3] = [1, 8, 16];
/// Rows for each thread from which on rows are shared out rather than outputs.
const TALL_SHARE: usize = 64;

/// Pieces of a product in blocks that a thread has at the least, where there are so many.
const PIECES: usize = 8;
/// Most outputs of one.
const WIDEST: usize = 512;

/// A block of a result, multiplied by one thread.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tile {
    pub(crate) rows: Range<usize>,
    pub(crate) outputs: Range<usize>,
    /// Rows of the product that makes it, at least as many as it has: there are few heights, for each of which code is
    /// generated.
    pub(crate) height: usize,
}

/// Tiles of one height and of `slice` outputs each, so that what becomes of a row does not depend on its companions.
pub(crate) fn uniform(rows: usize, outputs: usize, slice: usize, height: usize) -> Vec<Tile> {
    let blocks: Vec<_> = pieces(rows, height).collect();
    // Slice by slice, so that a slice is read from memory once.
    pieces(outputs, slice)
        .flat_map(|outputs| {
            blocks.iter().map(move |rows| Tile { rows: rows.clone(), outputs: outputs.clone(), height })
        })
        .collect()
}

/// Tiles that keep `threads` threads about equally busy: whole rows where there are many, which need no copy, and slices
/// of the outputs otherwise.
pub(crate) fn shared(rows: usize, outputs: usize, slice: usize, threads: usize) -> Vec<Tile> {
    let tall = rows >= TALL_SHARE * threads;
    let blocks: Vec<_> = if tall {
        even_pieces(rows, rows.div_ceil(TALLEST).next_multiple_of(threads)).collect()
    } else {
        pieces(rows, TALLEST).collect()
    };
    pieces(outputs, if tall { outputs } else { slice })
        .flat_map(|outputs| {
            blocks.iter().map(move |rows| Tile {
                rows: rows.clone(),
                outputs: outputs.clone(),
                height: height(rows.len()),
            })
        })
        .collect()
}

/// Rows and outputs for products in blocks: a thread has several pieces, so that a core that is done takes over from a slower
/// one. Pieces of rows begin at multiples of [`STEP`], and pieces of outputs at multiples of `panel`.
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
pub(crate) fn blocks(
    rows: usize,
    outputs: usize,
    panel: usize,
    threads: usize,
) -> Vec<(Range<usize>, Range<usize>)> {
    let pieces_of_rows: Vec<_> = even_pieces(rows, rows.div_ceil(TALLEST)).collect();
    let wanted = (PIECES * threads).div_ceil(pieces_of_rows.len().max(1));
    let slice = (outputs / wanted / panel * panel).clamp(panel, WIDEST);
    // Slice by slice, so that a slice stays in a core's second cache while rows after rows are multiplied by it.
    pieces(outputs, slice)
        .flat_map(|outputs| pieces_of_rows.iter().map(move |rows| (rows.clone(), outputs.clone())))
        .collect()
}

/// The least height that holds so many rows.
fn height(rows: usize) -> usize {
    SHORT.into_iter().find(|&height| rows <= height).unwrap_or_else(|| rows.next_multiple_of(STEP))
}

fn pieces(whole: usize, piece: usize) -> impl Iterator<Item = Range<usize>> {
    (0..whole).step_by(piece.max(1)).map(move |start| start..(start + piece).min(whole))
}

/// At most `count` pieces of nearly equal length, all but the last of which are multiples of [`STEP`].
fn even_pieces(whole: usize, count: usize) -> impl Iterator<Item = Range<usize>> {
    let steps = whole.div_ceil(STEP);
    let count = count.clamp(1, steps.max(1));
    (0..count).map(move |index| {
        let start = |index: usize| (index * steps / count * STEP).min(whole);
        start(index)..start(index + 1)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_value_of_a_result_is_in_one_tile(
            rows in 1usize..2000,
            outputs in 1usize..300,
            slice in 1usize..400,
            threads in 1usize..40,
        ) {
            for tiles in [uniform(rows, outputs, slice, 64), shared(rows, outputs, slice, threads)] {
                let mut seen = vec![0u8; rows * outputs];
                for Tile { rows, outputs: columns, height } in tiles {
                    prop_assert!(!rows.is_empty() && rows.len() <= height && height <= TALLEST);
                    for row in rows {
                        columns.clone().for_each(|column| seen[row * outputs + column] += 1);
                    }
                }
                prop_assert!(seen.iter().all(|&times| times == 1));
            }
        }

        #[test]
        fn every_value_of_a_result_is_in_one_piece_of_blocks(
            rows in 32usize..2000,
            outputs in 1usize..700,
            panel in proptest::sample::select(&[16usize, 32, 64][..]),
            threads in 1usize..40,
        ) {
            let mut seen = vec![0u8; rows * outputs];
            for (rows, columns) in blocks(rows, outputs, panel, threads) {
                prop_assert!(!rows.is_empty() && rows.len() <= TALLEST && columns.len() <= WIDEST);
                prop_assert!(rows.start.is_multiple_of(STEP) && columns.start.is_multiple_of(panel));
                for row in rows {
                    columns.clone().for_each(|column| seen[row * outputs + column] += 1);
                }
            }
            prop_assert!(seen.iter().all(|&times| times == 1));
        }

        #[test]
        fn many_rows_are_shared_out_evenly(rows in 1usize..20_000, threads in 1usize..40) {
            let tiles = shared(rows, 700, 128, threads);
            if rows >= TALL_SHARE * threads {
                let longest = tiles.iter().map(|tile| tile.rows.len()).max().unwrap_or(0);
                let shortest = tiles.iter().map(|tile| tile.rows.len()).min().unwrap_or(0);
                prop_assert!(longest - shortest < 2 * STEP, "{shortest} to {longest}");
                prop_assert!(tiles.len() >= threads);
                prop_assert!(tiles.iter().all(|tile| tile.outputs == (0..700)));
            }
        }
    }
}
