use std::{
    collections::{HashMap, HashSet},
    ops::Range,
    sync::LazyLock,
};

use candle_core::{
    CpuStorage, CustomOp3, DType, Device, DeviceLocation, Error, Layout, Result, Shape, Storage, Tensor,
    WithDType,
};
use half::bf16;
use ndarray::{
    Array2, Array4, ArrayView2, ArrayViewMut2, ArrayViewMut3, Axis, CowArray, Ix2, ShapeBuilder, Slice,
    linalg::general_mat_mul,
};
use parking_lot::Mutex;
use rayon::prelude::*;
use thicket_onednn::Rows;

#[cfg(feature = "flash-attn")]
use crate::flash;
use crate::{
    elementwise::{softmax, softmax_row},
    few_queries::FewQueries,
    memory::{is_cpu_f32, zeros},
    narrow::{self, NarrowAttention},
    prepared::Backend,
};

/// Which keys a query may see.
#[derive(Debug, Clone)]
pub enum Mask {
    /// Every query sees every key.
    Full,
    /// Query `i` of `n` sees keys `0 ..= i + (m - n)` of `m`: the queries are the last `n` positions.
    Causal,
    /// u32 `[batch, n]`, with as many keys as queries: query `i` sees key `j <= i` of its own section and of section
    /// 0. This packs several texts about one image into one row: the image is section 0. Section 0 comes first and
    /// every section is one run; the cost is that of the runs, not of the row's square.
    Sections(Tensor),
}

/// Scaled dot-product attention, `softmax(scale * q k^T + mask) v`.
///
/// `q` is `[batch, heads, n, d]`; `k` and `v` are `[batch, kv_heads, m, d]`, where `kv_heads` divides `heads` and
/// consecutive query heads share a key head (grouped-query attention). The result is `[batch, heads, n, d]`, in memory
/// as `[batch, n, heads, d]`, so that transposing heads and positions back and flattening copies nothing.
///
/// `backend` multiplies in bf16 where it can; f32 is multiplied here, and has a gradient.
///
/// # Errors
/// Shapes that do not fit, a causal mask with fewer keys than queries, or a section in more than one run.
pub fn attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    scale: f64,
    mask: &Mask,
    backend: Backend,
) -> Result<Tensor> {
    let sizes = Sizes::new(q, k, v, mask)?;
    if !q.device().is_cpu() {
        #[cfg(feature = "flash-attn")]
        if q.device().is_cuda() && flash::suits(q.dtype(), sizes.dim, mask) {
            return flash::attention(q, k, v, scale, mask);
        }
        if let Mask::Full | Mask::Causal = mask
            && let Some(attended) =
                thicket_cuda::attention(q, k, v, scale as f32, matches!(mask, Mask::Causal))?
        {
            return attended.transpose(1, 2);
        }
        return composed(q, k, v, scale, mask, &sizes);
    }
    let narrow = match backend {
        Backend::OneDnn(library) if q.dtype() == DType::BF16 => Some(library),
        _ => None,
    };
    if !is_cpu_f32(q) && narrow.is_none() {
        let [wide_q, wide_k, wide_v] = [q, k, v].map(|narrow| narrow.to_dtype(DType::F32));
        return attention(&wide_q?, &wide_k?, &wide_v?, scale, mask, backend)?.to_dtype(q.dtype());
    }
    let parts = mask.parts(&sizes)?;
    let scale = scale as f32;
    let attended = match narrow {
        Some(library) if sizes.queries >= narrow::FEWEST_QUERIES => {
            q.apply_op3_no_bwd(k, v, &NarrowAttention { scale, parts, sizes, library, tiles: true })?
        }
        Some(_) => q.apply_op3_no_bwd(k, v, &FewQueries { scale, parts, sizes })?,
        None => q.apply_op3(k, v, Attention { scale, parts, sizes })?,
    };
    attended.transpose(1, 2)
}

