//! `thicket models list`.

use std::path::PathBuf;

use serde_json::Value;

use crate::support::{Files, Run, thicket};

fn models() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../models")
}

fn list(files: &Files, args: &[&str]) -> Run {
    let mut command = thicket();
    command.env("HF_HUB_CACHE", files.path("hub")).args(["models", "list"]).args(args);
    command.output().unwrap().into()
}

fn entry<'a>(document: &'a Value, name: &str) -> &'a Value {
    let supported = document["supported"].as_array().unwrap();
    supported.iter().find(|model| model["name"] == name).unwrap_or_else(|| panic!("{name}"))
}

#[test]
fn the_document_has_sizes_needs_and_fits() {
    let document = list(&Files::new(), &["--json"]).json();
    let large = entry(&document, "qwen2-vl-7b-instruct");
    assert_eq!(large["repo"], "Qwen/Qwen2-VL-7B-Instruct");
    assert_eq!(large["parameters"], 8_291_375_616u64);
    assert_eq!(large["published_bytes"], 16_582_751_232u64);
    let need = &large["need"];
    let sum: u64 =
        ["weights", "cache", "activations", "driver"].iter().map(|part| need[part].as_u64().unwrap()).sum();
    assert_eq!(need["total"].as_u64(), Some(sum));
    let fits: Vec<&str> = large["fits"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    assert!(fits.contains(&"RTX 3090") && !fits.contains(&"T4"), "{fits:?}");
    assert_eq!(entry(&document, "icl-lora")["base"], "qwen2-vl-7b-instruct");
}

#[test]
fn what_is_here_is_found_in_the_cache_and_in_the_folder_of_models() {
    let files = Files::new();
    let commit = "0123456789abcdef0123456789abcdef01234567";
    let repository = files.path("hub/models--Yangsss--RDE");
    let run = repository.join("snapshots").join(commit).join("CUHK-PEDES");
    std::fs::create_dir_all(&run).unwrap();
    std::fs::create_dir_all(repository.join("refs")).unwrap();
    std::fs::write(repository.join("refs/main"), commit).unwrap();
    std::fs::write(run.join("configs.yaml"), "img_size: [384, 128]").unwrap();
    let document = list(&files, &["--json", "--models", models().to_str().unwrap()]).json();
    let here = document["here"].as_array().unwrap();
    assert_eq!(here.len(), 3, "{here:?}");
    assert_eq!((here[0]["name"].as_str(), here[0]["commit"].as_str()), (Some("rde"), Some(commit)));
    assert_eq!(here[0]["bytes"], 20);
    assert!(here[1]["path"].as_str().unwrap().ends_with("sample-answer"), "{here:?}");
    assert_eq!((here[1]["kind"].as_str(), here[2]["kind"].as_str()), (Some("qwen2_vl"), Some("run")));
    assert_eq!(entry(&document, "rde")["here"], serde_json::json!([run.to_str().unwrap()]));
}

#[test]
fn a_person_reads_a_table() {
    let files = Files::new();
    let printed = list(&files, &["--models", models().to_str().unwrap()]);
    printed.refuses_nothing();
    for part in ["NAME", "qwen2.5-vl-3b-instruct", "15.44 GiB", "19.94 GiB", "RTX 3090", "sample-embedding"] {
        assert!(printed.stdout.contains(part), "{part}: {printed:?}");
    }
}

#[test]
fn a_folder_of_models_that_is_not_there_is_refused() {
    let files = Files::new();
    list(&files, &["--models", &files.arg("absent")]).refuses(&["models", "absent"]);
}

#[test]
fn the_arithmetic_is_in_the_help() {
    let help = list(&Files::new(), &["--help"]);
    for part in ["parameters x 2 bytes", "8,291,375,616", "19.94 GiB", "--models"] {
        assert!(help.stdout.contains(part), "{part}: {}", help.stdout);
    }
}
