//! Attention of few queries over keys and values in bf16 on the CPU, as decoding asks for.

use candle_core::{CpuStorage, CustomOp3, Error, Layout, Result, Shape};
use half::bf16;
use ndarray::{ArrayView2, ArrayViewMut3, Axis};

use crate::{
    attention::{Heads, Part, Sizes, by_heads},
    cast::{rounded, widened},
    elementwise::softmax_row,
    reduction::dot,
};

/// Computed in f32 as the keys and values are read, once for all query heads that share them: with so few queries a copy of
/// them in another type or order would cost more than what is done with it.
pub(crate) struct FewQueries {
    pub(crate) scale: f32,
    /// The parts of each batch row; together they hold every query once.
    pub(crate) parts: Vec<Vec<Part>>,
    pub(crate) sizes: Sizes,
}

impl CustomOp3 for FewQueries {
    fn name(&self) -> &'static str {
        "attention of few queries"
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
        let Sizes { batch, heads, kv_heads, queries, dim, .. } = self.sizes;
        let (q, k, v) = (Heads::new(q, q_layout)?, Heads::new(k, k_layout)?, Heads::new(v, v_layout)?);
        let group = self.sizes.group();
        let output = by_heads([batch, queries, heads, dim], group, |index, mut heads| {
            let (b, kv_head) = (index / kv_heads, index % kv_heads);
            let (k, v) = (k.head(b, kv_head)?, v.head(b, kv_head)?);
            let q = (0..group).map(|place| q.head(b, kv_head * group + place)).collect::<Result<Vec<_>>>()?;
            self.parts[b].iter().try_for_each(|part| self.attend(part, &q, k, v, &mut heads))
        })?;
        Ok((CpuStorage::BF16(output), Shape::from((batch, queries, heads, dim))))
    }
}

impl FewQueries {
    /// Writes the part's rows of the heads that share keys and values, `[queries, heads, d]`.
    fn attend(
        &self,
        part: &Part,
        q: &[ArrayView2<'_, bf16>],
        k: ArrayView2<'_, bf16>,
        v: ArrayView2<'_, bf16>,
        heads: &mut ArrayViewMut3<'_, bf16>,
    ) -> Result<()> {
        let (dim, keys) = (self.sizes.dim, part.keys());
        // Every query of every head, one row each.
        let asking: Vec<(usize, usize)> =
            (0..q.len()).flat_map(|head| part.queries.clone().map(move |query| (head, query))).collect();
        let mut wide_q = vec![0f32; asking.len() * dim];
        for (wide, &(head, query)) in wide_q.chunks_exact_mut(dim).zip(&asking) {
            widen(wide, q[head], query)?;
            wide.iter_mut().for_each(|value| *value *= self.scale);
        }
        let mut wide = vec![0f32; dim];
        let mut weights = vec![0f32; asking.len() * keys];
        for (place, key) in part.seen_rows().enumerate() {
            widen(&mut wide, k, key)?;
            for (scores, q) in weights.chunks_exact_mut(keys).zip(wide_q.chunks_exact(dim)) {
                scores[place] = dot(q, &wide);
            }
        }
        for (weights, (_, query)) in weights.chunks_exact_mut(keys).zip(&asking) {
            let (seen, unseen) = weights.split_at_mut(part.visible(query - part.queries.start));
            softmax_row(seen);
            unseen.fill(0.0);
        }
        let mut mixed = vec![0f32; asking.len() * dim];
        for (place, key) in part.seen_rows().enumerate() {
            widen(&mut wide, v, key)?;
            for (weights, mixed) in weights.chunks_exact(keys).zip(mixed.chunks_exact_mut(dim)) {
                let weight = weights[place];
                for (sum, value) in mixed.iter_mut().zip(&wide) {
                    *sum = value.mul_add(weight, *sum);
                }
            }
        }
        for (mixed, &(head, query)) in mixed.chunks_exact(dim).zip(&asking) {
            let mut head = heads.index_axis_mut(Axis(1), head);
            for (target, &value) in head.row_mut(query).iter_mut().zip(mixed) {
                *target = rounded(value);
            }
        }
        Ok(())
    }
}

/// One row of a matrix in f32.
fn widen(wide: &mut [f32], matrix: ArrayView2<'_, bf16>, row: usize) -> Result<()> {
    let row = matrix.row(row);
    let row = row.as_slice().ok_or_else(|| Error::Msg("attention over scattered rows".to_string()))?;
    for (wide, &value) in wide.iter_mut().zip(row) {
        *wide = widened(value);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Tensor};
    use proptest::prelude::*;
    use thicket_onednn::Library;

    use crate::{Backend, Mask, attention};

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        #[test]
        fn few_queries_in_bf16_attend_as_the_same_values_do_in_f32(
            kv_heads in 1usize..4,
            group in 1usize..4,
            queries in 1usize..8,
            past in 0usize..70,
            dim in proptest::sample::select(&[5usize, 16, 80, 128][..]),
            causal: bool,
        ) {
            let Ok(library) = Library::get() else { return Ok(()) };
            let random = |heads: usize, rows: usize| {
                let shape = (2, rows, heads, dim);
                let random = Tensor::randn(0f32, 1.0, shape, &Device::Cpu).unwrap();
                random.to_dtype(DType::BF16).unwrap().transpose(1, 2).unwrap()
            };
            let (q, k, v) = (
                random(kv_heads * group, queries),
                random(kv_heads, queries + past),
                random(kv_heads, queries + past),
            );
            let mask = if causal { Mask::Causal } else { Mask::Full };
            let scale = (dim as f64).powf(-0.5);
            let narrow = attention(&q, &k, &v, scale, &mask, Backend::OneDnn(library)).unwrap();
            prop_assert_eq!(narrow.dtype(), DType::BF16);
            let wide = |narrow: &Tensor| narrow.to_dtype(DType::F32).unwrap();
            let expected = attention(&wide(&q), &wide(&k), &wide(&v), scale, &mask, Backend::Plain).unwrap();
            // Rounded once, to 8 bits.
            let error = (wide(&narrow) - &expected).unwrap().abs().unwrap().max_all().unwrap();
            let largest = expected.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
            let error = error.to_scalar::<f32>().unwrap();
            prop_assert!(error <= largest / 200.0, "{error} of {largest}");
        }
    }
}
