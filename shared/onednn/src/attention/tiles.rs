//! A head, 16 queries at a time, first by its keys and then by its values.
//!
//! The keys stay in the first cache while the scores of one tile of queries after another are made and become weights, and then the
//! values stay there while those weights pass by. The scores of the next queries are multiplied between the rows of weights: the tiles
//! work while the vectors do.

use std::{
    arch::x86_64::{
        __m512bh, __m512i, __mmask32, _mm512_cvtne2ps_pbh, _mm512_loadu_ps, _mm512_mask_storeu_epi16,
        _mm512_mul_ps, _mm512_permutexvar_epi64, _mm512_set1_ps, _mm512_setr_epi64,
    },
    cell::RefCell,
    mem::{swap, transmute},
    ops::Range,
};

use half::bf16;
use rayon::prelude::*;

use super::{
    Part, Rows,
    packed::{STEP, pack_keys, pack_queries, pack_values, room},
    weights::{largest, weigh},
};
use crate::{
    amx::{self, BLOCK, DEPTH, TILE, Tiles},
    lines::Line,
    target::Target,
};

/// Values of a vector in f32.
const LANES: usize = 16;
/// Bytes that a thread keeps.
const KEPT: usize = 4 << 20;
/// Lines of weights that are made before they are multiplied by the values: the second cache has room for them.
const WEIGHTS: usize = 256 * 1024 / size_of::<Line>();

/// What a thread needs for a part.
#[derive(Default)]
struct Memory {
    queries: Vec<Line>,
    keys: Vec<Line>,
    values: Vec<Line>,
    /// Of two tiles of queries, `[2][16][keys]`.
    scores: Vec<f32>,
    /// Of some tiles of queries, `[queries][keys / 32]`, and the sum of each row.
    weights: Vec<Line>,
    sums: Vec<f32>,
    /// Of a tile of queries, `[16][dim]`, in the order of the packed values.
    mixed: Vec<f32>,
}

/// See [`super::TiledAttention::forward`], which has checked the parts.
pub(super) fn attended(
    [batch, queries, heads, dim]: [usize; 4],
    scale: f32,
    parts: &[Part<'_>],
) -> Vec<bf16> {
    thread_local!(static MEMORY: RefCell<Memory> = RefCell::default());
    let values = batch * queries * heads * dim;
    let mut result = Vec::with_capacity(values);
    if values == 0 {
        return result;
    }
    let target = Target::new(&mut result, batch * queries, heads * dim);
    let mut begun = Vec::with_capacity(parts.len());
    let mut first = 0;
    for part in parts {
        begun.push((first, part));
        first += part.queries.count;
    }
    begun.into_par_iter().for_each(|(first, part)| {
        let (head, first) = (first / queries, first % queries);
        let (row, column) = (head / heads * queries + first, head % heads * dim);
        MEMORY.with_borrow_mut(|memory| {
            // SAFETY: there is no attention without AMX, nor that without the vectors. The parts have every query of every head once.
            unsafe { memory.attend(part, scale, |query| target.place(row + query, column)) };
            if memory.bytes() > KEPT {
                *memory = Memory::default();
            }
        });
    });
    // SAFETY: the parts have every query of every head.
    unsafe { result.set_len(values) };
    result
}

impl Memory {
    fn bytes(&self) -> usize {
        let lines = [&self.queries, &self.keys, &self.values, &self.weights].map(Vec::capacity);
        let values = [&self.scores, &self.sums, &self.mixed].map(Vec::capacity);
        lines.iter().sum::<usize>() * size_of::<Line>() + values.iter().sum::<usize>() * size_of::<f32>()
    }

    /// # Safety
    /// AMX is there, and nobody else holds the `dim` values at the targets of the queries.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    unsafe fn attend(&mut self, part: &Part<'_>, scale: f32, target: impl Fn(usize) -> *mut bf16) {
        let Self { queries, keys, values, scores, weights, sums, mixed } = self;
        let head = Head {
            part,
            queries: pack_queries(queries, part.queries),
            keys: pack_keys(keys, &part.keys),
            values: pack_values(values, &part.values),
            steps: part.queries.dim.div_ceil(DEPTH),
            lines: part.keys().div_ceil(BLOCK),
        };
        let scale = scale * std::f32::consts::LOG2_E;
        let of_scores = TILE * head.columns();
        let of_weights = TILE * head.lines;
        let blocks = part.queries.count.div_ceil(TILE);
        let together = (WEIGHTS / of_weights).clamp(1, blocks);
        scores.resize(2 * of_scores, 0.0);
        sums.resize(together * TILE, 0.0);
        mixed.resize(TILE * head.width(), 0.0);
        let weights = room(weights, together * of_weights);
        let (mut scores, mut next_scores) = scores.split_at_mut(of_scores);
        // SAFETY: AMX is there.
        let _tiles = unsafe { Tiles::shaped(BLOCK) };
        for first in (0..blocks).step_by(together) {
            let group = first..blocks.min(first + together);
            let mut products = Products::default();
            // SAFETY: the tiles have the shapes of a block.
            unsafe {
                head.score(&head.block(first), 0..TILE, scores, &mut products);
                products.store();
            }
            let rows_of_weights = weights.chunks_exact_mut(of_weights).zip(sums.chunks_exact_mut(TILE));
            for (number, (weights, sums)) in group.clone().zip(rows_of_weights) {
                let block = head.block(number);
                let next = (number + 1 < group.end).then(|| head.block(number + 1));
                let mut tops = [0.0; TILE];
                // All of them first, so that no row waits for its own.
                for row in block.own.clone() {
                    tops[row] = largest(head.seen(&block, row, scores));
                }
                let mut products = Products::default();
                for row in 0..TILE {
                    if block.own.contains(&row) {
                        let weights = &mut weights[row * head.lines..][..block.lines];
                        sums[row] = weigh(head.seen(&block, row, scores), tops[row], scale, weights);
                    }
                    if let Some(next) = &next {
                        // SAFETY: as above.
                        unsafe { head.score(next, row..row + 1, next_scores, &mut products) };
                    }
                }
                // SAFETY: as above.
                unsafe { products.store() };
                swap(&mut scores, &mut next_scores);
            }
            let rows_of_weights = weights.chunks_exact(of_weights).zip(sums.chunks_exact(TILE));
            for (number, (weights, sums)) in group.zip(rows_of_weights) {
                let block = head.block(number);
                // SAFETY: as above.
                unsafe { head.mix(&block, weights, mixed) };
                for row in block.own {
                    let mixed = &mixed[row * head.width()..][..head.width()];
                    // SAFETY: the target is `dim` values that nobody else holds.
                    unsafe { in_order(mixed, 1.0 / sums[row], target(block.first + row), part.queries.dim) };
                }
            }
        }
    }
}

