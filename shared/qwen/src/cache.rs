use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor, bail};
use thicket_kernels::{Entry, Sequence};

/// Room added when a cache outgrows its capacity, at least.
const GROWTH: usize = 32;

/// Keys and values that one sequence has so far, in every layer: those of a beginning that it shares with others, where
/// it has one, and its own.
///
/// The capacity is what was asked for, and grows by half when a sequence outlives it.
#[derive(Debug)]
pub struct KvCache {
    prefix: Option<KvPrefix>,
    layers: Vec<Layer>,
    /// Tokens of its own.
    len: usize,
}

/// Keys and values of the beginning of some sequences, held once. Cheap to clone.
#[derive(Debug, Clone)]
pub struct KvPrefix {
    layers: Arc<[Layer]>,
    len: usize,
}

impl KvPrefix {
    /// Tokens held.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// True for a prefix of no tokens.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// (capacity, kv heads, head_dim) each: a token's entries are written with one copy.
#[derive(Debug, Clone)]
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
        Ok(Self { prefix: None, layers, len: 0 })
    }

    /// The cache of a sequence that goes on from a prefix.
    pub(crate) fn after(self, prefix: KvPrefix) -> Self {
        Self { prefix: Some(prefix), ..self }
    }

    /// What is held, and what is still to be written up to the capacity, as the beginning of other sequences. They must
    /// not run before it is written; in one forward pass they come after it. This cache must not outgrow its capacity.
    ///
    /// # Errors
    /// A cache that goes on from a prefix itself, or one without layers.
    pub fn share(&self) -> Result<KvPrefix> {
        match (&self.prefix, self.layers.first()) {
            (None, Some(layer)) => {
                Ok(KvPrefix { len: layer.keys.dim(0)?, layers: self.layers.clone().into() })
            }
            _ => bail!("only the cache of a whole sequence can be shared"),
        }
    }

    /// Tokens held, those of the prefix included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.prefix.as_ref().map_or(0, KvPrefix::len) + self.len
    }

    /// True before the first token.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Where the keys and values (new tokens, kv heads, head_dim; contiguous) of one layer go, after those held. There is room
    /// for them then. The length changes only with [`Self::advance`], when every layer has its share.
    pub(crate) fn entry(&mut self, layer: usize, keys: &Tensor, values: &Tensor) -> Result<Entry> {
        let total = self.len + keys.dim(0)?;
        let layer = &mut self.layers[layer];
        let capacity = layer.keys.dim(0)?;
        if total > capacity {
            let capacity = total.max(capacity + capacity / 2).max(capacity + GROWTH);
            layer.keys = grown(&layer.keys, self.len, capacity)?;
            layer.values = grown(&layer.values, self.len, capacity)?;
        }
        Ok(Entry {
            keys: keys.clone(),
            values: values.clone(),
            held_keys: layer.keys.clone(),
            held_values: layer.values.clone(),
            at: self.len,
        })
    }

    /// The queries of the newest tokens with all keys and values of one layer, whose entries of `new` tokens are written by the
    /// time that it is attended to.
    pub(crate) fn sequence(&self, layer: usize, queries: Tensor, new: usize) -> Result<Sequence> {
        let beginning = self.prefix.as_ref().map(|prefix| {
            let Layer { keys, values } = &prefix.layers[layer];
            (keys.clone(), values.clone())
        });
        let (Layer { keys, values }, total) = (&self.layers[layer], self.len + new);
        Ok(Sequence {
            queries,
            beginning,
            keys: keys.narrow(0, 0, total)?,
            values: values.narrow(0, 0, total)?,
        })
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

    /// Writes entries to the only layer and returns all keys and values, those of a beginning first.
    fn append(cache: &mut KvCache, keys: &Tensor, values: &Tensor) -> (Tensor, Tensor) {
        thicket_kernels::store(&[cache.entry(0, keys, values).unwrap()]).unwrap();
        let Sequence { beginning, keys, values, .. } =
            cache.sequence(0, keys.clone(), keys.dim(0).unwrap()).unwrap();
        match beginning {
            None => (keys, values),
            Some((first_keys, first_values)) => (
                Tensor::cat(&[&first_keys, &keys], 0).unwrap(),
                Tensor::cat(&[&first_values, &values], 0).unwrap(),
            ),
        }
    }

    #[test]
    fn a_cache_that_outgrows_its_capacity_keeps_what_it_held() {
        let mut cache = KvCache::new(1, 2, 1, 2, DType::F32, &Device::Cpu).unwrap();
        let mut expected = Vec::new();
        for step in 0..5u8 {
            let entry = Tensor::full(f32::from(step), (1, 1, 2), &Device::Cpu).unwrap();
            let (keys, values) = append(&mut cache, &entry, &(&entry + 10.0).unwrap());
            cache.advance(1);
            expected.push(f32::from(step));
            let first_of_each =
                |t: &Tensor| t.narrow(2, 0, 1).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
            assert_eq!(first_of_each(&keys), expected);
            assert_eq!(first_of_each(&values), expected.iter().map(|v| v + 10.0).collect::<Vec<_>>());
        }
        assert_eq!(cache.len(), 5);
    }

    #[test]
    fn what_is_written_after_it_was_shared_is_seen_behind_it() {
        let new = |capacity| KvCache::new(1, capacity, 1, 1, DType::F32, &Device::Cpu).unwrap();
        let tokens = |values: &[f32]| Tensor::new(values, &Device::Cpu).unwrap().reshape(((), 1, 1)).unwrap();
        let mut first = new(2);
        let mut second = new(1).after(first.share().unwrap());
        append(&mut first, &tokens(&[1.0, 2.0]), &tokens(&[5.0, 6.0]));
        let (keys, values) = append(&mut second, &tokens(&[3.0]), &tokens(&[7.0]));
        second.advance(1);
        let flat = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!((flat(&keys), flat(&values)), (vec![1.0, 2.0, 3.0], vec![5.0, 6.0, 7.0]));
        assert_eq!(second.len(), 3);
        assert!(second.share().is_err());
    }
}