impl Mask {
    /// The parts of each batch row; together they hold every query once.
    pub(crate) fn parts(&self, sizes: &Sizes) -> Result<Vec<Vec<Part>>> {
        match self {
            Self::Full => Ok(vec![vec![Part::full(sizes.queries, sizes.keys)]; sizes.batch]),
            Self::Causal => Ok(vec![vec![Part::causal(sizes.queries, sizes.keys)]; sizes.batch]),
            Self::Sections(sections) => {
                sections.to_vec2::<u32>()?.iter().map(|row| Part::sections(row)).collect()
            }
        }
    }
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Sizes {
    pub(crate) batch: usize,
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) queries: usize,
    keys: usize,
    pub(crate) dim: usize,
}

impl Sizes {
    pub(crate) fn new(q: &Tensor, k: &Tensor, v: &Tensor, mask: &Mask) -> Result<Self> {
        let (batch, heads, queries, dim) = q.dims4()?;
        let (kv_batch, kv_heads, keys, kv_dim) = k.dims4()?;
        let fits = batch == kv_batch && dim == kv_dim && kv_heads > 0 && heads % kv_heads == 0;
        if !fits || k.dims() != v.dims() {
            return Err(Error::Msg(format!(
                "attention over q {:?}, k {:?}, v {:?}: batch and head size must agree and the key heads divide the query heads",
                q.dims(),
                k.dims(),
                v.dims()
            )));
        }
        match mask {
            Mask::Causal if keys < queries => {
                Err(Error::Msg(format!("causal attention of {queries} queries over only {keys} keys")))
            }
            Mask::Sections(sections) if sections.dims() != [batch, queries] || keys != queries => {
                Err(Error::Msg(format!(
                    "sections {:?} for {batch} rows of {queries} queries and {keys} keys",
                    sections.dims()
                )))
            }
            _ => Ok(Self { batch, heads, kv_heads, queries, keys, dim }),
        }
    }

    pub(crate) fn group(&self) -> usize {
        self.heads / self.kv_heads
    }
}

/// Queries that attend alike: to the first `shared` keys and to the keys `own`, all of them or, where the part is causal,
/// the i-th query to the first i + 1 of `own`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) queries: Range<usize>,
    pub(crate) shared: usize,
    pub(crate) own: Range<usize>,
    pub(crate) causal: bool,
}

impl Part {
    fn full(queries: usize, keys: usize) -> Self {
        Self { queries: 0..queries, shared: keys, own: keys..keys, causal: false }
    }

    /// The queries are the last positions of the keys.
    fn causal(queries: usize, keys: usize) -> Self {
        let past = keys - queries;
        Self { queries: 0..queries, shared: past, own: past..keys, causal: true }
    }

    /// One part for each run of equal numbers.
    fn sections(row: &[u32]) -> Result<Vec<Self>> {
        let prefix = row.iter().take_while(|&&section| section == 0).count();
        let mut parts: Vec<Self> = Vec::new();
        let mut seen = HashSet::new();
        let mut start = 0;
        for run in row.chunk_by(|a, b| a == b) {
            let own = start..start + run.len();
            if !seen.insert(run[0]) || (run[0] == 0 && start > 0) {
                return Err(Error::Msg(format!(
                    "section {} begins again, or late, at position {start}: section 0 comes first and every section is one run",
                    run[0]
                )));
            }
            start = own.end;
            let shared = if run[0] == 0 { 0 } else { prefix };
            parts.push(Self { queries: own.clone(), shared, own, causal: true });
        }
        Ok(parts)
    }

    pub(crate) fn keys(&self) -> usize {
        self.shared + self.own.len()
    }

    /// How many of its keys the part's query of this number sees.
    pub(crate) fn visible(&self, query: usize) -> usize {
        if self.causal { self.shared + query + 1 } else { self.keys() }
    }

