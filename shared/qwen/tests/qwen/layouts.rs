//! One model under the file layouts of different tools.

use std::{fs, path::Path};

use crate::common::{FIXTURES, cases, copy, edit_json, fixture, greedy, load};
use serde_json::{Value, json};
use tempfile::TempDir;
use thicket_engine::Answerer;

/// Fields that stand at the top level whatever the layout.
const OF_THE_WHOLE: [&str; 5] =
    ["model_type", "image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id"];

fn read(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// The language fields of a fixture, whatever layout it has.
fn text_fields(config: &Value) -> Value {
    let mut fields = config.get("text_config").unwrap_or(config).clone();
    for name in OF_THE_WHOLE.into_iter().chain(["vision_config", "architectures", "torch_dtype"]) {
        fields.as_object_mut().unwrap().remove(name);
    }
    let inner = format!("{}_text", config["model_type"].as_str().unwrap());
    fields["model_type"] = inner.into();
    fields
}

/// A copy of a fixture whose configuration `rewrite` makes from (whole file, language fields).
fn rewritten(name: &str, rewrite: impl FnOnce(&Value, Value) -> Value) -> TempDir {
    let dir = copy(name);
    edit_json(&dir.path().join("config.json"), |config| {
        let mut new = rewrite(config, text_fields(config));
        for field in OF_THE_WHOLE {
            let value = config.get(field).or_else(|| config.pointer(&format!("/text_config/{field}")));
            new[field] = value.unwrap().clone();
        }
        *config = new;
    });
    dir
}

fn assert_answers_as_the_reference(name: &str, dir: &Path) {
    let mut answerer = load(dir).unwrap();
    for case in cases(name) {
        let answer = answerer.generate(&[case.prompt()], &greedy(12)).remove(0).unwrap();
        assert_eq!(answer.tokens, case.generated[..12], "{name}: {}", case.text);
    }
}

/// A published file that transformers 4.57 read and saved again: the language fields stand in `text_config`, some of
/// them also at the top, `torch_dtype` is `dtype` and the layers have types.
#[test]
fn a_configuration_saved_again_by_transformers_4_57_is_read() {
    for name in FIXTURES {
        let dir = rewritten(name, |config, mut text| {
            let layers = text["num_hidden_layers"].as_u64().unwrap() as usize;
            text["layer_types"] = vec!["full_attention"; layers].into();
            text["architectures"] = config["architectures"].clone();
            text["sliding_window"] = Value::Null;
            text["max_window_layers"] = 80.into();
            text["dtype"] = "bfloat16".into();
            text["rope_scaling"]["type"] = "default".into();
            text["rope_scaling"]["rope_type"] = "default".into();
            let mut new = json!({"dtype": "bfloat16", "transformers_version": "4.57.6"});
            for field in ["hidden_size", "vocab_size", "rope_theta", "rope_scaling", "num_hidden_layers"] {
                new[field] = text[field].clone();
            }
            new["text_config"] = text;
            new["vision_config"] = config["vision_config"].clone();
            new
        });
        assert_answers_as_the_reference(name, dir.path());
    }
}

/// As transformers 5 writes: rotary fields in `rope_parameters`, the word on the head at the top, and the settings of
/// all pre-processing in one file.
#[test]
fn a_folder_saved_by_transformers_5_is_read() {
    for name in FIXTURES {
        let dir = rewritten(name, |config, mut text| {
            let fields = text.as_object_mut().unwrap();
            let tied = fields.remove("tie_word_embeddings").or(config.get("tie_word_embeddings").cloned());
            let mut rope = fields.remove("rope_scaling").unwrap();
            rope.as_object_mut().unwrap().remove("type").unwrap();
            rope["rope_type"] = "default".into();
            rope["rope_theta"] = fields.remove("rope_theta").unwrap();
            fields.insert("rope_parameters".to_string(), rope);
            json!({
                "dtype": "float32", "tie_word_embeddings": tied.unwrap(), "text_config": text,
                "vision_config": config["vision_config"],
            })
        });
        let settings = dir.path().join("preprocessor_config.json");
        let joint = json!({"processor_class": "Qwen2VLProcessor", "image_processor": read(&settings)});
        fs::write(dir.path().join("processor_config.json"), joint.to_string()).unwrap();
        fs::remove_file(settings).unwrap();
        assert_answers_as_the_reference(name, dir.path());
    }
}

#[test]
fn a_published_tower_that_leaves_fields_out_has_the_published_values() {
    let vision = &read(&fixture("tied-2.5").join("config.json"))["vision_config"];
    assert!(vision.get("patch_size").is_none() && vision.get("in_chans").is_some());
    assert_eq!(load(&fixture("tied-2.5")).unwrap().model().config().vision_config.patch_size, 14);
}
