use candle_core::{DType, Device, Result, Tensor, bail};
use candle_nn::VarBuilder;
use thicket_kernels::{Activation, Backend, Mask, Quantization, Sequence};

use crate::{
    cache::{KvCache, KvPrefix},
    config::Config,
    linear::{Linear, RmsNorm, gate_and_up, normal},
    prompt::Position,
    rotary::Rotary,
};

/// What is done to linear maps as they are read.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Preparation {
    /// Into which blocks the maps of the layers are quantized.
    pub(crate) quantization: Option<Quantization>,
    /// What makes the other maps ready for inference; `None` for a model that is to be trained.
    pub(crate) backend: Option<Backend>,
}

/// One sequence of a ragged batch.
#[derive(Debug)]
pub struct Segment<'a> {
    /// How many of the batch's tokens are its own; at least 1.
    pub tokens: usize,
    /// What the sequence has seen before; the new tokens are added. Without a cache the tokens are all there is.
    pub cache: Option<&'a mut KvCache>,
}

/// The decoder of Qwen2-VL: grouped-query attention with multimodal rotary positions, SwiGLU, RMS norms.
///
/// The same layers serve training (a dense batch, differentiable) and inference (a ragged batch, with or without
/// caches).
#[derive(Debug, Clone)]
pub struct LanguageModel {
    /// (vocab, hidden), in the type of the arithmetic or a narrower one. A tied head is the same.
    embeddings: Linear,
    device: Device,
    dtype: DType,
    layers: Vec<DecoderLayer>,
    norm: RmsNorm,
    head: Linear,
    sizes: Sizes,
    inverse_frequencies: Vec<f32>,
    /// Which of the three positions each frequency follows.
    axis_of_frequency: Vec<usize>,
}

#[derive(Debug, Clone, Copy)]
struct Sizes {
    hidden: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
}

#[derive(Debug, Clone)]
struct DecoderLayer {
    input_norm: RmsNorm,
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
    post_norm: RmsNorm,
    gate: Linear,
    up: Linear,
    down: Linear,
    /// What multiplies in attention.
    backend: Backend,
    sizes: Sizes,
}

/// What the tokens of a forward pass attend to.
enum Batch<'a, 'b> {
    /// `rows` sequences of equal length.
    Dense {
        rows: usize,
        mask: &'a Mask,
    },
    Ragged {
        segments: &'a mut [Segment<'b>],
    },
}

/// The last token of every segment, when only those are wanted.
struct LastTokens {
    index: Tensor,
    rotary: Rotary,
}

impl LanguageModel {
    /// Builds the model from `model.*` and, where the head is not tied, `lm_head.weight`. It computes in the type of the
    /// builder.
    ///
    /// # Errors
    /// A tensor that is missing or has another shape.
    pub fn new(config: &Config, vb: &VarBuilder<'_>) -> Result<Self> {
        Self::prepared(config, vb, Preparation::default()).map(|(model, _)| model)
    }

