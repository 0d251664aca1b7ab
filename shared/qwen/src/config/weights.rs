//! What the shapes of the weights say about a configuration.

use std::collections::BTreeMap;

use super::{
    Config, VisionFamily,
    error::{ConfigError, invalid},
};

/// A field, the value that follows from it, and the tensor dimension that has to equal this value.
struct Claim {
    field: &'static str,
    stated: String,
    tensor: &'static str,
    dimension: usize,
    expected: usize,
}

impl Config {
    /// Compares every size that shows in a tensor's shape with the weights, so that the error names the field rather
    /// than the first tensor that happens to differ.
    ///
    /// `shapes` has every tensor under its published name. What is missing there is left to the reader of the tensors.
    pub(crate) fn check_weights(&self, shapes: &BTreeMap<&str, &[usize]>) -> Result<(), ConfigError> {
        for (field, stated, prefix) in [
            ("num_hidden_layers", self.num_hidden_layers, "model.layers."),
            ("vision_config.depth", self.vision_config.depth, "visual.blocks."),
        ] {
            let highest = shapes.keys().filter_map(|name| Some((index_behind(name, prefix)?, name))).max();
            if let Some((index, name)) = highest
                && index + 1 != stated
            {
                return invalid(field, format!("{stated} does not fit the weights, whose last is {name}"));
            }
        }
        for claim in self.claims() {
            let Some(shape) = shapes.get(claim.tensor) else { continue };
            if shape.get(claim.dimension).is_some_and(|&actual| actual != claim.expected) {
                return invalid(
                    claim.field,
                    format!(
                        "{} makes {} of dimension {} of {}, whose shape is {shape:?}",
                        claim.stated, claim.expected, claim.dimension, claim.tensor
                    ),
                );
            }
        }
        Ok(())
    }

    /// In an order in which a claim only builds on fields that are checked before it.
    fn claims(&self) -> Vec<Claim> {
        const PATCHES: &str = "visual.patch_embed.proj.weight";
        const EMBEDDINGS: &str = "model.embed_tokens.weight";
        let vision = &self.vision_config;
        let [vision_width, vision_mlp, vision_output] = vision.width_fields();
        let claim = |field, stated: String, tensor, dimension, expected| Claim {
            field,
            stated,
            tensor,
            dimension,
            expected,
        };
        let plain = |field, value: usize, tensor, dimension| {
            claim(field, value.to_string(), tensor, dimension, value)
        };
        let (mlp_stated, mlp_tensor) = match &vision.family {
            VisionFamily::Qwen2 { mlp_ratio } => (mlp_ratio.to_string(), "visual.blocks.0.mlp.fc1.weight"),
            VisionFamily::Qwen2_5 { intermediate_size, .. } => {
                (intermediate_size.to_string(), "visual.blocks.0.mlp.gate_proj.weight")
            }
        };
        vec![
            plain("vocab_size", self.vocab_size, EMBEDDINGS, 0),
            plain("hidden_size", self.hidden_size, EMBEDDINGS, 1),
            plain("intermediate_size", self.intermediate_size, "model.layers.0.mlp.gate_proj.weight", 0),
            claim(
                "num_key_value_heads",
                format!("{} of width {}", self.num_key_value_heads, self.head_dim()),
                "model.layers.0.self_attn.k_proj.weight",
                0,
                self.num_key_value_heads * self.head_dim(),
            ),
            plain(vision_width, vision.embed_dim, PATCHES, 0),
            plain("vision_config.temporal_patch_size", vision.temporal_patch_size, PATCHES, 2),
            plain("vision_config.patch_size", vision.patch_size, PATCHES, 3),
            claim(vision_mlp, mlp_stated, mlp_tensor, 0, vision.mlp_size()),
            claim(
                "vision_config.spatial_merge_size",
                vision.spatial_merge_size.to_string(),
                "visual.merger.mlp.0.weight",
                1,
                vision.patches_per_token() * vision.embed_dim,
            ),
            plain(vision_output, vision.hidden_size, "visual.merger.mlp.2.weight", 0),
        ]
    }
}

/// The number that follows `prefix` in a tensor's name.
fn index_behind(name: &str, prefix: &str) -> Option<usize> {
    name.strip_prefix(prefix)?.split('.').next()?.parse().ok()
}
