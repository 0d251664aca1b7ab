//! The names of the parts in published checkpoints; the misspelt ones are theirs.

/// Prefix of everything that CLIP itself has.
pub(crate) const BASE: &str = "base_model";
/// The image side's token selection.
pub(crate) const IMAGE_TSE: &str = "visul_emb_layer";
/// The text side's token selection.
pub(crate) const TEXT_TSE: &str = "texual_emb_layer";

/// Training heads of IRRA, which no embedding needs.
const IRRA_HEADS: [&str; 7] = [
    "classifier.",
    "cross_attn.",
    "cross_modal_transformer.",
    "ln_pre_t.",
    "ln_pre_i.",
    "ln_post.",
    "mlm_head.",
];

/// True for tensors of published checkpoints that take no part in an embedding.
pub(crate) fn is_known_unused(name: &str) -> bool {
    if IRRA_HEADS.iter().any(|head| name.starts_with(head)) {
        return true;
    }
    let image_part = name.strip_prefix(IMAGE_TSE).and_then(|rest| rest.strip_prefix('.'));
    let text_part = name.strip_prefix(TEXT_TSE).and_then(|rest| rest.strip_prefix('.'));
    if image_part.is_some_and(|part| part == "linear.weight" || part == "linear.bias") {
        return true;
    }
    image_part
        .or(text_part)
        .is_some_and(|part| part.starts_with("mlp.bns.1.") || part == "mlp.bns.0.num_batches_tracked")
}

/// Strips the prefix that data-parallel training leaves.
pub(crate) fn without_parallel_prefix(name: &str) -> String {
    name.strip_prefix("module.").unwrap_or(name).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_known_tensors_may_stay_unused() {
        assert!(is_known_unused("visul_emb_layer.linear.weight"));
        assert!(is_known_unused("texual_emb_layer.mlp.bns.1.running_var"));
        assert!(is_known_unused("mlm_head.fc.bias"));
        assert!(!is_known_unused("texual_emb_layer.linear.weight"));
        assert!(!is_known_unused("visul_emb_layer.fc.weight"));
        assert!(!is_known_unused("base_model.ln_post.weight"));
    }
}
