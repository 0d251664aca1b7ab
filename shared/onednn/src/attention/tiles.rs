//! 32 queries at a time are multiplied by the keys that they see, so that their scores and weights stay in near caches.

use std::arch::x86_64::{
    __m256bh, __m256i, __m512i, __mmask32, _MM_HINT_T1, _mm256_mask_storeu_epi16, _mm512_castsi512_si256,
    _mm512_cvtepu16_epi32, _mm512_cvtneps_pbh, _mm512_extracti64x4_epi64, _mm512_maskz_loadu_epi16,
    _mm512_maskz_loadu_ps, _mm512_mul_ps, _mm512_or_si512, _mm512_set1_ps, _mm512_setzero_si512,
    _mm512_shuffle_i32x4, _mm512_slli_epi32, _mm512_storeu_si512, _mm512_unpackhi_epi32,
    _mm512_unpackhi_epi64, _mm512_unpacklo_epi32, _mm512_unpacklo_epi64,
};

use half::bf16;

use super::Head;
use crate::{
    amx::{self, BLOCK, DEPTH, LINE, TILE, Tiles, ask_for},
    exponentials::{exponentials_in_vectors, largest},
};

/// Two values that one step multiplies and adds.
type Pair = [bf16; 2];
/// Pairs of a step.
const PAIRS: usize = DEPTH / 2;
/// Pairs of a tile, and of a step of a packed factor, which is two of them.
const TILE_PAIRS: usize = PAIRS * TILE;
const STEP_PAIRS: usize = 2 * TILE_PAIRS;
/// Values of a vector in f32.
const LANES: usize = 16;

/// What a head needs, its dimensions filled up with zeros to whole blocks.
#[derive(Debug, Default)]
pub(super) struct Memory {
    /// `[queries][dim]`
    queries: Vec<bf16>,
    /// `[keys / 32][dim / 32][2][16][16]`
    keys: Vec<Pair>,
    /// `[dim / 32][keys / 32][2][16][16]`
    values: Vec<Pair>,
    /// Of a block of queries, `[32][keys]`.
    scores: Vec<f32>,
    weights: Vec<bf16>,
    /// `[32][dim]`
    mixed: Vec<f32>,
}

impl Memory {
    pub(super) fn new() -> Option<Self> {
        amx::available().then(Self::default)
    }

    pub(super) fn kept(&self) -> usize {
        let narrow = self.queries.capacity() + self.weights.capacity();
        let wide =
            self.keys.capacity() + self.values.capacity() + self.scores.capacity() + self.mixed.capacity();
        size_of::<bf16>() * narrow + size_of::<f32>() * wide
    }