    /// As [`Self::new`], the linear maps of every layer quantized or made ready as soon as they are read. Embeddings,
    /// norms and the head are not quantized. Returns the names of the maps that could not be quantized either, because
    /// their rows do not divide into blocks.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub(crate) fn prepared(
        config: &Config,
        vb: &VarBuilder<'_>,
        preparation: Preparation,
    ) -> Result<(Self, Vec<String>)> {
        let sizes = Sizes {
            hidden: config.hidden_size,
            heads: config.num_attention_heads,
            kv_heads: config.num_key_value_heads,
            head_dim: config.head_dim(),
        };
        let model = vb.pp("model");
        let embeddings = model.pp("embed_tokens").get_with_hints(
            (config.vocab_size, config.hidden_size),
            "weight",
            normal(config.initializer_range),
        )?;
        let tied = config.tie_word_embeddings.unwrap_or_else(|| !vb.contains_tensor("lm_head.weight"));
        let mut embeddings = Linear::from_weight(embeddings);
        // Before anything else is read, as the table is held twice meanwhile.
        if let (true, Some(backend)) = (tied, preparation.backend) {
            embeddings.prepare_table(vb.dtype(), backend)?;
        }
        let mut layers = Vec::with_capacity(config.num_hidden_layers);
        let mut kept = Vec::new();
        for index in 0..config.num_hidden_layers {
            let mut layer = DecoderLayer::new(config, sizes, &model.pp("layers").pp(index))?;
            for map in layer.linears() {
                if let Some(quantization) = preparation.quantization
                    && !map.quantize(quantization, vb.device())?
                {
                    kept.push(map.name().to_string());
                }
                if let Some(backend) = preparation.backend {
                    map.prepare_for_decoding(vb.dtype(), backend)?;
                }
            }
            layer.backend = preparation.backend.unwrap_or_default();
            layers.push(layer);
        }
        let norm = RmsNorm::new(config.hidden_size, config.rms_norm_eps, &model.pp("norm"))?;
        let head = if tied {
            embeddings.clone()
        } else {
            let Config { hidden_size, vocab_size, initializer_range, .. } = *config;
            let mut head =
                Linear::without_bias(hidden_size, vocab_size, initializer_range, &vb.pp("lm_head"))?;
            if let Some(backend) = preparation.backend {
                head.prepare_for_decoding(vb.dtype(), backend)?;
            }
            head
        };
        let head_dim = config.head_dim() as f32;
        let inverse_frequencies = (0..config.head_dim() / 2)
            .map(|j| 1.0 / (config.rope_theta as f32).powf((2 * j) as f32 / head_dim))
            .collect();
        let axis_of_frequency = config
            .rope_scaling
            .mrope_section
            .iter()
            .enumerate()
            .flat_map(|(axis, &count)| std::iter::repeat_n(axis, count))
            .collect();
        let (dtype, device) = (vb.dtype(), vb.device().clone());
        let model = Self {
            embeddings,
            device,
            dtype,
            layers,
            norm,
            head,
            sizes,
            inverse_frequencies,
            axis_of_frequency,
        };
        Ok((model, kept))
    }

    /// Rows of the embedding table: u32 (n) token ids to (n, hidden). Differentiable.
    ///
    /// # Errors
    /// An id outside the vocabulary.
    pub fn embed(&self, tokens: &Tensor) -> Result<Tensor> {
        self.embeddings.rows(tokens, self.dtype)
    }

    /// Rows of the embedding table, for ids held on the CPU: (ids, hidden).
    ///
    /// # Errors
    /// An id outside the vocabulary.
    pub fn embed_ids(&self, tokens: &[u32]) -> Result<Tensor> {
        self.embed(&Tensor::new(tokens, self.device())?)
    }

    /// Runs sequences of equal length: (b, n, hidden) to (b, n, hidden) after the final norm. Differentiable.
    ///
    /// `positions` holds the b * n positions row by row; `mask` says who sees whom.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn forward_dense(&self, x: &Tensor, positions: &[Position], mask: &Mask) -> Result<Tensor> {
        self.forward_watched(x, positions, mask, &mut |_, _| {})
    }

    /// [`Self::forward_dense`] that shows `watch` what every layer makes of the tokens, before any final norm: the
    /// number of layers passed and (b * n, hidden).
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn forward_watched(
        &self,
        x: &Tensor,
        positions: &[Position],
        mask: &Mask,
        watch: &mut dyn FnMut(usize, &Tensor),
    ) -> Result<Tensor> {
        let (rows, n, hidden) = x.dims3()?;
        let rotary = self.rotary(positions)?;
        let mut x = x.reshape((rows * n, hidden))?.to_dtype(DType::F32)?;
        let mut batch = Batch::Dense { rows, mask };
        for (index, layer) in self.layers.iter().enumerate() {
            x = layer.forward(&x, &rotary, index, &mut batch, None)?;
            watch(index + 1, &x);
        }
        self.norm.forward(&x)?.reshape((rows, n, hidden))
    }

    /// Runs sequences of any lengths, one after the other in `x` (tokens, hidden), each causal over its own tokens.
    ///
    /// Returns (segments, hidden): the last token of every sequence after the final norm. Caches take up the new
    /// tokens. Not for training.
    ///
    /// # Errors
    /// Shapes that do not fit. The caches are then to be thrown away.
    pub fn forward_ragged(
        &self,
        x: &Tensor,
        positions: &[Position],
        segments: &mut [Segment<'_>],
    ) -> Result<Tensor> {
        let total: usize = segments.iter().map(|segment| segment.tokens).sum();
        if x.dim(0)? != total || segments.iter().any(|segment| segment.tokens == 0) {
            bail!("segments of {total} tokens, none of them empty, do not fit {:?}", x.shape());
        }
        let rotary = self.rotary(positions)?;
        let last = if segments.len() == total { None } else { Some(self.last_tokens(segments, &rotary)?) };
        let mut x = x.to_dtype(DType::F32)?;
        for (index, layer) in self.layers.iter().enumerate() {
            // Nobody looks at the other tokens' output of the last layer.
            let last = last.as_ref().filter(|_| index + 1 == self.layers.len());
            x = layer.forward(&x, &rotary, index, &mut Batch::Ragged { segments }, last)?;
        }
        for segment in segments {
            if let Some(cache) = &mut segment.cache {
                cache.advance(segment.tokens);
            }
        }
        self.norm.forward(&x)
    }

    /// The output head: (n, hidden) after the final norm to (n, vocab). Differentiable.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        self.head.forward(hidden)
    }

    /// An empty cache with room for `capacity` tokens.
    ///
    /// # Errors
    /// The device has no room for it.
    pub fn new_cache(&self, capacity: usize) -> Result<KvCache> {
        let Sizes { kv_heads, head_dim, .. } = self.sizes;
        KvCache::new(self.layers.len(), capacity, kv_heads, head_dim, self.dtype(), self.device())
    }

    /// An empty cache with room for `capacity` tokens after a prefix.
    ///
    /// # Errors
    /// The device has no room for it.
    pub fn new_cache_after(&self, prefix: KvPrefix, capacity: usize) -> Result<KvCache> {
        Ok(self.new_cache(capacity)?.after(prefix))
    }

    /// Bytes that one token occupies in a cache.
    #[must_use]
    pub fn cache_bytes_per_token(&self) -> usize {
        2 * self.layers.len() * self.sizes.kv_heads * self.sizes.head_dim * self.dtype().size_in_bytes()
    }

    /// Where the weights are.
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// What the model computes in; caches hold this type too.
    #[must_use]
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Every linear map that has a weight of its own.
    pub(crate) fn linears(&mut self) -> impl Iterator<Item = &mut Linear> {
        let head = std::iter::once(&mut self.head).filter(|head| !head.name().is_empty());
        self.layers.iter_mut().flat_map(DecoderLayer::linears).chain(head)
    }

    fn rotary(&self, positions: &[Position]) -> Result<Rotary> {
        let frequencies = self.inverse_frequencies.iter().zip(&self.axis_of_frequency);
        let angles: Vec<f32> = positions
            .iter()
            .flat_map(|position| {
                frequencies.clone().map(|(frequency, &axis)| position[axis] as f32 * frequency)
            })
            .collect();
        Rotary::new(&angles, self.inverse_frequencies.len(), self.device())
    }

    fn last_tokens(&self, segments: &[Segment<'_>], rotary: &Rotary) -> Result<LastTokens> {
        let mut end = 0;
        let rows: Vec<u32> = segments
            .iter()
            .map(|segment| {
                end += segment.tokens as u32;
                end - 1
            })
            .collect();
        Ok(LastTokens { index: Tensor::new(rows.as_slice(), self.device())?, rotary: rotary.select(&rows)? })
    }
}

