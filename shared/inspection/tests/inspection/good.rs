//! Folders that pass.

use thicket_inspection::{Forward, InspectError, Kind, inspect};

use crate::support::{golden, look, options};

#[test]
fn a_run_is_recognised_in_both_of_its_forms() {
    for (name, expected) in [("clip/published", 88), ("clip/trained", 168)] {
        let found = look(&golden(name)).unwrap();
        assert_eq!(found.kind, Kind::Run);
        assert!(found.stored.parameters > 100_000 && found.stored.tensors > 10, "{found:?}");
        let Some(Forward::Embedded { dimension, similarity }) = found.forward else {
            panic!("{found:?}");
        };
        assert_eq!(dimension, expected);
        assert!(similarity.abs() <= 1.0 + 1e-5, "{found:?}");
        assert_eq!(found.memory.cache_per_token_f32, None);
    }
}

#[test]
fn stored_types_and_bytes_are_those_of_the_file() {
    // Every tensor of it is f16, so the file is 2 bytes a value and a header.
    let found = look(&golden("clip/trained")).unwrap();
    let file = std::fs::metadata(golden("clip/trained/model.safetensors")).unwrap().len();
    assert_eq!(found.stored.by_type.keys().collect::<Vec<_>>(), ["f16"]);
    assert_eq!(found.stored.bytes, 2 * found.stored.parameters);
    assert!(found.stored.bytes < file && found.stored.bytes + 100_000 > file, "{found:?}");
    // A published run mixes types.
    let published = look(&golden("clip/published")).unwrap();
    assert_eq!(published.stored.by_type.keys().collect::<Vec<_>>(), ["f16", "f32", "i64"]);
}

#[test]
fn a_model_of_answers_is_judged_once_and_tells_its_sizes() {
    for name in ["qwen/tied", "qwen/untied"] {
        let found = look(&golden(name)).unwrap();
        assert_eq!(found.kind, Kind::Qwen2Vl);
        let Some(Forward::Judged { p_yes, mass, prompt_tokens }) = found.forward else { panic!("{found:?}") };
        assert!((0.0..=1.0).contains(&p_yes) && (0.0..=1.0).contains(&mass) && prompt_tokens > 10);
        assert_eq!(found.memory.weights_f32, 4 * found.stored.parameters);
        assert_eq!(found.sizes_of, None);
    }
}

#[test]
fn the_cache_of_a_token_follows_from_the_configuration() {
    let found = look(&golden("qwen/tied")).unwrap();
    // Keys and values, 3 layers, 2 key-value heads of 48 / 6, 4 bytes.
    assert_eq!(found.memory.cache_per_token_f32, Some(2 * 3 * 2 * 8 * 4));
    assert!(found.sizes.contains(&("layers", "3".to_owned())), "{found:?}");
}

#[test]
fn an_adapter_is_merged_into_its_base_and_counted() {
    let adapter = golden("qwen/tied-adapter");
    let found = inspect(&golden("qwen/tied"), &options(Some(&adapter))).unwrap();
    assert!(found.adapter.as_ref().is_some_and(|adapter| adapter.parameters > 0), "{found:?}");
    let plain = look(&golden("qwen/tied")).unwrap();
    assert_eq!(found.stored, plain.stored);
    assert_ne!(found.forward, plain.forward);
}

#[test]
fn an_adapter_by_itself_is_read_and_not_run() {
    let found = look(&golden("qwen/tied-adapter")).unwrap();
    assert_eq!((found.kind, found.forward), (Kind::Adapter, None));
    assert!(found.sizes.contains(&("rank", "4".to_owned())), "{found:?}");
}

#[test]
fn an_adapter_for_a_model_that_takes_none_is_refused() {
    let adapter = golden("qwen/tied-adapter");
    let error = inspect(&golden("clip/trained"), &options(Some(&adapter))).unwrap_err();
    assert!(matches!(error, InspectError::TakesNoAdapter { .. }), "{error}");
}

#[test]
fn an_adapter_of_another_base_is_refused() {
    let adapter = golden("qwen/untied-adapter");
    let text = inspect(&golden("qwen/tied"), &options(Some(&adapter))).unwrap_err().to_string();
    assert!(text.contains("adapter"), "{text}");
}