    /// The rows of `keys` that the part sees, in one piece.
    fn seen<'a>(&self, keys: ArrayView2<'a, f32>) -> CowArray<'a, f32, Ix2> {
        if self.shared == self.own.start {
            return CowArray::from(rows(keys, 0..self.own.end));
        }
        let mut seen = Array2::zeros((self.keys(), keys.ncols()));
        rows_mut(&mut seen, 0..self.shared).assign(&rows(keys, 0..self.shared));
        rows_mut(&mut seen, self.shared..self.keys()).assign(&rows(keys, self.own.clone()));
        CowArray::from(seen)
    }

    /// Adds a gradient of what [`Self::seen`] gave to that of all keys.
    fn spread(&self, gradient: &Array2<f32>, keys: &mut Array2<f32>) {
        let gradient = gradient.view();
        let mut shared = rows_mut(keys, 0..self.shared);
        shared += &rows(gradient, 0..self.shared);
        let mut own = rows_mut(keys, self.own.clone());
        own += &rows(gradient, self.shared..self.keys());
    }

    /// Attention weights of the part's queries over its keys.
    fn weights(&self, scale: f32, q: &ArrayView2<'_, f32>, k: &ArrayView2<'_, f32>) -> Array2<f32> {
        let mut scores = Array2::zeros((q.nrows(), k.nrows()));
        general_mat_mul(scale, q, &k.t(), 0.0, &mut scores);
        for (i, mut row) in scores.rows_mut().into_iter().enumerate() {
            let Some(row) = row.as_slice_mut() else { continue };
            let (seen, unseen) = row.split_at_mut(self.visible(i));
            softmax_row(seen);
            unseen.fill(0.0);
        }
        scores
    }
}

fn rows(mut matrix: ArrayView2<'_, f32>, range: Range<usize>) -> ArrayView2<'_, f32> {
    matrix.slice_axis_inplace(Axis(0), Slice::from(range));
    matrix
}

fn rows_mut(matrix: &mut Array2<f32>, range: Range<usize>) -> ArrayViewMut2<'_, f32> {
    matrix.slice_axis_mut(Axis(0), Slice::from(range))
}

struct Attention {
    scale: f32,
    /// The parts of each batch row; together they hold every query once.
    parts: Vec<Vec<Part>>,
    sizes: Sizes,
}

/// A tensor `[batch, heads, rows, d]` in whatever order it lies in memory.
pub(crate) struct Heads<'a, T = f32> {
    values: &'a [T],
    start: usize,
    strides: [usize; 4],
    rows: usize,
    dim: usize,
}

impl<'a, T: WithDType> Heads<'a, T> {
    pub(crate) fn new(storage: &'a CpuStorage, layout: &Layout) -> Result<Self> {
        let (_, _, rows, dim) = layout.shape().dims4()?;
        let strides = layout
            .stride()
            .try_into()
            .map_err(|_| Error::Msg("attention input without four strides".to_string()))?;
        Ok(Self { values: storage.as_slice()?, start: layout.start_offset(), strides, rows, dim })
    }

    /// Whether the values of a row lie side by side.
    pub(crate) fn has_whole_rows(&self) -> bool {
        self.strides[3] == 1 || self.dim == 1
    }

    pub(crate) fn head(&self, batch: usize, head: usize) -> Result<ArrayView2<'a, T>> {
        let [batch_stride, head_stride, row_stride, column_stride] = self.strides;
        let start = self.start + batch * batch_stride + head * head_stride;
        let shape = (self.rows, self.dim).strides((row_stride, column_stride));
        ArrayView2::from_shape(shape, &self.values[start..])
            .map_err(|cause| Error::Msg(format!("attention input: {cause}")))
    }
}

impl<'a> Heads<'a, bf16> {
    /// Some rows of a head, whose values lie side by side.
    pub(crate) fn rows(&self, batch: usize, head: usize, rows: Range<usize>) -> Result<Rows<'a>> {
        let [batch_stride, head_stride, row_stride, _] = self.strides;
        let start = self.start + batch * batch_stride + head * head_stride + rows.start * row_stride;
        let values = self.values.get(start..).unwrap_or_default();
        Rows::new(values, rows.len(), self.dim, row_stride).map_err(Error::wrap)
    }
}

