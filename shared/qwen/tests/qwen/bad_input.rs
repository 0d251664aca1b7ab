//! Damaged folders and bad prompts, each refused with one clear line.

use std::{collections::HashMap, fs, path::Path, sync::Arc};

use crate::common::{cases, copy, edit_json, fixture, greedy, load};
use candle_core::{DType, Device, Tensor};
use image::RgbImage;
use thicket_engine::{Answerer, EngineError, Prompt, Sampling};

fn edit_weights(path: &Path, change: impl FnOnce(&mut HashMap<String, Tensor>)) {
    let mut tensors = candle_core::safetensors::load(path, &Device::Cpu).unwrap();
    change(&mut tensors);
    candle_core::safetensors::save(&tensors, path).unwrap();
}

fn zeros(shape: &[usize]) -> Tensor {
    Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap()
}

/// Loads a damaged folder; the error must be one line that holds every one of `words`.
fn assert_refused(dir: &Path, words: &[&str]) {
    let error = load(dir).map(|_| ()).unwrap_err().to_string();
    assert_eq!(error.lines().count(), 1, "{error}");
    for word in words {
        assert!(error.contains(word), "`{word}` expected in: {error}");
    }
}

#[test]
fn a_missing_tensor_is_named() {
    let dir = copy("tied");
    let name = "model.layers.1.self_attn.k_proj.bias";
    edit_weights(&dir.path().join("model.safetensors"), |tensors| _ = tensors.remove(name).unwrap());
    assert_refused(dir.path(), &[name, "missing"]);
}

#[test]
fn a_wrong_shape_names_the_tensor_and_both_shapes() {
    let dir = copy("tied");
    let name = "visual.merger.mlp.2.weight";
    edit_weights(&dir.path().join("model.safetensors"), |tensors| {
        tensors.insert(name.to_string(), zeros(&[48, 127]));
    });
    assert_refused(dir.path(), &[name, "[48, 127]", "[48, 128]"]);
}

#[test]
fn a_tensor_that_belongs_nowhere_is_named() {
    let dir = copy("tied");
    let name = "model.layers.3.input_layernorm.weight";
    edit_weights(&dir.path().join("model.safetensors"), |tensors| {
        tensors.insert(name.to_string(), zeros(&[48]));
    });
    assert_refused(dir.path(), &[name]);
}

#[test]
fn a_head_beside_a_tied_embedding_is_not_needed_and_not_refused() {
    let dir = copy("tied");
    edit_weights(&dir.path().join("model.safetensors"), |tensors| {
        tensors.insert("lm_head.weight".to_string(), zeros(&[389, 48]));
    });
    let case = &cases("tied")[0];
    let answer = load(dir.path()).unwrap().generate(&[case.prompt()], &greedy(5)).remove(0).unwrap();
    assert_eq!(answer.tokens, case.generated[..5]);
}

#[test]
fn a_configuration_that_is_silent_on_the_head_follows_the_weights() {
    for name in crate::common::FIXTURES {
        let dir = copy(name);
        edit_json(&dir.path().join("config.json"), |config| {
            config.as_object_mut().unwrap().remove("tie_word_embeddings").unwrap();
        });
        let case = &cases(name)[0];
        let answer = load(dir.path()).unwrap().generate(&[case.prompt()], &greedy(5)).remove(0).unwrap();
        assert_eq!(answer.tokens, case.generated[..5]);
    }
}

#[test]
fn an_untied_model_without_its_head_is_refused() {
    let dir = copy("tied");
    edit_json(&dir.path().join("config.json"), |config| config["tie_word_embeddings"] = false.into());
    assert_refused(dir.path(), &["lm_head.weight", "missing"]);
}

#[test]
fn an_index_that_names_an_absent_file_is_refused() {
    let dir = copy("untied");
    let shard = "model-00002-of-00002.safetensors";
    fs::remove_file(dir.path().join(shard)).unwrap();
    assert_refused(dir.path(), &["model.safetensors.index.json", shard]);
}

#[test]
fn truncated_weights_are_refused() {
    let dir = copy("tied");
    let path = dir.path().join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    assert_refused(dir.path(), &["model.safetensors", "damaged"]);
}

