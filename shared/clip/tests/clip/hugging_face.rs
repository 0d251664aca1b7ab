//! Hugging Face CLIP folders against transformers, and what is refused of them.

use std::{collections::HashMap, fs, path::Path};

use crate::support::{floats, folder, golden, ids, largest_difference, load, picture};
use candle_core::{DType, Device, Tensor};
use serde_json::{Value, json};
use tempfile::TempDir;
use thicket_clip::{Activation, ClipEmbedder, ClipError, EndMark, LoadOptions};
use thicket_engine::{Embedder, EngineError, Similarity};

const MODELS: [&str; 2] = ["hf-files", "hf-json"];
const TOLERANCE: f32 = 1e-4;

fn copy(name: &str) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(folder(name)).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
    }
    dir
}

fn edit(dir: &Path, file: &str, change: impl FnOnce(&mut Value)) {
    let path = dir.join(file);
    let mut value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    change(&mut value);
    fs::write(path, value.to_string()).unwrap();
}

fn reload(dir: &Path) -> Result<ClipEmbedder, ClipError> {
    ClipEmbedder::load(dir, LoadOptions::reference("x"))
}

/// The one line that refuses a copy of `hf-json` with a changed file.
fn refusal(file: &str, change: impl FnOnce(&mut Value)) -> String {
    let dir = copy("hf-json");
    edit(dir.path(), file, change);
    let error = reload(dir.path()).unwrap_err().to_string();
    assert_eq!(error.lines().count(), 1, "{error}");
    error
}

fn unit(values: Vec<f32>) -> Vec<f32> {
    let norm = values.iter().map(|value| value * value).sum::<f32>().sqrt();
    values.into_iter().map(|value| value / norm).collect()
}

fn tensors() -> HashMap<String, Tensor> {
    candle_core::safetensors::load(folder("hf-json").join("model.safetensors"), &Device::Cpu).unwrap()
}

fn with_tensors(tensors: &HashMap<String, Tensor>) -> TempDir {
    let dir = copy("hf-json");
    candle_core::safetensors::save(tensors, dir.path().join("model.safetensors")).unwrap();
    dir
}

#[test]
fn texts_embed_as_in_transformers() {
    for name in MODELS {
        let mut embedder = load(name);
        let golden = golden(name);
        let texts = golden["texts"].as_array().unwrap();
        assert!(texts.len() >= 10);
        for text in texts {
            let words = text["text"].as_str().unwrap();
            if words.is_empty() {
                let error = embedder.embed_texts(&[words.to_owned()]).unwrap_err();
                assert!(matches!(error, EngineError::InvalidInput { field: "text", .. }), "{error}");
                continue;
            }
            let mut expected = ids(&text["ids"]);
            expected.resize(embedder.info().text_length, 0);
            assert_eq!(embedder.text_ids(words).unwrap(), expected, "{name}: {words}");
            let vector = embedder.embed_texts(&[words.to_owned()]).unwrap().remove(0);
            let difference = largest_difference(&vector, &unit(floats(&text["bge"])));
            assert!(difference < TOLERANCE, "{name}: {words}: differs by {difference}");
        }
    }
}

#[test]
fn images_embed_as_in_transformers() {
    for name in MODELS {
        let mut embedder = load(name);
        for image in golden(name)["images"].as_array().unwrap() {
            let file = image["file"].as_str().unwrap();
            let vector = embedder.embed_images(&[picture(name, file)]).unwrap().remove(0);
            let difference = largest_difference(&vector, &unit(floats(&image["bge"])));
            assert!(difference < TOLERANCE, "{name}: {file}: differs by {difference}");
        }
    }
}