    pub(super) fn attend<'a, Q, K, V, S>(
        &mut self,
        Head { dim, scale, queries, keys, values, visible }: Head<Q, K, V, S>,
        mut targets: impl ExactSizeIterator<Item = &'a mut [bf16]>,
    ) where
        Q: Iterator<Item = &'a [bf16]>,
        K: Iterator<Item = &'a [bf16]>,
        V: Iterator<Item = &'a [bf16]>,
        S: Fn(usize) -> usize,
    {
        let filled = dim.next_multiple_of(DEPTH);
        let count = targets.len();
        let taken = gather(&mut self.queries, queries.take(count), dim, filled);
        assert_eq!(taken, count, "queries of attention");
        self.queries.resize(count.next_multiple_of(BLOCK) * filled, bf16::ZERO);
        // SAFETY: a processor with AMX, without which there is no memory, has the vectors.
        let there = unsafe { pack_keys(&mut self.keys, keys, dim, filled) };
        let columns = there.next_multiple_of(BLOCK);
        // SAFETY: as above.
        let taken = unsafe { pack_values(&mut self.values, values.take(there), dim, [filled, columns]) };
        assert_eq!(taken, there, "values of attention");
        self.scores.resize(BLOCK * columns, 0.0);
        self.weights.resize(BLOCK * columns, bf16::ZERO);
        self.mixed.resize(BLOCK * filled, 0.0);
        // SAFETY: AMX is there.
        let _tiles = unsafe { Tiles::shaped(BLOCK) };
        for first in (0..count).step_by(BLOCK) {
            let mut seen = [0; BLOCK];
            let seen = &mut seen[..BLOCK.min(count - first)];
            for (query, seen) in seen.iter_mut().enumerate() {
                *seen = visible(first + query);
                assert!((1..=there).contains(seen), "a query sees {seen} of {there} keys");
            }
            // SAFETY: the tiles have the shapes of a block, and the memory was made for `columns` keys of `filled` values.
            let sums = unsafe { self.attend_block(first, [filled, columns], scale, seen) };
            for (row, sum) in sums[..seen.len()].iter().enumerate() {
                let target = targets.next().unwrap_or_default();
                assert_eq!(target.len(), dim, "target of attention");
                // SAFETY: the processor has the vectors.
                unsafe { narrow(&self.mixed[row * filled..][..dim], 1.0 / sum, target) };
            }
        }
    }

    /// The values of a block's queries, each mixed by its weights, whose sums are returned.
    ///
    /// # Safety
    /// AMX is there, the thread's tiles have the shapes of a block, and the memory holds blocks from the `first` query on and as many
    /// keys and values as are seen.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    unsafe fn attend_block(
        &mut self,
        first: usize,
        [filled, columns]: [usize; 2],
        scale: f32,
        seen: &[usize],
    ) -> [f32; BLOCK] {
        let blocks = seen.iter().copied().fold(0, usize::max).div_ceil(BLOCK);
        let queries = self.queries[first * filled..].as_ptr();
        for block in 0..blocks {
            let keys = self.keys[block * BLOCK * filled / 2..].as_ptr();
            let scores = self.scores[block * BLOCK..].as_mut_ptr();
            // SAFETY: a block of queries, of keys and of scores.
            unsafe { product(queries, filled, keys, filled / DEPTH, scores, columns) };
        }
        let mut tops = [0.0; BLOCK];
        for (row, (top, &seen)) in tops.iter_mut().zip(seen).enumerate() {
            *top = largest(&self.scores[row * columns..][..seen]);
        }
        let mut sums = [1.0; BLOCK];
        for (row, (sum, &seen)) in sums.iter_mut().zip(seen).enumerate() {
            let scores = &self.scores[row * columns..][..seen];
            let weights = &mut self.weights[row * columns..][..blocks * BLOCK];
            *sum = exponentials_in_vectors(scores, tops[row], scale, weights);
        }
        for block in 0..filled / BLOCK {
            let values = self.values[block * BLOCK * columns / 2..].as_ptr();
            let mixed = self.mixed[block * BLOCK..].as_mut_ptr();
            // SAFETY: a block of weights, of values and of what they are mixed to.
            unsafe { product(self.weights.as_ptr(), columns, values, blocks, mixed, filled) };
        }
        sums
    }
}

/// The product of 32 rows, `row` values apart, by a packed factor of 32 columns, to `sums` that are `width` values apart.
///
/// # Safety
/// The thread's tiles have the shapes of a block, and everything is as long as the steps need.
unsafe fn product(
    rows: *const bf16,
    row: usize,
    factor: *const Pair,
    steps: usize,
    sums: *mut f32,
    width: usize,
) {
    let (rows, row) = (rows.cast::<u8>(), row * size_of::<bf16>());
    let width = width * size_of::<f32>();
    let sums = sums.cast::<u8>();
    // SAFETY: the caller answers for it.
    unsafe {
        amx::clear_sums();
        for step in 0..steps {
            let rows = rows.add(step * DEPTH * size_of::<bf16>());
            let factor = factor.add(step * STEP_PAIRS).cast();
            amx::multiply_two_tiles(rows, rows.add(TILE * row), row, factor);
        }
        amx::store_sums(sums, sums.add(TILE * width), width);
    }
}

/// Asks for what lies behind a row: that of the next head, where the heads of a token lie side by side, and the thread's next work.
fn ask_for_next_head(row: &[bf16]) {
    let next = row.as_ptr_range().end.cast::<u8>();
    for line in (0..size_of_val(row)).step_by(LINE) {
        ask_for::<_MM_HINT_T1>(next.wrapping_add(line));
    }
}

/// Copies rows of `dim` values, each filled up with zeros, and returns how many there were.
fn gather<'a>(
    memory: &mut Vec<bf16>,
    rows: impl Iterator<Item = &'a [bf16]>,
    dim: usize,
    filled: usize,
) -> usize {
    memory.clear();
    let mut count = 0;
    for row in rows {
        assert_eq!(row.len(), dim, "query of attention");
        ask_for_next_head(row);
        memory.extend_from_slice(row);
        memory.resize(memory.len() + filled - dim, bf16::ZERO);
        count += 1;
    }
    count
}

