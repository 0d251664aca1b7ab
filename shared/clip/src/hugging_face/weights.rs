//! The tensors of a Hugging Face CLIP under the names and in the shapes of a run folder.

use std::path::Path;

use candle_core::{DType, Device, Error, Result, Shape, Tensor};
use candle_nn::{Init, VarBuilder, var_builder::SimpleBackend};
use thicket_checkpoint::Checkpoint;

use crate::{ClipError, config::layers, names};

/// By this tensor the part of the names is found that some savers put before all of them.
const LANDMARK: &str = "text_model.embeddings.token_embedding.weight";
/// Buffers and the scale of the training loss, which no embedding needs.
const UNUSED: [&str; 3] =
    ["logit_scale", "text_model.embeddings.position_ids", "vision_model.embeddings.position_ids"];
/// The three that a run folder keeps as one, in its order.
const PROJECTIONS: [&str; 3] = ["q_proj", "k_proj", "v_proj"];

/// True for tensors, by their names without the common prefix, that take no part in an embedding.
fn is_known_unused(name: &str) -> bool {
    UNUSED.contains(&name)
}

/// The safetensors of a folder.
#[derive(Debug)]
pub(crate) struct Weights {
    checkpoint: Checkpoint,
    prefix: String,
}

impl Weights {
    pub(crate) fn open(dir: &Path) -> std::result::Result<Self, ClipError> {
        let mut checkpoint = Checkpoint::open(dir)?;
        checkpoint.rename(names::without_parallel_prefix)?;
        let prefix =
            checkpoint.names().find_map(|name| name.strip_suffix(LANDMARK)).unwrap_or_default().to_owned();
        Ok(Self { checkpoint, prefix })
    }

    /// The full name and the shape of a tensor.
    pub(crate) fn shape(&self, tensor: &str) -> std::result::Result<(String, &[usize]), ClipError> {
        let name = format!("{}{tensor}", self.prefix);
        match self.checkpoint.shape(&name) {
            Some(shape) => Ok((name, shape)),
            None => Err(ClipError::MissingTensor { name }),
        }
    }

    /// Blocks below a prefix.
    pub(crate) fn layers(&self, prefix: &str) -> usize {
        layers(&self.checkpoint, &format!("{}{prefix}", self.prefix))
    }

    /// Hex digest of the weight files.
    pub(crate) fn fingerprint(&self) -> String {
        self.checkpoint.fingerprint()
    }

    /// A builder by the names of a run folder; as [`Checkpoint::compact_var_builder`].
    pub(crate) fn var_builder(&self, dtype: DType, device: &Device) -> VarBuilder<'static> {
        let inner = self.checkpoint.compact_var_builder(dtype, device);
        let adapter = Adapter { inner, prefix: self.prefix.clone() };
        VarBuilder::from_backend(Box::new(adapter), dtype, device.clone())
    }

    /// Refuses tensors that no one has read.
    pub(crate) fn finish(&self) -> std::result::Result<(), ClipError> {
        let known = |name: &str| name.strip_prefix(&self.prefix).is_some_and(is_known_unused);
        Ok(self.checkpoint.finish(known)?)
    }
}

/// Where a tensor of a run folder comes from.
#[derive(Debug, PartialEq, Eq)]
enum Origin {
    /// This tensor as it is.
    Same(String),
    /// This tensor with its two axes exchanged.
    Transposed(String),
    /// These three, one below the other.
    Joined([String; 3]),
}

/// Tells where the tensor that a run folder calls `name` comes from.
fn origin(name: &str) -> Option<Origin> {
    let name = name.strip_prefix(names::BASE)?.strip_prefix('.')?;
    if let Some(block) = name.strip_prefix("visual.transformer.resblocks.") {
        return block_origin("vision_model", block);
    }
    if let Some(block) = name.strip_prefix("transformer.resblocks.") {
        return block_origin("text_model", block);
    }
    let transposed = match name {
        "visual.proj" => Some("visual_projection.weight"),
        "text_projection" => Some("text_projection.weight"),
        _ => None,
    };
    if let Some(name) = transposed {
        return Some(Origin::Transposed(name.to_owned()));
    }
    let same = match name {
        "visual.conv1.weight" => "vision_model.embeddings.patch_embedding.weight",
        "visual.class_embedding" => "vision_model.embeddings.class_embedding",
        "visual.positional_embedding" => "vision_model.embeddings.position_embedding.weight",
        "visual.ln_pre.weight" => "vision_model.pre_layrnorm.weight",
        "visual.ln_pre.bias" => "vision_model.pre_layrnorm.bias",
        "visual.ln_post.weight" => "vision_model.post_layernorm.weight",
        "visual.ln_post.bias" => "vision_model.post_layernorm.bias",
        "token_embedding.weight" => LANDMARK,
        "positional_embedding" => "text_model.embeddings.position_embedding.weight",
        "ln_final.weight" => "text_model.final_layer_norm.weight",
        "ln_final.bias" => "text_model.final_layer_norm.bias",
        _ => return None,
    };
    Some(Origin::Same(same.to_owned()))
}

