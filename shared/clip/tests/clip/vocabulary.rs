//! The tokeniser against its Python original (ftfy, html, regex) over a few hundred texts.

use std::io::Cursor;

use crate::support::{folder, ids};
use proptest::prelude::*;
use serde_json::Value;
use thicket_clip::{ClipError, ClipTokenizer};

fn published() -> &'static ClipTokenizer {
    static TOKENIZER: std::sync::OnceLock<ClipTokenizer> = std::sync::OnceLock::new();
    TOKENIZER.get_or_init(|| ClipTokenizer::published().unwrap())
}

fn reference() -> Vec<Value> {
    serde_json::from_str(&std::fs::read_to_string(folder("tokenizer.json")).unwrap()).unwrap()
}

#[test]
fn texts_are_cleaned_as_in_python() {
    let wrong: Vec<String> = reference()
        .iter()
        .filter_map(|row| {
            let (text, expected) = (row["text"].as_str()?, row["clean"].as_str()?);
            let cleaned = ClipTokenizer::clean(text);
            (cleaned != expected).then(|| format!("{text:?}: {cleaned:?} is not {expected:?}"))
        })
        .collect();
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn texts_are_split_into_the_ids_of_python() {
    let rows = reference();
    assert!(rows.len() > 300, "only {} texts", rows.len());
    let wrong: Vec<String> = rows
        .iter()
        .filter_map(|row| {
            let text = row["text"].as_str()?;
            let mut expected = ids(&row["ids"]);
            expected.resize(77, 0);
            let encoded = published().encode(text, 77);
            (encoded != expected).then(|| format!("{text:?}: {encoded:?} is not {expected:?}"))
        })
        .collect();
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn the_word_whose_entry_became_the_mask_is_written_with_two_others() {
    let words = published().tokens("jekyll", 77);
    assert_eq!(words.len(), 2);
    assert!(words.iter().all(|&id| id < 49_405));
    assert_eq!(published().tokens("<|mask|>", 77), [49_405]);
}

#[test]
fn a_long_text_is_cut_and_ends_with_the_mark() {
    let ids = published().encode(&"a tall man ".repeat(3334), 77);
    assert_eq!(ids.len(), 77);
    assert_eq!((ids[0], ids[76]), (49_406, 49_407));
    assert!(ids[1..76].iter().all(|&id| id != 0 && id < 49_405));
}

#[test]
fn a_text_without_words_has_no_tokens() {
    for text in ["", "   ", "\t\n", "\u{1}\u{2}", "&nbsp;&#1;"] {
        assert!(published().tokens(text, 77).is_empty(), "{text:?}");
    }
    for text in ["\u{1f600}", "!", "\u{5d0}\u{5d3}\u{5dd}", "jekyll"] {
        assert!(!published().tokens(text, 77).is_empty(), "{text:?}");
    }
}

#[test]
fn a_word_of_a_million_letters_is_merged_in_bounded_time() {
    let ids = published().encode(&"qz".repeat(500_000), 77);
    assert_eq!((ids.len(), ids[76]), (77, 49_407));
}

#[test]
fn a_short_merge_list_is_refused_with_both_sizes() {
    let list = "#version: 0.2\na b</w>\n";
    let error = ClipTokenizer::from_reader(Cursor::new(list), 600).unwrap_err();
    assert!(matches!(error, ClipError::VocabularySize { vocabulary: 515, embedding: 600 }), "{error}");
    assert_eq!(ClipTokenizer::from_reader(Cursor::new(list), 515).unwrap().end(), 514);
}

#[test]
fn a_merge_of_unknown_symbols_is_refused() {
    for list in ["#\nab cd\n", "#\na\n", "#\n\n", "#\n\u{fffd}"] {
        let error = ClipTokenizer::from_reader(Cursor::new(list), 515).unwrap_err();
        assert!(matches!(error, ClipError::Vocabulary { .. }), "{list:?}: {error}");
    }
    for size in [0, 514, 70_000] {
        let error = ClipTokenizer::from_reader(Cursor::new("#\n"), size).unwrap_err();
        assert!(matches!(error, ClipError::VocabularySize { .. }), "{size}: {error}");
    }
}

proptest! {
    #[test]
    fn any_text_gives_a_full_row_of_known_ids(text: String, length in 3_usize..100) {
        let ids = published().encode(&text, length);
        prop_assert_eq!(ids.len(), length);
        prop_assert!(ids.iter().all(|&id| (id as usize) < published().vocab_size()));
        prop_assert!(ids.contains(&published().end()));
    }

    #[test]
    fn markup_and_broken_encodings_never_panic(text in r"([&#;xX0-9a-zé\u{80}-\u{ff}â€™Ã<> ]|&#|&amp|\u{1b}\[){0,60}") {
        let _ = ClipTokenizer::clean(&text);
    }

    #[test]
    fn cleaning_leaves_single_spaces_inside_only(text: String) {
        let cleaned = ClipTokenizer::clean(&text);
        prop_assert_eq!(cleaned.split_whitespace().collect::<Vec<_>>().join(" "), cleaned);
    }
}