/// Keys as pairs of their values, those of 32 keys side by side; returns how many there were.
#[target_feature(enable = "avx512f,avx512bw")]
fn pack_keys<'a>(
    memory: &mut Vec<Pair>,
    mut keys: impl Iterator<Item = &'a [bf16]>,
    dim: usize,
    filled: usize,
) -> usize {
    memory.clear();
    let (mut count, mut half) = (0, 0);
    loop {
        let mut rows = [[].as_slice(); TILE];
        let mut there = 0;
        while there < TILE
            && let Some(key) = keys.next()
        {
            assert_eq!(key.len(), dim, "key of attention");
            ask_for_next_head(key);
            rows[there] = key;
            there += 1;
        }
        if there == 0 && half == 0 {
            return count;
        }
        count += there;
        if half == 0 {
            memory.resize(memory.len() + BLOCK * filled / 2, [bf16::ZERO; 2]);
        }
        let block = memory.len() - BLOCK * filled / 2;
        for step in 0..filled / DEPTH {
            let mut pairs = [_mm512_setzero_si512(); TILE];
            for (pairs, row) in pairs.iter_mut().zip(&rows[..there]) {
                *pairs = load(row.get(step * DEPTH..).unwrap_or_default());
            }
            for (pair, keys) in transposed(pairs).into_iter().enumerate() {
                let start = block + step * STEP_PAIRS + half * TILE_PAIRS + pair * TILE;
                let target = &mut memory[start..][..TILE];
                // SAFETY: 16 pairs are a vector.
                unsafe { _mm512_storeu_si512(target.as_mut_ptr().cast(), keys) };
            }
        }
        half = 1 - half;
    }
}

/// Values as pairs of rows, 32 of their values side by side; returns how many there were.
#[target_feature(enable = "avx512f,avx512bw")]
fn pack_values<'a>(
    memory: &mut Vec<Pair>,
    mut values: impl Iterator<Item = &'a [bf16]>,
    dim: usize,
    [filled, columns]: [usize; 2],
) -> usize {
    memory.resize(filled * columns / 2, [bf16::ZERO; 2]);
    let mut count = 0;
    for pair in 0..columns / 2 {
        let mut rows = [[].as_slice(); 2];
        for row in &mut rows {
            let Some(value) = values.next() else { break };
            assert_eq!(value.len(), dim, "value of attention");
            ask_for_next_head(value);
            *row = value;
            count += 1;
        }
        for block in 0..filled / BLOCK {
            let [first, second] = rows.map(|row| row.get(block * BLOCK..).unwrap_or_default());
            let (first, second) = (load(first), load(second));
            let halves = [
                (_mm512_castsi512_si256(first), _mm512_castsi512_si256(second)),
                (_mm512_extracti64x4_epi64::<1>(first), _mm512_extracti64x4_epi64::<1>(second)),
            ];
            for (half, (first, second)) in halves.into_iter().enumerate() {
                let step = block * columns / BLOCK + pair / PAIRS;
                let start = step * STEP_PAIRS + half * TILE_PAIRS + pair % PAIRS * TILE;
                let target = &mut memory[start..][..TILE];
                // SAFETY: 16 pairs are a vector.
                unsafe { _mm512_storeu_si512(target.as_mut_ptr().cast(), interleaved(first, second)) };
            }
        }
    }
    count
}

/// Up to 32 values, filled up with zeros.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn load(values: &[bf16]) -> __m512i {
    let mask = u32::MAX.checked_shr((DEPTH - values.len().min(DEPTH)) as u32).unwrap_or(0);
    // SAFETY: the masked values are there.
    unsafe { _mm512_maskz_loadu_epi16(mask as __mmask32, values.as_ptr().cast()) }
}

/// A value of the first and a value of the second, in turn.
#[inline]
#[target_feature(enable = "avx512f")]
fn interleaved(first: __m256i, second: __m256i) -> __m512i {
    _mm512_or_si512(_mm512_cvtepu16_epi32(first), _mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(second)))
}

/// 16 rows of 16 pairs, as 16 columns.
#[inline]
#[target_feature(enable = "avx512f")]
fn transposed(rows: [__m512i; TILE]) -> [__m512i; TILE] {
    /// Quarters 0 and 2 of both, and 1 and 3.
    const EVEN: i32 = 0b10_00_10_00;
    const ODD: i32 = 0b11_01_11_01;
    let mut twos = rows;
    for at in (0..TILE).step_by(2) {
        twos[at] = _mm512_unpacklo_epi32(rows[at], rows[at + 1]);
        twos[at + 1] = _mm512_unpackhi_epi32(rows[at], rows[at + 1]);
    }
    // In each quarter, one column of four rows.
    let mut fours = twos;
    for at in (0..TILE).step_by(4) {
        for half in 0..2 {
            fours[at + 2 * half] = _mm512_unpacklo_epi64(twos[at + half], twos[at + 2 + half]);
            fours[at + 2 * half + 1] = _mm512_unpackhi_epi64(twos[at + half], twos[at + 2 + half]);
        }
    }
    let mut columns = fours;
    for column in 0..4 {
        let [a, b, c, d] = [fours[column], fours[4 + column], fours[8 + column], fours[12 + column]];
        let even = [_mm512_shuffle_i32x4::<EVEN>(a, b), _mm512_shuffle_i32x4::<EVEN>(c, d)];
        let odd = [_mm512_shuffle_i32x4::<ODD>(a, b), _mm512_shuffle_i32x4::<ODD>(c, d)];
        columns[column] = _mm512_shuffle_i32x4::<EVEN>(even[0], even[1]);
        columns[4 + column] = _mm512_shuffle_i32x4::<EVEN>(odd[0], odd[1]);
        columns[8 + column] = _mm512_shuffle_i32x4::<ODD>(even[0], even[1]);
        columns[12 + column] = _mm512_shuffle_i32x4::<ODD>(odd[0], odd[1]);
    }
    columns
}

