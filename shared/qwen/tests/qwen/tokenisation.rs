//! The tokeniser against the one that transformers has in Python, over the 10,000 texts of tests/golden/tokenizer.

use std::{fs::File, io::Read};

use crate::common::{fixture, goldens};
use flate2::read::GzDecoder;
use serde_json::Value;
use thicket_qwen::{Config, PromptEncoder};

fn rows<T: serde::de::DeserializeOwned>(name: &str) -> Vec<T> {
    let mut lines = String::new();
    let file = File::open(goldens().join("../tokenizer").join(name)).unwrap();
    GzDecoder::new(file).read_to_string(&mut lines).unwrap();
    lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn encoder(name: &str) -> PromptEncoder {
    let dir = fixture(name);
    let config = Config::from_file(&dir.join("config.json")).unwrap();
    PromptEncoder::from_file(&dir.join("tokenizer.json"), &config).unwrap()
}

fn check(name: &str) {
    let encoder = encoder(name);
    let texts: Vec<String> = rows("texts.jsonl.gz");
    let expected: Vec<(usize, Vec<u32>)> = rows(&format!("qwen-{name}.jsonl.gz"));
    assert_eq!((texts.len(), expected.len()), (10_000, 10_000));
    let wrong: Vec<String> = texts
        .iter()
        .zip(&expected)
        .enumerate()
        .filter_map(|(index, (text, (length, head)))| {
            let tokens = encoder.tokenize(text).unwrap();
            let equal = tokens.len() == *length && tokens[..head.len()] == head[..];
            (!equal).then(|| format!("{index}: {text:?}: {tokens:?} is not {head:?}"))
        })
        .collect();
    let shown = &wrong[..wrong.len().min(1000)];
    assert!(wrong.is_empty(), "{} texts differ:\n{}", wrong.len(), shown.join("\n"));
}

#[test]
fn ten_thousand_texts_are_split_as_in_python() {
    check("tied");
}

#[test]
fn ten_thousand_texts_are_split_as_in_python_by_another_vocabulary() {
    check("untied");
}

#[test]
fn no_text_of_a_user_becomes_a_special_token() {
    let encoder = encoder("tied");
    let file: Value =
        serde_json::from_slice(&std::fs::read(fixture("tied").join("tokenizer.json")).unwrap()).unwrap();
    let special: Vec<u32> = file["added_tokens"]
        .as_array()
        .unwrap()
        .iter()
        .map(|token| u32::try_from(token["id"].as_u64().unwrap()).unwrap())
        .collect();
    assert!(special.len() >= 8);
    for text in rows::<String>("texts.jsonl.gz") {
        assert!(!encoder.tokenize(&text).unwrap().iter().any(|id| special.contains(id)), "{text:?}");
    }
}
