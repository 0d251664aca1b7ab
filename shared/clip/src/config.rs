use thicket_checkpoint::Checkpoint;

use crate::{ClipError, RunOptions, names};

/// Width of an attention head in every published run folder.
pub(crate) const PUBLISHED_HEAD_WIDTH: usize = 64;
/// What a layer normalisation adds to the variance in every published run folder.
const PUBLISHED_NORM_EPS: f64 = 1e-5;
/// Widths of the hidden layer of a block's perceptron in every published run folder, as multiples of the tower's.
const PUBLISHED_MLP_RATIO: usize = 4;

/// The activation between the two layers of a block's perceptron.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x * sigmoid(1.702 x)`, of OpenAI's models and those trained from them.
    QuickGelu,
    /// `x * Phi(x)` with the exact error function, of LAION's models.
    Gelu,
}

/// Sizes of one tower's transformer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TowerConfig {
    /// Width of the tower, a multiple of [`Self::head_width`].
    pub width: usize,
    /// Blocks.
    pub layers: usize,
    /// Width of an attention head; the tower has its width over this many heads.
    pub head_width: usize,
    /// Width of the hidden layer of a block's perceptron.
    pub mlp_width: usize,
    /// The perceptron's activation.
    pub activation: Activation,
    /// What layer normalisations add to the variance; above 0.
    pub norm_eps: f64,
}

impl TowerConfig {
    /// A tower as in every published run folder: QuickGELU, a perceptron of four times the width, epsilon 1e-5.
    #[must_use]
    pub fn published(width: usize, layers: usize, head_width: usize) -> Self {
        Self {
            width,
            layers,
            head_width,
            mlp_width: width.saturating_mul(PUBLISHED_MLP_RATIO),
            activation: Activation::QuickGelu,
            norm_eps: PUBLISHED_NORM_EPS,
        }
    }
}

/// Which token of a text carries its embedding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndMark {
    /// The first of the largest id, as OpenAI's code looks for the end mark.
    Largest,
    /// The first of this id.
    Id(u32),
}

/// All sizes of a two-tower model.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Length of the global embedding (BGE).
    pub embed_dim: usize,
    /// Input size of an image as `(height, width)` in pixels.
    pub image_size: (usize, usize),
    /// Side of a square patch in pixels.
    pub patch: usize,
    /// Step between patches in pixels.
    pub stride: usize,
    /// The vision tower.
    pub vision: TowerConfig,
    /// Entries of the vocabulary, the marks included.
    pub vocab_size: usize,
    /// Tokens of a text, start and end marks included; at least 3.
    pub text_length: usize,
    /// The text tower.
    pub text: TowerConfig,
    /// Where a text ends.
    pub end_mark: EndMark,
    /// The token-selection embedding, where the model has one.
    pub tse: Option<TseConfig>,
}

/// Sizes of the token-selection embedding (TSE).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TseConfig {
    /// Length of the embedding.
    pub dim: usize,
    /// Width of the hidden layer of its perceptron.
    pub hidden: usize,
    /// Share of the local tokens that are selected, above 0 and at most 1.
    pub ratio: f64,
}

impl Config {
    /// Rows and columns of the patch grid.
    #[must_use]
    pub fn grid(&self) -> (usize, usize) {
        let along = |side: usize| (side - self.patch) / self.stride + 1;
        (along(self.image_size.0), along(self.image_size.1))
    }

    /// Tokens of an image: the class token and the patches.
    #[must_use]
    pub fn image_tokens(&self) -> usize {
        let (rows, columns) = self.grid();
        1 + rows * columns
    }

    /// Length of the vector that a collection stores: BGE and TSE together.
    #[must_use]
    pub fn dimension(&self) -> usize {
        self.embed_dim + self.tse.map_or(0, |tse| tse.dim)
    }

