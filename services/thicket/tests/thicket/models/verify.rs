//! `thicket models verify`.

use std::path::PathBuf;

use crate::support::{Files, run};

fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name)
}

fn arg(name: &str) -> String {
    golden(name).to_str().unwrap().to_owned()
}

#[test]
fn the_document_says_what_it_is_and_what_it_takes() {
    let json =
        run(&["models", "verify", &arg("qwen/tied"), "--adapter", &arg("qwen/tied-adapter"), "--json"])
            .json();
    assert_eq!(json["kind"], "qwen2_vl");
    let parameters = json["stored"]["parameters"].as_u64().unwrap();
    assert_eq!(json["memory"]["weights"]["bf16"].as_u64(), Some(2 * parameters));
    assert_eq!(json["memory"]["cache_per_token"]["bf16"], 192);
    assert_eq!(
        (json["forward"]["what"].as_str(), json["forward"]["finite"].as_bool()),
        (Some("judged"), Some(true))
    );
    assert!(json["adapter"]["parameters"].as_u64().is_some_and(|count| count > 0));
}

#[test]
fn a_person_reads_what_it_is_and_that_it_is_well() {
    let embedding = run(&["models", "verify", &arg("clip/published")]);
    assert_eq!(embedding.status, 0, "{embedding:?}");
    for part in ["RDE or IRRA run", "f16", "finite", "\nok"] {
        assert!(embedding.stdout.contains(part), "{part}: {embedding:?}");
    }
    let adapter = run(&["models", "verify", &arg("qwen/tied-adapter")]);
    assert!(adapter.status == 0 && adapter.stdout.contains("--adapter"), "{adapter:?}");
}

#[test]
fn a_broken_folder_is_refused_in_one_line() {
    let files = Files::new();
    for file in std::fs::read_dir(golden("qwen/tied")).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), files.root().join(file.file_name())).unwrap();
    }
    let root = files.root().to_str().unwrap();
    run(&["models", "verify", root]).refuses_nothing();
    let weights = std::fs::read(files.path("model.safetensors")).unwrap();
    files.bytes("model.safetensors", &weights[..weights.len() - 1]);
    run(&["models", "verify", root]).refuses(&["model.safetensors"]);
    std::fs::remove_file(files.path("config.json")).unwrap();
    run(&["models", "verify", root]).refuses(&["config.json"]);
}

#[test]
fn a_folder_that_is_not_there_is_refused() {
    run(&["models", "verify", "/nonexistent"]).refuses(&["/nonexistent"]);
}