/// A tile of queries.
struct Block {
    /// The first that is read.
    first: usize,
    /// Those that are attended of the 16 that are read: the tile before has others, or there are none.
    own: Range<usize>,
    /// Lines of weights of the keys that they see.
    lines: usize,
}

/// A part with its factors packed.
struct Head<'a> {
    part: &'a Part<'a>,
    /// At least a tile of them.
    queries: Rows<'a>,
    keys: &'a [Line],
    values: &'a [Line],
    /// Of a row of queries, keys or values.
    steps: usize,
    /// Of a row of weights, for all keys.
    lines: usize,
}

impl Head<'_> {
    /// Scores of a row.
    fn columns(&self) -> usize {
        self.lines * BLOCK
    }

    /// Values of a row that is mixed.
    fn width(&self) -> usize {
        self.steps * DEPTH
    }

    fn block(&self, number: usize) -> Block {
        let nominal = number * TILE;
        let first = nominal.min(self.queries.count - TILE);
        let end = self.part.queries.count.min(nominal + TILE);
        Block { first, own: nominal - first..end - first, lines: self.part.seen(end - 1).div_ceil(BLOCK) }
    }

    /// The scores of a row that its query sees.
    fn seen<'a>(&self, block: &Block, row: usize, scores: &'a [f32]) -> &'a [f32] {
        &scores[row * self.columns()..][..self.part.seen(block.first + row)]
    }

    /// Multiplies a tile of queries by the keys that they see, a share of them for each of 16 `turns`.
    ///
    /// # Safety
    /// The thread's tiles have the shapes of a block, and the scores are stored at the end.
    #[inline]
    unsafe fn score(&self, block: &Block, turns: Range<usize>, scores: &mut [f32], products: &mut Products) {
        assert!(scores.len() == TILE * self.columns());
        let rows = &self.queries.values[block.first * self.queries.stride..];
        for line in turns.start * block.lines / TILE..turns.end * block.lines / TILE {
            let product = Product {
                rows: rows.as_ptr(),
                stride: self.queries.stride,
                factor: self.keys[line * self.steps * STEP..].as_ptr(),
                steps: self.steps,
                sums: scores[line * BLOCK..].as_mut_ptr(),
                width: self.columns(),
            };
            // SAFETY: a tile of queries is there, and a block of keys for each line of weights.
            unsafe { products.multiply(product) };
        }
    }

    /// Multiplies the weights of a tile of queries by the values.
    ///
    /// # Safety
    /// The thread's tiles have the shapes of a block.
    unsafe fn mix(&self, block: &Block, weights: &[Line], mixed: &mut [f32]) {
        assert!(weights.len() == TILE * self.lines && mixed.len() == TILE * self.width());
        let mut products = Products::default();
        for step in 0..self.steps {
            let product = Product {
                rows: weights.as_ptr().cast(),
                stride: self.columns(),
                factor: self.values[step * self.lines * STEP..].as_ptr(),
                steps: block.lines,
                sums: mixed[step * BLOCK..].as_mut_ptr(),
                width: self.width(),
            };
            // SAFETY: asserted; of the values there are as many blocks as of the keys.
            unsafe { products.multiply(product) };
        }
        // SAFETY: as above.
        unsafe { products.store() };
    }
}