#[test]
fn every_prepared_pixel_is_that_of_the_image_processor() {
    let cases: Vec<Value> =
        serde_json::from_str(&fs::read_to_string(folder("preprocessing").join("cases.json")).unwrap())
            .unwrap();
    let expected =
        candle_core::safetensors::load(folder("preprocessing").join("pixels.safetensors"), &Device::Cpu)
            .unwrap();
    let dir = copy("hf-json");
    let mut compared = 0;
    for (number, settings) in cases.iter().enumerate() {
        fs::write(dir.path().join("preprocessor_config.json"), settings.to_string()).unwrap();
        let embedder = reload(dir.path()).unwrap();
        for index in 0..4 {
            let image = picture("preprocessing", &format!("image{index}.png"));
            let expected =
                expected[&format!("{number}.{index}")].flatten_all().unwrap().to_vec1::<f32>().unwrap();
            assert!(embedder.pixels(&image) == expected, "image {index} by {settings}");
            compared += 1;
        }
    }
    assert_eq!(compared, expected.len());
}

#[test]
fn a_models_description_comes_from_its_files() {
    let embedder = load("hf-files");
    let info = embedder.info();
    assert_eq!((info.dimension, info.image_size, info.text_length), (40, (48, 48), 20));
    assert_eq!(info.similarity, Similarity::Cosine);
    let config = embedder.model().config();
    assert_eq!((config.vision.head_width, config.text.head_width), (16, 24));
    assert_eq!((config.vision.mlp_width, config.text.mlp_width), (240, 200));
    assert_eq!((config.vision.norm_eps, config.text.norm_eps), (1e-3, 1e-5));
    assert_eq!(config.end_mark, EndMark::Largest);
    let config = load("hf-json").model().config().clone();
    assert_eq!((config.vision.activation, config.end_mark), (Activation::Gelu, EndMark::Id(559)));
}

#[test]
fn names_with_a_prefix_are_read_as_those_without() {
    let mut plain = load("hf-json");
    let text = ["a woman in red".to_owned()];
    let expected = plain.embed_texts(&text).unwrap();
    for prefix in ["clip.", "model.", "module.clip."] {
        let mut tensors: HashMap<String, Tensor> =
            tensors().into_iter().map(|(name, tensor)| (format!("{prefix}{name}"), tensor)).collect();
        for buffer in ["text_model.embeddings.position_ids", "vision_model.embeddings.position_ids"] {
            let ids = Tensor::arange(0_i64, 14, &Device::Cpu).unwrap().unsqueeze(0).unwrap();
            tensors.insert(format!("{prefix}{buffer}"), ids);
        }
        let mut prefixed = reload(with_tensors(&tensors).path()).unwrap();
        assert_eq!(prefixed.embed_texts(&text).unwrap(), expected, "{prefix}");
    }
}

#[test]
fn a_missing_or_strange_tensor_is_named_as_in_the_file() {
    for name in [
        "text_model.encoder.layers.1.self_attn.k_proj.bias",
        "vision_model.encoder.layers.2.mlp.fc2.weight",
        "vision_model.pre_layrnorm.weight",
        "text_model.embeddings.token_embedding.weight",
        "visual_projection.weight",
    ] {
        let mut tensors = tensors();
        tensors.remove(name).unwrap();
        let error = reload(with_tensors(&tensors).path()).unwrap_err().to_string();
        assert!(error.contains(name) && error.contains("missing"), "{name}: {error}");
    }
    let mut tensors = tensors();
    tensors.insert("text_model.extra".to_owned(), Tensor::zeros(1, DType::F32, &Device::Cpu).unwrap());
    let error = reload(with_tensors(&tensors).path()).unwrap_err().to_string();
    assert!(error.contains("text_model.extra"), "{error}");
}

#[test]
fn a_weight_that_is_not_a_number_is_named() {
    let mut tensors = tensors();
    let name = "vision_model.encoder.layers.0.self_attn.v_proj.bias";
    tensors.insert(name.to_owned(), Tensor::new(vec![f32::NAN; 144], &Device::Cpu).unwrap());
    let error = reload(with_tensors(&tensors).path()).unwrap_err().to_string();
    assert!(error.contains(name) && error.contains("not finite"), "{error}");
}