/// Multiplies values and rounds them.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn narrow(values: &[f32], factor: f32, target: &mut [bf16]) {
    let factor = _mm512_set1_ps(factor);
    for (values, target) in values.chunks(LANES).zip(target.chunks_mut(LANES)) {
        let mask = u16::MAX >> (LANES - target.len());
        // SAFETY: the masked values are there and have room; both types are 16 values of 16 bits.
        unsafe {
            let product = _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, values.as_ptr()), factor);
            let narrow = std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(product));
            _mm256_mask_storeu_epi16(target.as_mut_ptr().cast(), mask, narrow);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn values(rows: usize, dim: usize, seed: usize) -> Vec<bf16> {
        let value = |place: usize| ((place * 37 + seed) * 7919 % 1013) as f32 / 400.0 - 1.25;
        (0..rows * dim).map(value).map(bf16::from_f32).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn attention_in_tiles_equals_f64_and_a_query_does_not_depend_on_the_others(
            queries in 1usize..100,
            past in 0usize..100,
            dim in 1usize..140,
            causal: bool,
            seed in 0usize..1000,
        ) {
            let Some(mut memory) = Memory::new() else { return Ok(()) };
            let there = past + queries;
            let (q, k, v) = (values(queries, dim, seed), values(there, dim, seed + 1), values(there, dim, seed + 2));
            let scale = (dim as f32).powf(-0.5);
            let visible = |query: usize| if causal { past + query + 1 } else { there };
            let mut attended = vec![bf16::ZERO; queries * dim];
            let head = |first: usize| Head {
                dim,
                scale,
                queries: q[first * dim..].chunks(dim),
                keys: k.chunks(dim),
                values: v.chunks(dim),
                visible: move |query: usize| visible(first + query),
            };
            memory.attend(head(0), attended.chunks_mut(dim));
            for query in 0..queries {
                let seen = visible(query);
                let q = &q[query * dim..][..dim];
                let score = |key: &[bf16]| -> f64 {
                    q.iter().zip(key).map(|(q, k)| q.to_f64() * k.to_f64()).sum::<f64>() * f64::from(scale)
                };
                let scores: Vec<f64> = k.chunks(dim).take(seen).map(score).collect();
                let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let weights: Vec<f64> = scores.iter().map(|score| (score - top).exp()).collect();
                let sum: f64 = weights.iter().sum();
                for column in 0..dim {
                    let mixed: f64 =
                        weights.iter().zip(v.chunks(dim)).map(|(weight, v)| weight * v[column].to_f64()).sum();
                    let error = (attended[query * dim + column].to_f64() - mixed / sum).abs();
                    // Weights and the result are rounded to bf16; values are below 1.3.
                    prop_assert!(error < 1.3 / 128.0, "{error} at {query}, {column}");
                }
            }
            let first = queries / 3;
            let mut alone = vec![bf16::ZERO; (queries - first) * dim];
            memory.attend(head(first), alone.chunks_mut(dim));
            prop_assert_eq!(alone, &attended[first * dim..]);
        }
    }

    #[test]
    #[should_panic(expected = "a query sees 4 of 3 keys")]
    fn a_query_that_sees_more_keys_than_there_are_is_refused() {
        let row = [bf16::ONE; 8];
        let head = Head {
            dim: 8,
            scale: 1.0,
            queries: std::iter::once(&row[..]),
            keys: std::iter::repeat_n(&row[..], 3),
            values: std::iter::repeat_n(&row[..], 3),
            visible: |_| 4,
        };
        let Some(mut memory) = Memory::new() else {
            panic!("a query sees 4 of 3 keys: not checked without AMX")
        };
        memory.attend(head, std::iter::once(&mut [bf16::ZERO; 8][..]));
    }
}
