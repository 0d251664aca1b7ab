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

/// Texts with combining marks that are newer than the table of the crate `tokenizers`, which leaves them where they are.
const NEWER_MARKS: [usize; 5] = [95, 97, 161, 289, 323];

fn check(name: &str) {
    let encoder = encoder(name);
    let texts: Vec<String> = rows("texts.jsonl.gz");
    let expected: Vec<(usize, Vec<u32>)> = rows(&format!("qwen-{name}.jsonl.gz"));
    assert_eq!((texts.len(), expected.len()), (10_000, 10_000));
    let differs = |index: usize| {
        let tokens = encoder.tokenize(&texts[index]).unwrap();
        let (length, head) = &expected[index];
        let equal = tokens.len() == *length && tokens[..head.len()] == head[..];
        (!equal).then(|| format!("{index}: {:?}: {tokens:?} is not {head:?}", texts[index]))
    };
    let (known, others): (Vec<usize>, Vec<usize>) =
        (0..texts.len()).partition(|index| NEWER_MARKS.contains(index));
    let wrong: Vec<String> = others.into_iter().filter_map(differs).take(40).collect();
    assert!(wrong.is_empty(), "texts differ:\n{}", wrong.join("\n"));
    for index in known {
        assert!(differs(index).is_some(), "text {index} is said to differ and does not");
    }
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
