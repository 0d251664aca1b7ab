//! Attention, and the way into the caches that it reads.

use candle_core::{CudaDevice, DType, Result, Tensor, cuda_backend::cudarc::driver::DeviceRepr};

use crate::{
    Entry, Sequence,
    launch::{ALIGNMENT, Place, device, filled, grid, launch, place},
};

/// Rows of queries that a block of threads takes.
const ROWS: usize = 64;
const THREADS: u32 = 128;
/// Values that are read at a time.
const RUN: usize = 8;
/// Widths of a head that there are kernels for.
const DIMS: [usize; 3] = [64, 80, 128];

/// What a kernel is told of a sequence: `Sequence` of `kernels.cu`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct Told {
    query: u64,
    first_key: u64,
    first_value: u64,
    key: u64,
    value: u64,
    out: u64,
    queries: i32,
    first: i32,
    keys: i32,
    unused: i32,
}

const AT_ONCE: usize = 48;

#[repr(C)]
struct AllTold([Told; AT_ONCE]);

// SAFETY: a C structure of integers.
unsafe impl DeviceRepr for AllTold {}

/// Distances in values: `Strides` of `kernels.cu`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Strides {
    query: i64,
    query_head: i64,
    key: i64,
    key_head: i64,
    value: i64,
    value_head: i64,
    out: i64,
}

// SAFETY: a C structure of integers.
unsafe impl DeviceRepr for Strides {}

/// How many heads of which width, and how they attend.
#[derive(Debug, Clone, Copy)]
struct Manner {
    heads: usize,
    kv_heads: usize,
    dim: usize,
    scale: f32,
    causal: bool,
}

impl Manner {
    /// Whether there is a kernel for it.
    fn suits(&self, strides: &Strides) -> bool {
        let &Strides { query, query_head, key, key_head, value, value_head, .. } = strides;
        let distances = [query, query_head, key, key_head, value, value_head];
        DIMS.contains(&self.dim)
            && self.kv_heads > 0
            && self.heads.is_multiple_of(self.kv_heads)
            && distances.iter().all(|distance| distance % RUN as i64 == 0)
    }

    /// Starts the kernel over all sequences.
    fn run(&self, device: &CudaDevice, strides: Strides, sequences: &[Told]) -> Result<()> {
        let group = self.heads / self.kv_heads;
        let name = format!("attend_{}_{}", if self.causal { "causal" } else { "full" }, self.dim);
        for sequences in sequences.chunks(AT_ONCE) {
            let mut told = AllTold([Told::default(); AT_ONCE]);
            told.0[..sequences.len()].copy_from_slice(sequences);
            let longest = sequences.iter().map(|sequence| sequence.queries as usize).max().unwrap_or(0);
            let tiles = (longest * group).div_ceil(ROWS) as u32;
            let blocks = (tiles, self.kv_heads as u32, sequences.len() as u32);
            launch!(device, &name, grid(blocks, THREADS), told, strides, group as i32, self.scale)?;
        }
        Ok(())
    }
}

fn aligned(sequence: &Told) -> bool {
    let &Told { query, first_key, first_value, key, value, .. } = sequence;
    [query, first_key, first_value, key, value].iter().all(|address| address.is_multiple_of(ALIGNMENT))
}

