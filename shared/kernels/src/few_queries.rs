//! Attention of few queries over keys and values in bf16 on the CPU, as decoding asks for.

use candle_core::{CpuStorage, CustomOp3, Device, Error, Layout, Result, Shape, Storage, Tensor};
use half::bf16;
use ndarray::{Array3, ArrayView1, ArrayView2, ArrayViewMut3, Axis, Slice};
use rayon::prelude::*;
use thicket_cuda::Sequence;

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
            self.parts[b].iter().try_for_each(|part| {
                attend(part, self.scale, &q, Rows::of(part, k), Rows::of(part, v), &mut heads)
            })
        })?;
        Ok((CpuStorage::BF16(output), Shape::from((batch, queries, heads, dim))))
    }
}

/// Rows of keys or values that are seen in this order.
#[derive(Clone, Copy)]
struct Rows<'a> {
    first: ArrayView2<'a, bf16>,
    rest: ArrayView2<'a, bf16>,
}

impl<'a> Rows<'a> {
    /// Those that a part sees.
    fn of(part: &Part, all: ArrayView2<'a, bf16>) -> Self {
        let [mut first, mut rest] = [all, all];
        first.slice_axis_inplace(Axis(0), Slice::from(0..part.shared));
        rest.slice_axis_inplace(Axis(0), Slice::from(part.own.clone()));
        Self { first, rest }
    }

    fn iter(self) -> impl Iterator<Item = ArrayView1<'a, bf16>> {
        self.first.into_outer_iter().chain(self.rest.into_outer_iter())
    }
}

