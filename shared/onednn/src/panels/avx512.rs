use std::arch::x86_64::{
    __m512, _MM_HINT_T1, _mm_prefetch, _mm512_and_si512, _mm512_castsi512_ps, _mm512_fmadd_ps,
    _mm512_loadu_ps, _mm512_loadu_si512, _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_ps,
    _mm512_slli_epi32, _mm512_storeu_ps,
};

use super::{PAIRS, Sums, Weights};

/// How far ahead of its use a weight is asked for, bytes: memory gives a thread a quarter more then, and less again at twice
/// the distance.
const AHEAD: usize = 4096;

/// [`super::add_products`] on a processor with AVX-512.
// The numbers of rows, panels and vectors are constants: the loops over them are unrolled and the sums stay in registers.
#[allow(clippy::needless_range_loop)]
#[target_feature(enable = "avx512f")]
pub(super) fn add_products<const ROWS: usize, const PANELS: usize, const VECTORS: usize>(
    panels: [&[Weights]; PANELS],
    x: [&[[f32; 2]]; ROWS],
    vectors: usize,
    sums: &mut [Sums],
) {
    let pairs = x[0].len();
    assert!(
        x.iter().all(|row| row.len() == pairs) && panels.iter().all(|panel| panel.len() >= pairs * vectors)
    );
    assert!(vectors.is_multiple_of(VECTORS) && sums.len() == ROWS * PANELS * vectors);
    let even_lanes = _mm512_set1_epi32(0xffff_0000_u32.cast_signed());
    for start in (0..pairs).step_by(PAIRS) {
        let part = start..(start + PAIRS).min(pairs);
        for first in (0..vectors).step_by(VECTORS) {
            let place =
                |row: usize, panel: usize, vector: usize| (row * PANELS + panel) * vectors + first + vector;
            let mut kept = [[[_mm512_setzero_ps(); VECTORS]; PANELS]; ROWS];
            for (row, panel, vector) in each::<ROWS, PANELS, VECTORS>() {
                kept[row][panel][vector] = load(&sums[place(row, panel, vector)]);
            }
            for pair in part.clone() {
                for panel in 0..PANELS {
                    for vector in 0..VECTORS {
                        // SAFETY: `pair < pairs`, `first + vector < vectors`, and the panel is as long as asserted. What is
                        // asked for ahead need not be there.
                        let weights = unsafe {
                            let weights = panels[panel].as_ptr().add(pair * vectors + first + vector);
                            _mm_prefetch::<_MM_HINT_T1>(weights.cast::<i8>().wrapping_add(AHEAD));
                            _mm512_loadu_si512(weights.cast())
                        };
                        let even = _mm512_castsi512_ps(_mm512_slli_epi32::<16>(weights));
                        let odd = _mm512_castsi512_ps(_mm512_and_si512(weights, even_lanes));
                        for row in 0..ROWS {
                            // SAFETY: `pair < pairs`, the length of every row.
                            let [first, second] = unsafe { *x[row].get_unchecked(pair) };
                            let sum = &mut kept[row][panel][vector];
                            *sum = _mm512_fmadd_ps(even, _mm512_set1_ps(first), *sum);
                            *sum = _mm512_fmadd_ps(odd, _mm512_set1_ps(second), *sum);
                        }
                    }
                }
            }
            for (row, panel, vector) in each::<ROWS, PANELS, VECTORS>() {
                store(&mut sums[place(row, panel, vector)], kept[row][panel][vector]);
            }
        }
    }
}

fn each<const ROWS: usize, const PANELS: usize, const VECTORS: usize>()
-> impl Iterator<Item = (usize, usize, usize)> {
    (0..ROWS).flat_map(|row| {
        (0..PANELS).flat_map(move |panel| (0..VECTORS).map(move |vector| (row, panel, vector)))
    })
}

#[target_feature(enable = "avx512f")]
fn load(values: &Sums) -> __m512 {
    // SAFETY: a vector is as long.
    unsafe { _mm512_loadu_ps(values.as_ptr()) }
}

#[target_feature(enable = "avx512f")]
fn store(values: &mut Sums, vector: __m512) {
    // SAFETY: as above.
    unsafe { _mm512_storeu_ps(values.as_mut_ptr(), vector) }
}
