//! LoRA adapters: merged as the Python reference merges them, and refused where a part would not apply.

use std::{collections::HashMap, fs, path::Path};

use crate::common::{
    ADAPTED, assert_close, cases, copy, edit_json, fixture, golden_tensors, greedy, load, load_adapted,
};
use candle_core::{DType, Device, Tensor};
use thicket_engine::Answerer;
use thicket_qwen::Mask;

const WEIGHTS: &str = "adapter_model.safetensors";

fn edit_weights(dir: &Path, change: impl FnOnce(&mut HashMap<String, Tensor>)) {
    let mut tensors = candle_core::safetensors::load(dir.join(WEIGHTS), &Device::Cpu).unwrap();
    change(&mut tensors);
    candle_core::safetensors::save(&tensors, dir.join(WEIGHTS)).unwrap();
}

/// Loads `tied` with a damaged adapter; the error must be one line that holds every one of `words`.
fn assert_refused(adapter: &Path, words: &[&str]) {
    let error =
        load_adapted(&fixture("tied"), Some(adapter.to_path_buf())).map(|_| ()).unwrap_err().to_string();
    assert_eq!(error.lines().count(), 1, "{error}");
    for word in words {
        assert!(error.contains(word), "`{word}` expected in: {error}");
    }
}

#[test]
fn logits_under_an_adapter_equal_the_reference() {
    for base in ADAPTED {
        let name = format!("{base}-adapter");
        let answerer = load_adapted(&fixture(base), Some(fixture(&name))).unwrap();
        let (plain, tensors) = (golden_tensors(base), golden_tensors(&name));
        for (index, case) in cases(&name).iter().enumerate() {
            let images: Vec<&Tensor> = plain.get(&format!("{index}.features")).into_iter().collect();
            let model = answerer.model();
            let embeddings = model.embed(&case.tokens, &images).unwrap().unsqueeze(0).unwrap();
            let hidden = model.language.forward_dense(&embeddings, &case.positions, &Mask::Causal).unwrap();
            let logits = model.language.logits(&hidden.squeeze(0).unwrap()).unwrap();
            let expected = &tensors[&format!("{index}.logits")];
            assert_close(&format!("{name} {index}"), &logits, expected, 1e-4);
        }
    }
}

#[test]
fn greedy_answers_under_an_adapter_equal_the_reference() {
    for base in ADAPTED {
        let name = format!("{base}-adapter");
        let mut answerer = load_adapted(&fixture(base), Some(fixture(&name))).unwrap();
        for case in cases(&name) {
            let answer =
                answerer.generate(&[case.prompt()], &greedy(case.generated.len())).remove(0).unwrap();
            assert_eq!(answer.tokens, case.generated, "{name}: {}", case.text);
        }
    }
}

#[test]
fn an_adapter_changes_the_fingerprint() {
    let plain = load(&fixture("tied")).unwrap().info().fingerprint.clone();
    let adapted = load_adapted(&fixture("tied"), Some(fixture("tied-adapter"))).unwrap();
    assert_ne!(adapted.info().fingerprint, plain);
}

#[test]
fn an_adapter_of_another_base_is_refused() {
    assert_refused(&fixture("untied-adapter"), &["adapter", "shape"]);
}

#[test]
fn a_module_that_the_model_does_not_have_is_named() {
    let dir = copy("tied-adapter");
    edit_weights(dir.path(), |tensors| {
        for letter in ['A', 'B'] {
            let old = format!("base_model.model.model.layers.2.mlp.down_proj.lora_{letter}.weight");
            let tensor = tensors.remove(&old).unwrap();
            tensors.insert(old.replace("layers.2", "layers.9"), tensor);
        }
    });
    assert_refused(dir.path(), &["1 modules", "model.layers.9.mlp.down_proj", "another base"]);
}

#[test]
fn a_module_under_both_spellings_is_refused() {
    let dir = copy("tied-adapter");
    edit_weights(dir.path(), |tensors| {
        for letter in ['A', 'B'] {
            let old = format!("base_model.model.model.layers.2.mlp.down_proj.lora_{letter}.weight");
            let tensor = tensors[&old].clone();
            tensors.insert(old.replace("model.layers", "model.language_model.layers"), tensor);
        }
    });
    assert_refused(dir.path(), &["two tensors", "model.layers.2.mlp.down_proj"]);
}

#[test]
fn half_a_pair_is_refused() {
    let dir = copy("tied-adapter");
    let name = "base_model.model.model.layers.1.self_attn.v_proj.lora_B.weight";
    edit_weights(dir.path(), |tensors| _ = tensors.remove(name).unwrap());
    assert_refused(dir.path(), &[name, "missing"]);
}

#[test]
fn a_tensor_that_is_no_half_of_a_pair_is_refused() {
    let dir = copy("tied-adapter");
    edit_weights(dir.path(), |tensors| {
        let extra = Tensor::zeros((2, 2), DType::F32, &Device::Cpu).unwrap();
        _ = tensors.insert("base_model.model.model.embed_tokens.lora_embedding_A".to_string(), extra);
    });
    assert_refused(dir.path(), &["embed_tokens.lora_embedding_A", "expected"]);
}

#[test]
fn a_rank_that_differs_from_the_configuration_is_refused() {
    let dir = copy("tied-adapter");
    edit_json(&dir.path().join("adapter_config.json"), |config| config["r"] = 5.into());
    assert_refused(dir.path(), &["its rank is 4, the configuration says 5"]);
}

#[test]
fn a_listed_target_without_tensors_is_refused() {
    let dir = copy("tied-adapter");
    edit_json(&dir.path().join("adapter_config.json"), |config| {
        config["target_modules"] = serde_json::json!(["q_proj", "v_proj", "down_proj", "o_proj"]);
    });
    assert_refused(dir.path(), &["target_modules", "o_proj"]);
}

#[test]
fn a_value_that_is_not_finite_is_refused() {
    let dir = copy("tied-adapter");
    let name = "base_model.model.model.layers.1.self_attn.v_proj.lora_B.weight";
    edit_weights(dir.path(), |tensors| {
        let tensor = tensors.get_mut(name).unwrap();
        *tensor = (tensor.ones_like().unwrap() * f64::NAN).unwrap();
    });
    assert_refused(dir.path(), &[name, "not finite"]);
}

#[test]
fn a_folder_without_an_adapter_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    assert_refused(dir.path(), &["adapter_config.json"]);
    fs::copy(fixture("tied-adapter").join("adapter_config.json"), dir.path().join("adapter_config.json"))
        .unwrap();
    assert_refused(dir.path(), &[WEIGHTS, "no such file"]);
}
