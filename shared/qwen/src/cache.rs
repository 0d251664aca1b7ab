use candle_core::{DType, Device, Result, Tensor};

/// Room added when a cache outgrows its capacity, at least.
const GROWTH: usize = 32;

/// Keys and values that one sequence has so far, in every layer.
///
/// The capacity is what was asked for, and grows by half when a sequence outlives it.
#[derive(Debug)]
pub struct KvCache {
    layers: Vec<Layer>,
    len: usize,
}

/// (capacity, kv heads, head_dim) each: a token's entries are written with one copy.
#[derive(Debug)]
struct Layer {
    keys: Tensor,
    values: Tensor,
}

impl KvCache {
    pub(crate) fn new(
        layers: usize,
        capacity: usize,
        heads: usize,
        head_dim: usize,
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        let zeros = || Tensor::zeros((capacity.max(1), heads, head_dim), dtype, device);
        let layers =
            (0..layers).map(|_| Ok(Layer { keys: zeros()?, values: zeros()? })).collect::<Result<_>>()?;
        Ok(Self { layers, len: 0 })
    }

    /// Tokens held.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// True before the first token.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Writes the keys and values (new tokens, kv heads, head_dim; contiguous) of one layer after those held, and
    /// returns all of them as (tokens, kv heads, head_dim). The length changes only with [`Self::advance`], when
    /// every layer has its share.
    pub(crate) fn append(
        &mut self,
        layer: usize,
        keys: &Tensor,
        values: &Tensor,
    ) -> Result<(Tensor, Tensor)> {
        let len = self.len;
        let total = len + keys.dim(0)?;
        let layer = &mut self.layers[layer];
        let capacity = layer.keys.dim(0)?;
        if total > capacity {
            let capacity = total.max(capacity + capacity / 2).max(capacity + GROWTH);
            layer.keys = grown(&layer.keys, len, capacity)?;
            layer.values = grown(&layer.values, len, capacity)?;
        }
        layer.keys.slice_set(keys, 0, len)?;
        layer.values.slice_set(values, 0, len)?;
        Ok((layer.keys.narrow(0, 0, total)?, layer.values.narrow(0, 0, total)?))
    }

    /// Counts tokens whose entries every layer has received.
    pub(crate) fn advance(&mut self, tokens: usize) {
        self.len += tokens;
    }
}

fn grown(held: &Tensor, len: usize, capacity: usize) -> Result<Tensor> {
    let (_, heads, head_dim) = held.dims3()?;
    let larger = Tensor::zeros((capacity, heads, head_dim), held.dtype(), held.device())?;
    if len > 0 {
        larger.slice_set(&held.narrow(0, 0, len)?, 0, 0)?;
    }
    Ok(larger)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cache_that_outgrows_its_capacity_keeps_what_it_held() {
        let mut cache = KvCache::new(1, 2, 1, 2, DType::F32, &Device::Cpu).unwrap();
        let mut expected = Vec::new();
        for step in 0..5u8 {
            let entry = Tensor::full(f32::from(step), (1, 1, 2), &Device::Cpu).unwrap();
            let (keys, values) = cache.append(0, &entry, &(&entry + 10.0).unwrap()).unwrap();
            cache.advance(1);
            expected.push(f32::from(step));
            let first_of_each =
                |t: &Tensor| t.narrow(2, 0, 1).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
            assert_eq!(first_of_each(&keys), expected);
            assert_eq!(first_of_each(&values), expected.iter().map(|v| v + 10.0).collect::<Vec<_>>());
        }
        assert_eq!(cache.len(), 5);
    }
}
