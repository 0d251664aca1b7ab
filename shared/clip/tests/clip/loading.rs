//! What a checkpoint folder must hold, and what the error says where it does not.

use std::fs;

use crate::support::{checkpoint_with, folder, load, trained_tensors};
use candle_core::{DType, Device, Tensor};
use thicket_checkpoint::CheckpointError;
use thicket_clip::{ClipEmbedder, ClipError, LoadOptions, OPTIONS_FILE};
use thicket_engine::{Embedder, EngineError, Similarity};

fn refusal(dir: &std::path::Path) -> ClipError {
    ClipEmbedder::load(dir, LoadOptions::reference("x")).unwrap_err()
}

#[test]
fn a_missing_tensor_is_named_wherever_it_is() {
    for name in [
        "base_model.visual.conv1.weight",
        "base_model.transformer.resblocks.0.attn.in_proj_weight",
        "base_model.visual.transformer.resblocks.1.ln_1.weight",
        "base_model.ln_final.bias",
        "visul_emb_layer.fc.weight",
        "texual_emb_layer.mlp.bns.0.running_var",
    ] {
        let mut tensors = trained_tensors();
        tensors.remove(name).unwrap();
        let error = refusal(checkpoint_with(&tensors).path()).to_string();
        assert!(error.contains(name) && error.contains("missing"), "{name}: {error}");
    }
}

#[test]
fn a_wrong_shape_is_named_with_both_shapes() {
    let mut tensors = trained_tensors();
    let name = "base_model.visual.ln_pre.weight";
    tensors.insert(name.to_owned(), Tensor::zeros(65, DType::F32, &Device::Cpu).unwrap());
    let error = refusal(checkpoint_with(&tensors).path()).to_string();
    assert!(error.contains(name) && error.contains("65") && error.contains("64"), "{error}");
}

#[test]
fn a_tensor_that_belongs_nowhere_is_named() {
    let mut tensors = trained_tensors();
    tensors.insert("base_model.extra".to_owned(), Tensor::zeros(1, DType::F32, &Device::Cpu).unwrap());
    let error = refusal(checkpoint_with(&tensors).path());
    assert!(
        matches!(&error, ClipError::Checkpoint(CheckpointError::Unused { first, count: 1 }) if first == "base_model.extra"),
        "{error}"
    );
}

#[test]
fn a_weight_that_is_not_a_number_is_refused() {
    let mut tensors = trained_tensors();
    let name = "base_model.ln_final.bias";
    let width = tensors[name].elem_count();
    tensors.insert(name.to_owned(), Tensor::new(vec![f32::NAN; width], &Device::Cpu).unwrap());
    let error = refusal(checkpoint_with(&tensors).path()).to_string();
    assert!(error.contains(name) && error.contains("not finite"), "{error}");
}

#[test]
fn options_that_contradict_the_weights_are_refused() {
    let dir = checkpoint_with(&trained_tensors());
    for (options, field) in [
        ("img_size: [44, 99]\nstride_size: 5", "image size"),
        ("img_size: [44, 27]\nstride_size: 8", "image size"),
        ("img_size: [44, 27]\nstride_size: 5\ntext_length: 77", "text length"),
        ("img_size: [44, 27]\nstride_size: 5\nselect_ratio: 1.5", "select_ratio"),
    ] {
        fs::write(dir.path().join(OPTIONS_FILE), options).unwrap();
        let error = refusal(dir.path());
        assert!(
            matches!(&error, ClipError::Config { field: found, .. } if *found == field),
            "{options}: {error}"
        );
    }
}

#[test]
fn a_folder_without_options_or_weights_says_so() {
    let empty = tempfile::tempdir().unwrap();
    assert!(matches!(refusal(empty.path()), ClipError::Layout { found: "neither", .. }));
    fs::copy(folder("trained").join(OPTIONS_FILE), empty.path().join(OPTIONS_FILE)).unwrap();
    let error = refusal(empty.path());
    assert!(matches!(error, ClipError::Checkpoint(CheckpointError::NoWeights { .. })), "{error}");
}