#[test]
fn a_size_that_the_weights_do_not_have_names_the_field_and_the_tensor() {
    for (section, field, value, tensor) in [
        ("text_config", "vocab_size", 561, "token_embedding"),
        ("text_config", "hidden_size", 62, "token_embedding"),
        ("text_config", "max_position_embeddings", 77, "text_model.embeddings.position_embedding"),
        ("text_config", "intermediate_size", 161, "text_model.encoder.layers.0.mlp.fc1"),
        ("text_config", "num_hidden_layers", 3, "text_model.encoder.layers"),
        ("vision_config", "hidden_size", 141, "patch_embedding"),
        ("vision_config", "patch_size", 9, "patch_embedding"),
        ("vision_config", "image_size", 44, "vision_model.embeddings.position_embedding"),
        ("vision_config", "intermediate_size", 319, "vision_model.encoder.layers.0.mlp.fc1"),
        ("vision_config", "num_hidden_layers", 2, "vision_model.encoder.layers"),
    ] {
        let error = refusal("config.json", |config| config[section][field] = json!(value));
        let named = error.contains(&format!("{section}.{field}")) && error.contains(tensor);
        assert!(named && error.contains(&value.to_string()), "{field}: {error}");
    }
    let error = refusal("config.json", |config| config["projection_dim"] = json!(57));
    assert!(error.contains("projection_dim is 57") && error.contains("text_projection.weight"), "{error}");
}

#[test]
fn a_setting_of_the_network_that_cannot_be_followed_is_named() {
    for (section, field, value) in [
        ("text_config", "num_attention_heads", json!(5)),
        ("vision_config", "num_attention_heads", json!(0)),
        ("text_config", "hidden_act", json!("gelu_new")),
        ("vision_config", "num_channels", json!(1)),
        ("vision_config", "layer_norm_eps", json!(0)),
        ("vision_config", "image_size", json!([36, 36])),
        ("text_config", "eos_token_id", json!(-1)),
        ("text_config", "eos_token_id", json!(0)),
        ("text_config", "eos_token_id", json!(558_000)),
    ] {
        let error = refusal("config.json", |config| config[section][field] = value.clone());
        assert!(error.contains(field) && error.contains(section), "{field} {value}: {error}");
    }
    let error = refusal("config.json", |config| config["model_type"] = json!("siglip"));
    assert!(error.contains("model_type: siglip"), "{error}");
    let error = refusal("config.json", |config| *config = json!([]));
    assert!(error.contains("config.json") && error.contains("not a JSON object"), "{error}");
}

#[test]
fn what_a_file_leaves_out_has_the_references_default() {
    let dir = copy("hf-json");
    edit(dir.path(), "config.json", |config| {
        let text = config["text_config"].as_object_mut().unwrap();
        text.remove("hidden_act");
        text.remove("layer_norm_eps");
        text.remove("eos_token_id");
    });
    let error = reload(dir.path()).unwrap_err().to_string();
    assert!(error.contains("eos_token_id is 49407"), "{error}");
    edit(dir.path(), "config.json", |config| config["text_config"]["eos_token_id"] = json!(559));
    let config = reload(dir.path()).unwrap().model().config().clone();
    assert_eq!((config.text.activation, config.vision.activation), (Activation::QuickGelu, Activation::Gelu));
    assert_eq!(config.text.norm_eps, 1e-5);
}

#[test]
fn of_two_descriptions_of_a_tower_the_old_one_counts() {
    let dir = copy("hf-json");
    edit(dir.path(), "config.json", |config| {
        config["text_config_dict"] = config["text_config"].take();
        config["text_config_dict"].as_object_mut().unwrap().remove("hidden_act");
        config["text_config"] = json!({"hidden_size": 7, "hidden_act": "gelu"});
    });
    let config = reload(dir.path()).unwrap().model().config().clone();
    assert_eq!((config.text.width, config.text.activation), (64, Activation::QuickGelu));
}