    /// Checks that the sizes make a model.
    ///
    /// # Errors
    /// [`ClipError::Config`] with the first size that does not.
    pub fn validate(&self) -> Result<(), ClipError> {
        let refuse = |field, reason: String| Err(ClipError::Config { field, reason });
        for (field, tower) in [("vision width", self.vision), ("text width", self.text)] {
            let TowerConfig { width, head_width, norm_eps, .. } = tower;
            if width == 0 || head_width == 0 || !width.is_multiple_of(head_width) {
                return refuse(
                    field,
                    format!("{width} is not a positive multiple of the head width {head_width}"),
                );
            }
            if !(norm_eps > 0.0 && norm_eps.is_finite()) {
                return refuse("layer norm epsilon", format!("{norm_eps} is not above 0"));
            }
        }
        for (field, count) in [
            ("embedding dimension", self.embed_dim),
            ("patch size", self.patch),
            ("stride", self.stride),
            ("vision layers", self.vision.layers),
            ("vision perceptron", self.vision.mlp_width),
            ("text layers", self.text.layers),
            ("text perceptron", self.text.mlp_width),
        ] {
            if count == 0 {
                return refuse(field, "0 is not positive".to_owned());
            }
        }
        let (height, width) = self.image_size;
        if height < self.patch || width < self.patch {
            return refuse(
                "image size",
                format!("{height}x{width} is smaller than a patch of {}", self.patch),
            );
        }
        if self.text_length < 3 {
            return refuse("text length", format!("{} leaves no room for a word, 3 does", self.text_length));
        }
        if self.vocab_size < 3 {
            return refuse("vocabulary size", format!("{} leaves no room for a word", self.vocab_size));
        }
        let Some(tse) = self.tse else { return Ok(()) };
        if !(tse.ratio > 0.0 && tse.ratio <= 1.0) {
            return refuse("select_ratio", format!("{} is not above 0 and at most 1", tse.ratio));
        }
        if tse.dim == 0 || tse.hidden == 0 {
            return refuse("token selection", format!("{}x{} has no width", tse.hidden, tse.dim));
        }
        let fewest = self.selected_patches().min(self.selected_words());
        if fewest == 0 {
            return refuse("select_ratio", format!("{} selects no token at this size", tse.ratio));
        }
        Ok(())
    }

    /// How many patches token selection keeps; 0 without it.
    pub(crate) fn selected_patches(&self) -> usize {
        self.tse.map_or(0, |tse| share(self.image_tokens() - 1, tse.ratio))
    }

    /// How many words token selection keeps at most; 0 without it.
    pub(crate) fn selected_words(&self) -> usize {
        self.tse.map_or(0, |tse| share(self.text_length - 2, tse.ratio))
    }

    /// Reads all sizes of a run folder from the shapes of its checkpoint's tensors, as OpenAI's loader does, and from
    /// its options what shapes cannot tell.
    ///
    /// # Errors
    /// [`ClipError::MissingTensor`] or [`ClipError::TensorShape`] where a tensor that decides a size is missing or of
    /// another kind, [`ClipError::Config`] where the options contradict the shapes.
    pub fn infer(checkpoint: &Checkpoint, options: &RunOptions) -> Result<Self, ClipError> {
        let base = |name: &str| format!("{}.{name}", names::BASE);
        let [vision_width, _, patch, patch_width] =
            shape(checkpoint, &base("visual.conv1.weight"), "[width, 3, patch, patch]")?;
        if patch != patch_width {
            let reason = format!("{patch}x{patch_width} is not square");
            return Err(ClipError::Config { field: "patch size", reason });
        }
        let [vocab_size, text_width] =
            shape(checkpoint, &base("token_embedding.weight"), "[vocabulary, width]")?;
        let [positions, _] = shape(checkpoint, &base("positional_embedding"), "[text length, width]")?;
        let [_, embed_dim] = shape(checkpoint, &base("text_projection"), "[width, embedding]")?;
        let text_length = options.text_length.unwrap_or(positions);
        if text_length != positions {
            let reason =
                format!("the options say {text_length}, the positional embedding has {positions} rows");
            return Err(ClipError::Config { field: "text length", reason });
        }
        let head_width = options.head_width.unwrap_or(PUBLISHED_HEAD_WIDTH);
        let tower = |width, blocks: &str| {
            TowerConfig::published(width, layers(checkpoint, &base(blocks)), head_width)
        };
        let config = Self {
            embed_dim,
            image_size: options.image_size,
            patch,
            stride: options.stride.unwrap_or(patch),
            vision: tower(vision_width, "visual.transformer.resblocks."),
            vocab_size,
            text_length,
            text: tower(text_width, "transformer.resblocks."),
            end_mark: EndMark::Largest,
            tse: tse(checkpoint, options)?,
        };
        config.validate()?;
        let [image_positions, _] =
            shape(checkpoint, &base("visual.positional_embedding"), "[image tokens, width]")?;
        if image_positions != config.image_tokens() {
            let (height, width) = config.image_size;
            let reason = format!(
                "{height}x{width} at stride {} makes {} tokens, the positional embedding has {image_positions} rows",
                config.stride,
                config.image_tokens()
            );
            return Err(ClipError::Config { field: "image size", reason });
        }
        Ok(config)
    }
}