impl DecoderLayer {
    fn new(config: &Config, sizes: Sizes, vb: &VarBuilder<'_>) -> Result<Self> {
        let Sizes { hidden, heads, kv_heads, head_dim, .. } = sizes;
        let (std, inner) = (config.initializer_range, config.intermediate_size);
        let (attention, mlp) = (vb.pp("self_attn"), vb.pp("mlp"));
        Ok(Self {
            input_norm: RmsNorm::new(hidden, config.rms_norm_eps, &vb.pp("input_layernorm"))?,
            query: Linear::with_bias(hidden, heads * head_dim, std, &attention.pp("q_proj"))?,
            key: Linear::with_bias(hidden, kv_heads * head_dim, std, &attention.pp("k_proj"))?,
            value: Linear::with_bias(hidden, kv_heads * head_dim, std, &attention.pp("v_proj"))?,
            output: Linear::without_bias(heads * head_dim, hidden, std, &attention.pp("o_proj"))?,
            post_norm: RmsNorm::new(hidden, config.rms_norm_eps, &vb.pp("post_attention_layernorm"))?,
            gate: Linear::without_bias(hidden, inner, std, &mlp.pp("gate_proj"))?,
            up: Linear::without_bias(hidden, inner, std, &mlp.pp("up_proj"))?,
            down: Linear::without_bias(inner, hidden, std, &mlp.pp("down_proj"))?,
            backend: Backend::Plain,
            sizes,
        })
    }

