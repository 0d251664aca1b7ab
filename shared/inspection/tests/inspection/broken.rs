//! Folders broken in one way each.

use std::fs;

use candle_core::{DType, Device, Tensor};
use thicket_inspection::{InspectError, Kind};

use crate::support::{copy, edit_json, edit_tensors, refusal};

#[test]
fn a_truncated_file_is_named() {
    for (fixture, file) in [
        ("clip/trained", "model.safetensors"),
        ("clip/published", "best.pth"),
        ("qwen/tied", "model.safetensors"),
        ("qwen/untied", "model-00002-of-00002.safetensors"),
        ("qwen/tied-adapter", "adapter_model.safetensors"),
    ] {
        let dir = copy(fixture);
        let path = dir.path().join(file);
        let bytes = fs::read(&path).unwrap();
        fs::write(&path, &bytes[..bytes.len() - 40]).unwrap();
        assert!(refusal(dir.path()).contains(file), "{fixture}");
    }
}

#[test]
fn a_shard_that_is_missing_is_named() {
    let dir = copy("qwen/untied");
    fs::remove_file(dir.path().join("model-00001-of-00002.safetensors")).unwrap();
    assert!(refusal(dir.path()).contains("model-00001-of-00002.safetensors"));
}

#[test]
fn a_value_that_is_not_a_number_is_named_with_its_tensor() {
    for (fixture, file, tensor) in [
        ("clip/trained", "model.safetensors", "base_model.ln_final.bias"),
        ("qwen/tied", "model.safetensors", "model.norm.weight"),
    ] {
        let dir = copy(fixture);
        edit_tensors(&dir.path().join(file), |tensors| {
            let count = tensors[tensor].elem_count();
            let broken = Tensor::new(vec![f32::NAN; count], &Device::Cpu).unwrap();
            tensors.insert(tensor.to_owned(), broken.to_dtype(tensors[tensor].dtype()).unwrap());
        });
        let text = refusal(dir.path());
        assert!(text.contains(tensor) && text.contains("not finite"), "{text}");
    }
}

#[test]
fn a_value_that_is_not_a_number_in_an_adapter_is_named_with_its_tensor() {
    let dir = copy("qwen/tied-adapter");
    let mut name = String::new();
    edit_tensors(&dir.path().join("adapter_model.safetensors"), |tensors| {
        name = tensors.keys().min().unwrap().clone();
        let broken = Tensor::full(f32::INFINITY, tensors[&name].dims(), &Device::Cpu).unwrap();
        tensors.insert(name.clone(), broken);
    });
    let text = refusal(dir.path());
    assert!(text.contains(&name) && text.contains("not finite"), "{text}");
}

#[test]
fn a_configuration_that_disagrees_with_the_weights_is_told_by_tensor() {
    let dir = copy("qwen/tied");
    edit_json(&dir.path().join("config.json"), |config| config["intermediate_size"] = 80.into());
    let text = refusal(dir.path());
    assert!(text.contains("mlp") && text.contains("80") && text.contains("76"), "{text}");
}

#[test]
fn a_layer_too_many_is_told_by_tensor() {
    let dir = copy("qwen/tied");
    edit_json(&dir.path().join("config.json"), |config| config["num_hidden_layers"] = 2.into());
    assert!(refusal(dir.path()).contains("model.layers.2."));
}

#[test]
fn a_tokenizer_without_a_special_token_is_refused_by_the_token() {
    let dir = copy("qwen/tied");
    edit_json(&dir.path().join("tokenizer.json"), |tokenizer| {
        let tokens = tokenizer["added_tokens"].as_array_mut().unwrap();
        tokens.retain(|token| token["content"] != "<|im_start|>");
    });
    let text = refusal(dir.path());
    assert!(text.contains("<|im_start|>"), "{text}");
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    for (fixture, file) in [
        ("qwen/tied", "config.json"),
        ("qwen/tied", "tokenizer.json"),
        ("clip/trained", "configs.yaml"),
        ("qwen/tied-adapter", "adapter_config.json"),
    ] {
        let dir = copy(fixture);
        let path = dir.path().join(file);
        // A link to nowhere, as a cache whose contents were cleaned away leaves it.
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("../../blobs/gone", &path).unwrap();
        assert!(refusal(dir.path()).contains(file), "{fixture}");
    }
}

#[test]
fn weights_that_compute_nothing_finite_are_refused_after_loading() {
    let dir = copy("qwen/tied");
    // Every value is finite; their products are not.
    edit_tensors(&dir.path().join("model.safetensors"), |tensors| {
        let norm = tensors["model.norm.weight"].dims().to_vec();
        tensors.insert("model.norm.weight".to_owned(), Tensor::full(3e38f32, norm, &Device::Cpu).unwrap());
        let head = (&tensors["model.embed_tokens.weight"] * 1e4).unwrap();
        tensors.insert("model.embed_tokens.weight".to_owned(), head);
    });
    let text = refusal(dir.path());
    assert!(text.contains("forward pass"), "{text}");
}

#[test]
fn a_folder_that_is_no_model_says_what_was_looked_for() {
    let dir = tempfile::tempdir().unwrap();
    assert!(refusal(dir.path()).contains("configs.yaml"));
    assert!(refusal(&dir.path().join("absent")).contains("no such folder"));
    fs::write(dir.path().join("config.json"), r#"{"model_type":"llama"}"#).unwrap();
    let text = refusal(dir.path());
    assert!(text.contains("llama") && text.contains("qwen2_vl"), "{text}");
    fs::write(dir.path().join("config.json"), "{").unwrap();
    assert!(matches!(Kind::of(dir.path()).unwrap_err(), InspectError::File { .. }));
}

#[test]
fn a_stored_type_that_is_not_the_models_is_converted_and_told() {
    let dir = copy("qwen/tied");
    edit_tensors(&dir.path().join("model.safetensors"), |tensors| {
        tensors.values_mut().for_each(|tensor| *tensor = tensor.to_dtype(DType::BF16).unwrap());
    });
    let found = crate::support::look(dir.path()).unwrap();
    assert_eq!(found.stored.by_type.keys().collect::<Vec<_>>(), ["bf16"]);
    assert_eq!(found.stored.bytes, 2 * found.stored.parameters);
}
