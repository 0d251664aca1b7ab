//! `thicket train`: a few steps leave a folder that loads; what cannot work is refused before it costs time.

use crate::support::{Files, run};

#[test]
fn a_few_steps_leave_an_embedding_model_that_loads() {
    let files = Files::new();
    let out = files.arg("embedding");
    let mut args = vec!["train", "embedding", "--out", &out, "--families", "2", "--json"];
    args.extend(["--attribute-steps", "1", "--contrast-steps", "1", "--batch", "8"]);
    let card = run(&args).json();
    assert!(card["parameters"].as_u64().unwrap() > 100_000, "{card}");
    assert!((0.0..=100.0).contains(&card["validation"]["map"].as_f64().unwrap()), "{card}");

    let vector = run(&["embed", "--model", &out, "--text", "a man in a red coat", "--json"]).json();
    assert_eq!(vector["vectors"][0].as_array().unwrap().len() as u64, vector["dim"].as_u64().unwrap());
    assert!(files.path("embedding/training.json").is_file());
}

#[test]
fn folders_that_are_not_there_are_refused_before_training() {
    let files = Files::new();
    let (out, nowhere) = (files.arg("answer"), files.arg("nowhere"));
    run(&["train", "answer", "--embedding", &nowhere, "--out", &out]).refuses(&["embedding", "nowhere"]);
    let here = files.root().to_str().unwrap();
    run(&["train", "answer", "--embedding", here, "--start", &nowhere, "--out", &out])
        .refuses(&["start", "nowhere"]);
    assert!(!files.path("answer").exists());
}