/// Writes what the queries that `part` names attend to, for the heads that share these keys and values:
/// `[queries, heads, d]`.
fn attend(
    part: &Part,
    scale: f32,
    q: &[ArrayView2<'_, bf16>],
    k: Rows<'_>,
    v: Rows<'_>,
    heads: &mut ArrayViewMut3<'_, bf16>,
) -> Result<()> {
    let (dim, keys) = (heads.len_of(Axis(2)), part.keys());
    // Every query of every head, one row each.
    let asking: Vec<(usize, usize)> =
        (0..q.len()).flat_map(|head| part.queries.clone().map(move |query| (head, query))).collect();
    let mut wide_q = vec![0f32; asking.len() * dim];
    for (wide, &(head, query)) in wide_q.chunks_exact_mut(dim).zip(&asking) {
        widen(wide, q[head].row(query))?;
        wide.iter_mut().for_each(|value| *value *= scale);
    }
    let mut wide = vec![0f32; dim];
    let mut weights = vec![0f32; asking.len() * keys];
    for (place, key) in k.iter().enumerate() {
        widen(&mut wide, key)?;
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
    for (place, value) in v.iter().enumerate() {
        widen(&mut wide, value)?;
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

/// Causal attention of sequences of few queries each, all of them in one go, over keys and values where they lie: the rows of all
/// queries, `[queries, heads, d]`.
pub(crate) fn attend_each(sequences: &[Sequence], scale: f32) -> Result<Tensor> {
    // `[1, heads, rows, d]` each.
    let view = |rows: &Tensor| rows.unsqueeze(0)?.transpose(1, 2);
    let mut views = Vec::with_capacity(5 * sequences.len());
    for Sequence { queries, beginning, keys, values } in sequences {
        let (first_keys, first_values) = match beginning {
            Some((keys, values)) => (keys.clone(), values.clone()),
            None => (keys.narrow(0, 0, 0)?, values.narrow(0, 0, 0)?),
        };
        let ((_, heads, dim), (_, kv_heads, _)) = (queries.dims3()?, keys.dims3()?);
        let fits = |rows: &Tensor| rows.dims().get(1..) == Some(&[kv_heads, dim]);
        let alike = fits(keys) && fits(&first_keys) && keys.dims() == values.dims();
        let one_width = sequences[0].queries.dims().get(1..) == Some(&[heads, dim]);
        if !alike
            || !one_width
            || first_keys.dims() != first_values.dims()
            || kv_heads == 0
            || heads % kv_heads != 0
        {
            return Err(Error::Msg(format!(
                "attention of queries {:?} over keys {:?} and {:?} and values {:?} and {:?}",
                queries.dims(),
                first_keys.dims(),
                keys.dims(),
                first_values.dims(),
                values.dims()
            )));
        }
        for rows in [queries, &first_keys, keys, &first_values, values] {
            views.push(view(rows)?);
        }
    }
    let storages: Vec<_> = views.iter().map(Tensor::storage_and_layout).collect();
    let mut all = Vec::with_capacity(storages.len());
    for (storage, layout) in &storages {
        match &**storage {
            Storage::Cpu(storage) => all.push(Heads::<bf16>::new(storage, layout)?),
            _ => return Err(Error::Msg("a fused operation ran off the CPU".to_string())),
        }
    }
    let (_, heads, dim) = match sequences.first() {
        Some(sequence) => sequence.queries.dims3()?,
        None => return Err(Error::Msg("attention of no sequence".to_string())),
    };
    let total = sequences.iter().map(|sequence| sequence.queries.dim(0)).sum::<Result<usize>>()?;
    let mut output = Array3::from_elem((total, heads, dim), bf16::ZERO);
    let mut pieces = Vec::new();
    let mut rest = output.view_mut();
    for (Sequence { queries, keys, .. }, views) in sequences.iter().zip(all.chunks_exact(5)) {
        let (mut own, after) = rest.split_at(Axis(0), queries.dim(0)?);
        rest = after;
        let group = heads / keys.dim(1)?;
        for head in 0..keys.dim(1)? {
            let (piece, others) = own.split_at(Axis(1), group);
            own = others;
            pieces.push((views, group, head, piece));
        }
    }
    pieces.into_par_iter().try_for_each(|(views, group, head, mut piece)| {
        let [queries, first_keys, keys, first_values, values] = views else {
            return Err(Error::Msg("a sequence is not whole".to_string()));
        };
        let q = (0..group).map(|place| queries.head(0, head * group + place)).collect::<Result<Vec<_>>>()?;
        let k = Rows { first: first_keys.head(0, head)?, rest: keys.head(0, head)? };
        let v = Rows { first: first_values.head(0, head)?, rest: values.head(0, head)? };
        let (count, keys_seen) = (piece.len_of(Axis(0)), k.first.nrows() + k.rest.nrows());
        if count > keys_seen {
            return Err(Error::Msg(format!(
                "causal attention of {count} queries over only {keys_seen} keys"
            )));
        }
        let past = keys_seen - count;
        let part = Part { queries: 0..count, shared: past, own: past..keys_seen, causal: true };
        attend(&part, scale, &q, k, v, &mut piece)
    })?;
    Tensor::from_vec(output.into_raw_vec_and_offset().0, (total, heads, dim), &Device::Cpu)
}

/// A row in f32.
fn widen(wide: &mut [f32], row: ArrayView1<'_, bf16>) -> Result<()> {
    let row = row.to_slice().ok_or_else(|| Error::Msg("attention over scattered rows".to_string()))?;
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

    use super::Sequence;
    use crate::{Backend, Mask, attention, attention_of_each};

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

        #[test]
        fn sequences_of_all_lengths_attend_as_each_does_alone(
            sizes in proptest::collection::vec((1usize..12, 0usize..50, proptest::option::of(1usize..40)), 1..6),
            group in 1usize..4,
        ) {
            let Ok(library) = Library::get() else { return Ok(()) };
            let (kv_heads, dim) = (2, 16);
            let random = |rows: usize, heads: usize| {
                let random = Tensor::randn(0f32, 1.0, (rows, heads, dim), &Device::Cpu).unwrap();
                random.to_dtype(DType::BF16).unwrap()
            };
            let sequences: Vec<_> = sizes
                .iter()
                .map(|&(queries, past, beginning)| Sequence {
                    queries: random(queries, kv_heads * group),
                    beginning: beginning.map(|rows| (random(rows, kv_heads), random(rows, kv_heads))),
                    keys: random(queries + past, kv_heads),
                    values: random(queries + past, kv_heads),
                })
                .collect();
            let together = attention_of_each(&sequences, 0.3, Backend::OneDnn(library)).unwrap();
            let mut start = 0;
            for Sequence { queries, beginning, keys, values } in &sequences {
                let joined = |first: Option<&Tensor>, rest: &Tensor| match first {
                    Some(first) => Tensor::cat(&[first, rest], 0).unwrap(),
                    None => rest.clone(),
                };
                let keys = joined(beginning.as_ref().map(|(keys, _)| keys), keys);
                let values = joined(beginning.as_ref().map(|(_, values)| values), values);
                let [q, k, v] = [queries, &keys, &values].map(|rows| rows.unsqueeze(0).unwrap().transpose(1, 2).unwrap());
                let alone = attention(&q, &k, &v, 0.3, &Mask::Causal, Backend::OneDnn(library)).unwrap();
                let rows = queries.dim(0).unwrap();
                let alone = alone.transpose(1, 2).unwrap().reshape((rows, ())).unwrap();
                let bits = |rows: Tensor| rows.flatten_all().unwrap().to_vec1::<half::bf16>().unwrap();
                prop_assert_eq!(bits(together.narrow(0, start, rows).unwrap()), bits(alone));
                start += rows;
            }
        }
    }
}
