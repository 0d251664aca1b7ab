//! The tokenisers against their Python originals over the 10,000 texts of tests/golden/tokenizer.

use std::{fs::File, io::Read};

use crate::support::{folder, ids, load};
use flate2::read::GzDecoder;
use serde_json::Value;
use thicket_clip::{ClipEmbedder, ClipTokenizer};
use thicket_engine::EngineError;

fn rows(name: &str) -> Vec<Value> {
    let mut lines = String::new();
    GzDecoder::new(File::open(folder("../tokenizer").join(name)).unwrap())
        .read_to_string(&mut lines)
        .unwrap();
    lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn texts() -> Vec<String> {
    let texts: Vec<String> =
        rows("texts.jsonl.gz").into_iter().map(|text| text.as_str().unwrap().to_owned()).collect();
    assert_eq!(texts.len(), 10_000);
    texts
}

/// Texts with characters that Python 3.11 (Unicode 14) lower-cases or reorders otherwise than newer tables do.
const OTHER_CASE_OR_ORDER: [usize; 9] = [65, 95, 290, 291, 308, 1793, 1794, 2676, 2871];
/// Texts with characters that only the newer of two tables knows as letters, numbers or signs.
const OTHER_WORDS: [usize; 27] = [
    61, 63, 135, 141, 351, 1795, 1832, 2679, 2709, 2725, 2726, 2921, 2931, 2932, 2933, 2934, 2935, 2936,
    2937, 2939, 2940, 2941, 3004, 3096, 3097, 3111, 3745,
];

/// Fails unless exactly the texts of these numbers differ.
#[track_caller]
fn assert_only(known: &[usize], wrong: &[(usize, String)]) {
    let unexpected: Vec<&str> = wrong
        .iter()
        .filter(|(index, _)| !known.contains(index))
        .map(|(_, report)| report.as_str())
        .take(40)
        .collect();
    assert!(unexpected.is_empty(), "texts differ:\n{}", unexpected.join("\n"));
    let equal: Vec<&usize> =
        known.iter().filter(|known| !wrong.iter().any(|(index, _)| index == *known)).collect();
    assert!(equal.is_empty(), "texts that are said to differ do not: {equal:?}");
}

#[test]
fn ten_thousand_texts_are_cleaned_as_in_python() {
    let texts = texts();
    let wrong: Vec<(usize, String)> = texts
        .iter()
        .zip(rows("clip.jsonl.gz"))
        .enumerate()
        .filter_map(|(index, (text, row))| {
            let expected = row[0].as_str().unwrap_or(text);
            let cleaned = ClipTokenizer::clean(text);
            (cleaned != expected).then(|| (index, format!("{text:?}: {cleaned:?} is not {expected:?}")))
        })
        .collect();
    assert_only(&OTHER_CASE_OR_ORDER, &wrong);
}

#[test]
fn ten_thousand_texts_are_split_into_the_ids_of_python() {
    let tokenizer = ClipTokenizer::published().unwrap();
    let texts = texts();
    let wrong: Vec<(usize, String)> = texts
        .iter()
        .zip(rows("clip.jsonl.gz"))
        .enumerate()
        .filter_map(|(index, (text, row))| {
            let mut expected = ids(&row[1]);
            expected.resize(77, 0);
            let encoded = tokenizer.encode(text, 77);
            (encoded != expected).then(|| (index, format!("{text:?}: {encoded:?} is not {expected:?}")))
        })
        .collect();
    assert_only(&[&OTHER_CASE_OR_ORDER[..], &OTHER_WORDS].concat(), &wrong);
}

fn check_hugging_face(name: &str) {
    let embedder: ClipEmbedder = load(name);
    let length = embedder.model().config().text_length;
    let texts = texts();
    let wrong: Vec<(usize, String)> = texts
        .iter()
        .zip(rows(&format!("clip-{name}.jsonl.gz")))
        .enumerate()
        .filter_map(|(index, (text, row))| {
            let expected = as_cut(ids(&row), length);
            let encoded = match embedder.text_ids(text) {
                Ok(ids) => ids,
                // A text without a word is its two marks alone.
                Err(EngineError::InvalidInput { .. }) if expected[2..].iter().all(|&id| id == 0) => {
                    return None;
                }
                Err(error) => panic!("{text:?}: {error}"),
            };
            (encoded != expected).then(|| (index, format!("{text:?}: {encoded:?} is not {expected:?}")))
        })
        .collect();
    assert_only(&[], &wrong);
}

/// The ids of a longer model as one of `length` tokens has them.
fn as_cut(mut ids: Vec<u32>, length: usize) -> Vec<u32> {
    let end = *ids.last().unwrap();
    if ids.len() > length {
        ids.truncate(length);
        ids[length - 1] = end;
    }
    ids.resize(length, 0);
    ids
}

#[test]
fn a_vocabulary_and_a_merge_list_split_ten_thousand_texts_as_transformers_does() {
    check_hugging_face("hf-files");
}

#[test]
fn a_tokenizer_file_splits_ten_thousand_texts_as_transformers_does() {
    check_hugging_face("hf-json");
}
