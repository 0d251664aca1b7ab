//! Attention in bf16 on the CPU: in the tiles of AMX, or with its products by oneDNN.

use std::{
    cell::RefCell,
    collections::{HashMap, hash_map::Entry},
};

use candle_core::{CpuStorage, CustomOp3, Error, Layout, Result, Shape};
use half::bf16;
use ndarray::{ArrayView2, ArrayViewMut2, Axis, Slice};
use thicket_onednn::{self as onednn, DenseProduct, Library, TiledAttention, exponentials};

use crate::{
    attention::{Heads, Part, Sizes, by_heads},
    cast::rounded,
    elementwise::exp,
    reduction::largest,
};

/// Fewer queries than this are not worth arranging the keys for.
pub(crate) const FEWEST_QUERIES: usize = 8;
/// Queries and keys are rounded up to multiples of these, so that code is generated for few shapes.
const QUERIES_STEP: usize = 16;
const KEYS_STEP: usize = 32;
/// Bytes that a thread keeps.
const KEPT: usize = 4 << 20;
/// Values whose exponentials are summed side by side: two vector registers.
const LANES: usize = 16;

pub(crate) struct NarrowAttention {
    pub(crate) scale: f32,
    /// The parts of each batch row; together they hold every query once.
    pub(crate) parts: Vec<Vec<Part>>,
    pub(crate) sizes: Sizes,
    pub(crate) library: &'static Library,
    /// Whether the processor's tiles are used, where it has them.
    pub(crate) tiles: bool,
}

impl CustomOp3 for NarrowAttention {
    fn name(&self) -> &'static str {
        "attention in bf16"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        q_layout: &Layout,
        k: &CpuStorage,
        k_layout: &Layout,
        v: &CpuStorage,
        v_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let Sizes { batch, heads, queries, dim, .. } = self.sizes;
        let (q, k, v) = (Heads::new(q, q_layout)?, Heads::new(k, k_layout)?, Heads::new(v, v_layout)?);
        let shape = [batch, queries, heads, dim];
        let whole_rows = q.has_whole_rows() && k.has_whole_rows() && v.has_whole_rows();
        if self.tiles
            && whole_rows
            && let Some(tiled) = TiledAttention::new()
        {
            let parts = self.tiled_parts([&q, &k, &v])?;
            let output = tiled.forward(shape, self.scale, &parts).map_err(Error::wrap)?;
            return Ok((CpuStorage::BF16(output), Shape::from(shape.as_slice())));
        }
        let products = self.products()?;
        let output = by_heads(shape, 1, |index, head| {
            let mut head = head.index_axis_move(Axis(1), 0);
            thread_local!(static SCRATCH: RefCell<Scratch> = RefCell::default());
            let (b, h) = (index / heads, index % heads);
            let kv_head = h / self.sizes.group();
            let (q, k, v) = (q.head(b, h)?, k.head(b, kv_head)?, v.head(b, kv_head)?);
            SCRATCH.with_borrow_mut(|scratch| {
                for part in &self.parts[b] {
                    self.attend(part, &products[&shape_of(part)], [q, k, v], scratch, head.view_mut())?;
                }
                if scratch.kept() > KEPT {
                    *scratch = Scratch::default();
                }
                Ok(())
            })
        })?;
        Ok((CpuStorage::BF16(output), Shape::from(shape.as_slice())))
    }
}

/// What a thread uses from head to head, and keeps where it is no more than [`KEPT`].
#[derive(Default)]
struct Scratch {
    q: Vec<bf16>,
    k: Vec<bf16>,
    v: Vec<bf16>,
    scores: Vec<f32>,
    weights: Vec<bf16>,
    sums: Vec<f32>,
    mixed: Vec<f32>,
}

impl Scratch {
    /// Bytes of what grows with the square of a sequence.
    fn kept(&self) -> usize {
        size_of::<f32>() * self.scores.capacity()
    }
}

/// The products of a part: queries by keys, and weights by values.
struct Products {
    score: DenseProduct,
    mix: DenseProduct,
}

/// Queries and keys of a part, rounded up.
fn shape_of(part: &Part) -> (usize, usize) {
    (part.queries.len().next_multiple_of(QUERIES_STEP), part.keys().next_multiple_of(KEYS_STEP))
}

