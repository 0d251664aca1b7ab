//! The memory that weights take, told before they are read.

use std::path::Path;

use candle_core::DType;
use thicket_checkpoint::{CheckpointError, Surveyed, survey};
use thicket_kernels::Quantization;

use crate::model::published_name;

/// Bytes of a folder's weights once they are on a device in `dtype`, the maps of the language model's layers quantized
/// where that is asked for. Only the files' headers are read.
///
/// # Errors
/// [`CheckpointError`] where there are no weights or a file is damaged.
pub fn weight_bytes(
    dir: &Path,
    dtype: DType,
    quantization: Option<Quantization>,
) -> Result<u64, CheckpointError> {
    Ok(survey(dir)?.iter().map(|tensor| bytes_of(tensor, dtype, quantization)).sum())
}

fn bytes_of(tensor: &Surveyed, dtype: DType, quantization: Option<Quantization>) -> u64 {
    let values = tensor.values();
    match (quantization, tensor.shape.as_slice()) {
        (Some(quantization), &[_, input])
            if published_name(&tensor.name).starts_with("model.layers.")
                && input.is_multiple_of(Quantization::BLOCK) =>
        {
            (values as f64 * quantization.bits(input) / 8.0).ceil() as u64
        }
        _ => values.saturating_mul(dtype.size_in_bytes() as u64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(name: &str, shape: &[usize], quantization: Option<Quantization>) -> u64 {
        let tensor = Surveyed { name: name.to_string(), shape: shape.to_vec(), dtype: Some(DType::F32) };
        bytes_of(&tensor, DType::BF16, quantization)
    }

    #[test]
    fn a_weight_takes_the_type_that_it_is_converted_to() {
        assert_eq!(bytes("model.layers.0.mlp.up_proj.weight", &[10, 64], None), 2 * 640);
    }

    #[test]
    fn only_maps_of_layers_whose_rows_divide_into_blocks_are_quantized() {
        let q4 = Some(Quantization::Q4);
        assert_eq!(bytes("model.layers.0.mlp.up_proj.weight", &[10, 64], q4), 360);
        assert_eq!(bytes("model.language_model.layers.0.mlp.up_proj.weight", &[10, 64], q4), 360);
        for (name, shape) in [
            ("model.layers.0.mlp.up_proj.weight", &[10, 60][..]),
            ("model.layers.0.input_layernorm.weight", &[640]),
            ("model.embed_tokens.weight", &[10, 64]),
            ("visual.blocks.0.mlp.fc1.weight", &[10, 64]),
        ] {
            assert_eq!(bytes(name, shape, q4), 2 * shape.iter().product::<usize>() as u64, "{name}");
        }
    }
}