/// Values `[batch, rows, heads, d]`, written by `write` head by head, or as many heads at a time as `together` says: it is given
/// the number of a piece, `batch * pieces + piece`, and the piece `[rows, together, d]`.
pub(crate) fn by_heads<T: WithDType + Default>(
    [batch, rows, heads, dim]: [usize; 4],
    together: usize,
    write: impl Fn(usize, ArrayViewMut3<'_, T>) -> Result<()> + Sync,
) -> Result<Vec<T>> {
    let zeros = zeros(batch * rows * heads * dim);
    let mut output = Array4::from_shape_vec((batch, rows, heads, dim), zeros).map_err(Error::wrap)?;
    if !output.is_empty() {
        let pieces: Vec<_> = output.exact_chunks_mut((1, rows, together, dim)).into_iter().collect();
        let pieces = pieces.into_par_iter().enumerate();
        pieces.try_for_each(|(index, piece)| write(index, piece.index_axis_move(Axis(0), 0)))?;
    }
    Ok(output.into_raw_vec_and_offset().0)
}

impl CustomOp3 for Attention {
    fn name(&self) -> &'static str {
        "attention"
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
        let output = by_heads([batch, queries, heads, dim], 1, |index, head| {
            let mut head = head.index_axis_move(Axis(1), 0);
            let (b, h) = (index / heads, index % heads);
            let (q, kv_head) = (q.head(b, h)?, h / self.sizes.group());
            let (k, v) = (k.head(b, kv_head)?, v.head(b, kv_head)?);
            for part in &self.parts[b] {
                let (k, v) = (part.seen(k), part.seen(v));
                let weights = part.weights(self.scale, &rows(q, part.queries.clone()), &k.view());
                let mut target = head.slice_axis_mut(Axis(0), Slice::from(part.queries.clone()));
                general_mat_mul(1.0, &weights, &v, 0.0, &mut target);
            }
            Ok(())
        })?;
        Ok((CpuStorage::F32(output), Shape::from((batch, queries, heads, dim))))
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let Sizes { batch, heads, kv_heads, queries, keys, dim } = self.sizes;
        let gradient = gradient.transpose(1, 2)?;
        let blocks = with_heads([q, k, v, &gradient], |[q, k, v, gradient]| {
            (0..batch * kv_heads)
                .into_par_iter()
                .map(|index| {
                    let (b, kv_head) = (index / kv_heads, index % kv_heads);
                    let (k, v) = (k.head(b, kv_head)?, v.head(b, kv_head)?);
                    let mut dq = Vec::with_capacity(self.sizes.group());
                    let mut dk = Array2::zeros((keys, dim));
                    let mut dv = Array2::zeros((keys, dim));
                    for h in kv_head * self.sizes.group()..(kv_head + 1) * self.sizes.group() {
                        let (q, gradient) = (q.head(b, h)?, gradient.head(b, h)?);
                        let mut block = Array2::zeros((queries, dim));
                        for part in &self.parts[b] {
                            let own = || part.queries.clone();
                            let (q, gradient) = (rows(q, own()), rows(gradient, own()));
                            let (k, v) = (part.seen(k), part.seen(v));
                            // Computed again: keeping them would cost a matrix for each head and layer.
                            let weights = part.weights(self.scale, &q, &k.view());
                            part.spread(&weights.t().dot(&gradient), &mut dv);
                            let mut ds = gradient.dot(&v.t());
                            for (mut ds, weights) in ds.rows_mut().into_iter().zip(weights.rows()) {
                                let dot = ds.dot(&weights);
                                ds.zip_mut_with(&weights, |ds, weight| *ds = weight * (*ds - dot));
                            }
                            general_mat_mul(self.scale, &ds, &k, 0.0, &mut rows_mut(&mut block, own()));
                            part.spread(&(ds.t().dot(&q) * self.scale), &mut dk);
                        }
                        dq.push(block);
                    }
                    Ok((dq, dk, dv))
                })
                .collect::<Result<Vec<_>>>()
        })?;
        let mut dq = Vec::with_capacity(batch * heads);
        let (mut dk, mut dv) = (Vec::with_capacity(blocks.len()), Vec::with_capacity(blocks.len()));
        for (dq_group, dk_block, dv_block) in blocks {
            dq.extend(dq_group);
            dk.push(dk_block);
            dv.push(dv_block);
        }
        let tensor = |blocks: &[Array2<f32>], heads: usize, rows: usize| -> Result<Option<Tensor>> {
            let values = by_heads([batch, rows, heads, dim], 1, |index, head| {
                head.index_axis_move(Axis(1), 0).assign(&blocks[index]);
                Ok(())
            })?;
            Ok(Some(Tensor::from_vec(values, (batch, rows, heads, dim), &Device::Cpu)?.transpose(1, 2)?))
        };
        Ok((tensor(&dq, heads, queries)?, tensor(&dk, kv_heads, keys)?, tensor(&dv, kv_heads, keys)?))
    }
}

