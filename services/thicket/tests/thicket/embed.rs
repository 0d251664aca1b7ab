//! `thicket embed`: vectors of small checkpoints whose values a reference implementation has computed.

use std::path::PathBuf;

use crate::support::{Files, Run, run};
use serde_json::Value;

const TOLERANCE: f64 = 1e-4;

fn checkpoint(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/clip").join(name)
}

fn golden(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(checkpoint(name).join("golden.json")).unwrap()).unwrap()
}

fn embed(model: &str, inputs: &[&str]) -> Run {
    let model = checkpoint(model);
    run(&[&["embed", "--model", model.to_str().unwrap(), "--json"], inputs].concat())
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|value| value.as_f64().unwrap()).collect()
}

fn unit(vector: Vec<f64>) -> Vec<f64> {
    let length = vector.iter().map(|value| value * value).sum::<f64>().sqrt();
    vector.into_iter().map(|value| value / length).collect()
}

/// The stored vector of a golden entry: both parts of unit length, joined and divided by the square root of 2.
fn stored(entry: &Value) -> Vec<f64> {
    let parts = [&entry["bge"], &entry["tse"]].map(|part| unit(numbers(part)));
    parts.concat().into_iter().map(|value| value * std::f64::consts::FRAC_1_SQRT_2).collect()
}

#[track_caller]
fn assert_close(actual: &Value, expected: &[f64]) {
    let actual = numbers(actual);
    assert_eq!(actual.len(), expected.len());
    for (place, (actual, expected)) in actual.iter().zip(expected).enumerate() {
        assert!((actual - expected).abs() < TOLERANCE, "[{place}]: {actual} is not {expected}");
    }
}

#[test]
fn vectors_come_in_the_order_of_the_inputs_and_equal_the_reference() {
    for name in ["published", "trained"] {
        let golden = golden(name);
        let (texts, images) = (&golden["texts"], &golden["images"]);
        let image = checkpoint(name).join(images[1]["file"].as_str().unwrap());
        let json = embed(
            name,
            &[
                "--text",
                texts[0]["text"].as_str().unwrap(),
                "--image",
                image.to_str().unwrap(),
                "--text",
                texts[1]["text"].as_str().unwrap(),
            ],
        )
        .json();
        let vectors = json["vectors"].as_array().unwrap();
        assert_eq!(vectors.len(), 3);
        for (vector, entry) in vectors.iter().zip([&texts[0], &images[1], &texts[1]]) {
            let expected = stored(entry);
            assert_eq!(json["dim"].as_u64(), Some(expected.len() as u64));
            assert_close(vector, &expected);
        }
    }
}

#[test]
fn a_hugging_face_folder_embeds_as_in_the_reference() {
    for name in ["hf-files", "hf-json"] {
        let golden = golden(name);
        let (text, image) = (&golden["texts"][0], &golden["images"][0]);
        let file = checkpoint(name).join(image["file"].as_str().unwrap());
        let inputs = ["--text", text["text"].as_str().unwrap(), "--image", file.to_str().unwrap()];
        let json = embed(name, &inputs).json();
        for (vector, entry) in json["vectors"].as_array().unwrap().iter().zip([text, image]) {
            assert_close(vector, &unit(numbers(&entry["bge"])));
        }
    }
}

#[test]
fn nothing_to_embed_is_bad_usage() {
    embed("trained", &[]).refuses(&["--text", "--image"]);
}

#[test]
fn a_text_without_a_word_is_refused() {
    embed("trained", &["--text", "   "]).refuses(&["text"]);
}

#[test]
fn an_image_that_cannot_be_read_is_refused_with_its_name() {
    let files = Files::new();
    let text = files.bytes("text.jpg", b"not a picture");
    embed("trained", &["--image", &text]).refuses(&["text.jpg"]);
    let whole = std::fs::read(checkpoint("trained").join("image1.png")).unwrap();
    let cut = files.bytes("cut.png", &whole[..whole.len() / 2]);
    embed("trained", &["--image", &cut]).refuses(&["cut.png"]);
    embed("trained", &["--image", &files.arg("absent.png")]).refuses(&["absent.png"]);
}

#[test]
fn a_damaged_checkpoint_is_refused_in_one_line() {
    let files = Files::new();
    for file in ["configs.yaml", "bpe_simple_vocab.txt", "model.safetensors"] {
        std::fs::copy(checkpoint("trained").join(file), files.path(file)).unwrap();
    }
    let root = files.root().to_str().unwrap();
    let embed = || run(&["embed", "--model", root, "--text", "a man", "--json"]);
    embed().json();
    let weights = std::fs::read(files.path("model.safetensors")).unwrap();
    files.bytes("model.safetensors", &weights[..weights.len() / 2]);
    embed().refuses(&["model.safetensors"]);
    std::fs::remove_file(files.path("configs.yaml")).unwrap();
    embed().refuses(&["configs.yaml"]);
}

#[test]
fn a_device_that_is_not_there_is_refused() {
    embed("trained", &["--text", "a man", "--device", "tpu"]).refuses(&["--device", "tpu"]);
}

#[test]
fn without_json_a_person_reads_one_line_an_input() {
    let model = checkpoint("trained");
    let printed =
        run(&["embed", "--model", model.to_str().unwrap(), "--text", "a  man", "--text", "a woman"]);
    assert_eq!(printed.status, 0, "{printed:?}");
    let lines: Vec<&str> = printed.stdout.lines().collect();
    assert_eq!(lines.len(), 2);
    assert!(lines[0].starts_with("a man\t") && lines[1].starts_with("a woman\t"), "{printed:?}");
}