#[test]
fn a_damaged_archive_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    fs::copy(folder("published").join(OPTIONS_FILE), dir.path().join(OPTIONS_FILE)).unwrap();
    let archive = fs::read(folder("published").join("best.pth")).unwrap();
    for bytes in [&archive[..archive.len() / 2], b"not a zip file"] {
        fs::write(dir.path().join("best.pth"), bytes).unwrap();
        let error = refusal(dir.path());
        assert!(matches!(error, ClipError::Checkpoint(CheckpointError::Damaged { .. })), "{error}");
    }
}

#[test]
fn a_pickle_with_code_in_it_is_refused_by_name_and_not_run() {
    let error = refusal(&folder("hostile"));
    assert!(
        matches!(&error, ClipError::Checkpoint(CheckpointError::Code { name, .. }) if name == "posix.system")
    );
    let line = error.to_string();
    assert!(
        line.contains("best.pth") && line.contains("posix.system") && line.lines().count() == 1,
        "{line}"
    );
    assert!(!std::path::Path::new("the-pickle-was-run").exists());
}

#[test]
fn an_archive_cut_anywhere_is_refused_in_one_line() {
    let dir = tempfile::tempdir().unwrap();
    fs::copy(folder("irra").join(OPTIONS_FILE), dir.path().join(OPTIONS_FILE)).unwrap();
    let archive = fs::read(folder("irra").join("best.pth")).unwrap();
    for part in [0, 1, 10, 50, 90, 99] {
        fs::write(dir.path().join("best.pth"), &archive[..archive.len() * part / 100]).unwrap();
        let error = refusal(dir.path()).to_string();
        assert!(error.contains("best.pth") && error.lines().count() == 1, "{part} %: {error}");
    }
}

#[test]
fn safetensors_cut_anywhere_are_refused_in_one_line() {
    let dir = checkpoint_with(&trained_tensors());
    let file = dir.path().join("model.safetensors");
    let whole = fs::read(&file).unwrap();
    for length in [0, 4, 100, whole.len() / 2, whole.len() - 1] {
        fs::write(&file, &whole[..length]).unwrap();
        let error = refusal(dir.path()).to_string();
        assert!(error.contains("model.safetensors") && error.lines().count() == 1, "{length}: {error}");
    }
}

#[test]
fn settings_that_cannot_be_looked_at_are_told_from_missing_ones() {
    // A link to itself cannot be followed by anyone, where a missing permission does not stop the superuser.
    for name in [OPTIONS_FILE, "config.json"] {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(name, dir.path().join(name)).unwrap();
        let error = refusal(dir.path());
        assert!(matches!(&error, ClipError::File { path, .. } if path.ends_with(name)), "{error}");
    }
    let dir = tempfile::tempdir().unwrap();
    fs::copy(folder("trained").join(OPTIONS_FILE), dir.path().join(OPTIONS_FILE)).unwrap();
    std::os::unix::fs::symlink("model.safetensors", dir.path().join("model.safetensors")).unwrap();
    let error = refusal(dir.path());
    assert!(matches!(&error, ClipError::Checkpoint(CheckpointError::Unreadable { .. })), "{error}");
}

#[test]
fn every_storage_type_and_prefix_gives_the_same_model() {
    let texts = ["a woman in red".to_owned()];
    let vector = |dtype: DType, prefix: &str| {
        let tensors = trained_tensors()
            .into_iter()
            .map(|(name, tensor)| (format!("{prefix}{name}"), tensor.to_dtype(dtype).unwrap()))
            .collect();
        let dir = checkpoint_with(&tensors);
        ClipEmbedder::load(dir.path(), LoadOptions::reference("x"))
            .unwrap()
            .embed_texts(&texts)
            .unwrap()
            .remove(0)
    };
    let half = load("trained").embed_texts(&texts).unwrap().remove(0);
    // The fixture is stored in f16, which f32 holds exactly and bf16 does not.
    for dtype in [DType::F16, DType::F32] {
        assert_eq!(vector(dtype, "module."), half, "{dtype:?}");
    }
    let coarse = vector(DType::BF16, "");
    let cosine: f32 = coarse.iter().zip(&half).map(|(a, b)| a * b).sum();
    assert!(cosine > 0.999 && coarse != half, "{cosine}");
}