/// The product of 16 rows by 32 columns.
#[derive(Clone, Copy)]
struct Product {
    rows: *const bf16,
    /// Values from row to row.
    stride: usize,
    factor: *const Line,
    steps: usize,
    sums: *mut f32,
    /// Sums from row to row.
    width: usize,
}

/// Multiplies product after product, and stores the sums of each when the next has begun: they take a while.
#[derive(Default)]
struct Products {
    odd: bool,
    unstored: Option<Product>,
}

impl Products {
    /// # Safety
    /// The thread's tiles have the shapes of a block, and everything is as long as the steps need until the sums are stored.
    #[inline]
    unsafe fn multiply(&mut self, product: Product) {
        let Product { rows, stride, factor, steps, .. } = product;
        let row = stride * size_of::<bf16>();
        for step in 0..steps {
            let (rows, factor) =
                (rows.wrapping_add(step * DEPTH).cast(), factor.wrapping_add(step * STEP).cast());
            // SAFETY: the caller answers for it.
            unsafe {
                if self.odd {
                    amx::odd::multiply(step == 0, rows, row, factor);
                } else {
                    amx::even::multiply(step == 0, rows, row, factor);
                }
            }
            if step == 0 {
                // SAFETY: as above. The others are the sums of the product before.
                unsafe { self.store_others(!self.odd) };
            }
        }
        self.unstored = Some(product);
        self.odd = !self.odd;
    }

    /// Stores the sums of the last product.
    ///
    /// # Safety
    /// As [`Self::multiply`].
    #[inline]
    unsafe fn store(&mut self) {
        // SAFETY: the caller answers for it.
        unsafe { self.store_others(!self.odd) };
    }

    #[inline]
    unsafe fn store_others(&mut self, odd: bool) {
        let Some(Product { sums, width, .. }) = self.unstored.take() else { return };
        let (sums, row) = (sums.cast(), width * size_of::<f32>());
        // SAFETY: the caller answers for it.
        unsafe { if odd { amx::odd::store(sums, row) } else { amx::even::store(sums, row) } }
    }
}

