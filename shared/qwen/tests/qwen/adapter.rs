//! LoRA adapters: merged as the Python reference merges them, and refused where a part would not apply.

use std::{collections::HashMap, fs, path::Path};

use crate::common::{
    ADAPTED, assert_close, cases, copy, edit_json, fixture, golden_tensors, greedy, load, load_adapted,
};
use candle_core::{DType, Device, Tensor};
use thicket_engine::{Answerer, Prompt};
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
            let features = format!("{index}.features");
            let images: Vec<&Tensor> = tensors.get(&features).or(plain.get(&features)).into_iter().collect();
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
fn image_tokens_under_an_adapter_of_the_vision_tower_equal_the_reference() {
    let answerer = load_adapted(&fixture("tied-2.5"), Some(fixture("tied-2.5-adapter"))).unwrap();
    let (plain, tensors) = (golden_tensors("tied-2.5"), golden_tensors("tied-2.5-adapter"));
    for (index, case) in cases("tied-2.5-adapter").iter().enumerate() {
        let Some(grid) = case.grid else { continue };
        let features = answerer.model().vision.forward(&plain[&format!("{index}.patches")], &[grid]).unwrap();
        assert_close(&format!("image {index}"), &features, &tensors[&format!("{index}.features")], 1e-4);
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

fn with_adapter(prompt: Prompt, name: &str) -> Prompt {
    Prompt { adapter: Some(name.into()), ..prompt }
}

#[test]
fn an_adapter_kept_apart_answers_as_the_reference_and_leaves_the_base_alone() {
    for base in ADAPTED {
        let name = format!("{base}-adapter");
        let mut answerer = load(&fixture(base)).unwrap();
        let info = answerer.load_adapter("tuned", &fixture(&name)).unwrap();
        assert_eq!(info.name, "tuned");
        assert_ne!(info.fingerprint, answerer.info().fingerprint);
        for (adapted, plain) in cases(&name).iter().zip(cases(base)) {
            // Both in one call: a batch may mix adapters.
            let prompts = [with_adapter(adapted.prompt(), "tuned"), plain.prompt()];
            let length = adapted.generated.len().min(plain.generated.len());
            let answers = answerer.generate(&prompts, &greedy(length));
            let tokens: Vec<_> = answers.into_iter().map(|answer| answer.unwrap().tokens).collect();
            assert_eq!(tokens, [&adapted.generated[..length], &plain.generated[..length]], "{name}");
        }
    }
}

#[test]
fn an_adapter_kept_apart_judges_as_the_merged_one() {
    let mut merged = load_adapted(&fixture("tied"), Some(fixture("tied-adapter"))).unwrap();
    let mut apart = load(&fixture("tied")).unwrap();
    apart.load_adapter("tuned", &fixture("tied-adapter")).unwrap();
    for case in cases("tied-adapter") {
        let expected = merged.judge(&[case.prompt()]).remove(0).unwrap();
        let actual = apart.judge(&[with_adapter(case.prompt(), "tuned")]).remove(0).unwrap();
        assert!((actual.p_yes - expected.p_yes).abs() < 1e-4, "{} {}", actual.p_yes, expected.p_yes);
    }
}

#[test]
fn an_adapter_of_the_vision_tower_does_not_share_image_tokens_with_the_base() {
    let dir = copy("tied-adapter");
    let fc1 = "base_model.model.visual.blocks.0.mlp.fc1";
    edit_weights(dir.path(), |tensors| {
        tensors.clear();
        let base = candle_core::safetensors::load(fixture("tied").join("model.safetensors"), &Device::Cpu);
        let (outputs, inputs) = base.unwrap()["visual.blocks.0.mlp.fc1.weight"].dims2().unwrap();
        // The same in every run: chance could choose an adapter that hardly changes the answer.
        let spread = |shape: (usize, usize)| {
            let values = (0..shape.0 * shape.1).map(|place| 4.0 * (place as f32 * 1.7).sin()).collect();
            Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
        };
        tensors.insert(format!("{fc1}.lora_A.weight"), spread((4, inputs)));
        tensors.insert(format!("{fc1}.lora_B.weight"), spread((outputs, 4)));
    });
    edit_json(&dir.path().join("adapter_config.json"), |config| {
        config["target_modules"] = serde_json::json!(["fc1"]);
        config["r"] = 4.into();
        config["rank_pattern"] = serde_json::json!({});
    });
    let case = cases("tied").into_iter().find(|case| case.image.is_some()).unwrap();
    let mut merged = load_adapted(&fixture("tied"), Some(dir.path().to_path_buf())).unwrap();
    let expected = merged.judge(&[case.prompt()]).remove(0).unwrap().p_yes;
    let mut apart = load(&fixture("tied")).unwrap();
    apart.load_adapter("eyes", dir.path()).unwrap();
    let base = apart.judge(&[case.prompt()]).remove(0).unwrap().p_yes;
    let adapted = apart.judge(&[with_adapter(case.prompt(), "eyes")]).remove(0).unwrap().p_yes;
    assert!((adapted - expected).abs() < 1e-4, "{adapted} {expected}");
    assert!((adapted - base).abs() > 1e-2, "{adapted} {base}");
}

#[test]
fn an_adapter_that_is_not_loaded_fails_its_prompt_alone() {
    let mut answerer = load(&fixture("tied")).unwrap();
    answerer.load_adapter("tuned", &fixture("tied-adapter")).unwrap();
    let case = &cases("tied")[0];
    let prompts = [case.prompt(), with_adapter(case.prompt(), "other")];
    let mut verdicts = answerer.judge(&prompts);
    let error = verdicts.pop().unwrap().unwrap_err().to_string();
    assert!(error.contains("`other` is not loaded") && error.contains("tuned"), "{error}");
    assert!(verdicts.pop().unwrap().is_ok());
    assert!(answerer.unload_adapter("tuned"));
    assert!(!answerer.unload_adapter("tuned"));
    assert!(answerer.judge(&[with_adapter(case.prompt(), "tuned")]).remove(0).is_err());
}

#[test]
fn a_refused_adapter_leaves_the_one_of_its_name_in_place() {
    let mut answerer = load(&fixture("tied")).unwrap();
    answerer.load_adapter("tuned", &fixture("tied-adapter")).unwrap();
    let error = answerer.load_adapter("tuned", &fixture("untied-adapter")).unwrap_err().to_string();
    assert!(error.contains("untied-adapter") && error.lines().count() == 1, "{error}");
    let case = &cases("tied-adapter")[0];
    assert!(answerer.judge(&[with_adapter(case.prompt(), "tuned")]).remove(0).is_ok());
}

#[test]
fn an_expression_that_misses_a_module_with_tensors_is_refused() {
    let dir = copy("tied-adapter");
    edit_json(&dir.path().join("adapter_config.json"), |config| {
        config["target_modules"] = serde_json::json!("(?!.*visual).*q_proj");
    });
    assert_refused(dir.path(), &["target_modules does not match", "down_proj"]);
}