/// Python's `int(count * ratio)`.
fn share(count: usize, ratio: f64) -> usize {
    (count as f64 * ratio) as usize
}

fn tse(checkpoint: &Checkpoint, options: &RunOptions) -> Result<Option<TseConfig>, ClipError> {
    let is_part = |name: &str| name.starts_with(names::IMAGE_TSE) || name.starts_with(names::TEXT_TSE);
    if !checkpoint.names().any(is_part) {
        return Ok(None);
    }
    let projection = format!("{}.fc.weight", names::IMAGE_TSE);
    let [dim, _] = shape(checkpoint, &projection, "[token selection, embedding]")?;
    let perceptron = format!("{}.mlp.layers.0.weight", names::IMAGE_TSE);
    let [hidden, _] = shape(checkpoint, &perceptron, "[hidden, embedding]")?;
    Ok(Some(TseConfig { dim, hidden, ratio: options.select_ratio }))
}

fn shape<const N: usize>(
    checkpoint: &Checkpoint,
    name: &str,
    expected: &'static str,
) -> Result<[usize; N], ClipError> {
    let actual = checkpoint.shape(name).ok_or_else(|| ClipError::MissingTensor { name: name.to_owned() })?;
    actual.try_into().map_err(|_| ClipError::TensorShape {
        name: name.to_owned(),
        actual: actual.to_vec(),
        expected,
    })
}

/// One more than the highest block number, so that a block with a hole in it is reported as missing a tensor.
pub(crate) fn layers(checkpoint: &Checkpoint, prefix: &str) -> usize {
    let number = |name: &str| name.strip_prefix(prefix)?.split('.').next()?.parse::<usize>().ok();
    checkpoint.names().filter_map(number).max().map_or(0, |highest| highest.saturating_add(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The sizes of the published RDE model.
    fn published() -> Config {
        Config {
            embed_dim: 512,
            image_size: (384, 128),
            patch: 16,
            stride: 16,
            vision: TowerConfig::published(768, 12, PUBLISHED_HEAD_WIDTH),
            vocab_size: 49_408,
            text_length: 77,
            text: TowerConfig::published(512, 12, PUBLISHED_HEAD_WIDTH),
            end_mark: EndMark::Largest,
            tse: Some(TseConfig { dim: 1024, hidden: 512, ratio: 0.3 }),
        }
    }

    #[test]
    fn the_published_model_selects_57_patches_and_22_words() {
        let config = published();
        config.validate().unwrap();
        assert_eq!(config.grid(), (24, 8));
        assert_eq!(config.selected_patches(), 57);
        assert_eq!(config.selected_words(), 22);
        assert_eq!(Config { text_length: 168, ..config.clone() }.selected_words(), 49);
        assert_eq!(config.dimension(), 1536);
    }

    #[test]
    fn sizes_that_make_no_model_are_refused_by_name() {
        let field = |config: Config| match config.validate() {
            Err(ClipError::Config { field, .. }) => field,
            other => panic!("{other:?}"),
        };
        let vision = |width, head_width| TowerConfig::published(width, 12, head_width);
        assert_eq!(field(Config { vision: vision(100, 64), ..published() }), "vision width");
        assert_eq!(field(Config { vision: vision(768, 0), ..published() }), "vision width");
        assert_eq!(field(Config { text: vision(512, 96), ..published() }), "text width");
        let flat = TowerConfig { norm_eps: 0.0, ..vision(768, 64) };
        assert_eq!(field(Config { vision: flat, ..published() }), "layer norm epsilon");
        assert_eq!(field(Config { stride: 0, ..published() }), "stride");
        assert_eq!(field(Config { image_size: (8, 128), ..published() }), "image size");
        assert_eq!(field(Config { text_length: 2, ..published() }), "text length");
        let ratio = |ratio| Config { tse: Some(TseConfig { dim: 8, hidden: 4, ratio }), ..published() };
        assert_eq!(field(ratio(f64::NAN)), "select_ratio");
        assert_eq!(field(ratio(0.001)), "select_ratio");
    }
}