/// Scaled dot-product attention, `softmax(scale q k^T) v`, of bf16 q `[batch, heads, n, d]` over k and v
/// `[batch, kv heads, m, d]`, with any strides but the last that are multiples of 8; d is 64, 80 or 128. Where `causal`, query i
/// of n sees the first m - n + i + 1 keys. Consecutive query heads share a head of keys. Returns `[batch, n, heads, d]`.
///
/// # Errors
/// Shapes that do not fit, or a failure of the device.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, scale: f32, causal: bool) -> Result<Option<Tensor>> {
    let Some(device) = device(q).filter(|_| narrow([q, k, v])) else { return Ok(None) };
    let ((batch, heads, queries, dim), (_, kv_heads, keys, _)) = (q.dims4()?, k.dims4()?);
    let manner = Manner { heads, kv_heads, dim, scale, causal };
    let (&[q_batch, query_head, query, 1], &[k_batch, key_head, key, 1], &[v_batch, value_head, value, 1]) =
        (q.stride(), k.stride(), v.stride())
    else {
        return Ok(None);
    };
    let [query, query_head, key, key_head, value, value_head] =
        [query, query_head, key, key_head, value, value_head].map(|stride| stride as i64);
    let strides = Strides { query, query_head, key, key_head, value, value_head, out: (heads * dim) as i64 };
    if !manner.suits(&strides) || batch * queries == 0 || keys == 0 || (causal && keys < queries) {
        return Ok(None);
    }
    let (q, k, v) = (place(q)?, place(k)?, place(v)?);
    let apart = |place: &Place<'_>, stride: usize, row: usize| place.address + 2 * (stride * row) as u64;
    let mut told: Vec<Told> = (0..batch)
        .map(|row| {
            let (key, value) = (apart(&k, k_batch, row), apart(&v, v_batch, row));
            Told {
                query: apart(&q, q_batch, row),
                first_key: key,
                first_value: value,
                key,
                value,
                out: 0,
                queries: queries as i32,
                first: 0,
                keys: keys as i32,
                unused: 0,
            }
        })
        .collect();
    if !told.iter().all(aligned) {
        return Ok(None);
    }
    filled(&device, DType::BF16, (batch, queries, heads, dim), |to| {
        for (row, told) in told.iter_mut().enumerate() {
            told.out = to + 2 * (row * queries * heads * dim) as u64;
        }
        manner.run(&device, strides, &told)
    })
    .map(Some)
}

/// As [`attention`] for sequences of any lengths, whose tensors differ in nothing but their numbers of rows. Returns the rows of all
/// queries one after the other, `[queries, heads, d]`.
///
/// # Errors
/// Shapes that do not fit, or a failure of the device.
pub fn attention_of_each(sequences: &[Sequence], scale: f32, causal: bool) -> Result<Option<Tensor>> {
    let Some(device) = sequences.first().and_then(|sequence| device(&sequence.queries)) else {
        return Ok(None);
    };
    let mut places = Vec::with_capacity(5 * sequences.len());
    let mut told = Vec::with_capacity(sequences.len());
    let mut common: Option<(Manner, Strides)> = None;
    for Sequence { queries, beginning, keys, values } in sequences {
        let (first_keys, first_values) =
            beginning.as_ref().map_or((keys, values), |(keys, values)| (keys, values));
        let elsewhere = !queries.device().same_device(sequences[0].queries.device());
        if elsewhere || !narrow([queries, keys, values]) || !narrow([queries, first_keys, first_values]) {
            return Ok(None);
        }
        let ((count, heads, dim), (own, kv_heads, _)) = (queries.dims3()?, keys.dims3()?);
        let first = if beginning.is_some() { first_keys.dim(0)? } else { 0 };
        let (&[query, query_head, 1], &[key, key_head, 1], &[value, value_head, 1]) =
            (queries.stride(), keys.stride(), values.stride())
        else {
            return Ok(None);
        };
        let [query, query_head, key, key_head, value, value_head] =
            [query, query_head, key, key_head, value, value_head].map(|stride| stride as i64);
        let strides =
            Strides { query, query_head, key, key_head, value, value_head, out: (heads * dim) as i64 };
        let manner = Manner { heads, kv_heads, dim, scale, causal };
        let alike = common.is_none_or(|(other, of_others)| {
            of_others == strides && (other.heads, other.kv_heads, other.dim) == (heads, kv_heads, dim)
        });
        let like_own = first_keys.stride() == keys.stride() && first_values.stride() == values.stride();
        if !alike
            || !like_own
            || !manner.suits(&strides)
            || count == 0
            || own == 0
            || (causal && first + own < count)
        {
            return Ok(None);
        }
        common = Some((manner, strides));
        let of = [queries, first_keys, first_values, keys, values].map(place);
        let mut addresses = [0; 5];
        for (address, place) in addresses.iter_mut().zip(of) {
            let place = place?;
            *address = place.address;
            places.push(place);
        }
        let [query, first_key, first_value, key, value] = addresses;
        told.push(Told {
            query,
            first_key,
            first_value,
            key,
            value,
            out: 0,
            queries: count as i32,
            first: first as i32,
            keys: own as i32,
            unused: 0,
        });
    }
    let Some((manner, strides)) = common.filter(|_| told.iter().all(aligned)) else { return Ok(None) };
    let total: usize = told.iter().map(|told| told.queries as usize).sum();
    let Manner { heads, dim, .. } = manner;
    filled(&device, DType::BF16, (total, heads, dim), |to| {
        let mut out = to;
        for told in &mut told {
            told.out = out;
            out += 2 * (told.queries as usize * heads * dim) as u64;
        }
        manner.run(&device, strides, &told)
    })
    .map(Some)
}