impl NarrowAttention {
    /// Those of all parts, looked up once: the heads share them.
    fn products(&self) -> Result<HashMap<(usize, usize), Products>> {
        let dim = self.sizes.dim;
        let made = |rows, inner, columns, transposed| {
            DenseProduct::new(self.library, rows, inner, columns, transposed).map_err(Error::wrap)
        };
        let mut products = HashMap::new();
        for (rows, keys) in self.parts.iter().flatten().map(shape_of) {
            if let Entry::Vacant(place) = products.entry((rows, keys)) {
                let score = made(rows, dim, keys, true)?;
                place.insert(Products { score, mix: made(rows, keys, dim, false)? });
            }
        }
        Ok(products)
    }

    /// The parts of every head, as they are attended without the library.
    fn tiled_parts<'a>(&self, [q, k, v]: [&Heads<'a, bf16>; 3]) -> Result<Vec<onednn::Part<'a>>> {
        let Sizes { batch, heads, .. } = self.sizes;
        let mut parts = Vec::new();
        for (b, h) in (0..batch).flat_map(|b| (0..heads).map(move |h| (b, h))) {
            let kv_head = h / self.sizes.group();
            for Part { queries, shared, own, causal } in &self.parts[b] {
                let seen = |heads: &Heads<'a, bf16>| -> Result<_> {
                    Ok([heads.rows(b, kv_head, 0..*shared)?, heads.rows(b, kv_head, own.clone())?])
                };
                parts.push(onednn::Part {
                    queries: q.rows(b, h, queries.clone())?,
                    keys: seen(k)?,
                    values: seen(v)?,
                    causal: *causal,
                });
            }
        }
        Ok(parts)
    }

    /// Writes the part's rows of one head.
    fn attend(
        &self,
        part: &Part,
        products: &Products,
        [q, k, v]: [ArrayView2<'_, bf16>; 3],
        scratch: &mut Scratch,
        mut head: ArrayViewMut2<'_, bf16>,
    ) -> Result<()> {
        let dim = self.sizes.dim;
        let count = part.queries.len();
        let (rows, keys) = shape_of(part);
        gather(&mut scratch.q, rows, [(q, part.queries.clone())]);
        let seen = [0..part.shared, part.own.clone()];
        gather(&mut scratch.k, keys, seen.clone().map(|range| (k, range)));
        gather(&mut scratch.v, keys, seen.map(|range| (v, range)));
        scratch.scores.resize(rows * keys, 0.0);
        products.score.run(&scratch.q, &scratch.k, &mut scratch.scores).map_err(Error::wrap)?;
        // Rows beyond the queries are multiplied and not looked at, so they may hold what they held.
        scratch.weights.resize(rows * keys, bf16::ZERO);
        scratch.sums.clear();
        let scores = scratch.scores.chunks_exact(keys).zip(scratch.weights.chunks_exact_mut(keys));
        for (query, (scores, weights)) in scores.take(count).enumerate() {
            scratch.sums.push(weigh(scores, part.visible(query), self.scale, weights));
        }
        scratch.mixed.resize(rows * dim, 0.0);
        products.mix.run(&scratch.weights, &scratch.v, &mut scratch.mixed).map_err(Error::wrap)?;
        let mut target = head.slice_axis_mut(Axis(0), Slice::from(part.queries.clone()));
        let mixed = scratch.mixed.chunks_exact(dim).zip(&scratch.sums);
        for (target, (mixed, sum)) in target.rows_mut().into_iter().zip(mixed) {
            let share = 1.0 / sum;
            for (target, &value) in target.into_slice().unwrap_or_default().iter_mut().zip(mixed) {
                *target = rounded(value * share);
            }
        }
        Ok(())
    }
}

