//! `config.json` of a CLIP model, held against its weights.

use std::path::Path;

use super::{
    json::{self, Object},
    weights::Weights,
};
use crate::{Activation, ClipError, Config, EndMark, TowerConfig};

/// Name of the file that marks a Hugging Face folder.
pub(crate) const CONFIG_FILE: &str = "config.json";
/// `eos_token_id` of the files that were written before the field was right. It stands for the largest id.
const LEGACY_END: usize = 2;

/// What the reference takes for fields that a file leaves out.
struct Defaults {
    width: usize,
    mlp_width: usize,
    layers: usize,
    heads: usize,
}

const TEXT: Defaults = Defaults { width: 512, mlp_width: 2048, layers: 12, heads: 8 };
const VISION: Defaults = Defaults { width: 768, mlp_width: 3072, layers: 12, heads: 12 };

/// Reads the sizes of a model and checks that the weights have them.
///
/// # Errors
/// [`ClipError::File`], [`ClipError::Options`] for a field that cannot be followed, [`ClipError::Disagreement`] where
/// the weights have another size than a field says.
pub(crate) fn read(dir: &Path, weights: &Weights) -> Result<Config, ClipError> {
    let path = dir.join(CONFIG_FILE);
    let root = json::read(&path)?;
    match root.text("model_type")? {
        Some("clip") => {}
        Some(other) => return Err(root.refuse("model_type", format!("{other} is not read, clip is"))),
        None => return Err(root.refuse("model_type", "is missing, clip is expected")),
    }
    let text = section(&root, ["text_config_dict", "text_config"], ["text_config_dict.", "text_config."])?;
    let vision =
        section(&root, ["vision_config_dict", "vision_config"], ["vision_config_dict.", "vision_config."])?;

    let side = vision.count("image_size", 224)?;
    let patch = vision.count("patch_size", 32)?;
    let channels = vision.count("num_channels", 3)?;
    if channels != 3 {
        return Err(
            vision.refuse("num_channels", format!("{channels} is not 3: images are red, green, blue"))
        );
    }
    let config = Config {
        embed_dim: root.count("projection_dim", 512)?,
        image_size: (side, side),
        patch,
        stride: patch,
        vision: tower(&vision, &VISION)?,
        vocab_size: text.count("vocab_size", 49_408)?,
        text_length: text.count("max_position_embeddings", 77)?,
        text: tower(&text, &TEXT)?,
        end_mark: end_mark(&text)?,
        tse: None,
    };
    config.validate()?;
    compare(&root, &text, &vision, &config, weights)?;
    Ok(config)
}

/// One tower's part of the file.
///
/// Old files have two of them, and the reference lets the one with `_dict` win in all fields, by its defaults too.
fn section<'a>(
    root: &Object<'a>,
    fields: [&str; 2],
    prefixes: [&'static str; 2],
) -> Result<Object<'a>, ClipError> {
    let [old, new] = fields;
    if let Some(section) = root.object(old, prefixes[0])? {
        return Ok(section);
    }
    let section = root.object(new, prefixes[1])?;
    Ok(section.unwrap_or_else(|| Object { path: root.path, prefix: prefixes[1], values: Default::default() }))
}

fn tower(section: &Object<'_>, defaults: &Defaults) -> Result<TowerConfig, ClipError> {
    let width = section.count("hidden_size", defaults.width)?;
    let heads = section.count("num_attention_heads", defaults.heads)?;
    if !width.is_multiple_of(heads) {
        let reason = format!("{heads} heads do not divide the hidden_size {width}");
        return Err(section.refuse("num_attention_heads", reason));
    }
    let activation = match section.text("hidden_act")? {
        None | Some("quick_gelu") => Activation::QuickGelu,
        Some("gelu") => Activation::Gelu,
        Some(other) => {
            return Err(
                section.refuse("hidden_act", format!("{other} is not known, quick_gelu and gelu are"))
            );
        }
    };
    let norm_eps = section.number("layer_norm_eps", 1e-5)?;
    if !(norm_eps > 0.0 && norm_eps.is_finite()) {
        return Err(section.refuse("layer_norm_eps", format!("{norm_eps} is not above 0")));
    }
    Ok(TowerConfig {
        width,
        layers: section.count("num_hidden_layers", defaults.layers)?,
        head_width: width / heads,
        mlp_width: section.count("intermediate_size", defaults.mlp_width)?,
        activation,
        norm_eps,
    })
}

fn end_mark(text: &Object<'_>) -> Result<EndMark, ClipError> {
    let refuse = |value: &serde_json::Value| {
        text.refuse("eos_token_id", format!("{value} is not the id of a token that ends a text"))
    };
    match text.get("eos_token_id") {
        None => Ok(EndMark::Id(49_407)),
        // Id 0 pads the rows of a batch here, and nothing behind the end mark is looked at.
        Some(value) => match value.as_u64().and_then(|id| u32::try_from(id).ok()) {
            None | Some(0) => Err(refuse(value)),
            Some(id) if id as usize == LEGACY_END => Ok(EndMark::Largest),
            Some(id) => Ok(EndMark::Id(id)),
        },
    }
}

/// Names the first field that says another size than the weights have.
fn compare(
    root: &Object<'_>,
    text: &Object<'_>,
    vision: &Object<'_>,
    config: &Config,
    weights: &Weights,
) -> Result<(), ClipError> {
    let check = |section: &Object<'_>, field: &str, value: usize, tensor: &str, size: usize, axis: usize| {
        let (name, shape) = weights.shape(tensor)?;
        if shape.get(axis) == Some(&size) {
            return Ok(());
        }
        Err(ClipError::Disagreement {
            path: section.path.to_path_buf(),
            field: section.name(field),
            value,
            tensor: name,
            shape: shape.to_vec(),
        })
    };
    let same =
        |section: &Object<'_>, field, value, tensor, axis| check(section, field, value, tensor, value, axis);
    let tokens = "text_model.embeddings.token_embedding.weight";
    same(text, "vocab_size", config.vocab_size, tokens, 0)?;
    same(text, "hidden_size", config.text.width, tokens, 1)?;
    let positions = "text_model.embeddings.position_embedding.weight";
    same(text, "max_position_embeddings", config.text_length, positions, 0)?;
    let hidden = "text_model.encoder.layers.0.mlp.fc1.weight";
    same(text, "intermediate_size", config.text.mlp_width, hidden, 0)?;
    same(root, "projection_dim", config.embed_dim, "text_projection.weight", 0)?;

    let patches = "vision_model.embeddings.patch_embedding.weight";
    same(vision, "hidden_size", config.vision.width, patches, 0)?;
    same(vision, "patch_size", config.patch, patches, 2)?;
    same(vision, "patch_size", config.patch, patches, 3)?;
    let positions = "vision_model.embeddings.position_embedding.weight";
    check(vision, "image_size", config.image_size.0, positions, config.image_tokens(), 0)?;
    let hidden = "vision_model.encoder.layers.0.mlp.fc1.weight";
    same(vision, "intermediate_size", config.vision.mlp_width, hidden, 0)?;
    same(root, "projection_dim", config.embed_dim, "visual_projection.weight", 0)?;

    for (section, prefix, said) in [
        (text, "text_model.encoder.layers.", config.text.layers),
        (vision, "vision_model.encoder.layers.", config.vision.layers),
    ] {
        let found = weights.layers(prefix);
        if found != said {
            let reason = format!("is {said}, but the weights have {found} blocks {prefix}N");
            return Err(section.refuse("num_hidden_layers", reason));
        }
    }
    Ok(())
}