/// Whether all are bf16 on one device without gradients, and keys and values have one shape that ends as the queries' does.
fn narrow([q, k, v]: [&Tensor; 3]) -> bool {
    [q, k, v].iter().all(|tensor| {
        tensor.dtype() == DType::BF16 && !tensor.track_op() && tensor.device().same_device(q.device())
    }) && k.dims() == v.dims()
        && q.rank() == k.rank()
        && q.dims().last() == k.dims().last()
        && (q.rank() < 4 || q.dims().first() == k.dims().first())
}

/// What a kernel is told of an entry: `Copy` of `kernels.cu`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct Copied {
    from: u64,
    also_from: u64,
    to: u64,
    also_to: u64,
    /// Of 16 bytes.
    count: i64,
}

const COPIES: usize = 64;

#[repr(C)]
struct AllCopied([Copied; COPIES]);

// SAFETY: a C structure of integers.
unsafe impl DeviceRepr for AllCopied {}

/// Writes all entries to their caches, bf16 in rows of a multiple of 8 values.
///
/// # Errors
/// An entry that does not fit its cache, or a failure of the device.
pub fn stored(entries: &[Entry]) -> Result<Option<()>> {
    let Some(device) = entries.first().and_then(|entry| device(&entry.keys)) else { return Ok(None) };
    let mut places = Vec::with_capacity(4 * entries.len());
    let mut copies = Vec::with_capacity(entries.len());
    for Entry { keys, values, held_keys, held_values, at } in entries {
        let tensors = [keys, values, held_keys, held_values];
        let suits = |tensor: &&Tensor| {
            tensor.dtype() == DType::BF16
                && tensor.is_contiguous()
                && tensor.device().same_device(entries[0].keys.device())
                && !tensor.track_op()
        };
        let (rows, heads, dim) = keys.dims3()?;
        if !tensors.iter().all(suits) || !(heads * dim).is_multiple_of(RUN) {
            return Ok(None);
        }
        let (capacity, ..) = held_keys.dims3()?;
        let like = |tensor: &Tensor, rows: usize| tensor.dims() == [rows, heads, dim];
        if !like(values, rows)
            || !like(held_keys, capacity)
            || !like(held_values, capacity)
            || at + rows > capacity
        {
            candle_core::bail!(
                "entries {:?} and {:?} at row {at} of a cache {:?} and {:?}",
                keys.dims(),
                values.dims(),
                held_keys.dims(),
                held_values.dims()
            );
        }
        let mut addresses = [0; 4];
        for (address, tensor) in addresses.iter_mut().zip(tensors) {
            let place = place(tensor)?;
            *address = place.address;
            places.push(place);
        }
        let before = 2 * (at * heads * dim) as u64;
        let [from, also_from, to, also_to] = addresses;
        let (to, also_to) = (to + before, also_to + before);
        if ![from, also_from, to, also_to].iter().all(|address| address.is_multiple_of(ALIGNMENT)) {
            return Ok(None);
        }
        copies.push(Copied { from, also_from, to, also_to, count: (rows * heads * dim / RUN) as i64 });
    }
    for copies in copies.chunks(COPIES) {
        let mut told = AllCopied([Copied::default(); COPIES]);
        told.0[..copies.len()].copy_from_slice(copies);
        let most = copies.iter().map(|copy| copy.count).max().unwrap_or(0);
        let blocks = (most.div_euclid(256) + 1).min(64) as u32;
        launch!(&device, "copy_rows", grid((blocks, copies.len() as u32, 1), 256), told)?;
    }
    Ok(Some(()))
}