    fn linears(&mut self) -> impl Iterator<Item = &mut Linear> {
        let Self { query, key, value, output, gate, up, down, .. } = self;
        [query, key, value, output, gate, up, down].into_iter()
    }

    /// f32 (tokens, hidden) to (tokens, hidden), or to (segments, hidden) where only the last tokens are wanted.
    fn forward(
        &self,
        x: &Tensor,
        rotary: &Rotary,
        layer: usize,
        batch: &mut Batch<'_, '_>,
        last: Option<&LastTokens>,
    ) -> Result<Tensor> {
        let Sizes { heads, kv_heads, head_dim, .. } = self.sizes;
        let tokens = x.dim(0)?;
        let normed = self.input_norm.forward(x)?;
        let keys = rotary.apply(&self.key.forward(&normed)?.reshape((tokens, kv_heads, head_dim))?)?;
        let values = self.value.forward(&normed)?.reshape((tokens, kv_heads, head_dim))?;
        let (x, normed, rotary) = match last {
            None => (x.clone(), normed, rotary),
            Some(last) => {
                (x.index_select(&last.index, 0)?, normed.index_select(&last.index, 0)?, &last.rotary)
            }
        };
        let queries = self.query.forward(&normed)?.reshape(((), heads, head_dim))?;
        let queries = rotary.apply(&queries)?;
        let attended = match batch {
            Batch::Dense { rows, mask } => self.attend(&queries, &keys, &values, *rows, mask)?,
            Batch::Ragged { segments } => {
                self.attend_each(&queries, &keys, &values, layer, segments, last.is_some())?
            }
        };
        // The stream stays f32 between layers: rounding it each time would cost a half-precision model most.
        let x = self.output.forward_into(&attended, Activation::None, Some(&x))?;
        let normed = self.post_norm.forward(&x)?;
        let gated = gate_and_up(&self.gate, &self.up, &normed)?;
        self.down.forward_into(&gated, Activation::None, Some(&x))
    }

    /// Attention over `rows` sequences of equal length; (tokens, heads, head_dim) each, to (queries, heads * head_dim).
    fn attend(
        &self,
        queries: &Tensor,
        keys: &Tensor,
        values: &Tensor,
        rows: usize,
        mask: &Mask,
    ) -> Result<Tensor> {
        let Sizes { heads, kv_heads, head_dim, .. } = self.sizes;
        let n = queries.dim(0)? / rows;
        let m = keys.dim(0)? / rows;
        let queries = queries.reshape((rows, n, heads, head_dim))?.transpose(1, 2)?;
        let keys = keys.reshape((rows, m, kv_heads, head_dim))?.transpose(1, 2)?;
        let values = values.reshape((rows, m, kv_heads, head_dim))?.transpose(1, 2)?;
        let scale = 1.0 / (head_dim as f64).sqrt();
        let attended = thicket_kernels::attention(&queries, &keys, &values, scale, mask, self.backend)?;
        attended.transpose(1, 2)?.reshape((rows * n, heads * head_dim))
    }

    /// Attention of every segment over its own tokens, those in its cache included.
    fn attend_each(
        &self,
        queries: &Tensor,
        keys: &Tensor,
        values: &Tensor,
        layer: usize,
        segments: &mut [Segment<'_>],
        last_only: bool,
    ) -> Result<Tensor> {
        let mut entries = Vec::with_capacity(segments.len());
        let mut sequences = Vec::with_capacity(segments.len());
        let (mut start, mut query_start) = (0, 0);
        for segment in segments {
            let query_count = if last_only { 1 } else { segment.tokens };
            let queries = queries.narrow(0, query_start, query_count)?;
            let keys = keys.narrow(0, start, segment.tokens)?;
            let values = values.narrow(0, start, segment.tokens)?;
            sequences.push(match &mut segment.cache {
                None => Sequence { queries, beginning: None, keys, values },
                Some(cache) => {
                    entries.push(cache.entry(layer, &keys, &values)?);
                    cache.sequence(layer, queries, segment.tokens)?
                }
            });
            start += segment.tokens;
            query_start += query_count;
        }
        // One of them may be the beginning of another.
        thicket_kernels::store(&entries)?;
        let scale = 1.0 / (self.sizes.head_dim as f64).sqrt();
        thicket_kernels::attention_of_each(&sequences, scale, self.backend)
    }
}