/// Multiplies values that were mixed in the order of [`pack_values`], rounds them and writes `dim` of them in their own order.
///
/// # Safety
/// There is room for them at the target.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn in_order(mixed: &[f32], factor: f32, target: *mut bf16, dim: usize) {
    let factor = _mm512_set1_ps(factor);
    let order = _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7);
    for (step, mixed) in mixed.as_chunks::<DEPTH>().0.iter().enumerate() {
        let first = step * DEPTH;
        let mask = ((1u64 << (dim - first).min(DEPTH)) - 1) as __mmask32;
        // SAFETY: 32 values are two vectors, and the masked ones have room; both types are 32 values of 16 bits.
        unsafe {
            let low = _mm512_mul_ps(_mm512_loadu_ps(mixed.as_ptr()), factor);
            let high = _mm512_mul_ps(_mm512_loadu_ps(mixed.as_ptr().add(LANES)), factor);
            let narrow = transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low));
            let values = _mm512_permutexvar_epi64(order, narrow);
            _mm512_mask_storeu_epi16(target.wrapping_add(first).cast(), mask, values);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::TiledAttention;
    use super::*;

    fn values(rows: usize, dim: usize, seed: usize) -> Vec<bf16> {
        let value = |place: usize| ((place * 37 + seed) * 7919 % 1013) as f32 / 400.0 - 1.25;
        (0..rows * dim).map(value).map(bf16::from_f32).collect()
    }

    /// Some rows of a head.
    fn of_head(values: &[bf16], [heads, dim]: [usize; 2], head: usize, rows: Range<usize>) -> Rows<'_> {
        let first = (rows.start * heads * dim + head * dim).min(values.len());
        Rows::new(&values[first..], rows.len(), dim, heads * dim).unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn attention_in_tiles_equals_f64_and_a_query_does_not_depend_on_the_others(
            queries in 1usize..100,
            past in 0usize..100,
            heads in 1usize..4,
            dim in 1usize..140,
            shared in 0usize..200,
            causal: bool,
            seed in 0usize..1000,
        ) {
            let Some(attention) = TiledAttention::new() else { return Ok(()) };
            let (there, width) = (past + queries, heads * dim);
            let shared = shared.min(there);
            let scale = (dim as f32).powf(-0.5);
            let [q, k, v] = [(queries, 0), (there, 1), (there, 2)].map(|(rows, more)| values(rows, width, seed + more));
            let part = |head: usize, first: usize| {
                let joined = |values| [0..shared, shared..there].map(|rows| of_head(values, [heads, dim], head, rows));
                let queries = of_head(&q, [heads, dim], head, first..queries);
                Part { queries, keys: joined(&k), values: joined(&v), causal }
            };
            let parts: Vec<_> = (0..heads).map(|head| part(head, 0)).collect();
            let attended = attention.forward([1, queries, heads, dim], scale, &parts).unwrap();
            for (query, head) in (0..queries).flat_map(|query| (0..heads).map(move |head| (query, head))) {
                let value = |values: &[bf16], row: usize, column: usize| values[row * width + head * dim + column].to_f64();
                let seen = if causal { past + query + 1 } else { there };
                let score = |key: usize| -> f64 {
                    let products = (0..dim).map(|column| value(&q, query, column) * value(&k, key, column));
                    products.sum::<f64>() * f64::from(scale)
                };
                let scores: Vec<f64> = (0..seen).map(score).collect();
                let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let weights: Vec<f64> = scores.iter().map(|score| (score - top).exp()).collect();
                let sum: f64 = weights.iter().sum();
                for column in 0..dim {
                    let mixed: f64 =
                        weights.iter().enumerate().map(|(key, weight)| weight * value(&v, key, column)).sum();
                    let error = (value(&attended, query, column) - mixed / sum).abs();
                    // Weights and the result are rounded to bf16; values are below 1.3.
                    prop_assert!(error < 1.3 / 128.0, "{error} at {query}, {head}, {column}");
                }
            }
            let first = queries / 3;
            let parts: Vec<_> = (0..heads).map(|head| part(head, first)).collect();
            let alone = attention.forward([1, queries - first, heads, dim], scale, &parts).unwrap();
            prop_assert_eq!(alone, &attended[first * width..]);
        }

        #[test]
        fn what_lies_behind_the_last_key_is_not_seen(keys in 1usize..70, behind in 1usize..70) {
            let Some(attention) = TiledAttention::new() else { return Ok(()) };
            let dim = 32;
            let (q, mut k, mut v) = (values(20, dim, 3), values(keys, dim, 4), values(keys, dim, 5));
            let forward = |k: &[bf16], v: &[bf16]| {
                let rows = |values, count| Rows { values, count, dim, stride: dim };
                let part = Part {
                    queries: rows(&q, 20),
                    keys: [rows(k, keys), rows(k, 0)],
                    values: [rows(v, keys), rows(v, 0)],
                    causal: false,
                };
                attention.forward([1, 20, 1, dim], 0.5, &[part]).unwrap()
            };
            // The thread's memory has keys that would be seen above all others, and values that are no numbers.
            for values in [&mut k, &mut v] {
                values.resize((keys + behind) * dim, bf16::NAN);
            }
            let alone = forward(&k, &v);
            let all = |values| Rows { values, count: keys + behind, dim, stride: dim };
            let part = Part { queries: all(&k), keys: [all(&k), Rows { count: 0, ..all(&k) }], values: [all(&v), Rows { count: 0, ..all(&v) }], causal: false };
            attention.forward([1, keys + behind, 1, dim], 0.5, &[part]).unwrap();
            prop_assert_eq!(forward(&k, &v), alone);
        }
    }

    #[test]
    fn many_keys_are_seen_by_some_tiles_of_queries_at_a_time() {
        let Some(attention) = TiledAttention::new() else { return };
        let (count, dim) = (3000, 32);
        let of = |value: f32| vec![bf16::from_f32(value); count * dim];
        let (q, k, v) = (of(0.5), of(0.25), of(1.5));
        let all = |values| Rows { values, count, dim, stride: dim };
        let none = Rows { values: &[], count: 0, dim, stride: dim };
        let part = Part { queries: all(&q), keys: [all(&k), none], values: [all(&v), none], causal: true };
        let attended = attention.forward([1, count, 1, dim], 0.5, &[part]).unwrap();
        assert!(attended == v);
    }
}
