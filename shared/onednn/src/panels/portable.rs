use half::bf16;

use super::{PAIRS, Sums, Weights};

/// [`super::add_products`] on any processor: loops that a compiler turns into vectors, row by row.
pub(super) fn add_products<const ROWS: usize, const PANELS: usize>(
    panels: [&[Weights]; PANELS],
    x: [&[[f32; 2]]; ROWS],
    vectors: usize,
    sums: &mut [Sums],
) {
    let pairs = x[0].len();
    for start in (0..pairs).step_by(PAIRS) {
        let part = start..(start + PAIRS).min(pairs);
        for (row, sums) in x.iter().zip(sums.chunks_exact_mut(PANELS * vectors)) {
            for (panel, sums) in panels.iter().zip(sums.chunks_exact_mut(vectors)) {
                let panel = &panel[part.start * vectors..part.end * vectors];
                let row = &row[part.clone()];
                match vectors {
                    4 => add_row::<4>(panel, row, sums),
                    3 => add_row::<3>(panel, row, sums),
                    2 => add_row::<2>(panel, row, sums),
                    _ => add_row::<1>(panel, row, sums),
                }
            }
        }
    }
}

#[inline(never)]
fn add_row<const VECTORS: usize>(panel: &[Weights], row: &[[f32; 2]], sums: &mut [Sums]) {
    let (panel, _) = panel.as_chunks::<VECTORS>();
    let (sums, _) = sums.as_chunks_mut::<VECTORS>();
    for sums in sums {
        let mut kept = *sums;
        for (weights, [first, second]) in panel.iter().zip(row) {
            for (sums, weights) in kept.iter_mut().zip(weights) {
                for (sum, [even, odd]) in sums.iter_mut().zip(weights) {
                    *sum = wide(*even).mul_add(*first, *sum);
                    *sum = wide(*odd).mul_add(*second, *sum);
                }
            }
        }
        *sums = kept;
    }
}

#[inline(always)]
fn wide(value: bf16) -> f32 {
    f32::from_bits(u32::from(value.to_bits()) << 16)
}
