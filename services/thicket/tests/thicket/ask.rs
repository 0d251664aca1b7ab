//! `thicket ask`: greedy answers of a small checkpoint whose tokens a reference implementation has computed.

use std::path::PathBuf;

use crate::support::{Files, Run, run};
use serde_json::Value;

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/qwen")
}

fn ask(model: &str, rest: &[&str]) -> Run {
    let model = folder().join(model);
    run(&[&["ask", "--model", model.to_str().unwrap(), "--json"], rest].concat())
}

#[test]
fn greedy_tokens_equal_the_reference_with_and_without_an_image_and_an_adapter() {
    for (model, adapter) in [("tied", None), ("untied", None), ("tied", Some("tied-adapter"))] {
        let path = folder().join(adapter.unwrap_or(model)).join("goldens.json");
        let cases: Vec<Value> = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        assert!(cases.iter().any(|case| case["image"].is_string()));
        for case in &cases {
            let expected: Vec<u64> =
                case["generated"].as_array().unwrap().iter().filter_map(Value::as_u64).take(6).collect();
            let image = case["image"].as_str().map(|name| folder().join(name));
            let mut args = vec!["--prompt", case["text"].as_str().unwrap(), "--max-tokens", "6"];
            let adapter = adapter.map(|name| folder().join(name));
            if let Some(adapter) = &adapter {
                args.extend(["--adapter", adapter.to_str().unwrap()]);
            }
            if let Some(image) = &image {
                args.extend(["--image", image.to_str().unwrap()]);
            }
            let json = ask(model, &args).json();
            let tokens: Vec<u64> =
                json["tokens"].as_array().unwrap().iter().filter_map(Value::as_u64).collect();
            assert_eq!(tokens, expected, "{model}: {}", case["text"]);
            assert!(json["text"].is_string());
            let p_yes = json["p_yes"].as_f64().unwrap();
            assert!((0.0..=1.0).contains(&p_yes), "{json}");
        }
    }
}

#[test]
fn a_seed_and_a_temperature_give_the_same_answer_again() {
    let ask = |seed: &str| {
        let args = ["--prompt", "Who?", "--temperature", "1.5", "--seed", seed, "--max-tokens", "12"];
        ask("tied", &args).json()["tokens"].clone()
    };
    assert_eq!(ask("1"), ask("1"));
    assert!(["2", "3", "4"].iter().any(|seed| ask(seed) != ask("1")));
}

#[test]
fn settings_out_of_range_are_refused() {
    ask("tied", &["--prompt", "Who?", "--max-tokens", "0"]).refuses(&["max_tokens"]);
    ask("tied", &["--prompt", "Who?", "--temperature", "-1"]).refuses(&["temperature"]);
    ask("tied", &["--prompt", "Who?", "--temperature", "NaN"]).refuses(&["temperature"]);
}

#[test]
fn an_adapter_of_another_base_is_refused() {
    let adapter = folder().join("untied-adapter");
    ask("tied", &["--prompt", "Who?", "--adapter", adapter.to_str().unwrap()]).refuses(&["adapter", "shape"]);
}

#[test]
fn a_prompt_is_needed() {
    ask("tied", &[]).refuses(&["--prompt"]);
}

#[test]
fn an_image_that_is_none_is_refused_before_the_model_is_read() {
    let files = Files::new();
    let text = files.bytes("text.png", b"no picture");
    run(&["ask", "--model", "/nonexistent", "--prompt", "Who?", "--image", &text]).refuses(&["text.png"]);
}

#[test]
fn a_folder_without_a_model_is_refused() {
    let files = Files::new();
    let root = files.root().to_str().unwrap();
    run(&["ask", "--model", root, "--prompt", "Who?"]).refuses(&["config.json"]);
}