fn with_heads<const N: usize, T>(
    tensors: [&Tensor; N],
    run: impl FnOnce([Heads<'_>; N]) -> Result<T>,
) -> Result<T> {
    let storages = tensors.map(Tensor::storage_and_layout);
    let mut heads = Vec::with_capacity(N);
    for (storage, layout) in &storages {
        match &**storage {
            Storage::Cpu(storage) => heads.push(Heads::new(storage, layout)?),
            _ => return Err(Error::Msg("a fused operation ran off the CPU".to_string())),
        }
    }
    let heads = heads.try_into().map_err(|_| Error::Msg("attention inputs were lost".to_string()))?;
    run(heads)
}

/// The same in tensor operations, for other devices and dtypes.
fn composed(q: &Tensor, k: &Tensor, v: &Tensor, scale: f64, mask: &Mask, sizes: &Sizes) -> Result<Tensor> {
    let (k, v) = (repeat_heads(k, sizes.group())?, repeat_heads(v, sizes.group())?);
    // The queries are scaled, of which there are fewer than scores.
    let q = (q.to_dtype(DType::F32)? * scale)?.to_dtype(q.dtype())?;
    let scores = q.contiguous()?.matmul(&k.t()?)?;
    let scores = match mask {
        Mask::Causal if sizes.queries > 1 => scores.broadcast_add(&causal(sizes, q.dtype(), q.device())?)?,
        Mask::Full | Mask::Causal => scores,
        Mask::Sections(sections) => {
            let sections = sections.to_vec2::<u32>()?;
            let hidden: Vec<f32> = sections
                .iter()
                .flat_map(|row| {
                    (0..row.len()).flat_map(move |i| {
                        row.iter().enumerate().map(move |(j, &section)| {
                            let visible = j <= i && (section == 0 || section == row[i]);
                            if visible { 0.0 } else { f32::NEG_INFINITY }
                        })
                    })
                })
                .collect();
            let hidden = Tensor::from_vec(hidden, (sizes.batch, 1, sizes.queries, sizes.keys), q.device())?;
            scores.broadcast_add(&hidden.to_dtype(q.dtype())?)?
        }
    };
    softmax(&scores)?.matmul(&v)
}

/// What is added to the scores of a causal attention, `[queries, keys]`. The last shapes are kept: every layer asks for the
/// same ones, and making one waits for the device.
fn causal(sizes: &Sizes, dtype: DType, device: &Device) -> Result<Tensor> {
    const KEPT: usize = 64;
    type Known = HashMap<(usize, usize, DType, DeviceLocation), Tensor>;
    static KNOWN: LazyLock<Mutex<Known>> = LazyLock::new(Mutex::default);
    let &Sizes { queries, keys, .. } = sizes;
    let name = (queries, keys, dtype, device.location());
    if let Some(hidden) = KNOWN.lock().get(&name) {
        return Ok(hidden.clone());
    }
    let last = |query: usize| query + keys - queries;
    let hidden: Vec<f32> = (0..queries)
        .flat_map(|query| (0..keys).map(move |key| if key > last(query) { f32::NEG_INFINITY } else { 0.0 }))
        .collect();
    let hidden = Tensor::from_vec(hidden, (queries, keys), device)?.to_dtype(dtype)?;
    let mut known = KNOWN.lock();
    if known.len() == KEPT {
        known.clear();
    }
    known.insert(name, hidden.clone());
    Ok(hidden)
}

fn repeat_heads(x: &Tensor, times: usize) -> Result<Tensor> {
    if times == 1 {
        return x.contiguous();
    }
    let (batch, heads, rows, dim) = x.dims4()?;
    x.unsqueeze(2)?.expand((batch, heads, times, rows, dim))?.reshape((batch, heads * times, rows, dim))
}

#[cfg(test)]
pub(crate) mod tests {
    use candle_core::Var;

    use super::*;

    pub(crate) fn assert_close(actual: &Tensor, expected: &Tensor, tolerance: f32) -> Result<()> {
        assert_eq!(actual.dims(), expected.dims());
        let worst = (actual - expected)?.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>()?;
        assert!(worst <= tolerance, "largest difference {worst} exceeds {tolerance}");
        Ok(())
    }

    fn check(heads: usize, kv_heads: usize, queries: usize, keys: usize, mask: &Mask) -> Result<()> {
        let device = Device::Cpu;
        let (batch, dim) = (2, 8);
        // Laid out as a projection leaves them: positions before heads.
        let variable = |heads: usize, rows: usize| -> Result<Var> {
            Var::from_tensor(&Tensor::randn(0f32, 1.0, (batch, rows, heads, dim), &device)?)
        };
        let (q, k, v) = (variable(heads, queries)?, variable(kv_heads, keys)?, variable(kv_heads, keys)?);
        let (tq, tk, tv) = (q.transpose(1, 2)?, k.transpose(1, 2)?, v.transpose(1, 2)?);
        let sizes = Sizes::new(&tq, &tk, &tv, mask)?;
        let weight = Tensor::randn(0f32, 1.0, (batch, heads, queries, dim), &device)?;
        let fused = attention(&tq, &tk, &tv, 0.3, mask, Backend::Plain)?;
        let plain = composed(&tq, &tk, &tv, 0.3, mask, &sizes)?;
        assert_close(&fused, &plain, 1e-5)?;
        let actual = (fused * &weight)?.sum_all()?.backward()?;
        let expected = (plain * &weight)?.sum_all()?.backward()?;
        for variable in [&q, &k, &v] {
            assert_close(actual.get(variable).unwrap(), expected.get(variable).unwrap(), 1e-4)?;
        }
        Ok(())
    }

    #[test]
    fn full_attention_and_its_gradients_equal_the_composition() -> Result<()> {
        check(4, 4, 7, 11, &Mask::Full)
    }

    #[test]
    fn causal_attention_with_a_prefix_equals_the_composition() -> Result<()> {
        check(2, 2, 5, 9, &Mask::Causal)
    }

    #[test]
    fn grouped_query_attention_equals_the_composition() -> Result<()> {
        check(6, 2, 8, 8, &Mask::Causal)
    }

    #[test]
    fn sections_see_themselves_and_section_zero_only() -> Result<()> {
        let rows: [[u32; 8]; 2] = [[0, 0, 0, 1, 1, 2, 2, 2], [0, 3, 3, 3, 3, 1, 1, 9]];
        check(2, 1, 8, 8, &Mask::Sections(Tensor::new(&rows, &Device::Cpu)?))
    }

    #[test]
    fn a_row_of_one_section_is_causal() -> Result<()> {
        let rows: [[u32; 6]; 2] = [[0; 6], [4; 6]];
        check(2, 1, 6, 6, &Mask::Sections(Tensor::new(&rows, &Device::Cpu)?))
    }

    #[test]
    fn a_section_in_two_runs_is_refused() -> Result<()> {
        let x = Tensor::zeros((1, 1, 4, 8), DType::F32, &Device::Cpu)?;
        for row in [[0u32, 1, 2, 1], [1, 0, 0, 2]] {
            let mask = Mask::Sections(Tensor::new(&[row], &Device::Cpu)?);
            let error = attention(&x, &x, &x, 1.0, &mask, Backend::Plain).unwrap_err().to_string();
            assert!(error.contains("every section is one run"), "{error}");
        }
        Ok(())
    }

    #[test]
    fn a_causal_mask_with_too_few_keys_is_refused() -> Result<()> {
        let q = Tensor::zeros((1, 1, 4, 8), DType::F32, &Device::Cpu)?;
        let k = Tensor::zeros((1, 1, 3, 8), DType::F32, &Device::Cpu)?;
        let error = attention(&q, &k, &k, 1.0, &Mask::Causal, Backend::Plain).unwrap_err();
        assert!(error.to_string().contains("4 queries over only 3 keys"), "{error}");
        Ok(())
    }

    #[test]
    fn key_heads_that_do_not_divide_the_query_heads_are_refused() -> Result<()> {
        let q = Tensor::zeros((1, 4, 2, 8), DType::F32, &Device::Cpu)?;
        let k = Tensor::zeros((1, 3, 2, 8), DType::F32, &Device::Cpu)?;
        assert!(attention(&q, &k, &k, 1.0, &Mask::Full, Backend::Plain).is_err());
        Ok(())
    }
}
