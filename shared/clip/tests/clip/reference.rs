//! Features and stored vectors against a plain torch implementation of the published model.

use crate::support::{floats, folder, golden, ids, largest_difference, load, picture, pixels, row};
use candle_core::{Device, Tensor};
use serde_json::Value;
use thicket_engine::{Embedder, Similarity};

const TOLERANCE: f32 = 1e-4;

fn check_texts(name: &str) {
    let embedder = load(name);
    let golden = golden(name);
    let texts = golden["texts"].as_array().unwrap();
    assert!(texts.len() >= 6);
    for text in texts {
        let expected_ids = ids(&text["ids"]);
        let words = text["text"].as_str().unwrap();
        assert_eq!(embedder.text_ids(words).unwrap(), expected_ids, "{words}");
        let batch = Tensor::new(vec![expected_ids], &Device::Cpu).unwrap();
        let features = embedder.model().encode_text(&batch).unwrap();
        check_row(words, &features.bge, features.tse.as_ref(), text);
    }
}

fn check_images(name: &str) {
    let embedder = load(name);
    for image in golden(name)["images"].as_array().unwrap() {
        let file = image["file"].as_str().unwrap();
        let pixels = pixels(&picture(name, file), embedder.model().config().image_size);
        let features = embedder.model().encode_image(&pixels).unwrap();
        check_row(file, &features.bge, features.tse.as_ref(), image);
        let sums = row(&features.tokens.sum(2).unwrap(), 0);
        let sums = largest_difference(&sums, &floats(&image["token_sums"]));
        assert!(sums < 10.0 * TOLERANCE, "{file}: sums of the token features differ by {sums}");
    }
}

#[track_caller]
fn check_row(what: &str, bge: &Tensor, tse: Option<&Tensor>, golden: &Value) {
    let bge = largest_difference(&row(bge, 0), &floats(&golden["bge"]));
    assert!(bge < TOLERANCE, "{what}: BGE differs by {bge}");
    assert_eq!(tse.is_some(), golden.get("tse").is_some());
    if let Some(tse) = tse {
        let tse = largest_difference(&row(tse, 0), &floats(&golden["tse"]));
        assert!(tse < TOLERANCE, "{what}: TSE differs by {tse}");
    }
}

/// The vector of a model with token selection: `[bge / |bge|, tse / |tse|] / sqrt(2)`.
fn stored(item: &Value) -> Vec<f32> {
    ["bge", "tse"]
        .iter()
        .flat_map(|part| {
            let values = floats(&item[*part]);
            let norm = values.iter().map(|value| value * value).sum::<f32>().sqrt();
            values.into_iter().map(move |value| value / norm / 2.0_f32.sqrt()).collect::<Vec<_>>()
        })
        .collect()
}

#[test]
fn texts_of_a_published_run_folder_embed_as_in_torch() {
    check_texts("published");
}

#[test]
fn images_of_a_published_run_folder_embed_as_in_torch() {
    check_images("published");
}

#[test]
fn texts_of_a_safetensors_folder_embed_as_in_torch() {
    check_texts("trained");
}

#[test]
fn overlapping_patches_embed_as_in_torch() {
    check_images("trained");
}

#[test]
fn an_irra_run_with_its_training_heads_embeds_as_in_torch() {
    check_texts("irra");
    check_images("irra");
    assert_eq!(load("irra").info().similarity, Similarity::Cosine);
}

#[test]
fn a_run_with_texts_of_168_tokens_embeds_as_in_torch() {
    check_texts("long");
    check_images("long");
    assert_eq!(load("long").info().text_length, 168);
}

#[test]
fn stored_vectors_hold_both_embeddings_at_half_weight() {
    for name in ["published", "trained", "long"] {
        let mut embedder = load(name);
        let golden = golden(name);
        let items = golden["texts"].as_array().unwrap();
        let texts: Vec<String> = items.iter().map(|item| item["text"].as_str().unwrap().to_owned()).collect();
        for (vector, item) in embedder.embed_texts(&texts).unwrap().iter().zip(items) {
            assert!(largest_difference(vector, &stored(item)) < TOLERANCE, "{name}: {}", item["text"]);
        }
        let items = golden["images"].as_array().unwrap();
        let images: Vec<_> = items.iter().map(|item| picture(name, item["file"].as_str().unwrap())).collect();
        for (vector, item) in embedder.embed_images(&images).unwrap().iter().zip(items) {
            assert!(largest_difference(vector, &stored(item)) < TOLERANCE, "{name}: {}", item["file"]);
        }
    }
}

#[test]
fn a_models_description_comes_from_its_files() {
    let embedder = load("published");
    let info = embedder.info();
    assert_eq!((info.name.as_str(), info.dimension), ("published", 48 + 40));
    assert_eq!((info.image_size, info.text_length), ((48, 24), 20));
    assert_eq!(info.similarity, Similarity::MeanOfTwoCosines);
    assert_ne!(info.fingerprint, load("trained").info().fingerprint);
    assert_eq!(info.fingerprint, load("published").info().fingerprint);
    assert!(folder("published").join("best.pth").is_file());
}