/// Copies rows of matrices, one below the other, and fills up with zeros to so many rows.
fn gather<const N: usize>(
    dense: &mut Vec<bf16>,
    rows: usize,
    parts: [(ArrayView2<'_, bf16>, std::ops::Range<usize>); N],
) {
    let width = parts[0].0.ncols();
    dense.clear();
    for (mut matrix, range) in parts {
        matrix.slice_axis_inplace(Axis(0), Slice::from(range));
        for row in matrix.rows() {
            match row.to_slice() {
                Some(row) => dense.extend_from_slice(row),
                None => dense.extend(row),
            }
        }
    }
    dense.resize(rows * width, bf16::ZERO);
}

/// Exponentials of the scaled scores that a query sees, less the largest, and zeros for the others. Returns their sum.
fn weigh(scores: &[f32], visible: usize, scale: f32, weights: &mut [bf16]) -> f32 {
    let (scores, (weights, unseen)) = (&scores[..visible], weights.split_at_mut(visible));
    unseen.fill(bf16::ZERO);
    if let Some(sum) = exponentials(scores, scale, weights) {
        return sum;
    }
    let top = largest(scores) * scale;
    let weight = |score: f32| exp(score.mul_add(scale, -top));
    let (chunks, rest) = scores.as_chunks::<LANES>();
    let (wide, narrow) = weights.as_chunks_mut::<LANES>();
    let mut lanes = [0f32; LANES];
    for (weights, scores) in wide.iter_mut().zip(chunks) {
        for ((lane, target), &score) in lanes.iter_mut().zip(weights).zip(scores) {
            let value = weight(score);
            *lane += value;
            *target = rounded(value);
        }
    }
    let mut sum = lanes.iter().sum::<f32>();
    for (target, &score) in narrow.iter_mut().zip(rest) {
        let value = weight(score);
        sum += value;
        *target = rounded(value);
    }
    sum
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Tensor};

    use super::*;
    use crate::{Backend, Mask, attention};

    /// The library, where this machine multiplies in bf16.
    fn library() -> Option<&'static Library> {
        let library = Library::get().inspect_err(|missing| eprintln!("not checked: {missing}")).ok()?;
        library.check_bf16().inspect_err(|missing| eprintln!("not checked: {missing}")).ok()?;
        Some(library)
    }

    #[test]
    fn attention_in_bf16_is_that_of_the_same_values_in_f32_in_tiles_and_by_the_library() -> Result<()> {
        let Some(library) = library() else { return Ok(()) };
        let sections: Vec<u32> = [vec![0; 20], vec![1; 9], vec![4; 1], vec![2; 11]].concat();
        let sections = Tensor::from_vec(sections, (1, 41), &Device::Cpu)?;
        for (batch, heads, kv_heads, queries, keys, dim, mask) in [
            (2, 4, 4, 197, 197, 64, Mask::Full),
            (3, 6, 2, 33, 33, 128, Mask::Causal),
            (1, 4, 1, 10, 70, 80, Mask::Causal),
            (1, 2, 2, 41, 41, 16, Mask::Sections(sections)),
        ] {
            let random = |heads: usize, rows: usize| {
                Tensor::randn(0f32, 1.0, (batch, rows, heads, dim), &Device::Cpu)?
                    .to_dtype(DType::BF16)?
                    .transpose(1, 2)
            };
            let (q, k, v) = (random(heads, queries)?, random(kv_heads, keys)?, random(kv_heads, keys)?);
            let scale = (dim as f64).powf(-0.5);
            let wide = |narrow: &Tensor| narrow.to_dtype(DType::F32);
            let expected = attention(&wide(&q)?, &wide(&k)?, &wide(&v)?, scale, &mask, Backend::Plain)?;
            let sizes = Sizes::new(&q, &k, &v, &mask)?;
            let parts = mask.parts(&sizes)?;
            let by_library = NarrowAttention { scale: scale as f32, parts, sizes, library, tiles: false };
            let by_library = q.apply_op3_no_bwd(&k, &v, &by_library)?.transpose(1, 2)?;
            for narrow in [attention(&q, &k, &v, scale, &mask, Backend::OneDnn(library))?, by_library] {
                let shape = [batch, heads, queries, dim];
                assert_eq!((narrow.dtype(), narrow.dims()), (DType::BF16, shape.as_slice()));
                let error = (wide(&narrow)? - &expected)?.abs()?.max_all()?.to_scalar::<f32>()?;
                assert!(error < 2e-2, "{mask:?}: {error}");
            }
        }
        Ok(())
    }
}
