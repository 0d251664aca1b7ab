//! Weights in fewer bits: held as they are stored, or quantized at load.

use std::path::Path;

use crate::common::{cases, copy, fixture, greedy, load};
use candle_core::{DType, Device, Tensor};
use candle_nn::{VarBuilder, VarMap};
use tempfile::TempDir;
use thicket_engine::Answerer;
use thicket_kernels::Quantization;
use thicket_qwen::{Config, LoadOptions, Mask, QwenAnswerer, QwenModel};

/// A copy of `tied` whose weights are converted with `convert`.
fn converted(convert: impl Fn(&Tensor) -> Tensor) -> TempDir {
    let dir = copy("tied");
    let path = dir.path().join("model.safetensors");
    let tensors = candle_core::safetensors::load(&path, &Device::Cpu).unwrap();
    let tensors = tensors.iter().map(|(name, tensor)| (name.clone(), convert(tensor))).collect();
    candle_core::safetensors::save(&tensors, &path).unwrap();
    dir
}

fn logits(model: &QwenModel) -> Vec<Vec<f32>> {
    let case = &cases("tied")[0];
    let text: Vec<u32> =
        case.tokens.iter().copied().filter(|&token| token != model.config().image_token_id).collect();
    let positions: Vec<[u32; 3]> = (0..text.len() as u32).map(|position| [position; 3]).collect();
    let embeddings = model.embed(&text, &[]).unwrap().unsqueeze(0).unwrap();
    let hidden = model.language.forward_dense(&embeddings, &positions, &Mask::Causal).unwrap();
    model.language.logits(&hidden.squeeze(0).unwrap()).unwrap().to_vec2().unwrap()
}

fn quantized(dir: &Path, to: Quantization) -> Result<QwenAnswerer, thicket_qwen::LoadError> {
    QwenAnswerer::load(dir, LoadOptions { quantization: Some(to), ..LoadOptions::reference("quantized") })
}

/// `tied` with sizes that divide into blocks, drawn anew. Its MLP is narrower than a block of 256.
fn with_blocks() -> TempDir {
    let dir = copy("tied");
    let mut config = Config::from_file(&dir.path().join("config.json")).unwrap();
    config.hidden_size = 256;
    config.vision_config.hidden_size = 256;
    config.num_attention_heads = 4;
    config.num_key_value_heads = 2;
    config.rope_scaling.mrope_section = vec![8, 12, 12];
    config.intermediate_size = 96;
    config.initializer_range = 0.05;
    let variables = VarMap::new();
    QwenModel::new(&config, &VarBuilder::from_varmap(&variables, DType::F32, &Device::Cpu)).unwrap();
    variables.save(dir.path().join("model.safetensors")).unwrap();
    std::fs::write(dir.path().join("config.json"), config.to_json().to_string()).unwrap();
    dir
}

#[test]
fn weights_held_in_16_bits_give_the_bits_of_the_widened_ones() {
    for dtype in [DType::F16, DType::BF16] {
        let narrow = converted(|tensor| tensor.to_dtype(dtype).unwrap());
        let wide = converted(|tensor| tensor.to_dtype(dtype).unwrap().to_dtype(DType::F32).unwrap());
        let (narrow, wide) = (load(narrow.path()).unwrap(), load(wide.path()).unwrap());
        assert_eq!(logits(narrow.model()), logits(wide.model()));
    }
}

#[test]
fn eight_bits_change_the_logits_a_little_and_four_bits_more() {
    let dir = with_blocks();
    let exact = logits(load(dir.path()).unwrap().model());
    let spread = exact.iter().flatten().fold(0f32, |largest, value| largest.max(value.abs()));
    let [eight, four] = [Quantization::Q8, Quantization::Q4].map(|to| {
        let actual = logits(quantized(dir.path(), to).unwrap().model());
        let pairs = actual.iter().flatten().zip(exact.iter().flatten());
        pairs.map(|(actual, exact)| (actual - exact).abs()).fold(0f32, f32::max) / spread
    });
    assert!(eight > 0.0 && eight < 0.05, "{eight}");
    assert!(four > eight && four < 0.5, "{four}");
}

#[test]
fn a_quantized_model_answers_alike_alone_and_in_a_batch() {
    let mut answerer = quantized(with_blocks().path(), Quantization::Q4).unwrap();
    let prompts: Vec<_> = cases("tied").iter().map(|case| case.prompt()).collect();
    let together = answerer.generate(&prompts, &greedy(12));
    for (prompt, expected) in prompts.iter().zip(together) {
        let alone = answerer.generate(std::slice::from_ref(prompt), &greedy(12)).remove(0).unwrap();
        assert_eq!(alone.tokens, expected.unwrap().tokens);
    }
}

#[test]
fn quantization_changes_the_fingerprint() {
    let dir = with_blocks();
    let plain = load(dir.path()).unwrap().info().fingerprint.clone();
    let eight = quantized(dir.path(), Quantization::Q8).unwrap().info().fingerprint.clone();
    assert_ne!(plain, eight);
}

#[test]
fn a_model_of_which_nothing_can_be_quantized_is_refused() {
    let error = quantized(&fixture("tied"), Quantization::Q8).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("no matrix can be quantized to q8") && error.contains("32"), "{error}");
    assert_eq!(error.lines().count(), 1, "{error}");
}