/// As [`origin`] for `block`, the number of a block and the name of its tensor.
fn block_origin(tower: &str, block: &str) -> Option<Origin> {
    let (number, tensor) = block.split_once('.')?;
    let place = |rest: &str| format!("{tower}.encoder.layers.{number}.{rest}");
    if let Some(part) = tensor.strip_prefix("attn.in_proj_") {
        return Some(Origin::Joined(
            PROJECTIONS.map(|projection| place(&format!("self_attn.{projection}.{part}"))),
        ));
    }
    let (layer, part) = tensor.rsplit_once('.')?;
    let layer = match layer {
        "ln_1" => "layer_norm1",
        "ln_2" => "layer_norm2",
        "attn.out_proj" => "self_attn.out_proj",
        "mlp.c_fc" => "mlp.fc1",
        "mlp.c_proj" => "mlp.fc2",
        _ => return None,
    };
    Some(Origin::Same(place(&format!("{layer}.{part}"))))
}

struct Adapter {
    inner: VarBuilder<'static>,
    prefix: String,
}

impl Adapter {
    fn read(&self, shape: &[usize], name: &str, dtype: DType) -> Result<Tensor> {
        self.inner.get_with_hints_dtype(shape, &format!("{}{name}", self.prefix), Init::Const(0.0), dtype)
    }
}

impl SimpleBackend for Adapter {
    fn get(&self, expected: Shape, name: &str, _: Init, dtype: DType, _: &Device) -> Result<Tensor> {
        let dims = expected.dims();
        match origin(name).ok_or_else(|| Error::Msg(format!("tensor {name} is missing")))? {
            Origin::Same(name) => self.read(dims, &name, dtype),
            // A view: the towers use the exchanged form, which is the stored one again.
            Origin::Transposed(name) => {
                let (rows, columns) = expected.dims2()?;
                self.read(&[columns, rows], &name, dtype)?.t()
            }
            Origin::Joined(names) => {
                let mut dims = dims.to_vec();
                if let Some(rows) = dims.first_mut() {
                    *rows /= names.len();
                }
                // The parts are dropped here: of a whole model only one block's are ever held twice.
                let [q, k, v] = names;
                let part = |name: String| self.read(&dims, &name, dtype);
                Tensor::cat(&[part(q)?, part(k)?, part(v)?], 0)
            }
        }
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> Result<Tensor> {
        Err(Error::Msg(format!("tensor {name} was asked for without a shape")))
    }

    fn contains_tensor(&self, name: &str) -> bool {
        let has = |name: &String| self.inner.contains_tensor(&format!("{}{name}", self.prefix));
        match origin(name) {
            None => false,
            Some(Origin::Same(name) | Origin::Transposed(name)) => has(&name),
            Some(Origin::Joined(names)) => names.iter().all(has),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn same(name: &str) -> Option<Origin> {
        Some(Origin::Same(name.to_owned()))
    }

    #[test]
    fn tensors_of_a_run_folder_have_one_origin_each() {
        let block = "base_model.visual.transformer.resblocks.11.";
        assert_eq!(
            origin(&format!("{block}mlp.c_proj.bias")),
            same("vision_model.encoder.layers.11.mlp.fc2.bias")
        );
        assert_eq!(
            origin("base_model.transformer.resblocks.0.attn.in_proj_bias"),
            Some(Origin::Joined(
                PROJECTIONS
                    .map(|projection| { format!("text_model.encoder.layers.0.self_attn.{projection}.bias") })
            ))
        );
        assert_eq!(
            origin("base_model.visual.proj"),
            Some(Origin::Transposed("visual_projection.weight".to_owned()))
        );
        for strange in
            ["visul_emb_layer.fc.weight", "base_model.visual.extra", "base_model.transformer.resblocks.0"]
        {
            assert_eq!(origin(strange), None, "{strange}");
        }
    }
}