#[test]
fn a_vocabulary_of_another_model_is_refused() {
    let dir = checkpoint_with(&trained_tensors());
    fs::remove_file(dir.path().join("bpe_simple_vocab.txt")).unwrap();
    let error = refusal(dir.path());
    assert!(matches!(error, ClipError::VocabularySize { vocabulary: 49_408, embedding: 580 }), "{error}");
}

#[test]
fn a_model_without_token_selection_stores_the_global_embedding() {
    let mut tensors = trained_tensors();
    tensors.retain(|name, _| name.starts_with("base_model."));
    let heads = [("classifier.weight", 7), ("mlm_head.fc.bias", 9), ("cross_attn.in_proj_bias", 3)];
    for (name, length) in heads {
        tensors.insert(name.to_owned(), Tensor::zeros(length, DType::F32, &Device::Cpu).unwrap());
    }
    let dir = checkpoint_with(&tensors);
    let mut plain = ClipEmbedder::load(dir.path(), LoadOptions::reference("plain")).unwrap();
    assert_eq!(plain.info().similarity, Similarity::Cosine);
    let texts = ["a woman in red".to_owned()];
    let vector = plain.embed_texts(&texts).unwrap().remove(0);
    let both = load("trained").embed_texts(&texts).unwrap().remove(0);
    assert_eq!(vector.len(), 72);
    for (alone, half) in vector.iter().zip(&both) {
        assert!((alone - half * 2.0_f32.sqrt()).abs() < 1e-5);
    }
}

#[test]
fn tensors_that_no_embedding_needs_may_be_absent() {
    let mut tensors = trained_tensors();
    tensors.retain(|name, _| !name.contains(".bns.1.") && !name.starts_with("visul_emb_layer.linear."));
    let dir = checkpoint_with(&tensors);
    ClipEmbedder::load(dir.path(), LoadOptions::reference("x")).unwrap();
}

#[test]
fn other_weights_and_other_options_change_the_fingerprint() {
    let fingerprint = |dir: &std::path::Path| {
        ClipEmbedder::load(dir, LoadOptions::reference("x")).unwrap().info().fingerprint.clone()
    };
    let dir = checkpoint_with(&trained_tensors());
    let first = fingerprint(dir.path());
    let options = fs::read_to_string(dir.path().join(OPTIONS_FILE)).unwrap();
    fs::write(dir.path().join(OPTIONS_FILE), options.replace("0.4", "0.5")).unwrap();
    assert_ne!(fingerprint(dir.path()), first);
    fs::write(dir.path().join(OPTIONS_FILE), options).unwrap();
    assert_eq!(fingerprint(dir.path()), first);
}

#[test]
fn a_text_without_a_word_is_refused_and_any_other_is_embedded() {
    let mut embedder = load("trained");
    for text in ["", "  \t ", "\u{7f}"] {
        let error = embedder.embed_texts(&[text.to_owned()]).unwrap_err();
        assert!(matches!(error, EngineError::InvalidInput { field: "text", .. }), "{text:?}: {error}");
    }
    let odd = [
        "\u{1f600}\u{1f600}",
        "\u{631}\u{62c}\u{644}",
        "jekyll",
        "!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!a",
        "<|endoftext|>",
    ];
    let mut texts: Vec<String> = odd.iter().map(|&text| text.to_owned()).collect();
    texts.push("word ".repeat(10_000));
    for (text, vector) in texts.iter().zip(embedder.embed_texts(&texts).unwrap()) {
        let norm: f32 = vector.iter().map(|value| value * value).sum();
        assert!((norm - 1.0).abs() < 1e-5, "{:?}: {norm}", &text[..text.len().min(20)]);
    }
}

#[test]
fn nothing_in_gives_nothing_out() {
    let mut embedder = load("trained");
    assert!(embedder.embed_texts(&[]).unwrap().is_empty());
    assert!(embedder.embed_images(&[]).unwrap().is_empty());
}