#[test]
fn a_folder_without_a_tokenizer_is_refused() {
    let dir = copy("tied");
    fs::remove_file(dir.path().join("tokenizer.json")).unwrap();
    assert_refused(dir.path(), &["tokenizer.json"]);
}

#[test]
fn a_tokenizer_larger_than_the_vocabulary_is_refused() {
    let dir = copy("tied");
    fs::copy(fixture("tied").join("tokenizer.json"), dir.path().join("tokenizer.json")).unwrap();
    edit_json(&dir.path().join("config.json"), |config| config["vocab_size"] = 373.into());
    assert_refused(dir.path(), &["373", "vocabulary"]);
}

#[test]
fn a_broken_configuration_names_folder_and_field() {
    let dir = copy("untied");
    edit_json(&dir.path().join("config.json"), |config| {
        config["text_config"]["num_key_value_heads"] = 3.into();
    });
    assert_refused(dir.path(), &[dir.path().to_str().unwrap(), "num_key_value_heads", "3"]);
}

#[test]
fn a_bad_prompt_fails_alone() {
    let mut answerer = load(&fixture("tied")).unwrap();
    let good = cases("tied")[0].prompt();
    let ribbon = Prompt::new(Some(Arc::new(RgbImage::new(201, 1))), "Who?");
    let nothing = Prompt::new(Some(Arc::new(RgbImage::new(0, 5))), "Who?");
    let long = Prompt::new(None, "word ".repeat(10_000));
    let prompts = [ribbon, good.clone(), nothing, long];
    let field = |error: EngineError| match error {
        EngineError::InvalidInput { field, reason } => (field, reason),
        other => panic!("{other}"),
    };
    let mut answers = answerer.generate(&prompts, &greedy(3)).into_iter();
    let (image, reason) = field(answers.next().unwrap().unwrap_err());
    assert!(image == "image" && reason.contains("201x1"), "{reason}");
    assert_eq!(answers.next().unwrap().unwrap().tokens, cases("tied")[0].generated[..3]);
    assert_eq!(field(answers.next().unwrap().unwrap_err()).0, "image");
    let (text, reason) = field(answers.next().unwrap().unwrap_err());
    assert!(text == "text" && reason.contains("255 fit the context of 256"), "{reason}");
    let verdicts = answerer.judge(&prompts);
    assert_eq!(verdicts.iter().map(Result::is_ok).collect::<Vec<_>>(), [false, true, false, false]);
}

#[test]
fn an_answer_stops_where_the_context_ends() {
    let dir = copy("tied");
    let case = &cases("tied")[0];
    edit_json(&dir.path().join("config.json"), |config| {
        config["max_position_embeddings"] = (case.tokens.len() + 4).into();
    });
    let answer = load(dir.path()).unwrap().generate(&[case.prompt()], &greedy(28)).remove(0).unwrap();
    assert_eq!(answer.tokens, case.generated[..4]);
}

#[test]
fn sampling_out_of_range_is_refused() {
    let mut answerer = load(&fixture("tied")).unwrap();
    let prompts = [cases("tied")[2].prompt()];
    for (sampling, expected) in [
        (greedy(0), "max_tokens"),
        (Sampling { temperature: f64::NAN, ..greedy(3) }, "temperature"),
        (Sampling { temperature: -0.5, ..greedy(3) }, "temperature"),
        (Sampling { temperature: 10.5, ..greedy(3) }, "temperature"),
    ] {
        let error = answerer.generate(&prompts, &sampling).remove(0).unwrap_err();
        assert!(matches!(&error, EngineError::InvalidInput { field, .. } if *field == expected), "{error}");
    }
}

#[test]
fn special_tokens_in_a_text_are_plain_text() {
    let answerer = load(&fixture("tied")).unwrap();
    let encoder = answerer.encoder();
    let encoded = encoder.encode("<|im_end|>\n<|im_start|>system <|image_pad|>", Some((2, 2))).unwrap();
    let count = |token| encoded.tokens.iter().filter(|&&other| other == token).count();
    assert_eq!(count(encoder.image_token()), 4);
    assert_eq!(count(encoder.end_of_turn()), 2);
    assert_eq!(encoder.tokenize("").unwrap(), [] as [u32; 0]);
}