#[test]
fn a_step_of_the_image_processor_that_cannot_be_followed_is_named() {
    for (field, value) in [
        ("resample", json!(1)),
        ("do_convert_rgb", json!(false)),
        ("do_center_crop", json!(false)),
        ("crop_size", json!(37)),
        ("crop_size", json!({"shortest_edge": 36})),
        ("size", json!({"longest_edge": 36})),
        ("size", json!("36")),
        ("size", json!(0)),
        ("do_pad", json!(true)),
        ("do_flip_channel_order", json!(true)),
        ("image_processor_type", json!("ViTImageProcessor")),
        ("image_mean", json!([0.5, 0.5])),
        ("image_std", json!([0.5, 0.0, 0.5])),
        ("rescale_factor", json!("1/255")),
        ("do_rescale", json!("yes")),
        ("use_square_size", json!(true)),
    ] {
        let error = refusal("preprocessor_config.json", |settings| settings[field] = value.clone());
        assert!(error.contains(&format!("preprocessor_config.json: {field}")), "{field} {value}: {error}");
    }
    let error = refusal("preprocessor_config.json", |settings| settings["crop_size"] = json!(40));
    assert!(
        error.contains("40x40") && error.contains("vision_config.image_size") && error.contains("36x36"),
        "{error}"
    );
    let dir = copy("hf-json");
    fs::remove_file(dir.path().join("preprocessor_config.json")).unwrap();
    assert!(reload(dir.path()).unwrap_err().to_string().contains("preprocessor_config.json"));
}

#[test]
fn a_tokenizer_of_another_model_is_refused() {
    let dir = copy("hf-json");
    let replace = |text: &str| fs::write(dir.path().join("tokenizer.json"), text).unwrap();
    let original = fs::read_to_string(dir.path().join("tokenizer.json")).unwrap();
    replace("{");
    assert!(reload(dir.path()).unwrap_err().to_string().contains("tokenizer.json"));
    replace(&original.replace("559", "560"));
    let error = reload(dir.path()).unwrap_err().to_string();
    assert!(error.contains("largest id is 560") && error.contains("vocab_size is 560"), "{error}");
    let mut unmarked: Value = serde_json::from_str(&original).unwrap();
    unmarked["post_processor"] = Value::Null;
    replace(&unmarked.to_string());
    assert!(reload(dir.path()).unwrap_err().to_string().contains("no end mark"));

    let dir = copy("hf-files");
    fs::remove_file(dir.path().join("merges.txt")).unwrap();
    assert!(reload(dir.path()).unwrap_err().to_string().contains("merges.txt"));
    // Without any tokeniser OpenAI's own is taken, whose vocabulary is larger than this model's.
    fs::remove_file(dir.path().join("vocab.json")).unwrap();
    let error = reload(dir.path()).unwrap_err();
    assert!(matches!(error, ClipError::VocabularySize { vocabulary: 49_408, embedding: 580 }), "{error}");
}

#[test]
fn padding_and_cutting_of_a_tokenizer_file_do_not_count() {
    let dir = copy("hf-json");
    let text = "a woman with long black hair";
    let expected = load("hf-json").text_ids(text).unwrap();
    edit(dir.path(), "tokenizer.json", |tokenizer| {
        tokenizer["truncation"] =
            json!({"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0});
        tokenizer["padding"] = json!({
            "strategy": {"Fixed": 9}, "direction": "Left", "pad_to_multiple_of": null,
            "pad_id": 5, "pad_type_id": 0, "pad_token": "x",
        });
    });
    assert_eq!(reload(dir.path()).unwrap().text_ids(text).unwrap(), expected);
}

#[test]
fn a_folder_with_both_kinds_of_settings_is_refused() {
    let dir = copy("hf-json");
    fs::copy(folder("trained").join("configs.yaml"), dir.path().join("configs.yaml")).unwrap();
    let error = reload(dir.path()).unwrap_err();
    assert!(matches!(error, ClipError::Layout { found: "both", .. }), "{error}");
    let line = error.to_string();
    assert!(line.contains("configs.yaml") && line.contains("config.json"), "{line}");
}

#[test]
fn other_settings_of_the_images_change_the_fingerprint() {
    let dir = copy("hf-json");
    let first = reload(dir.path()).unwrap().info().fingerprint.clone();
    assert_eq!(load("hf-json").info().fingerprint, first);
    edit(dir.path(), "preprocessor_config.json", |settings| settings["resample"] = json!(2));
    assert_ne!(reload(dir.path()).unwrap().info().fingerprint, first);
}
